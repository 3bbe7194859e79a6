"""`ffs-bench read-scaling`: the same bytes read from 1, 2, 3, 4 and 6 daemons, beside plain C.

A cluster for each number of daemons holds the same file, spread over all of them. One client
process reads it, with one connection to each daemon, and then two processes do at the same time.
The reference is bench/raw/stream.c with as many connections as all processes have together, as
many ranges in flight, and no checksum, serving by sendfile or by mmap + writev, whichever was
faster in a trial: the loopback limit. Clients, daemons and the plain program may use all CPUs.

Three things are asked: that each number reaches its share of the limit, that it is no slower than
the number before, and that it is no slower than one daemon.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from ffs.bench import readers
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
from ffs.bench.cases.reading import file_system, in_order
from ffs.bench.daemons import Members
from ffs.bench.machine import pinned
from ffs.bench.measure import Comparison, Runner, Series, by_bytes, by_cpu
from ffs.errors import ConfigError

COUNTS = (1, 2, 3, 4, 6)
PROCESSES = (1, 2)
RANGES_A_CALL = 32
LIMIT_GOAL = 0.75
NEVER_SLOWER = 1.0
_PLAIN = "plain.data"
_TRIAL_S = 0.3
_SETTINGS = {"storage.scrub_bytes_per_s": 0}


@dataclass(frozen=True, slots=True)
class _Shape:
    """So many daemons read by so many processes."""

    daemons: int
    processes: int

    @property
    def connections(self) -> int:
        """One to each daemon from each process."""
        return self.daemons * self.processes

    @property
    def ours(self) -> str:
        """What the figures call it."""
        return f"{_count(self.daemons, 'daemon')}, {_count(self.processes, 'process')}"

    @property
    def plain(self) -> str:
        """What its limit is called."""
        return f"plain C, {_count(self.connections, 'connection')}"


def _count(number: int, what: str) -> str:
    several = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{number} {what if number == 1 else several}"


def measure(context: Context) -> Outcome:
    """Start all clusters, verify, find the plain program's better mode, and let all take turns."""
    if context.url:
        raise ConfigError("it compares clusters of its own", hint="leave --url out")
    shared = replace(context, placement=replace(context.placement, shared=True))
    counts = COUNTS[:2] if context.plan.smoke else COUNTS
    shapes = [_Shape(n, p) for p in PROCESSES for n in counts]
    plain = data_set(context.directory / _PLAIN, context.size_bytes)
    with _contestants(shared, shapes, plain.data) as (ours, verified):
        mode = _better_mode(shared)
        limits = {shape.plain: _plain(shared, shape.connections, mode) for shape in shapes}
        series = take_turns(shared, {**ours, **limits})
    return Outcome(
        command="read-scaling",
        conditions=shared.conditions(
            ranges=f"1 MiB, {_ranges(shared)} a call (plain C: as many in flight), in file order, "
            "cached, CRC on",
            connections="one from each process to each daemon",
            plain=f"bench/raw/stream.c, {mode}",
            data=f"{context.size_bytes} bytes spread over all daemons, {verified} delivered bytes "
            "verified beforehand",
        ),
        figures=figures(series, [*ours, *limits]),
        comparisons=[each for shape in shapes for each in _compare(series, shape, counts)],
        runs=runs(series),
    )


def _compare(series: Series, shape: _Shape, counts: tuple[int, ...]) -> Iterator[Comparison]:
    compare, ours = series.compare, shape.ours
    yield compare(f"{ours}: speed", ours, shape.plain, by_bytes, goal=LIMIT_GOAL)
    yield compare(f"{ours}: CPU", ours, shape.plain, by_cpu)
    before = [number for number in counts if number < shape.daemons]
    for number in sorted({*before[:1], *before[-1:]}):
        fewer = replace(shape, daemons=number)
        yield compare(f"{ours}: more daemons", ours, fewer.ours, by_bytes, goal=NEVER_SLOWER)


def _ranges(context: Context) -> int:
    return int(in_order(context.size_bytes, MIB, RANGES_A_CALL).shape[1])


@contextmanager
def _contestants(
    context: Context, shapes: list[_Shape], data: memoryview
) -> Iterator[tuple[dict[str, Runner], int]]:
    """Have every cluster, and the processes that read from it."""
    with ExitStack() as stack:
        numbers = sorted({shape.daemons for shape in shapes})
        clusters = {number: _cluster(context, number) for number in numbers}
        for members in clusters.values():
            stack.callback(members.stop)
        with ThreadPoolExecutor(len(clusters)) as pool:
            jobs = dict(
                zip(
                    clusters,
                    pool.map(lambda members: _store(context, members, data), clusters.values()),
                    strict=True,
                )
            )
        found = {}
        for shape in shapes:
            places = [
                replace(jobs[shape.daemons], share=number / shape.processes)
                for number in range(shape.processes)
            ]
            pids = clusters[shape.daemons].servers.pids or ()
            with pinned(context.placement.client_cpus):
                found[shape.ours] = readers.Readers(places, pids, stack)
        verified = sum(each.wait_ready() for each in found.values())
        yield {name: each.runner for name, each in found.items()}, verified


def _cluster(context: Context, daemons: int) -> Members:
    directory = context.directory / f"cluster-{daemons}"
    return Members(
        directory,
        context.placement.server_cpus,
        [[directory / f"target-{number}"] for number in range(daemons)],
        settings={"storage.congestion": context.congestion, **_SETTINGS},
    )


def _store(context: Context, members: Members, data: memoryview) -> readers.Job:
    """Start a cluster with the file; return what is to be read."""
    members.start(replicas=1)
    path = f"/ffs-bench-{os.getpid()}.data"
    where = members.servers
    with file_system(where, context) as fs:
        fs.pipe_file(path, data)
    return readers.Job(
        url=where.url,
        key_file=where.key_file,
        congestion=context.congestion,
        plain=str(context.directory / _PLAIN),
        path=path,
        size_bytes=context.size_bytes,
        ranges_a_call=RANGES_A_CALL,
        share=0,
    )


def _plain(context: Context, connections: int, mode: str) -> Runner:
    return raw_runner(
        context,
        "stream",
        mode=mode,
        file=context.directory / _PLAIN,
        range_bytes=MIB,
        window=max(1, _ranges(context) // connections),
        connections=connections,
        check=_ranges(context),
    )


def _better_mode(context: Context) -> str:
    """Return how the plain program serves faster on this machine, over two connections."""
    modes = ("sendfile", "mmap")
    return max(modes, key=lambda mode: _plain(context, 2, mode)(_TRIAL_S).bytes_rate)
