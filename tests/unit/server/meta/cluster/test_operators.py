"""What operators ask for, over real databases of both engines: written down, done, forgotten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from ffs.errors import InvalidError, NotFoundError, StillNeededError, UnavailableError
from ffs.seams import SystemRandomness
from ffs.server.meta.operators import Operators
from ffs.server.meta.ops import orders
from ffs.server.meta.ops.access import ROOT
from ffs.server.meta.ops.context import Context, Defaults
from ffs.server.meta.store import Transaction
from ffs.types import TargetState
from ffs.wire import operators as wire
from ffs.wire.operators import TaskKind
from tests.databases import ENGINES, new_database
from tests.unit.server.meta.cluster.test_role import (
    CLUSTER,
    HEARTBEAT,
    LEASE,
    MS,
    OFFLINE,
    SERVING,
    SYNCING,
    Rig,
)

T = TypeVar("T")


class Operated(Rig):
    """A cluster and its operator."""

    def operators(self) -> Operators:
        return Operators(
            self.clock,
            LEASE,
            heard=lambda: None if self.shared else self.heard.heard_ns(),
            reports=lambda: [] if self.shared else self.heard.reports(),
        )

    def ask(self, operation: Callable[[Transaction, Context, Any], T], request: object) -> T:
        now_ns = self.clock.wall_ns()
        context = Context(now_ns, SystemRandomness(), Defaults(1 << 16, 1, 1), ROOT)
        return self.database.transact(lambda tx: operation(tx, context, request))

    def begin(self, kind: TaskKind, subject: int = 0) -> int:
        request = wire.BeginRequest(b"", int(kind), subject)
        return self.ask(self.operators().begin, request).subject

    def cancel(self, kind: TaskKind, subject: int = 0) -> bool:
        return self.ask(self.operators().cancel, wire.CancelRequest(b"", int(kind), subject)).found

    def remove(self, node: int) -> None:
        self.ask(self.operators().remove_node, wire.RemoveNodeRequest(b"", node))

    def plan(self, kind: TaskKind, subject: int) -> wire.PlanReply:
        request = wire.PlanRequest(int(kind), subject)
        return self.database.transact(lambda tx: self.operators().plan(tx, request))

    def tasks(self) -> wire.TasksReply:
        return self.database.transact(lambda tx: self.operators().tasks(tx, wire.TasksRequest()))

    def finish(self) -> None:
        """Let all that daemons are told be done."""
        for _ in range(8):
            for node in self.reports.keys() - self.silent:
                self.obey(node)
            self.sync()
            self.go_on(2 * HEARTBEAT)

    def nodes(self) -> list[set[int]]:
        """The nodes of each chain's members."""
        homes = {target.target: target.node for target in self.routing.targets}
        return [{homes[target] for target in chain.targets} for chain in self.routing.chains]


@pytest.fixture(params=ENGINES)
def four(request: pytest.FixtureRequest, tmp_path: Path) -> Operated:
    """Three daemons with three chains, and a fourth with a free target."""
    rig = Operated(new_database(request.param, tmp_path))
    for _ in range(3):
        rig.register(3)
    rig.go_on(2 * LEASE)
    rig.register(1)
    for node in rig.reports:
        rig.say(node, disk=f"the disk of {node}")
    rig.go_on(2 * HEARTBEAT)
    assert rig.nodes() == [{1, 2, 3}] * 3
    return rig


def test_a_drain_goes_on_under_another_manager_and_stays(four: Operated) -> None:
    for node in four.reports:
        four.say(node, stored_bytes=100, chunks=1)
    four.go_on(HEARTBEAT)
    assert four.begin(TaskKind.DRAIN_NODE, 3) == four.begin(TaskKind.DRAIN_NODE, 3) == 3
    (task,) = four.tasks().tasks
    assert (task.kind, task.moves_left, task.total_bytes, task.left_bytes) == (2, 3, 300, 300)
    four.go_on(2 * HEARTBEAT)
    other = four.new_role("two")
    four.clock.now_ns += 2 * LEASE
    four.beat()
    four.turn(other)
    four.go_on(2 * LEASE, other)
    assert len(four.tasks().moves) == 1, "the free target joined, two are ordered"
    four.role = other
    four.finish()
    assert four.nodes() == [{1, 2, 4}] * 3
    assert {len(chain.targets) for chain in four.routing.chains} == {3}
    four.say(3, chunks=0, stored_bytes=0)
    four.finish()
    (task,) = four.tasks().tasks
    assert (task.moves_left, task.waits_for) == (0, "")
    assert four.cancel(TaskKind.DRAIN_NODE, 3) and not four.cancel(TaskKind.DRAIN_NODE, 3)
    assert four.tasks().tasks == []


def test_a_drain_that_is_cancelled_lets_the_newcomers_go(four: Operated) -> None:
    four.begin(TaskKind.DRAIN_NODE, 3)
    four.go_on(HEARTBEAT)
    assert sum(SYNCING in states for states in four.states().values()) == 1
    four.cancel(TaskKind.DRAIN_NODE, 3)
    four.go_on(HEARTBEAT)
    assert four.nodes() == [{1, 2, 3}] * 3
    four.begin(TaskKind.REBALANCE)
    four.obey(4)
    four.go_on(2 * HEARTBEAT)
    assert any(4 in nodes for nodes in four.nodes())
    four.cancel(TaskKind.REBALANCE)
    four.go_on(2 * HEARTBEAT)
    assert four.nodes() == [{1, 2, 3}] * 3


