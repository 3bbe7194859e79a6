"""`ffs-bench records`: opening large files of records, their index's memory, writing, batches.

A hundred million samples in our container and ten million in FFRecord, made by
bench/cases/large_records.py, are opened by a client that is connected already, and a sample
anywhere is read and compared: opening alone may be lazy. What the index takes in a process and two
workers together is counted (bench/cases/index_memory.py) for forked and for spawned ones. Then a
batch of records is held against `readv_into` of the same ranges, `append` against writing the same
bytes to a file, and a sampler of 2 x 10^9 samples is set to its middle.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

import ffs.records
from ffs.bench.cases import index_memory, large_records
from ffs.bench.cases.common import MIB, SEED, Context, Outcome, figures, runs, take_turns
from ffs.bench.cases.loading import KIB, Shape, needs_torch, own_job, scattered_batches
from ffs.bench.cases.reading import Caller, DataSet, file_system, stored
from ffs.bench.cluster import Work
from ffs.bench.machine import pinned
from ffs.bench.measure import Better, Comparison, Runner, Sample, Series, bounded, by_bytes, by_cpu
from ffs.client.filesystem import FFSFileSystem
from ffs.client.records.ffrecord import header_bytes
from ffs.errors import ChecksumError, NativeError

CONTAINER_SAMPLES, CONTAINER_MS = 100_000_000, 50.0
FFRECORD_SAMPLES, FFRECORD_MS = 10_000_000, 1_000.0
RESUME_AT, RESUME_MS = 1_000_000_000, 1_000.0
SMOKE_SAMPLES = 100_000
BATCHES = (Shape(64 * KIB, 64, 0), Shape(4 * KIB, 1024, 0))
APPENDED_BYTES = 64 * KIB
FILE_BYTES_MAX = 256 * MIB
"""A run that writes begins the next file then."""
WORKER_S_MAX = 300


def measure(context: Context) -> Outcome:
    """Measure one part after the other on one cluster."""
    needs_torch()
    found = Outcome("records", {}, [], [], [])
    with stored(context) as data, file_system(data.where, context) as fs:
        with pinned(context.placement.client_cpus):
            _opening(found, context, data, fs)
            for shape in BATCHES:
                _batches(found, shape.of(context), context, data, fs)
            _writing(found, context, data, fs)
            _resuming(found, context)
        notes = [*data.where.notes, "opening: the client is connected, and has imported everything"]
    conditions = context.conditions(
        samples="of 4 bytes where an index is opened; noise of 64 and 4 KiB in batches",
        data=f"{context.size_bytes} bytes; every sample that opening reads is compared, and every "
        "batch beforehand",
    )
    return replace(found, conditions=conditions, notes=notes)


def _take_turns(found: Outcome, context: Context, contestants: dict[str, Runner]) -> Series:
    series = take_turns(context, contestants)
    found.figures.extend(figures(series, list(contestants)))
    found.runs.extend(runs(series))
    return series


def milliseconds(sample: Sample) -> float:
    """Milliseconds of an operation: smaller is better."""
    return sample.seconds / sample.operations * 1e3


# --- opening ------------------------------------------------------------------------------------


def _opening(found: Outcome, context: Context, data: DataSet, fs: FFSFileSystem) -> None:
    cases = (
        ("our container", large_records.write_container, CONTAINER_SAMPLES, CONTAINER_MS),
        ("FFRecord", large_records.write_ffrecord, FFRECORD_SAMPLES, FFRECORD_MS),
    )
    for title, write, samples, limit_ms in cases:
        count = SMOKE_SAMPLES if context.plan.smoke else samples
        with _written(fs, write, count) as path:
            name = f"open {title} of {count:,}"
            opening = data.where.metered(_open_again(fs, path, count))
            series = _take_turns(found, context, {name: opening})
            found.comparisons.append(
                series.reach(name, name, milliseconds, limit_ms, better=Better.SMALLER, unit="ms")
            )
            if write is large_records.write_ffrecord:
                for method in ("fork", "spawn"):
                    found.comparisons.append(_shared(context, data, path, count, method))


@contextmanager
def _written(
    fs: FFSFileSystem, write: Callable[[FFSFileSystem, str, int], None], count: int
) -> Iterator[str]:
    path = f"/ffs-bench-{os.getpid()}-large.ffr"
    write(fs, path, count)
    try:
        yield path
    finally:
        fs.rm_file(path)


def _open_again(fs: FFSFileSystem, path: str, count: int) -> Work:
    """Return a loop that opens, reads a sample anywhere, and closes."""
    dice = np.random.default_rng(SEED)

    def work(until: float) -> tuple[int, int, Mapping[str, float]]:
        opened = 0
        while not opened or time.perf_counter() < until:
            sample = int(dice.integers(count))
            with ffs.records.open(path, fs=fs) as records:
                if len(records) != count or int.from_bytes(records[sample], "little") != sample:
                    raise ChecksumError(f"sample {sample} is not what was written", path=path)
            opened += 1
        return 0, opened, {}

    return work


def _shared(context: Context, data: DataSet, path: str, count: int, method: str) -> Comparison:
    """Hold the index's memory in three processes against what it takes in the file."""
    where = data.where
    command = [sys.executable, "-m", index_memory.__name__, f"{where.url}{path}", where.key_file]
    result = subprocess.run(
        [*command, method], capture_output=True, text=True, check=False, timeout=WORKER_S_MAX
    )
    if result.returncode:
        raise NativeError(f"the process that shares an index failed: {result.stderr.strip()}")
    return bounded(
        f"index in a process and {index_memory.WORKERS} workers ({method})",
        f"{count:,} samples of FFRecord",
        json.loads(result.stdout)["bytes"] / MIB,
        header_bytes(count) / MIB,
        unit="MiB",
        smoke=context.plan.smoke,
    )


