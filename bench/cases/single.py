"""`ffs-bench single`: one 4 KiB range a call, at random places, and how long each call takes.

Ours is `fs.readv_into` with a list of one tuple, CRC on, as a user would write it: the goal is on
its median latency. The reference is bench/raw/small.c with one range a call, serving by mmap +
writev and by pread: whichever is the quicker one here. Both keep what every call took.
"""

from __future__ import annotations

from ffs.bench.cases.common import (
    Context,
    Outcome,
    figures,
    raw_latency_runner,
    runs,
    take_turns,
)
from ffs.bench.cases.reading import Caller, file_system, scattered, stored
from ffs.bench.measure import Better, Sample, by_cpu, by_median
from ffs.bench.rawtools import Option

RANGE_BYTES = 4096
RANGES = 1 << 15
GOAL = 1.5

_OURS = "readv_into, CRC on"
_MMAP, _PREAD = "plain C, mmap + writev", "plain C, pread + send"


def by_p99(sample: Sample) -> float:
    """What 99 of 100 calls did not exceed, in microseconds: smaller is better."""
    return sample.more["p99_us"]


def measure(context: Context) -> Outcome:
    """Store a file, verify that it comes back, and let the three contestants take turns."""
    count = 1 << 8 if context.plan.smoke else RANGES
    offsets = scattered(context.size_bytes, RANGE_BYTES, (count // 256, 256))
    raw: dict[str, Option] = {"range_bytes": RANGE_BYTES, "window": 1, "check": 256}
    with stored(context) as data, file_system(data.where, context) as fs:
        caller = Caller(fs, data, offsets)
        verified = caller.verify(RANGE_BYTES)
        raw["file"] = data.plain
        series = take_turns(
            context,
            {
                _OURS: data.where.metered(caller.singles(RANGE_BYTES)),
                _MMAP: raw_latency_runner(context, mode="mmap", **raw),
                _PREAD: raw_latency_runner(context, mode="pread", **raw),
            },
        )
    quick = series.best([_MMAP, _PREAD], by_median, Better.SMALLER)
    smaller = Better.SMALLER
    return Outcome(
        command="single",
        conditions=context.conditions(
            ranges="4 KiB, aligned, random, cached",
            calls="one range, one call at a time, on both sides",
            connections="1",
            data=f"{context.size_bytes} bytes, {verified} delivered bytes verified beforehand",
        ),
        figures=figures(series, [_OURS, _MMAP, _PREAD]),
        comparisons=[
            series.compare("median latency", _OURS, quick, by_median, goal=GOAL, better=smaller),
            series.compare("99th percentile", _OURS, quick, by_p99, better=smaller, unit="us"),
            series.compare("CPU", _OURS, quick, by_cpu, better=smaller),
        ],
        runs=runs(series),
        notes=data.where.notes,
    )
