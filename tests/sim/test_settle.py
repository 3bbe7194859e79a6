"""The real settle loop and planner over model daemons in virtual time: fail-over, stalls, refresh.

Only what crosses the seam is a model: connections, and an engine that answers each operation from
the state of its target at that moment. Checked: every read ends with the right bytes or a typed
error that names the place; connections come back however a call ends; the stall time is asked for
only where another replica could take over; new routing is used as soon as it is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from ffs import errors
from ffs.client import planner
from ffs.client.layouts import Content, Route
from ffs.client.planner import PENDING, Plan
from ffs.client.reader import ReadJob
from ffs.client.retry import RetryPolicy
from ffs.client.settle import PARALLEL_BYTES_MIN, Settler
from ffs.errors import ChecksumError, FFSError, UnavailableError
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

CHUNK = 1 << 20
STALL_MS = 80
DEADLINE_NS = 10 * SECOND


@dataclass
class Daemon:
    """One target on one node: `status` is what every operation gets; `refuses` connections."""

    status: int = errors.OK
    refuses: bool = False
    heals_ns: int = 1 << 62


@dataclass(eq=False)
class ModelConnection:
    """A connection to one address; broken by a stall or a loss."""

    address: tuple[str, int]
    alive: bool = True


@dataclass
class ModelConnections:
    """Hands out connections and counts them back in."""

    world: World
    daemons: dict[int, Daemon]
    out: int = 0
    most: int = 0
    made: list[ModelConnection] = field(default_factory=list)

    def checkout(
        self, address: tuple[str, int], *, timeout_ms: int, fresh: bool = False
    ) -> ModelConnection:
        """Connect to the node whose port is its target's id."""
        daemon = self.daemons[address[1]]
        if daemon.refuses and self.world.now_ns < daemon.heals_ns:
            raise UnavailableError("refused", address=address)
        self.out += 1
        self.most = max(self.most, self.out)
        self.made.append(ModelConnection(address))
        return self.made[-1]

    def checkin(self, address: tuple[str, int], connection: ModelConnection) -> None:
        """Take one back."""
        assert connection.address == address
        self.out -= 1


class ModelJob(ReadJob):
    """A read whose engine is the model: it answers from the daemons' state, and spends time."""

    def __init__(
        self, plan: Plan, out: memoryview, world: World, daemons: dict[int, Daemon]
    ) -> None:
        super().__init__(plan, out, verify=True)
        self.world = world
        self.daemons = daemons
        self.target = out
        self.stalls: list[int] = []

    def submit(self, connections: Sequence[Any], deadline_ms: int, stall_ms: int) -> int:
        """Answer every pending operation at its target."""
        self.stalls.append(stall_ms)
        spent = MS
        for op in self.ops[self.ops["status"] == PENDING]:
            assert connections[int(op["conn"])].address[1] == int(op["target"])
        for index in np.flatnonzero(self.ops["status"] == PENDING):
            op = self.ops[index]
            daemon = self.daemons[int(op["target"])]
            status = daemon.status if self.world.now_ns < daemon.heals_ns else errors.OK
            if status == errors.StalledError.code:
                spent = max(spent, (stall_ms or deadline_ms) * MS)
                status = status if stall_ms else errors.DeadlineError.code
            if status == errors.OK:
                start, length = int(op["dest_offset"]), int(op["length"])
                self.target[start : start + length] = bytes([1 + int(op["chunk"])]) * length
            self.ops["status"][index] = status
        self.world.run(self.world.now_ns + spent)
        return int((self.ops["status"] == 0).sum())


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
        self.settler = Settler(
            self.connections,  # type: ignore[arg-type]  # the model has the two methods that count
            RetryPolicy(20, 1_000, self.world.randomness),
            self.world.clock,
            route=lambda: Route(self.routing),
            refresh=self._refresh,
            connections_per_node=connections_per_node,
            stall_ms=STALL_MS,
            sleep=lambda s: self.world.run(self.world.now_ns + int(s * 1e9)),
        )

    def _refresh(self) -> Route:
        self.refreshes += 1
        return Route(self.routing)

    def read(self, chunks: int = 4) -> tuple[ModelJob, FFSError | None]:
        """Read a file of so many chunks; return the job and how it failed, if it did."""
        route = Route(self.routing)
        segment = Segment(7, chunks * CHUNK, Layout(CHUNK, 0, 1, 5))
        attr = Attr(2, 1, 0o644, 0, 0, 1, segment.length, 1, 0, 0, 0)
        content = Content("/f", OpenFile(attr, [segment]), route.tables)
        plan = planner.plan_ranges([content], [0], [content.size], route)
        out = bytearray(content.size)
        job = ModelJob(plan, memoryview(out), self.world, self.daemons)
        failure = None
        try:
            self.settler.settle(job, self.world.now_ns + DEADLINE_NS)
            assert out == b"".join(bytes([1 + i]) * CHUNK for i in range(chunks))
        except FFSError as error:
            failure = error
        assert self.connections.out == 0, "a connection was not given back"
        assert self.world.now_ns <= DEADLINE_NS + 5 * MS
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


def test_a_stopped_replica_costs_the_stall_time_once() -> None:
    rig = Rig({1: Daemon(errors.StalledError.code), 2: Daemon()})
    job, failure = rig.read()
    assert failure is None
    assert job.stalls == [STALL_MS, 0], "the last replica left is given all the time there is"
    assert rig.world.now_ns <= (STALL_MS + 2) * MS


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
                dice.choice(statuses),
                refuses=dice.random() < 0.2,
                heals_ns=dice.choice([1 << 62, dice.randrange(2 * SECOND)]),
            )
            for t in range(1, dice.randrange(2, 5))
        }
        rig = Rig(daemons)
        _, failure = rig.read(dice.randrange(1, 9))
        good = any(d.status == errors.OK and not d.refuses for d in daemons.values())
        assert not (good and failure), (seed, daemons, failure)
        assert failure is None or failure.where["path"] == "/f"