# --- batches, writing, resuming -----------------------------------------------------------------


def _batches(
    found: Outcome, shape: Shape, context: Context, data: DataSet, fs: FFSFileSystem
) -> None:
    """Hold `read_into` of numbers against `readv_into` of ranges that were planned beforehand."""
    name = f"batches-{shape.sample_bytes}"
    with own_job(shape, data, context, fs, name) as job:
        offsets = scattered_batches(job)
        numbers = [row.astype(np.int64) for row in offsets // np.uint64(shape.sample_bytes)]
        caller = Caller(fs, data, offsets)
        caller.verify(shape.sample_bytes)
        slots = caller.slots(shape.batch * shape.sample_bytes)
        plain, samples = job.samples(), f"{shape.sample_bytes // KIB} KiB x {shape.batch}"
        with ffs.records.open(job.more["url"], fs=fs) as records:
            for row in numbers:
                records.read_into(row, slots[0])
                if not np.array_equal(np.frombuffer(slots[0], np.uint8), plain[row].ravel()):
                    raise ChecksumError("the records are not what was written")
            ours, alone = f"{samples}: Records.read_into", f"{samples}: readv_into"
            reading = data.where.metered(_read_again(records, numbers, slots))
            planned = data.where.metered(caller.batches(shape.sample_bytes))
            series = _take_turns(found, context, {ours: reading, alone: planned})
    found.comparisons.append(series.compare(f"{samples}, speed", ours, alone, by_bytes))
    found.comparisons.append(
        series.compare(f"{samples}, CPU of both", ours, alone, by_cpu, better=Better.SMALLER)
    )


def _read_again(
    records: ffs.records.Records, numbers: list[npt.NDArray[np.int64]], slots: list[memoryview]
) -> Work:
    batches, places = itertools.cycle(numbers), itertools.cycle(slots)

    def work(until: float) -> tuple[int, int, Mapping[str, float]]:
        moved = samples = 0
        while time.perf_counter() < until:
            batch, place = next(batches), next(places)
            records.read_into(batch, place)
            moved += len(place)
            samples += len(batch)
        return moved, samples, {}

    return work


def _writing(found: Outcome, context: Context, data: DataSet, fs: FFSFileSystem) -> None:
    ours, plain = "64 KiB samples: append", "64 KiB pieces: write"
    contestants = {
        ours: data.where.metered(_write_again(fs, context, records=True)),
        plain: data.where.metered(_write_again(fs, context, records=False)),
    }
    series = _take_turns(found, context, contestants)
    found.comparisons.append(series.compare("writing records, speed", ours, plain, by_bytes))
    found.comparisons.append(
        series.compare("writing records, CPU", ours, plain, by_cpu, better=Better.SMALLER)
    )


def _write_again(fs: FFSFileSystem, context: Context, *, records: bool) -> Work:
    """Return a loop that writes files, each until it is large or the time is over."""
    noise = np.random.default_rng(SEED).bytes(APPENDED_BYTES)
    path = f"/ffs-bench-{os.getpid()}-written"
    file_bytes = min(FILE_BYTES_MAX, context.size_bytes)

    def work(until: float) -> tuple[int, int, Mapping[str, float]]:
        pieces = 0
        while not pieces or time.perf_counter() < until:
            opened: Any = ffs.records.create(path, fs=fs) if records else fs.open(path, "wb")
            with opened as out:
                add = out.append if records else out.write
                for _ in range(file_bytes // APPENDED_BYTES):
                    add(noise)
                    pieces += 1
                    if time.perf_counter() >= until:
                        break
            fs.rm_file(path)
        return pieces * APPENDED_BYTES, pieces, {}

    return work


def _resuming(found: Outcome, context: Context) -> None:
    from ffs.torch import ElasticSampler

    state = {"seed": SEED, "epoch": 3, "consumed": RESUME_AT}

    def run(seconds: float) -> Sample:
        start, cpu, resumed = time.perf_counter(), time.process_time(), 0
        while not resumed or time.perf_counter() < start + seconds:
            sampler = ElasticSampler(2 * RESUME_AT, rank=0, world=1)
            sampler.load_state_dict(state)
            next(iter(sampler))
            resumed += 1
        passed, cpu = time.perf_counter() - start, time.process_time() - cpu
        return Sample(passed, 0, resumed, cpu)

    name = f"resume ElasticSampler at sample {RESUME_AT:,}"
    series = _take_turns(found, context, {name: run})
    found.comparisons.append(
        series.reach(name, name, milliseconds, RESUME_MS, better=Better.SMALLER, unit="ms")
    )
