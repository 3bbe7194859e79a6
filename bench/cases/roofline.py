"""`ffs-bench roofline`: what this machine allows at all, without any of our code.

One CPU and memory: memcpy, cached pread, pread with the CRC32C of every 4 KiB block (by the
project's own, fastest implementation). Loopback: 1 MiB request/reply by sendfile and by mmap +
writev, over one connection (client and server on a CPU each) and two (both sides on both), for
every congestion control that the kernel offers; calls of 64 ranges of 64 KiB and of 256 of 4 KiB;
a single 4 KiB range with its latency. The disk: sequential and random reads by fio, O_DIRECT, 32 in
flight, where fio is installed. The ratios say what each step costs; none has a goal.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ffs.bench import fio
from ffs.bench.cases.common import (
    MIB,
    Context,
    Outcome,
    data_set,
    figures,
    raw_latency_runner,
    raw_runner,
    runs,
    take_turns,
)
from ffs.bench.measure import Comparison, Runner, Series, by_bytes
from ffs.bench.rawtools import Option

_OFFERED = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
_WINDOW = 16
_DEPTH = 32
_MEMCPY, _PREAD, _CRC = "memcpy", "cached pread", "cached pread + CRC32C"
_MODES = {"sendfile": "sendfile", "mmap": "mmap + writev"}
_DISK_SEQ, _DISK_RANDOM = "disk, 1 MiB in order, fio", "disk, 4 KiB at random, fio"


def measure(context: Context) -> Outcome:
    """Let the limits take turns, those on two CPUs after those on one."""
    path = context.directory / "roofline.data"
    data_set(path, context.size_bytes)
    shared = replace(context, placement=replace(context.placement, shared=True))
    one = _loopback(context, path, 1)
    together = {**_memory(context, path), **one, **_calls(context, path)}
    series = take_turns(context, together)
    two = _loopback(shared, path, 2)
    more = take_turns(shared, {**two, **_disk(context, path)})
    path.unlink()
    names = list(more.rounds[0])
    return Outcome(
        command="roofline",
        conditions=context.conditions(
            ranges=f"1 MiB, {_WINDOW} in flight, in file order, unless said",
            two_connections=f"{shared.placement}; the disk too",
            destination="64 MiB",
            data=f"{context.size_bytes} bytes",
        ),
        figures=[*figures(series, list(together)), *figures(more, names)],
        comparisons=_compare(context, series),
        runs=[*runs(series), *runs(more)],
        notes=[] if shutil.which("fio") else ["fio is not installed: the disk is not measured"],
    )


def _memory(context: Context, path: Path) -> dict[str, Runner]:
    options: dict[str, Option] = {"range_bytes": MIB, "window": 1}
    return {
        _MEMCPY: raw_runner(context, "roofline", mode="memcpy", **options),
        _PREAD: raw_runner(context, "roofline", mode="pread", file=path, **options),
        _CRC: raw_runner(context, "roofline", mode="crc", file=path, **options),
    }


def _loopback_name(mode: str, connections: int, congestion: str) -> str:
    plural = "" if connections == 1 else "s"
    return f"loopback, {_MODES[mode]}, {connections} connection{plural}, {congestion}"


def _loopback(context: Context, path: Path, connections: int) -> dict[str, Runner]:
    options: dict[str, Option] = {
        "file": path,
        "range_bytes": MIB,
        "window": max(1, min(_WINDOW, context.size_bytes // MIB) // connections),
        "check": _WINDOW,
        "connections": connections,
    }
    return {
        _loopback_name(mode, connections, congestion): raw_runner(
            replace(context, congestion=congestion), "stream", mode=mode, **options
        )
        for congestion in _OFFERED.read_text().split()
        for mode in _MODES
    }


def _calls(context: Context, path: Path) -> dict[str, Runner]:
    """Return calls of many small ranges, and of one."""
    found: dict[str, Runner] = {}
    for title, range_bytes, window, modes in (
        ("64 KiB x 64", 64 << 10, 64, ("sendfile", "mmap")),
        ("4 KiB x 256", 4 << 10, 256, ("mmap", "pread")),
    ):
        for mode in modes:
            found[f"{title}, {mode}"] = raw_runner(
                context,
                "small",
                mode=mode,
                file=path,
                range_bytes=range_bytes,
                window=window,
                check=window,
            )
    found["4 KiB x 1, mmap"] = raw_latency_runner(
        context, mode="mmap", file=path, range_bytes=4 << 10, window=1, check=256
    )
    return found


def _disk(context: Context, path: Path) -> Mapping[str, Runner]:
    if shutil.which("fio") is None:
        return {}
    return {
        _DISK_SEQ: fio.runner(context, path, fio.Pattern("read", MIB, _DEPTH)),
        _DISK_RANDOM: fio.runner(context, path, fio.Pattern("randread", 4096, _DEPTH)),
    }


def _compare(context: Context, series: Series) -> list[Comparison]:
    offered = _OFFERED.read_text().split()
    chosen = context.congestion if context.congestion in offered else offered[0]
    loopback = series.best([_loopback_name(mode, 1, chosen) for mode in _MODES], by_bytes)
    return [
        series.compare("cost of the kernel's read", _PREAD, _MEMCPY, by_bytes),
        series.compare("cost of checking it", _CRC, _PREAD, by_bytes),
        series.compare("cost of the network stack", loopback, _PREAD, by_bytes),
    ]
