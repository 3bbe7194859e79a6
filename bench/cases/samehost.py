"""`ffs-bench samehost`: reads of a file whose daemon is on this machine, beside cached pread.

The client gets the extent file's descriptor from the daemon and reads the page cache itself, into
the caller's memory. The reference is bench/raw/roofline.c: one pread for each range, of the same
length and in the same kind of order, into a destination of the same size; nobody is in between, so
client and reference run on the same CPU. Both read the same pages, those of the daemon's extent
file: what a cached file costs depends up to 2.5 times on how large the pieces are that the kernel
keeps it in, which is a matter of when and how it came into memory, and the reference maps what it
reads, which keeps a file in memory where the kernel gives back what looks idle. A plain file of the
same bytes is measured beside it, without a goal. The last contestant copies 1 MiB pieces out of a
mapping of the file (`read_buffer(path, map=True)`) that it has been through before.

That nothing went over TCP is checked by the engine's count of bytes on the wire.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ffs import _reader
from ffs.bench.cases.common import (
    DEST_BYTES,
    MIB,
    Context,
    Outcome,
    figures,
    raw_runner,
    runs,
    take_turns,
    touched,
)
from ffs.bench.cases.reading import (
    Caller,
    DataSet,
    file_system,
    in_order,
    scattered,
    stored,
)
from ffs.bench.cluster import Work
from ffs.bench.measure import Better, Comparison, Runner, Series, by_bytes, by_cpu
from ffs.errors import ChecksumError, ConfigError, UnavailableError

KIB = 1 << 10
SIZES = {"1 MiB": (MIB, 16), "64 KiB": (64 * KIB, 64), "4 KiB": (4 * KIB, 256)}
"""Range length and ranges a call."""
CALLS = 128
OFF_GOALS = {"1 MiB": 0.95, "64 KiB": 0.90, "4 KiB": 0.90}
ON_GOALS = {"1 MiB": 0.75, "64 KiB": None, "4 KiB": None}
"""None: not measured."""
MAPPED_GOAL = 1.0
_MAPPED = "1 MiB, copied from a mapping"


def measure(context: Context) -> Outcome:
    """Store a file, verify that it comes back without TCP, and take turns with pread."""
    if context.url:
        raise ConfigError("the same host is a cluster of its own", hint="leave --url out")
    with stored(context) as data, ExitStack() as stack:
        contestants, verified = _contestants(context, data, stack)
        series = take_turns(context, contestants)
    return Outcome(
        command="samehost",
        conditions=context.conditions(
            ranges="1 MiB in file order, 64 and 4 KiB at random places, cached",
            calls="16, 64 and 256 ranges; plain C: a pread each, of the same extent file",
            destination="64 MiB, touched",
            data=f"{context.size_bytes} bytes, {verified} delivered bytes verified beforehand",
        ),
        figures=figures(series, list(contestants)),
        comparisons=_compare(series),
        runs=runs(series),
        notes=data.where.notes,
    )


def _names(size: str) -> tuple[str, str, str, str]:
    return (
        f"{size}, CRC off",
        f"{size}, CRC on",
        f"{size}, plain C, pread",
        f"{size}, plain C, pread of a plain file",
    )


def _extent_file(directory: Path | None) -> Path:
    """Return the file that holds the chunks: there is one of that size in an own cluster."""
    found = sorted((directory or Path()).glob("*.data"), key=lambda file: file.stat().st_size)
    if not found:
        raise UnavailableError("the daemon's target holds no extent file")
    return found[-1]


def _contestants(
    context: Context, data: DataSet, stack: ExitStack
) -> tuple[dict[str, Runner], int]:
    found: dict[str, Runner] = {}
    verified = 0
    extents = _extent_file(data.where.directory)
    clients = {
        verify: stack.enter_context(
            file_system(data.where, context, same_host="auto", verify=verify)
        )
        for verify in (False, True)
    }
    for size, (range_bytes, ranges_a_call) in SIZES.items():
        off, on, raw, raw_plain = _names(size)
        offsets = _offsets(context, range_bytes, ranges_a_call)
        for name, verify in ((off, False), (on, True)):
            if verify and ON_GOALS[size] is None:
                continue
            caller = Caller(clients[verify], data, offsets)
            verified += _verify_without_tcp(caller, range_bytes)
            found[name] = data.where.metered(caller.batches(range_bytes))
        for name, file in ((raw, extents), (raw_plain, data.plain)):
            found[name] = raw_runner(
                context,
                "roofline",
                mode="pread",
                file=file,
                range_bytes=range_bytes,
                window=1,
                seed=0 if range_bytes == MIB else 1,
            )
    mapped = clients[True].read_buffer(data.path, map=True)
    found[_MAPPED] = data.where.metered(_copying(data, np.frombuffer(mapped, dtype=np.uint8)))
    return found, verified


def _offsets(context: Context, range_bytes: int, ranges_a_call: int) -> npt.NDArray[np.uint64]:
    if range_bytes == MIB:
        return in_order(context.size_bytes, MIB, ranges_a_call)
    calls = 4 if context.plan.smoke else CALLS
    return scattered(context.size_bytes, range_bytes, (calls, ranges_a_call))


def _verify_without_tcp(caller: Caller, range_bytes: int) -> int:
    before = _reader.counters()["wire_bytes_received"]
    verified = caller.verify(range_bytes)
    if _reader.counters()["wire_bytes_received"] - before >= verified:
        raise UnavailableError(
            "the client reads over TCP although the daemon is on this machine",
            hint="`ffs status` and the daemon's log say why it hands out no descriptors",
        )
    return verified


def _copying(data: DataSet, mapped: npt.NDArray[Any]) -> Work:
    """Go through the mapping once, comparing it; return a loop that copies it piece by piece."""
    if not np.array_equal(mapped, np.memmap(data.plain, dtype=np.uint8, mode="r")):
        raise ChecksumError("the mapping shows other bytes than were stored")
    pieces = itertools.cycle([mapped[i : i + MIB] for i in range(0, len(mapped) // MIB * MIB, MIB)])
    dest = touched(DEST_BYTES)
    places = itertools.cycle([dest[i : i + MIB] for i in range(0, DEST_BYTES, MIB)])

    def work(until: float) -> tuple[int, int, Mapping[str, float]]:
        copied = 0
        while time.perf_counter() < until:
            np.copyto(next(places), next(pieces))
            copied += 1
        return copied * MIB, copied, {}

    return work


def _compare(series: Series) -> list[Comparison]:
    found: list[Comparison] = []
    for size in SIZES:
        off, on, raw, raw_plain = _names(size)
        compare = series.compare
        found += [
            compare(f"{size}, CRC off", off, raw, by_bytes, goal=OFF_GOALS[size]),
            compare(f"{size}, CPU, CRC off", off, raw, by_cpu, better=Better.SMALLER),
            compare(f"{size}, CRC off, to a plain file", off, raw_plain, by_bytes),
        ]
        if (goal := ON_GOALS[size]) is not None:
            found.append(compare(f"{size}, CRC on", on, raw, by_bytes, goal=goal))
    pread = _names("1 MiB")[2]
    found.append(
        series.compare("1 MiB, mapped, second pass", _MAPPED, pread, by_bytes, goal=MAPPED_GOAL)
    )
    return found
