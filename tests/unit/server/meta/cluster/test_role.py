"""The cluster manager over real databases of both engines, under a clock that tests move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ffs.config import MetaConfig
from ffs.errors import NoSpaceError
from ffs.server.meta.cluster.role import ManagerRole
from ffs.server.meta.manager import Manager
from ffs.server.meta.ops import chains, orders, status, storage
from ffs.server.meta.ops.create import newest_table
from ffs.server.meta.ops.routing import load_routing, set_min_replicas
from ffs.server.meta.store import Transaction
from ffs.types import Routing, TargetState
from ffs.wire.membership import HeartbeatRequest, RegisterRequest, TargetReport
from tests.databases import ENGINES, Database, new_database

MS = 1_000_000
HEARTBEAT, LEASE = 100 * MS, 500 * MS
CLUSTER = bytes(range(16))
CONFIG = MetaConfig(heartbeat_ms=100, node_lease_ms=500, replicas=3, rereplicate_after_s=3)
SERVING, SYNCING = TargetState.SERVING, TargetState.SYNCING
OFFLINE, LASTSRV = TargetState.OFFLINE, TargetState.LASTSRV


class StandingClock:
    """Two clocks that go on only when a test says so."""

    def __init__(self) -> None:
        self.now_ns = 10**15
        self.wall_ahead_ns = 10**17

    def monotonic_ns(self) -> int:
        return self.now_ns

    def wall_ns(self) -> int:
        return self.now_ns + self.wall_ahead_ns


class DirectStore:
    """A database used by the test's own thread."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def read(self, operation: Callable[[Transaction], Any]) -> Any:
        return self.database.transact(operation)

    async def write(self, operation: Callable[[Transaction], Any]) -> Any:
        return self.database.transact(operation)

    async def close(self) -> None:
        pass


