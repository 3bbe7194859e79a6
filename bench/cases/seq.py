"""`ffs-bench seq` and `seq-2`: 1 MiB ranges from the page cache, beside plain C.

Ours is `fs.readv_into`, one call at a time, with the CRC32C of every 4 KiB block checked by the
client and without: 16 ranges a call and, with two connections, 64 as well, since a call of 16 MiB
is the smallest that gets a second one. The reference is bench/raw/stream.c with as many
connections, 16 ranges always in flight and no checksum, serving by sendfile and by mmap + writev:
for the speed whichever is the faster one here, for CPU whichever is the thriftier. Both walk
through the file in order.

Beside it stands the same program with our calls: it waits for all ranges of a call before the next
one. What it loses by that, no engine can win back for somebody who waits.

With one connection the client has one CPU and the servers another. With two, each side has a thread
for each connection, and both sides may use both CPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

from ffs.bench.cases.common import MIB, Context, Outcome, figures, raw_runner, runs, take_turns
from ffs.bench.cases.reading import Caller, DataSet, file_system, in_order, stored
from ffs.bench.measure import Better, Comparison, Runner, Series, by_bytes, by_cpu
from ffs.bench.rawtools import Option

WINDOW = 16
"""Ranges that the reference has in flight."""
RANGES_A_CALL = {1: (16,), 2: (16, 64)}
"""By connections."""
SPEED_GOALS = {1: (0.95, 0.80), 2: (0.85, 0.75)}
"""By connections: without and with CRC, of plain C without."""
CPU_GOALS = (1.15, 1.30)

_SENDFILE, _MMAP = "plain C, sendfile", "plain C, mmap + writev"


@dataclass(frozen=True, slots=True)
class _Calls:
    """Calls of so many ranges: the names of those who make them."""

    count: int

    @property
    def ours(self) -> tuple[str, str]:
        """Ours, without and with CRC."""
        return (
            f"readv_into, {self.count} a call, CRC off",
            f"readv_into, {self.count} a call, CRC on",
        )

    @property
    def raw(self) -> str:
        """Plain C that waits for each call."""
        return f"plain C, {self.count} a call"


def measure(context: Context) -> Outcome:
    """Measure with one connection."""
    return _measure(context, 1)


def measure_two(context: Context) -> Outcome:
    """Measure with two connections."""
    return _measure(replace(context, placement=replace(context.placement, shared=True)), 2)


def _measure(context: Context, connections: int) -> Outcome:
    """Store a file, verify that it comes back, and let the contestants take turns."""
    ranges = context.size_bytes // MIB
    calls = [
        _Calls(count) for count in sorted({min(n, ranges) for n in RANGES_A_CALL[connections]})
    ]
    with ExitStack() as stack:
        data = stack.enter_context(stored(context))
        contestants, verified = _ours(context, stack, data, connections, calls)
        contestants |= _plain(context, data, connections, calls)
        series = take_turns(context, contestants)
    shapes = " and ".join(str(each.count) for each in calls)
    return Outcome(
        command="seq" if connections == 1 else f"seq-{connections}",
        conditions=context.conditions(
            ranges=f"1 MiB, {shapes} a call (plain C: {WINDOW} in flight), in file order, cached",
            connections=str(connections),
            destination="64 MiB, touched",
            data=f"{context.size_bytes} bytes, {verified} delivered bytes verified beforehand",
        ),
        figures=figures(series, list(contestants)),
        comparisons=[each for one in calls for each in _compare(series, one, connections)],
        runs=runs(series),
        notes=data.where.notes,
    )


def _ours(
    context: Context, stack: ExitStack, data: DataSet, connections: int, calls: list[_Calls]
) -> tuple[dict[str, Runner], int]:
    """Return our contestants, and how many bytes of theirs were compared with the plain file."""
    found: dict[str, Runner] = {}
    verified = 0
    for verify in (False, True):
        client: dict[str, object] = {"connections_per_node": connections, "verify": verify}
        fs = stack.enter_context(file_system(data.where, context, **client))
        for each in calls:
            caller = Caller(fs, data, in_order(context.size_bytes, MIB, each.count))
            verified += caller.verify(MIB)
            found[each.ours[verify]] = data.where.metered(caller.batches(MIB))
    return found, verified


def _plain(
    context: Context, data: DataSet, connections: int, calls: list[_Calls]
) -> dict[str, Runner]:
    """Return plain C that never waits, in both ways of serving, and that which does."""
    count = min(WINDOW, context.size_bytes // MIB)
    raw: dict[str, Option] = {
        "file": data.plain,
        "range_bytes": MIB,
        "window": max(1, count // connections),
        "check": count,
        "connections": connections,
    }
    return {
        _SENDFILE: raw_runner(context, "stream", mode="sendfile", **raw),
        _MMAP: raw_runner(context, "stream", mode="mmap", **raw),
        **{
            each.raw: raw_runner(context, "stream", mode="sendfile", call=each.count, **raw)
            for each in calls
        },
    }


def _compare(series: Series, calls: _Calls, connections: int) -> Iterator[Comparison]:
    smaller = Better.SMALLER
    best = series.best([_SENDFILE, _MMAP], by_bytes)
    thrifty = series.best([_SENDFILE, _MMAP], by_cpu, smaller)
    ours = tuple(zip(("CRC off", "CRC on"), calls.ours, strict=True))
    shape = f"{calls.count} a call"
    for (crc, name), goal in zip(ours, SPEED_GOALS[connections], strict=True):
        yield series.compare(f"speed, {crc}, {shape}", name, best, by_bytes, goal=goal)
    for (crc, name), goal in zip(ours, CPU_GOALS, strict=True):
        title = f"CPU, {crc}, {shape}"
        yield series.compare(title, name, thrifty, by_cpu, goal=goal, better=smaller)
    for crc, name in ours:
        yield series.compare(f"speed, {crc}, both {shape}", name, calls.raw, by_bytes)
    yield series.compare(f"what waiting costs, {shape}", calls.raw, best, by_bytes)
