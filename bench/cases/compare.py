"""`ffs-bench seq|random --compare`: the same ranges through FFS and what a user would pick instead.

All read the same bytes in the same seeded order with one call at a time: obstore, s3fs and
s3torchconnector as S3 against nginx, fsspec's HTTP file system against the same nginx, Arrow
Flight, Redis, a local file, and FFS over TCP and on the same host. Each client runs in this process
on the client's CPU with its own documented way to read many ranges; each server is one process on
the servers' CPU. FFS checks the CRC of every block that it delivers; the others check nothing
beyond TCP's checksum. All have the congestion control of this run (bench/link.py). Losing cases
are printed like the others.

What was delivered is compared with the file: every call of a second's reading beforehand, and the
last call of every timed run.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ffs.bench.cases.common import (
    MIB,
    SEED,
    Context,
    Figure,
    Outcome,
    figures,
    runs,
    take_turns,
)
from ffs.bench.cases.reading import DataSet, file_system, stored
from ffs.bench.cluster import metered
from ffs.bench.link import own_loopback
from ffs.bench.machine import pinned
from ffs.bench.measure import (
    GB,
    Better,
    Comparison,
    Runner,
    Sample,
    Series,
    by_bytes,
    by_cpu,
)
from ffs.bench.peers import clients, servers
from ffs.errors import ChecksumError

KIB = 1 << 10
CALLS = 64
VERIFY_S = 1.0

TCP, SAME_HOST, LOCAL = "FFS, TCP", "FFS, same host", "local file, preadv"
OBSTORE = "obstore, nginx"
NETWORK_PEERS = (
    OBSTORE,
    "s3fs, nginx",
    "s3torchconnector, nginx",
    "fsspec http, nginx",
    "Arrow Flight",
    "Redis MGET",
)


@dataclass(frozen=True, slots=True)
class Shape:
    """Ranges of one length, so many a call. The goals are of ours over TCP against obstore."""

    title: str
    range_bytes: int
    ranges_a_call: int
    speed_goal: float | None = None
    client_cpu_goal: float | None = None


SHAPES = {
    "seq": (Shape("1 MiB x 8", MIB, 8),),
    "random": (
        Shape("64 KiB x 64", 64 * KIB, 64, speed_goal=1.5, client_cpu_goal=0.5),
        Shape("4 KiB x 256", 4 * KIB, 256),
    ),
}
"""By the case whose reads they are."""


def by_client_cpu(sample: Sample) -> float:
    """CPU seconds of the client alone per GB: smaller is better."""
    return sample.client_cpu_s / sample.bytes * GB


def measure(context: Context, case: str) -> Outcome:
    """Store the file with everybody, then let all take turns, one shape of `case` after another."""
    found_figures: list[Figure] = []
    comparisons: list[Comparison] = []
    found_runs: list[dict[str, Any]] = []
    verified: dict[str, int] = {}
    with ExitStack() as stack:
        if not (context.url or context.plan.smoke):
            stack.enter_context(own_loopback(context.congestion))
        data = stack.enter_context(stored(context))
        with pinned({context.placement.server_cpu}):
            peers = _Peers.start(stack, context, data)
        for shape in SHAPES[case]:
            with (
                pinned({context.placement.client_cpu}),
                _contestants(shape, context, data, peers) as (
                    contestants,
                    checked,
                ),
            ):
                verified |= checked
                series = take_turns(context, contestants)
            found_figures += figures(series, list(contestants))
            found_runs += runs(series)
            for peer in (*NETWORK_PEERS, LOCAL):
                comparisons += _compare(series, shape, peer)
    return Outcome(
        command=f"{case} --compare",
        conditions=context.conditions(
            ranges="random, aligned to their length, cached by every server",
            calls="one at a time; each client as its documentation says to read many ranges",
            servers="one process each, on the servers' CPU",
            data=f"{context.size_bytes} bytes, {sum(verified.values())} delivered bytes verified "
            "beforehand, and each timed run's last call",
        ),
        figures=found_figures,
        comparisons=comparisons,
        runs=found_runs,
        notes=data.where.notes,
    )


def _compare(series: Series, shape: Shape, peer: str) -> list[Comparison]:
    ours, theirs = f"{shape.title}: {TCP}", f"{shape.title}: {peer}"
    goals = (shape.speed_goal, shape.client_cpu_goal) if peer == OBSTORE else (None, None)
    smaller = Better.SMALLER
    return [
        series.compare(f"{shape.title}, speed", ours, theirs, by_bytes, goal=goals[0]),
        series.compare(
            f"{shape.title}, client's CPU",
            ours,
            theirs,
            by_client_cpu,
            goal=goals[1],
            better=smaller,
        ),
        series.compare(f"{shape.title}, CPU of both", ours, theirs, by_cpu, better=smaller),
    ]


@dataclass(frozen=True, slots=True)
class _Peers:
    """The servers that stand beside the cluster."""

    nginx: servers.PeerServer
    redis: servers.PeerServer
    flight: servers.PeerServer

    @classmethod
    def start(cls, stack: ExitStack, context: Context, data: DataSet) -> _Peers:
        root = context.directory
        return cls(
            stack.enter_context(servers.nginx(root / "nginx", data.plain)),
            stack.enter_context(servers.redis(root / "redis")),
            stack.enter_context(servers.flight(root / "flight", data.plain)),
        )


@contextmanager
def _contestants(
    shape: Shape, context: Context, data: DataSet, peers: _Peers
) -> Iterator[tuple[dict[str, Runner], dict[str, int]]]:
    """Make every client, check what it delivers, and yield all of them with the bytes checked."""
    plain = np.memmap(data.plain, dtype=np.uint8, mode="r")
    reading = _Reading(shape, plain, context.plan.smoke)
    size, count, key = shape.range_bytes, shape.ranges_a_call, data.plain.name
    http_port, checked = peers.nginx.port, {}
    with ExitStack() as stack:
        enter = stack.enter_context
        over_tcp = enter(file_system(data.where, context, same_host="off"))
        local = enter(file_system(data.where, context, same_host="auto"))
        web, pids = (peers.nginx.pid,), data.where.pids
        made: dict[str, tuple[clients.Client, tuple[int, ...] | None]] = {
            TCP: (clients.ffs(over_tcp, data.path, size, count), pids),
            SAME_HOST: (clients.ffs(local, data.path, size, count), pids),
            OBSTORE: (clients.obstore(http_port, key, size), web),
            "s3fs, nginx": (clients.s3fs(http_port, key, size), web),
            "s3torchconnector, nginx": (
                enter(clients.s3torchconnector(http_port, key, size)),
                web,
            ),
            "fsspec http, nginx": (clients.http(http_port, key, size), web),
            "Arrow Flight": (enter(clients.flight(peers.flight.port, size)), (peers.flight.pid,)),
            "Redis MGET": (
                enter(clients.redis(peers.redis.port, plain, size)),
                (peers.redis.pid,),
            ),
            LOCAL: (enter(clients.local_file(data.plain, size, count)), ()),
        }
        contestants = {}
        for name, (client, served_by) in made.items():
            full = f"{shape.title}: {name}"
            checked[full] = reading.verify(full, client)
            contestants[full] = reading.contestant(full, client, served_by)
        yield contestants, checked


class _Reading:
    """The calls of one shape, the same for everybody."""

    def __init__(self, shape: Shape, plain: npt.NDArray[np.uint8], smoke: bool) -> None:
        self._range_bytes = shape.range_bytes
        self._call_bytes = shape.range_bytes * shape.ranges_a_call
        self._plain = plain
        self._smoke = smoke
        places = len(plain) // shape.range_bytes
        picks = np.random.default_rng(SEED).integers(0, places, (CALLS, shape.ranges_a_call))
        self._calls: list[list[int]] = (picks * shape.range_bytes).tolist()

    def verify(self, name: str, client: clients.Client) -> int:
        """Compare call after call with the file for about a second; return the bytes compared."""
        until = time.perf_counter() + (0.05 if self._smoke else VERIFY_S)
        checked = 0
        for offsets in self._calls:
            self._check(name, offsets, client(offsets))
            checked += self._call_bytes
            if time.perf_counter() > until:
                break
        return checked

    def contestant(
        self, name: str, client: clients.Client, served_by: tuple[int, ...] | None
    ) -> Runner:
        """Return a contestant that goes on with the calls where its last run stopped."""
        calls = itertools.cycle(self._calls)
        last: list[tuple[list[int], clients.Buffers]] = []

        def work(until: float) -> tuple[int, int, Mapping[str, float]]:
            done = 0
            while time.perf_counter() < until:
                offsets = next(calls)
                delivered = client(offsets)
                done += 1
            last[:] = [(offsets, delivered)]
            return done * self._call_bytes, done * len(offsets), {}

        timed = metered(work, served_by)

        def run(seconds: float) -> Sample:
            sample = timed(seconds)
            self._check(name, *last.pop())
            return sample

        return run

    def _check(self, name: str, offsets: list[int], delivered: clients.Buffers) -> None:
        wanted = b"".join(self._plain[at : at + self._range_bytes].tobytes() for at in offsets)
        if b"".join(map(bytes, delivered)) != wanted:
            raise ChecksumError(f"{name} delivered other bytes than were stored")