class Rig:
    """Metadata servers of one database, and daemons that beat when a test says so."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.shared = database.tx.shared
        self.clock = StandingClock()
        self.told: list[Routing] = []
        self.reports: dict[int, list[TargetReport]] = {}
        self.silent: set[int] = set()
        database.transact(lambda tx: status.initialise(tx, CLUSTER, 1))
        database.transact(lambda tx: set_min_replicas(tx, CONFIG.min_replicas_wanted))
        self.heard = self.new_manager()
        self.role = self.new_role("one")

    def new_manager(self) -> Manager:
        return Manager(node_lease_ns=LEASE, session_ttl_ns=LEASE, now_ns=self.clock.now_ns)

    def new_role(self, name: str) -> ManagerRole:
        role = ManagerRole(
            DirectStore(self.database),
            self.clock,
            CONFIG,
            heard=lambda: None if self.shared else self.heard.heard_ns(),
            reports=lambda: [] if self.shared else self.heard.reports(),
            on_routing=self.told.append,
        )
        role.serves_as(name)
        return role

    def register(self, targets: int) -> int:
        node = len(self.reports) + 1
        new = [TargetReport(f"{node}-{i}", 0, 1_000, 0, 0, False) for i in range(targets)]
        request = RegisterRequest(0, b"", node, "host", node, new)
        reply = self.database.transact(
            lambda tx: storage.register(
                tx,
                request,
                cluster_id=CLUSTER,
                heartbeat_ms=100,
                now_ns=self.clock.wall_ns(),
                replicas=CONFIG.replicas,
            )
        )
        named = [replace(r, target=t) for r, t in zip(new, reply.targets, strict=True)]
        self.heard.registered(node, named, self.clock.now_ns)
        self.reports[node] = named
        return node

    def join(self, node: int) -> int:
        """Give a node that had none a disk; return its target."""
        new = [TargetReport(f"{node}-new", 0, 1_000, 0, 0, False)]
        (target,) = self.rejoin(node, CLUSTER, new)
        return target

    def rejoin(self, node: int, cluster: bytes, reports: list[TargetReport]) -> list[int]:
        """Let a daemon come up as a node again; return the ids of its targets."""
        request = RegisterRequest(node, cluster, node, "host", node, reports)
        reply = self.database.transact(
            lambda tx: storage.register(
                *(tx, request),
                cluster_id=CLUSTER,
                heartbeat_ms=100,
                now_ns=self.clock.wall_ns(),
                replicas=CONFIG.replicas,
            )
        )
        named = [replace(r, target=t) for r, t in zip(reports, reply.targets, strict=True)]
        self.reports[node] = named
        self.heard.registered(node, named, self.clock.now_ns)
        return reply.targets

    def say(self, node: int, **facts: Any) -> None:
        """Let all targets of a node report something from now on."""
        self.reports[node] = [replace(report, **facts) for report in self.reports[node]]

    def obey(self, node: int) -> orders.Orders:
        """Let a node do what was ordered of it, and report it from now on."""
        given = orders.orders(self.database.tx, node)
        for order in given.create:
            (beside,) = [r for r in self.reports[node] if r.target == order.beside]
            made = replace(beside, label=f"{node}/{order.target}", target=order.target, synced=0)
            self.reports[node].append(made)
        emptied = [
            replace(r, chunks=0, stored_bytes=0) if r.target in given.retire else r
            for r in self.reports[node]
        ]
        self.reports[node] = emptied
        return given

    def sync(self) -> None:
        """Let all that sync report that they have."""
        since = {t.target: t.since for t in self.routing.targets if t.state == SYNCING}
        for node, reports in self.reports.items():
            self.reports[node] = [
                replace(r, synced=since[r.target]) if r.target in since else r for r in reports
            ]

    def beat(self) -> None:
        """A heartbeat of each node that is not silent."""
        for node in self.reports.keys() - self.silent:
            request = HeartbeatRequest(node, self.reports[node], [], 0, node, node)
            self.heard.heard(request, self.clock.now_ns)
            now_ns = self.clock.wall_ns()
            self.database.transact(lambda tx, r=request, n=now_ns: storage.hear(tx, r, now_ns=n))
            done = orders.done(orders.orders(self.database.tx, node), self.reports[node])
            self.database.transact(
                lambda tx, d=done, n=node: orders.note_done(tx, d, self.reports[n])
            )

    def turn(self, role: ManagerRole | None = None) -> None:
        # It waits for nothing but its store, which waits for nothing: no loop is needed, and the
        # connection to PostgreSQL runs one of its own.
        with pytest.raises(StopIteration):
            (role or self.role).turn().send(None)

    def go_on(self, lasting_ns: int, role: ManagerRole | None = None) -> None:
        """Time passes, in heartbeats and turns."""
        for _ in range(lasting_ns // HEARTBEAT):
            self.clock.now_ns += HEARTBEAT
            self.beat()
            self.turn(role)

    @property
    def routing(self) -> Routing:
        return load_routing(self.database.tx)

    def states(self) -> dict[int, set[TargetState]]:
        """Node -> the states of its targets."""
        found: dict[int, set[TargetState]] = {}
        for target in self.routing.targets:
            found.setdefault(target.node, set()).add(TargetState(target.state))
        return found

    def versions(self) -> set[int]:
        return {chain.version for chain in self.routing.chains}


@pytest.fixture(params=ENGINES)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    """One server and no daemon."""
    return Rig(new_database(request.param, tmp_path))


@pytest.fixture
def three(rig: Rig) -> Rig:
    """Three daemons of three targets each, in three chains; the second of them can be missed."""
    for _ in range(3):
        rig.register(3)
    rig.go_on(2 * LEASE)
    assert rig.states() == {1: {SERVING}, 2: {SERVING}, 3: {SERVING}}
    return rig


def test_chains_are_formed_of_free_targets_once_daemons_have_come_up(rig: Rig) -> None:
    rig.register(3)
    rig.register(3)
    rig.go_on(4 * HEARTBEAT)
    assert rig.routing.chains == [] and rig.states() == {1: {TargetState.WAITING}} | {
        2: {TargetState.WAITING}
    }
    rig.register(3)
    rig.turn()
    assert rig.routing.chains == [], "more may come"
    rig.go_on(2 * HEARTBEAT)
    routing = rig.routing
    homes = {target.target: target.node for target in routing.targets}
    nodes = [[homes[target] for target in chain.targets] for chain in routing.chains]
    assert [sorted(chain) for chain in nodes] == [[1, 2, 3]] * 3
    assert sorted(chain[0] for chain in nodes) == [1, 2, 3], "each heads one"
    assert [table.chains for table in routing.tables] == [[c.chain for c in routing.chains]]
    assert {t.since for t in routing.targets} == rig.versions() == {1}
    assert routing.min_replicas == 2
    assert rig.told[-1] == routing


def test_a_silent_daemon_is_offline_after_its_lease_and_syncs_when_it_is_back(three: Rig) -> None:
    heads = [chain.targets[0] for chain in three.routing.chains]
    order = [chain.targets for chain in three.routing.chains]
    three.silent.add(2)
    three.go_on(LEASE)
    assert three.versions() == {1}
    three.go_on(HEARTBEAT)
    assert three.states() == {1: {SERVING}, 2: {OFFLINE}, 3: {SERVING}}
    assert three.versions() == {2}
    three.silent.clear()
    three.go_on(HEARTBEAT)
    assert three.states()[2] == {SYNCING} and three.versions() == {3}
    assert {t.since for t in three.routing.targets if t.node == 2} == {3}
    for synced, state in ((2, SYNCING), (3, SERVING)):
        three.say(2, synced=synced)
        three.go_on(HEARTBEAT)
        assert three.states()[2] == {state}
    assert three.versions() == {4}
    assert [chain.targets[0] for chain in three.routing.chains] == heads
    assert [chain.targets for chain in three.routing.chains] == order


def test_when_all_are_silent_the_first_that_is_back_serves(three: Rig) -> None:
    three.silent.update((1, 2, 3))
    three.go_on(LEASE + HEARTBEAT)
    assert three.states() == {1: {LASTSRV}, 2: {LASTSRV}, 3: {LASTSRV}}
    three.silent.discard(3)
    three.go_on(HEARTBEAT)
    assert three.states() == {1: {OFFLINE}, 2: {OFFLINE}, 3: {SERVING}}


def test_a_target_that_stopped_or_lost_chunks_gives_way_to_the_others(three: Rig) -> None:
    three.say(1, stopped=True)
    three.say(3, damaged=True)
    three.go_on(HEARTBEAT)
    assert three.states() == {1: {OFFLINE}, 2: {SERVING}, 3: {SYNCING}}
    (since,) = {t.since for t in three.routing.targets if t.node == 3}
    three.say(3, damaged=False, synced=since)
    three.go_on(HEARTBEAT)
    assert three.states() == {1: {OFFLINE}, 2: {SERVING}, 3: {SERVING}}


def test_a_manager_that_came_up_again_gives_everybody_a_lease(three: Rig) -> None:
    three.silent.add(1)
    three.clock.now_ns += 10 * LEASE
    three.heard = three.new_manager()  # its memory is new
    for node in three.reports:
        three.heard.expect(node)
    again = three.new_role("one")
    three.go_on(LEASE, again)
    assert three.states() == {1: {SERVING}, 2: {SERVING}, 3: {SERVING}}
    three.go_on(2 * HEARTBEAT, again)
    assert three.states() == {1: {OFFLINE}, 2: {SERVING}, 3: {SERVING}}


@pytest.mark.parametrize("what", ["stood still", "set ahead", "set back"])
def test_a_clock_that_jumps_kills_nobody(three: Rig, what: str) -> None:
    if what == "stood still":
        three.clock.now_ns += 10 * LEASE
    else:
        three.clock.wall_ahead_ns += (1 if what == "set ahead" else -1) * 10 * LEASE
    three.turn()
    three.go_on(3 * LEASE)
    assert three.states() == {1: {SERVING}, 2: {SERVING}, 3: {SERVING}}
    assert three.versions() == {1}


def test_a_manager_whose_lease_another_has_changes_nothing(three: Rig) -> None:
    """It has read everything and decided; meanwhile the lease is taken."""
    other = three.new_role("other")
    three.silent.add(2)
    three.go_on(LEASE)
    three.clock.now_ns += HEARTBEAT
    real = three.role._may_form

    def taken(*arguments: Any) -> bool:
        row = chains.lease(three.database.tx)
        assert other._lease is not None
        wanted = other._lease.bid(row, row.expires_ns) or replace(row, term=9, holder="other")
        three.database.transact(chains.held_lease)  # makes the row, if there is none
        three.database.transact(lambda tx: chains.set_lease(tx, wanted))
        return real(*arguments)

    vars(three.role)["_may_form"] = taken
    before, told = three.routing, len(three.told)
    three.turn()
    assert three.routing == before and len(three.told) == told
    vars(three.role).pop("_may_form")


def test_new_files_avoid_full_disks(three: Rig) -> None:
    for _ in range(3):
        three.register(1)
    three.go_on(3 * HEARTBEAT)
    assert len(three.routing.chains) == 4
    everything = three.routing.tables[-1].chains
    three.say(6, used_bytes=901)
    three.go_on(HEARTBEAT)
    (full,) = [
        chain.chain
        for chain in three.routing.chains
        if chain.targets and three.reports[6][0].target in chain.targets
    ]
    assert three.routing.tables[-1].chains == [chain for chain in everything if chain != full]
    three.say(6, used_bytes=851)
    three.go_on(HEARTBEAT)
    assert full not in three.routing.tables[-1].chains, "not yet: it would go to and fro"
    three.say(6, used_bytes=850)
    three.go_on(HEARTBEAT)
    assert three.routing.tables[-1].chains == everything
    tables = len(three.routing.tables)
    for node in three.reports:
        three.say(node, used_bytes=950)
    three.go_on(2 * HEARTBEAT)
    with pytest.raises(NoSpaceError, match="90 % full"):
        newest_table(three.database.tx)
    three.say(4, used_bytes=0)
    three.go_on(HEARTBEAT)
    assert len(three.routing.tables) == tables
    for node in three.reports:
        three.say(node, used_bytes=0)
    three.go_on(2 * HEARTBEAT)
    assert newest_table(three.database.tx).chains == 4
    assert len(three.routing.tables) == tables, "the table there was is the one that is wanted"


def test_members_that_are_gone_for_too_long_are_replaced_and_emptied(three: Rig) -> None:
    rig = three
    spare = rig.register(0)
    rig.silent.add(3)
    rig.go_on(LEASE + HEARTBEAT)
    lost = {target.target for target in rig.routing.targets if target.node == 3}
    assert rig.states()[3] == {OFFLINE}
    rig.database.transact(
        lambda tx: tx.insert("drops", ("target", "blob"), [(target, 77) for target in sorted(lost)])
    )
    rig.go_on(3_000 * MS - HEARTBEAT)
    assert rig.versions() == {2} and orders.orders(rig.database.tx, spare).create == []
    # The new node has no disk yet; then it gets one, on which all three have room.
    rig.go_on(3 * HEARTBEAT)
    assert rig.states()[3] == {OFFLINE}, "there is no other node"
    first = rig.join(spare)
    rig.go_on(HEARTBEAT)
    (taken,) = [c for c in rig.routing.chains if first in c.targets]
    assert taken.version == 3 and len(taken.targets) == 4
    assert len(orders.orders(rig.database.tx, spare).create) == 2
    rig.go_on(5 * HEARTBEAT)
    assert len(orders.orders(rig.database.tx, spare).create) == 2, "they were ordered once"
    rig.obey(spare)
    rig.go_on(2 * HEARTBEAT)
    assert rig.states()[spare] == {SYNCING} and rig.states()[3] == {OFFLINE}
    rig.sync()
    rig.go_on(2 * HEARTBEAT)
    assert rig.states() == {1: {SERVING}, 2: {SERVING}, 3: {TargetState.WAITING}, spare: {SERVING}}
    assert not lost & {target for chain in rig.routing.chains for target in chain.targets}
    assert {len(chain.targets) for chain in rig.routing.chains} == {3}
    assert rig.database.tx.rows("SELECT * FROM drops") == [], "nobody waits for what is emptied"
    rig.silent.clear()
    rig.say(3, chunks=5)
    rig.go_on(HEARTBEAT)
    assert set(orders.orders(rig.database.tx, 3).retire) == lost
    assert set(rig.obey(3).retire) == lost
    rig.go_on(2 * HEARTBEAT)
    assert orders.orders(rig.database.tx, 3).retire == [], "they are free"
    assert len(rig.routing.chains) == 3


def test_an_old_manager_replaces_nothing(three: Rig) -> None:
    """It decided to; meanwhile another server has its role."""
    spare = three.register(0)
    three.silent.add(3)
    three.go_on(LEASE + HEARTBEAT + 2_900 * MS)
    three.join(spare)
    three.go_on(HEARTBEAT)
    three.clock.now_ns += 3_000 * MS
    before = three.routing
    three.database.transact(chains.held_lease)
    real = three.role._may_form

    def taken(*arguments: Any) -> bool:
        row = replace(chains.lease(three.database.tx), term=9, holder="other")
        three.database.transact(lambda tx: chains.set_lease(tx, row))
        return real(*arguments)

    vars(three.role)["_may_form"] = taken
    three.beat()
    three.turn()
    assert three.routing == before
    vars(three.role).pop("_may_form")
