"""`ffs-bench medium`: 64 KiB ranges at random places of a cached file, 64 a call, beside plain C.

Ours is `fs.readv_into` with a structured array over a handle, one call at a time, CRC on and off.
The reference is bench/raw/small.c with the same calls, serving by sendfile for each range and by
one writev from a mapping: whichever is the better one here.
"""

from __future__ import annotations

from ffs.bench.cases.common import Context, Outcome, figures, raw_runner, runs, take_turns
from ffs.bench.cases.reading import Caller, file_system, scattered, stored
from ffs.bench.measure import Better, by_bytes, by_cpu
from ffs.bench.rawtools import Option

RANGE_BYTES = 64 << 10
RANGES_A_CALL = 64
CALLS = 128
GOAL = 0.80

_PLAIN, _CHECKED = "readv_into, CRC off", "readv_into, CRC on"
_SENDFILE, _MMAP = "plain C, sendfile", "plain C, mmap + writev"


def measure(context: Context) -> Outcome:
    """Store a file, verify that it comes back, and let the four contestants take turns."""
    calls = 2 if context.plan.smoke else CALLS
    offsets = scattered(context.size_bytes, RANGE_BYTES, (calls, RANGES_A_CALL))
    with (
        stored(context) as data,
        file_system(data.where, context, verify=False) as careless,
        file_system(data.where, context, verify=True) as careful,
    ):
        plain, checked = Caller(careless, data, offsets), Caller(careful, data, offsets)
        verified = plain.verify(RANGE_BYTES) + checked.verify(RANGE_BYTES)
        raw: dict[str, Option] = {
            "file": data.plain,
            "range_bytes": RANGE_BYTES,
            "window": RANGES_A_CALL,
            "check": RANGES_A_CALL,
        }
        metered = data.where.metered
        series = take_turns(
            context,
            {
                _PLAIN: metered(plain.batches(RANGE_BYTES)),
                _CHECKED: metered(checked.batches(RANGE_BYTES)),
                _SENDFILE: raw_runner(context, "small", mode="sendfile", **raw),
                _MMAP: raw_runner(context, "small", mode="mmap", **raw),
            },
        )
    compare = series.compare
    best = series.best([_SENDFILE, _MMAP], by_bytes)
    thrifty = series.best([_SENDFILE, _MMAP], by_cpu, Better.SMALLER)
    return Outcome(
        command="medium",
        conditions=context.conditions(
            ranges="64 KiB, aligned, random, cached",
            calls=f"{RANGES_A_CALL} ranges, one call at a time, on both sides",
            connections="1",
            destination="64 MiB, touched",
            data=f"{context.size_bytes} bytes, {verified} delivered bytes verified beforehand",
        ),
        figures=figures(series, [_PLAIN, _CHECKED, _SENDFILE, _MMAP]),
        comparisons=[
            compare("speed, CRC off", _PLAIN, best, by_bytes),
            compare("speed, CRC on", _CHECKED, best, by_bytes, goal=GOAL),
            compare("CPU, CRC off", _PLAIN, thrifty, by_cpu, better=Better.SMALLER),
            compare("CPU, CRC on", _CHECKED, thrifty, by_cpu, better=Better.SMALLER),
        ],
        runs=runs(series),
        notes=data.where.notes,
    )
