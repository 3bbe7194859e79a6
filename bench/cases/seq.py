"""`ffs-bench seq` and `seq-2`: 1 MiB ranges from the page cache, beside plain C.

Ours is `fs.readv_into`, 16 ranges a call, one call at a time, with the CRC32C of every 4 KiB block
checked by the client and without. The reference is bench/raw/stream.c with as many connections, 16
ranges always in flight and no checksum, serving by sendfile and by mmap + writev: for the speed
whichever is the faster one here, for CPU whichever is the thriftier. Both walk through the file in
order.

With one connection the client has one CPU and the servers another. With two, each side has a thread
for each connection, and both sides may use both CPUs.
"""

from __future__ import annotations

from dataclasses import replace

from ffs.bench.cases.common import MIB, Context, Outcome, figures, raw_runner, runs, take_turns
from ffs.bench.cases.reading import Caller, file_system, in_order, stored
from ffs.bench.measure import Better, Comparison, Series, by_bytes, by_cpu
from ffs.bench.rawtools import Option

RANGES_A_CALL = 16
SPEED_GOALS = {1: (0.95, 0.80), 2: (0.85, 0.75)}
"""By connections: without and with CRC, of plain C without."""
CPU_GOALS = (1.15, 1.30)

_PLAIN, _CHECKED = "readv_into, CRC off", "readv_into, CRC on"
_SENDFILE, _MMAP = "plain C, sendfile", "plain C, mmap + writev"


def measure(context: Context) -> Outcome:
    """Measure with one connection."""
    return _measure(context, 1)


def measure_two(context: Context) -> Outcome:
    """Measure with two connections."""
    return _measure(replace(context, placement=replace(context.placement, shared=True)), 2)


def _measure(context: Context, connections: int) -> Outcome:
    """Store a file, verify that it comes back, and let the four contestants take turns."""
    offsets = in_order(context.size_bytes, MIB, RANGES_A_CALL)
    count = offsets.shape[1]
    client: dict[str, object] = {"connections_per_node": connections}
    with (
        stored(context) as data,
        file_system(data.where, context, verify=False, **client) as careless,
        file_system(data.where, context, verify=True, **client) as careful,
    ):
        plain, checked = Caller(careless, data, offsets), Caller(careful, data, offsets)
        verified = plain.verify(MIB) + checked.verify(MIB)
        raw: dict[str, Option] = {
            "file": data.plain,
            "range_bytes": MIB,
            "window": max(1, count // connections),
            "check": count,
            "connections": connections,
        }
        metered = data.where.metered
        series = take_turns(
            context,
            {
                _PLAIN: metered(plain.batches(MIB)),
                _CHECKED: metered(checked.batches(MIB)),
                _SENDFILE: raw_runner(context, "stream", mode="sendfile", **raw),
                _MMAP: raw_runner(context, "stream", mode="mmap", **raw),
            },
        )
    return Outcome(
        command="seq" if connections == 1 else f"seq-{connections}",
        conditions=context.conditions(
            ranges=f"1 MiB, {count} a call (plain C: {count} in flight), in file order, cached",
            connections=str(connections),
            destination="64 MiB, touched",
            data=f"{context.size_bytes} bytes, {verified} delivered bytes verified beforehand",
        ),
        figures=figures(series, [_PLAIN, _CHECKED, _SENDFILE, _MMAP]),
        comparisons=_compare(series, SPEED_GOALS[connections]),
        runs=runs(series),
        notes=data.where.notes,
    )


def _compare(series: Series, speed_goals: tuple[float, float]) -> list[Comparison]:
    compare, smaller = series.compare, Better.SMALLER
    best = series.best([_SENDFILE, _MMAP], by_bytes)
    thrifty = series.best([_SENDFILE, _MMAP], by_cpu, smaller)
    ours = (("CRC off", _PLAIN), ("CRC on", _CHECKED))
    return [
        *(
            compare(f"speed, {crc}", name, best, by_bytes, goal=goal)
            for (crc, name), goal in zip(ours, speed_goals, strict=True)
        ),
        *(
            compare(f"CPU, {crc}", name, thrifty, by_cpu, goal=goal, better=smaller)
            for (crc, name), goal in zip(ours, CPU_GOALS, strict=True)
        ),
    ]
