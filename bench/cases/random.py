"""`ffs-bench random`: 4 KiB ranges at random places, 256 a call, beside plain C and Redis.

Ours is `fs.readv_into` with a structured array over a handle: aligned with CRC off and on, and
unaligned, whose cost is the edges of blocks that travel for the checksum (bytes on the wire for
each byte used). The reference is bench/raw/small.c, serving by mmap + writev and by pread:
whichever is the better one here. Redis is asked by its own redis-benchmark, with one connection and
256 requests in flight, where it is installed, with the run's congestion control.
"""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np

from ffs.bench import redis_benchmark
from ffs.bench.cases.common import (
    SEED,
    Context,
    Outcome,
    figures,
    raw_runner,
    runs,
    take_turns,
)
from ffs.bench.cases.reading import Caller, DataSet, file_system, scattered, stored
from ffs.bench.link import own_loopback
from ffs.bench.measure import (
    Better,
    Comparison,
    Runner,
    Sample,
    Series,
    by_cpu,
    by_operations,
)
from ffs.bench.rawtools import Option

RANGE_BYTES = 4096
RANGES_A_CALL = 256
CALLS = 512
GOAL, REDIS_GOAL = 0.85, 2.0

_PLAIN, _CHECKED, _UNALIGNED = "aligned, CRC off", "aligned, CRC on", "unaligned, CRC on"
_RAW_MMAP, _RAW_PREAD = "plain C, mmap + writev", "plain C, pread + send"
_REDIS = "redis-benchmark, GET"
_OURS = (_PLAIN, _CHECKED, _UNALIGNED)


def by_amplification(sample: Sample) -> float:
    """Bytes on the wire for each byte asked for: smaller is better."""
    return sample.more["wire_per_byte"]


def measure(context: Context) -> Outcome:
    """Store a file, verify that it comes back, and let the contestants take turns."""
    shape = (4 if context.plan.smoke else CALLS, RANGES_A_CALL)
    aligned = scattered(context.size_bytes, RANGE_BYTES, shape)
    shift = np.random.default_rng(SEED + 1).integers(1, RANGE_BYTES, shape).astype(np.uint64)
    unaligned = np.maximum(aligned, np.uint64(RANGE_BYTES)) - shift
    with ExitStack() as stack:
        if redis_benchmark.installed() and not (context.url or context.plan.smoke):
            stack.enter_context(own_loopback(context.congestion))
        data = stack.enter_context(stored(context))
        careless = stack.enter_context(file_system(data.where, context, verify=False))
        careful = stack.enter_context(file_system(data.where, context, verify=True))
        callers = {
            _PLAIN: Caller(careless, data, aligned),
            _CHECKED: Caller(careful, data, aligned),
            _UNALIGNED: Caller(careful, data, unaligned),
        }
        verified = sum(caller.verify(RANGE_BYTES) for caller in callers.values())
        contestants = {
            name: data.where.metered(caller.batches(RANGE_BYTES))
            for name, caller in callers.items()
        }
        contestants |= _references(context, data, stack)
        series = take_turns(context, contestants)
    without = [] if _REDIS in contestants else ["redis is not installed: not compared with it"]
    return Outcome(
        command="random",
        conditions=context.conditions(
            ranges="4 KiB, random, cached",
            calls=f"{RANGES_A_CALL} ranges, one call at a time, on both sides",
            connections="1",
            destination="64 MiB, touched",
            data=f"{context.size_bytes} bytes, {verified} delivered bytes verified beforehand",
        ),
        figures=figures(series, list(contestants)),
        comparisons=_compare(series, redis=_REDIS in contestants),
        runs=runs(series),
        notes=[*data.where.notes, *without],
    )


def _references(context: Context, data: DataSet, stack: ExitStack) -> dict[str, Runner]:
    options: dict[str, Option] = {
        "file": data.plain,
        "range_bytes": RANGE_BYTES,
        "window": RANGES_A_CALL,
        "check": RANGES_A_CALL,
    }
    found = {
        _RAW_MMAP: raw_runner(context, "small", mode="mmap", **options),
        _RAW_PREAD: raw_runner(context, "small", mode="pread", **options),
    }
    if redis_benchmark.installed():
        plain = np.memmap(data.plain, dtype=np.uint8, mode="r")
        found[_REDIS] = stack.enter_context(redis_benchmark.contestant(context, plain, RANGE_BYTES))
    return found


def _compare(series: Series, *, redis: bool) -> list[Comparison]:
    compare, smaller = series.compare, Better.SMALLER
    best = series.best([_RAW_MMAP, _RAW_PREAD], by_operations)
    thrifty = series.best([_RAW_MMAP, _RAW_PREAD], by_cpu, smaller)
    found = [
        compare("speed, CRC off", _PLAIN, best, by_operations),
        compare("speed, CRC on", _CHECKED, best, by_operations, goal=GOAL),
        compare("speed, unaligned", _UNALIGNED, best, by_operations),
        compare("CPU, CRC off", _PLAIN, thrifty, by_cpu, better=smaller),
        compare("CPU, CRC on", _CHECKED, thrifty, by_cpu, better=smaller),
        series.compare(
            "wire bytes a byte, unaligned",
            _UNALIGNED,
            _CHECKED,
            by_amplification,
            better=smaller,
            unit="bytes a byte",
        ),
    ]
    if redis:
        title = "speed, CRC on, beside Redis"
        found.append(compare(title, _CHECKED, _REDIS, by_operations, goal=REDIS_GOAL))
    return found
