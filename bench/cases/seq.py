"""`ffs-bench seq`: 1 MiB ranges from the page cache over one connection, beside plain C.

Ours is `fs.readv_into`, 16 ranges a call, one call at a time, with the CRC32C of every 4 KiB block
checked by the client and without. The reference is bench/raw/stream.c with 16 ranges always in
flight and no checksum, serving by sendfile and by mmap + send: whichever is the faster one here.
Both sides walk through the file in order.
"""

from __future__ import annotations

import numpy as np

from ffs.bench.cases.common import MIB, Context, Outcome, figures, raw_runner, runs, take_turns
from ffs.bench.cases.reading import Caller, file_system, stored
from ffs.bench.measure import Better, by_bytes, by_cpu
from ffs.bench.rawtools import Option

GOAL = 0.7
RANGES_A_CALL = 16

_PLAIN, _CHECKED = "readv_into, CRC off", "readv_into, CRC on"
_SENDFILE, _MMAP = "plain C, sendfile", "plain C, mmap + send"


def measure(context: Context) -> Outcome:
    """Store a file, verify that it comes back, and let the four contestants take turns."""
    count = min(RANGES_A_CALL, context.size_bytes // MIB)
    ends = context.size_bytes // MIB // count * count
    offsets = (np.arange(ends, dtype=np.uint64) * np.uint64(MIB)).reshape(-1, count)
    with (
        stored(context) as data,
        file_system(data.where, context, verify=False) as careless,
        file_system(data.where, context, verify=True) as careful,
    ):
        plain, checked = Caller(careless, data, offsets), Caller(careful, data, offsets)
        verified = plain.verify(MIB) + checked.verify(MIB)
        raw: dict[str, Option] = {"file": data.plain, "range_bytes": MIB, "window": count}
        metered = data.where.metered
        series = take_turns(
            context,
            {
                _PLAIN: metered(plain.batches(MIB)),
                _CHECKED: metered(checked.batches(MIB)),
                _SENDFILE: raw_runner(context, "stream", mode="sendfile", check=count, **raw),
                _MMAP: raw_runner(context, "stream", mode="mmap", check=count, **raw),
            },
        )
    best = series.best([_SENDFILE, _MMAP], by_bytes)
    thrifty = series.best([_SENDFILE, _MMAP], by_cpu, Better.SMALLER)
    compare = series.compare
    return Outcome(
        command="seq",
        conditions=context.conditions(
            ranges=f"1 MiB, {count} a call (plain C: {count} in flight), in file order, cached",
            connections="1",
            destination="64 MiB, touched",
            data=f"{context.size_bytes} bytes, {verified} delivered bytes verified beforehand",
        ),
        figures=figures(series, [_PLAIN, _CHECKED, _SENDFILE, _MMAP]),
        comparisons=[
            compare("speed, CRC off", _PLAIN, best, by_bytes, goal=GOAL),
            compare("speed, CRC on", _CHECKED, best, by_bytes, goal=GOAL),
            compare("CPU, CRC off", _PLAIN, thrifty, by_cpu),
            compare("CPU, CRC on", _CHECKED, thrifty, by_cpu),
        ],
        runs=runs(series),
        notes=data.where.notes,
    )
