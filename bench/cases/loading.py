"""What the loader cases share: samples in a cluster, loaders as contestants, their bytes verified.

Used by dataloader.py and loaders.py. Every loader is a process of its own (bench/peers/process.py)
that was started, has written its own files and has delivered one epoch, whose samples' CRCs are
held against the data set, before anything is timed; the last batch of every timed run is checked,
too. CPU seconds are those of the loop's process and its workers, and of the servers behind it.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import ffs.records
from ffs.bench.cases.common import RECEIVE_BUFFER_BYTES, SEED, Context
from ffs.bench.cases.reading import OVER_TCP, DataSet
from ffs.bench.machine import process_cpu_seconds
from ffs.bench.measure import Runner, Sample
from ffs.bench.peers.loaders.child import Job
from ffs.bench.peers.process import OPEN_S_MAX, LoaderProcess, loader_process
from ffs.client.filesystem import FFSFileSystem
from ffs.errors import ChecksumError, ConfigError

KIB = 1 << 10
OWN_PYTHON = Path(sys.executable)


@dataclass(frozen=True, slots=True)
class Shape:
    """Samples of one length, so many a batch, loaded by so many workers."""

    sample_bytes: int
    batch: int
    workers: int

    @property
    def title(self) -> str:
        """Return how the figures name it."""
        some = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        return f"{self.sample_bytes // KIB} KiB x {self.batch}, {some}"

    def of(self, context: Context) -> Shape:
        """Return it with batches small enough that smoke runs have some."""
        most = max(context.size_bytes // self.sample_bytes // 8, 1)
        return replace(self, batch=min(self.batch, most))


class Truth:
    """What an epoch must deliver: the CRCs of all samples."""

    def __init__(self, job: Job) -> None:
        crcs = [zlib.crc32(row) for row in job.samples()]
        self._crcs, self._count, self._sum = frozenset(crcs), job.count, sum(crcs)

    def check_epoch(self, name: str, found: Mapping[str, int]) -> None:
        """Refuse an epoch that was not each sample once."""
        if (found["count"], found["crc_sum"]) != (self._count, self._sum):
            raise ChecksumError(f"an epoch of {name} was not every sample once")

    def check_batch(self, name: str, crcs: list[int]) -> None:
        """Refuse a batch with other samples, or none."""
        if not crcs or not self._crcs.issuperset(crcs):
            raise ChecksumError(f"{name} delivered other bytes than were stored")


def needs_torch() -> None:
    """Refuse to begin without PyTorch, of which this process itself imports nothing.

    Raises:  ConfigError
    """
    if find_spec("torch") is None:
        raise ConfigError("the loaders need PyTorch", hint="pip install 'ffs[torch]'")


def own_options(data: DataSet, context: Context) -> dict[str, Any]:
    """Return the storage options of our loader, and of `readv_into` beside it."""
    return {
        "key_file": data.where.key_file,
        **OVER_TCP,
        "congestion": context.congestion,
        "receive_buffer_bytes": RECEIVE_BUFFER_BYTES,
    }


def job_of(shape: Shape, data: DataSet, directory: Path, more: Mapping[str, Any]) -> Job:
    """Return what a loader is told: whole batches for each worker."""
    each = shape.batch * max(shape.workers, 1)
    count = data.size_bytes // shape.sample_bytes // each * each
    directory.mkdir(parents=True)
    return Job(
        plain=str(data.plain),
        directory=str(directory),
        sample_bytes=shape.sample_bytes,
        count=count,
        batch=shape.batch,
        workers=shape.workers,
        seed=SEED,
        more=dict(more),
    )


@contextmanager
def own_job(
    shape: Shape, data: DataSet, context: Context, fs: FFSFileSystem, name: str
) -> Iterator[Job]:
    """Write the samples as records into the cluster and yield what our loader is told."""
    path = f"/ffs-bench-{os.getpid()}-{name}.ffr"
    more = {"url": f"{data.where.url}{path}", "storage_options": own_options(data, context)}
    job = job_of(shape, data, context.directory / name, more)
    with ffs.records.create(path, fs=fs) as out:
        for row in job.samples():
            out.append(row)
    try:
        yield job
    finally:
        fs.rm_file(path)


@contextmanager
def opened(
    module: str,
    python: Path,
    job: Job,
    *,
    truth: Truth,
    environment: Mapping[str, str] | None = None,
) -> Iterator[tuple[LoaderProcess, str]]:
    """Start a loader, check what an epoch delivers, and yield it, held, with its version."""
    with loader_process(module, python, Path(job.directory).parent, environment) as process:
        version = process.ask("open", limit_s=OPEN_S_MAX, **asdict(job))["version"]
        truth.check_epoch(module, process.ask("verify", limit_s=OPEN_S_MAX))
        process.hold()
        yield process, version


def contestant(
    name: str,
    process: LoaderProcess,
    truth: Truth,
    served_by: tuple[int, ...] | None,
    *,
    touch: bool,
) -> Runner:
    """Return a contestant that loops over a loader; operations are samples.

    Args:    touch: have the loop read a byte of each page of a batch
    """

    def run(seconds: float) -> Sample:
        process.release()
        try:
            before = process_cpu_seconds(served_by or ())
            found = process.ask("run", seconds=seconds, touch=touch)
            spent = process_cpu_seconds(served_by or ()) - before
        finally:
            process.hold()
        truth.check_batch(name, found["crcs"])
        return _sample(found, None if served_by is None else spent * found["share"])

    return run


def _sample(found: Mapping[str, Any], server_cpu_s: float | None) -> Sample:
    return Sample(
        seconds=found["seconds"],
        bytes=found["bytes"],
        operations=found["samples"],
        client_cpu_s=found["cpu_s"],
        server_cpu_s=server_cpu_s,
        more={
            "main_faults_per_batch": found["main_faults"] / found["batches"],
            "worker_faults_per_batch": found["worker_faults"] / found["batches"],
        },
    )


def scattered_batches(job: Job) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Return the offsets of an epoch's samples in random order, a row for each batch."""
    order = np.random.default_rng(SEED).permutation(job.count).astype(np.uint64)
    return (order * np.uint64(job.sample_bytes)).reshape(-1, job.batch)