def test_what_leaves_too_few_replicas_is_refused(four: Operated) -> None:
    four.begin(TaskKind.DRAIN_NODE, 4)
    with pytest.raises(StillNeededError, match="would be left with 2 of 3 replicas") as raised:
        four.begin(TaskKind.DRAIN_NODE, 3)
    assert "add a node" in raised.value.hint
    assert "would be left" in four.plan(TaskKind.DRAIN_NODE, 3).refusal
    with pytest.raises(NotFoundError, match="no such node"):
        four.begin(TaskKind.DRAIN_NODE, 9)
    with pytest.raises(NotFoundError, match="no such target"):
        four.plan(TaskKind.DRAIN_TARGET, 99)
    with pytest.raises(InvalidError, match="no task of kind 77"):
        four.ask(four.operators().begin, wire.BeginRequest(b"", 77))


def test_a_node_is_forgotten_once_it_is_gone_and_nothing_is_missed(four: Operated) -> None:
    with pytest.raises(StillNeededError, match="still runs"):
        four.remove(3)
    with pytest.raises(NotFoundError):
        four.remove(9)
    four.silent.add(3)
    four.go_on(LEASE + HEARTBEAT)
    with pytest.raises(StillNeededError, match="chain 1, 2, 3") as raised:
        four.remove(3)
    assert "ffs cluster drain 3" in raised.value.hint
    four.begin(TaskKind.DRAIN_NODE, 3)
    four.finish()
    assert four.nodes() == [{1, 2, 4}] * 3, "the grace time was not waited for"
    old = {target.target for target in four.routing.targets if target.node == 3}
    four.remove(3)
    assert 3 not in {node.node for node in four.routing.nodes}
    assert not old & {target.target for target in four.routing.targets}
    assert four.tasks().tasks == []
    assert old == {t for (t,) in four.database.tx.rows("SELECT target FROM removed_targets")}


def test_a_node_that_was_removed_comes_back_to_be_emptied(four: Operated) -> None:
    four.silent.add(3)
    four.go_on(LEASE + HEARTBEAT)
    four.begin(TaskKind.DRAIN_NODE, 3)
    four.finish()
    four.remove(3)
    reports = four.reports.pop(3)
    four.rejoin(3, CLUSTER, reports)
    four.silent.clear()
    four.say(3, chunks=7)
    four.go_on(4 * HEARTBEAT)
    assert four.nodes() == [{1, 2, 4}] * 3
    retired = orders.orders(four.database.tx, 3).retire
    assert set(retired) == {report.target for report in reports}
    four.say(3, chunks=0, stored_bytes=0)
    four.go_on(4 * HEARTBEAT)
    assert orders.orders(four.database.tx, 3).retire == []
    assert four.database.tx.rows("SELECT * FROM removed_targets") == []
    assert len(four.routing.chains) == 3, "what was used before makes no new chains"


def test_another_manager_does_not_wait_anew(four: Operated) -> None:
    four.silent.add(3)
    four.go_on(LEASE + HEARTBEAT)
    assert OFFLINE in four.states()[3]
    four.go_on(2_000 * MS)
    other = four.new_role("two")
    four.clock.now_ns += 2 * LEASE
    four.beat()
    four.turn(other)
    four.go_on(LEASE + HEARTBEAT, other)
    assert SYNCING not in four.states()[4], "3 s have not passed"
    four.go_on(600 * MS, other)
    assert SYNCING in four.states()[4]


def test_nobody_is_judged_by_a_server_that_has_just_come_up(four: Operated) -> None:
    if four.shared:
        assert four.plan(TaskKind.DRAIN_NODE, 3).moves, "the database knows who was heard"
        return
    four.heard = four.new_manager()
    for node in four.reports:
        four.heard.expect(node)
    operators = four.operators()
    with pytest.raises(UnavailableError, match="does not know yet"):
        four.ask(operators.remove_node, wire.RemoveNodeRequest(b"", 3))
    with pytest.raises(UnavailableError, match="does not know yet"):
        four.ask(operators.begin, wire.BeginRequest(b"", int(TaskKind.DRAIN_NODE), 3))
    four.beat()
    four.ask(operators.begin, wire.BeginRequest(b"", int(TaskKind.DRAIN_NODE), 3))
    assert SERVING in four.states()[3]


def test_a_loss_that_is_accepted_lets_who_is_left_serve(four: Operated) -> None:
    with pytest.raises(NotFoundError, match="no such chain"):
        four.begin(TaskKind.ACCEPT_LOSS, 99)
    with pytest.raises(InvalidError, match="chain 1 waits for nobody"):
        four.begin(TaskKind.ACCEPT_LOSS, 1)
    four.silent |= {1, 2, 3}
    four.go_on(2 * LEASE)
    four.silent -= {1}
    four.say(1, damaged=True)
    four.go_on(2 * HEARTBEAT)
    (mine,) = {
        target
        for chain in four.routing.chains
        if chain.chain == 1
        for target in chain.targets
        if target in {report.target for report in four.reports[1]}
    }

    def state(target: int) -> int:
        return next(info.state for info in four.routing.targets if info.target == target)

    assert state(mine) == TargetState.LASTSRV, "the others may have what it lost"
    plan = four.plan(TaskKind.ACCEPT_LOSS, 1)
    assert not plan.refusal and plan.effects[0] == f"chain 1 is served by target {mine}"
    assert "is not waited for any more" in plan.effects[1]
    four.begin(TaskKind.ACCEPT_LOSS, 1)
    four.go_on(4 * HEARTBEAT)
    assert state(mine) == SERVING
    assert not four.tasks().tasks, "it is over once the chain is served"
