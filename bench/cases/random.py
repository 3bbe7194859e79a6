"""`ffs-bench random`: 4 KiB ranges at random places, 256 a call and one at a time, beside plain C.

256 a call: `fs.readv_into` with a structured array over a handle, CRC off and on; the goal is a
rate. One at a time: `fs.readv_into` with a list of one tuple, CRC on, as a user would write it; the
goal is on its median latency. The reference is bench/raw/small.c, serving by mmap + writev and by
pread: whichever is the better one here. Offsets are aligned to 4 KiB.
"""

from __future__ import annotations

import numpy as np

from ffs.bench.cases.common import SEED, Context, Outcome, figures, raw_runner, runs, take_turns
from ffs.bench.cases.reading import Caller, file_system, stored
from ffs.bench.measure import Better, Runner, by_cpu, by_median, by_operations
from ffs.bench.rawtools import Option

RANGE_BYTES = 4096
RANGES_A_CALL = 256
CALLS = 512
RATE_GOAL = 150_000
LATENCY_GOAL = 3.0

_PLAIN, _CHECKED = "256 a call, CRC off", "256 a call, CRC on"
_RAW_MMAP, _RAW_PREAD = "256 a call, plain C, mmap + writev", "256 a call, plain C, pread + send"
_ONE, _ONE_MMAP, _ONE_PREAD = "one, CRC on", "one, plain C, mmap", "one, plain C, pread"
_NAMES = [_PLAIN, _CHECKED, _RAW_MMAP, _RAW_PREAD, _ONE, _ONE_MMAP, _ONE_PREAD]


def measure(context: Context) -> Outcome:
    """Store a file, verify that it comes back, and let the seven contestants take turns."""
    blocks = context.size_bytes // RANGE_BYTES
    calls = 4 if context.plan.smoke else CALLS
    picks = np.random.default_rng(SEED).integers(0, blocks, (calls, RANGES_A_CALL))
    offsets = picks.astype(np.uint64) * np.uint64(RANGE_BYTES)
    with (
        stored(context) as data,
        file_system(data.where, context, verify=False) as careless,
        file_system(data.where, context, verify=True) as careful,
    ):
        plain, checked = Caller(careless, data, offsets), Caller(careful, data, offsets)
        verified = plain.verify(RANGE_BYTES) + checked.verify(RANGE_BYTES)

        def raw(mode: str, window: int) -> Runner:
            options: dict[str, Option] = {"file": data.plain, "range_bytes": RANGE_BYTES}
            return raw_runner(context, "small", mode=mode, window=window, check=window, **options)

        metered = data.where.metered
        series = take_turns(
            context,
            {
                _PLAIN: metered(plain.batches(RANGE_BYTES)),
                _CHECKED: metered(checked.batches(RANGE_BYTES)),
                _RAW_MMAP: raw("mmap", RANGES_A_CALL),
                _RAW_PREAD: raw("pread", RANGES_A_CALL),
                _ONE: metered(checked.singles(RANGE_BYTES)),
                _ONE_MMAP: raw("mmap", 1),
                _ONE_PREAD: raw("pread", 1),
            },
        )
    best = series.best([_RAW_MMAP, _RAW_PREAD], by_operations)
    thrifty = series.best([_RAW_MMAP, _RAW_PREAD], by_cpu, Better.SMALLER)
    quick = series.best([_ONE_MMAP, _ONE_PREAD], by_median, Better.SMALLER)
    compare, reach, smaller = series.compare, series.reach, Better.SMALLER
    return Outcome(
        command="random",
        conditions=context.conditions(
            ranges="4 KiB, aligned, random, cached",
            calls=f"{RANGES_A_CALL} ranges or one, one call at a time, on both sides",
            connections="1",
            destination="64 MiB, touched",
            data=f"{context.size_bytes} bytes, {verified} delivered bytes verified beforehand",
        ),
        figures=figures(series, _NAMES),
        comparisons=[
            reach(f"ranges/s of {RATE_GOAL:,}, CRC off", _PLAIN, by_operations, RATE_GOAL),
            reach(f"ranges/s of {RATE_GOAL:,}, CRC on", _CHECKED, by_operations, RATE_GOAL),
            compare("speed, CRC off", _PLAIN, best, by_operations),
            compare("speed, CRC on", _CHECKED, best, by_operations),
            compare("CPU, CRC off", _PLAIN, thrifty, by_cpu),
            compare("CPU, CRC on", _CHECKED, thrifty, by_cpu),
            compare("latency of one", _ONE, quick, by_median, goal=LATENCY_GOAL, better=smaller),
        ],
        runs=runs(series),
        notes=data.where.notes,
    )
