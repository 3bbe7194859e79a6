"""`ffs-bench roofline`: what this machine allows at all, without any of our code.

memcpy, cached pread, pread with the CRC32C of every 4 KiB block, and 1 MiB request/reply over one
loopback connection. The ratios say what each step costs; none has a goal.
"""

from __future__ import annotations

from ffs.bench.cases.common import (
    MIB,
    Context,
    Outcome,
    data_set,
    figures,
    raw_runner,
    runs,
    take_turns,
)
from ffs.bench.measure import by_bytes
from ffs.bench.rawtools import Option

_MEMCPY, _PREAD, _CRC = "memcpy", "cached pread", "cached pread + CRC32C"
_SENDFILE, _MMAP = "loopback, sendfile", "loopback, mmap + send"


def measure(context: Context) -> Outcome:
    """Run every roofline in turn."""
    path = context.directory / "roofline.data"
    data_set(path, context.size_bytes)
    one: dict[str, Option] = {"file": path, "range_bytes": MIB}
    stream: dict[str, Option] = {**one, "window": 16, "check": 16}
    series = take_turns(
        context,
        {
            _MEMCPY: raw_runner(context, "roofline", mode="memcpy", range_bytes=MIB, window=1),
            _PREAD: raw_runner(context, "roofline", mode="pread", window=1, **one),
            _CRC: raw_runner(context, "roofline", mode="crc", window=1, **one),
            _SENDFILE: raw_runner(context, "stream", mode="sendfile", **stream),
            _MMAP: raw_runner(context, "stream", mode="mmap", **stream),
        },
    )
    path.unlink()
    names = [_MEMCPY, _PREAD, _CRC, _SENDFILE, _MMAP]
    loopback = series.best([_SENDFILE, _MMAP], by_bytes)
    return Outcome(
        command="roofline",
        conditions=context.conditions(
            ranges="1 MiB, in file order", destination="64 MiB", data=f"{context.size_bytes} bytes"
        ),
        figures=figures(series, names),
        comparisons=[
            series.compare("cost of the kernel's read", _PREAD, _MEMCPY, by_bytes),
            series.compare("cost of checking it", _CRC, _PREAD, by_bytes),
            series.compare("cost of the network stack", loopback, _PREAD, by_bytes),
        ],
        runs=runs(series),
    )
