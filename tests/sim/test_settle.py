"""The real settle loop and planner over model daemons in virtual time: fail-over, stalls, refresh.

Only what crosses the seam is a model: connections, and an engine that answers each operation from
the state of its target at that moment. Checked: every read ends with the right bytes or a typed
error that names the place; connections come back however a call ends; the stall time is asked for
only where another replica could take over; new routing is used as soon as it is known.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ffs import errors
from ffs.client import planner
from ffs.client.layouts import Content, Route
from ffs.client.planner import PENDING, Plan
from ffs.client.reader import ReadJob
from ffs.client.replicas import Patience, Replicas
from ffs.client.retry import RetryPolicy
from ffs.client.settle import PARALLEL_BYTES_MIN, Settler
from ffs.errors import ChecksumError, DeadlineError, FFSError, UnavailableError
from ffs.types import (
    Attr,
    ChainInfo,
    Layout,
    NodeInfo,
    Routing,
    Segment,
    TableInfo,
    TargetInfo,
    TargetState,
)
from ffs.wire.messages import OpenFile
from tests.sim.world import MS, SECOND, World

CHUNK = 1 << 16
STALL_MS = 80
CONNECT_MS = 5_000
DEADLINE_NS = 10 * SECOND


@dataclass
class Daemon:
    """One target on one node: `status` is what every operation gets, after `takes_ns`.

    `refuses`: connections; `silent`: takes none, like a machine that is gone; `trickles`: bytes
    come all the time that it takes.
    """

    status: int = errors.OK
    refuses: bool = False
    silent: bool = False
    heals_ns: int = 1 << 62
    takes_ns: int = MS
    trickles: bool = False

    def answer(self, now_ns: int, patience: Patience, leg: int, count: int) -> tuple[int, int]:
        """Return the status of `count` operations on one connection, and when they have it."""
        healed = now_ns >= self.heals_ns
        status, takes_ns = (errors.OK, MS) if healed else (self.status, self.takes_ns)
        stall_ns = patience.stall_ms[leg] * MS
        if status == errors.StalledError.code:
            takes_ns = 1 << 62
        hedge_ns = patience.hedge_ms * MS
        may_hedge = stall_ns and count <= patience.hedge_ranges
        if may_hedge and hedge_ns < takes_ns and (self.trickles or hedge_ns < stall_ns):
            return errors.CancelledOperationError.code, hedge_ns
        if stall_ns and takes_ns > stall_ns and not self.trickles:
            return errors.StalledError.code, stall_ns
        return status, takes_ns


@dataclass(eq=False)
class ModelConnection:
    """A connection to one address; broken by a stall or a loss."""

    address: tuple[str, int]
    alive: bool = True
    served_ns: int = MS
    local: bool = False


@dataclass
class ModelConnections:
    """Hands out connections and counts them back in."""

    world: World
    daemons: dict[int, Daemon]
    out: int = 0
    most: int = 0
    made: list[ModelConnection] = field(default_factory=list)
    attempts: list[tuple[int, int]] = field(default_factory=list)
    suspects: list[tuple[int, int]] = field(default_factory=list)
    may_be_local: list[bool] = field(default_factory=list)
    """Of each connection that was asked for."""

    def checkout(
        self,
        address: tuple[str, int],
        *,
        timeout_ms: int,
        fresh: bool = False,
        reads: bool = False,
        own_domain: bool = False,
        plain: bool = False,
    ) -> ModelConnection:
        """Connect to the node whose port is its target's id."""
        daemon = self.daemons[address[1]]
        self.may_be_local.append(reads)
        healed = self.world.now_ns >= daemon.heals_ns
        self.attempts.append((self.world.now_ns, address[1]))
        if daemon.refuses and not healed:
            raise UnavailableError("refused", address=address)
        if daemon.silent and not healed:
            self.world.run(self.world.now_ns + min(timeout_ms, CONNECT_MS) * MS)
            raise DeadlineError("no connection", address=address)
        self.out += 1
        self.most = max(self.most, self.out)
        self.made.append(ModelConnection(address))
        return self.made[-1]

    def tell_suspects(self, address: tuple[str, int], descriptors: bytes, timeout_ms: int) -> None:
        """Take what a client says of a daemon's chunks."""
        assert descriptors and timeout_ms > 0
        self.suspects.append((address[1], len(descriptors) // 24))

    def falls_back(self, connection: ModelConnection) -> bool:
        """All go by TCP."""
        return False

    def checkin(self, address: tuple[str, int], connection: ModelConnection) -> None:
        """Take one back."""
        assert connection.address == address
        self.out -= 1


class ModelEngine:
    """What runs a job here: it answers from the daemons' state, and spends time."""

    ops: npt.NDArray[Any]
    world: World
    daemons: dict[int, Daemon]
    stalls: list[int]
    locate: Callable[[int], object]

    def submit(self, connections: Sequence[Any], deadline_ms: int, patience: Patience) -> int:
        """Answer every pending operation at its target."""
        assert len(patience.stall_ms) == len(connections)
        self.stalls.append(max(patience.stall_ms))
        spent, now = MS, self.world.now_ns
        for leg, connection in enumerate(connections):
            here = np.flatnonzero((self.ops["status"] == PENDING) & (self.ops["conn"] == leg))
            nodes = {self.locate(t) for t in self.ops["target"][here].tolist()}
            assert nodes <= {connection.address}
            daemon = self.daemons[connection.address[1]]
            status, took_ns = daemon.answer(now, patience, leg, len(here))
            if took_ns > deadline_ms * MS:
                status, took_ns = errors.DeadlineError.code, deadline_ms * MS
            if status == errors.CancelledOperationError.code:
                patience = patience._replace(hedge_ranges=patience.hedge_ranges - len(here))
            connection.served_ns = took_ns
            spent = max(spent, took_ns)
            self._answer(here, status)
        assert not (self.ops["status"] == PENDING).any()
        self.world.run(now + spent)
        return int((self.ops["status"] == 0).sum())

    def _answer(self, indexes: Any, status: int) -> None:
        self.ops["status"][indexes] = status


class ModelJob(ModelEngine, ReadJob):
    """A read of the model."""

    def __init__(
        self,
        plan: Plan,
        out: memoryview,
        replicas: Replicas,
        world: World,
        daemons: dict[int, Daemon],
    ) -> None:
        super().__init__(plan, out, replicas, verify=True, trace_id=1)
        self.world = world
        self.daemons = daemons
        self.target = out
        self.stalls = []

    def _answer(self, indexes: Any, status: int) -> None:
        for index in indexes if status == errors.OK else ():
            op = self.ops[index]
            start, length = int(op["dest_offset"]), int(op["length"])
            self.target[start : start + length] = bytes([1 + int(op["chunk"]) % 255]) * length
        super()._answer(indexes, status)


class Rig:
    """A cluster of one chain, its client's settle loop, and the clock of both."""

    def __init__(self, daemons: dict[int, Daemon], *, connections_per_node: int = 2) -> None:
        self.world = World(3)
        self.daemons = daemons
        self.connections = ModelConnections(self.world, daemons)
        self.routing = Routing(
            1,
            [NodeInfo(100 + t, "node", t) for t in daemons],
            [TargetInfo(t, 100 + t, TargetState.SERVING) for t in daemons],
            [ChainInfo(1, 1, list(daemons))],
            [TableInfo(1, [1])],
        )
        self.refreshes = 0
        self.probes: list[Callable[[], None]] = []
        self.replicas = Replicas(self.world.clock, lambda address: 0)
        self.settler = Settler(
            self.connections,  # type: ignore[arg-type]  # the model has the two methods that count
            RetryPolicy(20, 1_000, self.world.randomness),
            self.world.clock,
            self.replicas,
            route=lambda: Route(self.routing),
            refresh=self._refresh,
            aside=self.probes.append,
            connections_per_node=connections_per_node,
            stall_ms=STALL_MS,
            sleep=lambda s: self.world.run(self.world.now_ns + int(s * 1e9)),
        )

    def _refresh(self) -> Route:
        self.refreshes += 1
        return Route(self.routing)

    def warm(self, calls: int) -> None:
        """Have so many calls of usual length behind us."""
        for _ in range(calls):
            self.replicas.finished(4 * CHUNK, 4, MS, hedged=0, set_aside=0)

    def read(self, chunks: int = 4) -> tuple[ModelJob, FFSError | None]:
        """Read a file of so many chunks; return the job and how it failed, if it did."""
        route, started_ns = Route(self.routing), self.world.now_ns
        segment = Segment(7, chunks * CHUNK, Layout(CHUNK, 0, 1, 5))
        attr = Attr(2, 1, 0o644, 0, 0, 1, segment.length, 1, 0, 0, 0)
        content = Content("/f", OpenFile(attr, [segment]), route.tables)
        plan = planner.plan_ranges([content], [0], [content.size], route)
        out = bytearray(content.size)
        self.replicas.spread(plan.ops, plan.chains, route)
        job = ModelJob(plan, memoryview(out), self.replicas, self.world, self.daemons)
        job.locate = lambda target: Route(self.routing).address(target)
        failure = None
        try:
            self.settler.settle(job, started_ns + DEADLINE_NS)
            assert out == b"".join(bytes([1 + i % 255]) * CHUNK for i in range(chunks))
        except FFSError as error:
            failure = error
        assert self.connections.out == 0, "a connection was not given back"
        self.took_ns = self.world.now_ns - started_ns
        assert self.took_ns <= DEADLINE_NS + 5 * MS
        while self.probes:  # they take no time of the reader's
            self.probes.pop()()
        return job, failure


@pytest.mark.parametrize(
    "bad",
    [
        Daemon(errors.ConnectionLostError.code),
        Daemon(errors.ChecksumError.code),
        Daemon(errors.ChunkMissingError.code),
        Daemon(errors.TargetStoppedError.code),
        Daemon(errors.BusyError.code),
        Daemon(refuses=True),
    ],
)
def test_another_replica_takes_over_without_a_wait(bad: Daemon) -> None:
    rig = Rig({1: bad, 2: Daemon()})
    _, failure = rig.read()
    assert failure is None and rig.world.now_ns <= 3 * MS


@pytest.mark.parametrize("status", [errors.ChecksumError.code, errors.ChunkMissingError.code])
def test_a_replica_that_gives_a_chunk_wrong_is_told_so_once(status: int) -> None:
    rig = Rig({1: Daemon(status), 2: Daemon()})
    for _ in range(5):
        _, failure = rig.read()
        assert failure is None
    assert {port for port, _ in rig.connections.suspects} == {1}
    assert sum(chunks for _, chunks in rig.connections.suspects) <= 4, "each chunk once a minute"


def test_a_stopped_replica_costs_the_stall_time_once() -> None:
    rig = Rig({1: Daemon(errors.StalledError.code), 2: Daemon()})
    job, failure = rig.read()
    assert failure is None and rig.took_ns <= (STALL_MS + 2) * MS
    assert job.stalls == [STALL_MS, 2 * STALL_MS], "the next one is given more time"
    for _ in range(20):
        _, failure = rig.read()
        assert failure is None and rig.took_ns <= MS, "it is not asked again"
    counters = rig.replicas.counters
    assert counters.doubts == 1 and counters.stalled == counters.failed_over == 2


def test_a_machine_that_is_gone_costs_the_stall_time_once() -> None:
    rig = Rig({1: Daemon(silent=True), 2: Daemon()})
    _, failure = rig.read()
    assert failure is None and rig.took_ns <= (STALL_MS + 2) * MS
    for _ in range(20):
        _, failure = rig.read()
        assert failure is None and rig.took_ns <= MS


def test_a_machine_that_is_gone_is_probed_ever_more_rarely_and_comes_back() -> None:
    rig = Rig({1: Daemon(silent=True, heals_ns=100 * SECOND), 2: Daemon()})
    rig.connections.attempts.clear()
    probes: list[int] = []
    while rig.world.now_ns < 140 * SECOND:
        rig.read()
        rig.world.run(rig.world.now_ns + SECOND // 4)
        probes = [at for at, target in rig.connections.attempts if target == 1]
        if rig.world.now_ns < 100 * SECOND:
            assert len(probes) <= 10
    gaps = [b - a for a, b in itertools.pairwise(probes[1:9])]
    assert all(later >= earlier for earlier, later in itertools.pairwise(gaps[:4]))
    assert rig.replicas.counters.probes >= 4 and rig.refreshes == rig.replicas.counters.probes - 1
    before = len(probes)
    rig.read()
    assert len([a for a in rig.connections.attempts if a[1] == 1]) > before, "it is read from again"


def test_a_node_that_has_moved_is_forgotten_at_its_old_address() -> None:
    rig = Rig({1: Daemon(silent=True), 2: Daemon(), 3: Daemon()})
    rig.routing = replace(
        rig.routing, targets=rig.routing.targets[:2], chains=[ChainInfo(1, 1, [1, 2])]
    )
    rig.read()
    assert rig.replicas.counters.doubts == 1
    moved = [NodeInfo(101, "node", 3), NodeInfo(102, "node", 2)]
    rig.routing = replace(rig.routing, version=2, nodes=moved)
    rig.world.run(2 * SECOND)
    targets = set()
    for _ in range(5):
        job, failure = rig.read()
        targets |= set(job.ops["target"].tolist())
        assert failure is None
    assert targets == {1, 2} and rig.replicas.due() == [] and rig.replicas.counters.probes == 1


def test_all_replicas_slow_get_their_time_in_the_end() -> None:
    rig = Rig({t: Daemon(takes_ns=900 * MS) for t in (1, 2)})
    job, failure = rig.read()
    assert failure is None and max(job.stalls) >= 900 and rig.took_ns <= 5 * SECOND


def test_a_replica_that_comes_back_while_the_other_is_dead_is_asked_again() -> None:
    rig = Rig({1: Daemon(errors.StalledError.code, heals_ns=3 * SECOND), 2: Daemon(refuses=True)})
    _, failure = rig.read()
    assert failure is None and 3 * SECOND <= rig.took_ns <= 8 * SECOND


def test_a_slow_replica_is_hedged_within_the_budget_and_then_gets_little() -> None:
    rig = Rig({1: Daemon(), 2: Daemon()})
    rig.warm(1_500)
    assert rig.replicas.counters.hedged == 0
    rig.daemons[1] = Daemon(takes_ns=5 * SECOND, trickles=True)
    rig.read()
    counters = rig.replicas.counters
    assert rig.took_ns < SECOND and counters.hedged == counters.failed_over == 2
    tooks = []
    for _ in range(200):
        _, failure = rig.read(1)
        assert failure is None
        tooks.append(rig.took_ns)
    assert counters.hedged * 20 <= counters.ranges
    assert sum(took > MS for took in tooks) <= 4, "it gets almost nothing"


def test_hedges_stop_when_everything_is_slow() -> None:
    rig = Rig({1: Daemon(), 2: Daemon()})
    rig.warm(1_500)
    rig.daemons.update({t: Daemon(takes_ns=60 * MS) for t in (1, 2)})
    for _ in range(300):
        _, failure = rig.read()
        assert failure is None
    before = rig.replicas.counters.hedged
    for _ in range(100):
        rig.read()
    assert rig.replicas.counters.hedged - before <= 8


def test_a_batch_is_spread_over_the_replicas() -> None:
    rig = Rig({1: Daemon(), 2: Daemon(), 3: Daemon()})
    job, _ = rig.read(9)
    assert sorted(job.ops["target"].tolist()) == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    singles = [int(rig.read(1)[0].ops["target"][0]) for _ in range(300)]
    assert all(80 <= singles.count(target) <= 120 for target in (1, 2, 3))


def test_alone_there_is_no_stall_time() -> None:
    rig = Rig({1: Daemon(errors.StalledError.code)})
    job, failure = rig.read()
    assert isinstance(failure, errors.DeadlineError) and set(job.stalls) == {0}


def test_damage_everywhere_names_the_place() -> None:
    rig = Rig({t: Daemon(errors.ChecksumError.code) for t in (1, 2, 3)})
    _, failure = rig.read(2)
    assert isinstance(failure, ChecksumError)
    assert failure.where | {"target": 0, "node": 0} == {
        "path": "/f",
        "blob": 7,
        "chunk": 0,
        "target": 0,
        "node": 0,
        "offset": 0,
        "address": f"node:{failure.where['target']}",
        "trace_id": f"{1:016x}",
    }
    assert failure.where["node"] == 100 + failure.where["target"]


def test_a_daemon_that_comes_back_is_waited_for_and_asked_about() -> None:
    rig = Rig({1: Daemon(refuses=True, heals_ns=3 * SECOND)})
    _, failure = rig.read()
    assert failure is None and rig.refreshes >= 1
    assert 3 * SECOND <= rig.world.now_ns <= 5 * SECOND


def test_new_routing_is_used_when_it_is_known() -> None:
    rig = Rig({1: Daemon(refuses=True), 2: Daemon()})
    both = rig.routing
    rig.routing = replace(both, targets=[TargetInfo(1, 101, TargetState.SERVING)])
    rig.world.after(
        2 * SECOND,
        lambda: setattr(
            rig,
            "routing",
            replace(
                both,
                version=2,
                targets=[
                    TargetInfo(1, 101, TargetState.OFFLINE),
                    TargetInfo(2, 102, TargetState.SERVING),
                ],
            ),
        ),
    )
    _, failure = rig.read()
    assert failure is None and rig.world.now_ns <= 4 * SECOND


def test_nobody_serving_is_unavailable_before_the_deadline() -> None:
    rig = Rig({1: Daemon()})
    rig.routing = replace(rig.routing, targets=[TargetInfo(1, 101, TargetState.OFFLINE)])
    _, failure = rig.read()
    assert isinstance(failure, UnavailableError) and failure.where["path"] == "/f"


def test_large_reads_use_several_connections_and_small_ones_do_not() -> None:
    rig = Rig({1: Daemon()}, connections_per_node=3)
    chunks = PARALLEL_BYTES_MIN // CHUNK
    rig.read(chunks)
    assert rig.connections.most == 3
    rig.connections.most = 0
    rig.read(chunks - 1)
    assert rig.connections.most == 1


def test_connections_of_one_read_are_alike() -> None:
    rig = Rig({1: Daemon()}, connections_per_node=3)
    rig.read(PARALLEL_BYTES_MIN // CHUNK)
    assert rig.connections.may_be_local == [True, False, False]


@pytest.mark.parametrize("block", range(4))
def test_random_daemons(block: int) -> None:
    """With one good replica a read never fails; whatever fails is typed and names the file."""
    statuses = [
        errors.OK,
        errors.ConnectionLostError.code,
        errors.StalledError.code,
        errors.ChecksumError.code,
        errors.ChunkMissingError.code,
        errors.BusyError.code,
        errors.TargetStoppedError.code,
        errors.StorageIOError.code,
    ]
    for seed in range(block * 100, (block + 1) * 100):
        dice = World(seed).random
        daemons = {
            t: Daemon(
                status := dice.choice(statuses),
                refuses=dice.random() < 0.2,
                silent=dice.random() < 0.1,
                takes_ns=dice.choice([MS, MS, 50 * MS, 300 * MS]),
                trickles=status != errors.StalledError.code and dice.random() < 0.3,
                heals_ns=dice.choice([1 << 62, dice.randrange(2 * SECOND)]),
            )
            for t in range(1, dice.randrange(2, 5))
        }
        rig = Rig(daemons)
        _, failure = rig.read(dice.randrange(1, 9))
        good = any(
            d.status == errors.OK and not d.refuses and not d.silent for d in daemons.values()
        )
        assert not (good and failure), (seed, daemons, failure)
        assert failure is None or failure.where["path"] == "/f"
