"""An operator of a simulated cluster, who drains and rebalances it while everything else happens.

What he asks for goes to the database at once, as the real server writes it down; the real manager
does it. He has dice of his own, so that a seed without him is what it was. Of all nodes one at most
is drained at a time: the others must have a place for each replica.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ffs.server.meta.cluster.view import Task
from ffs.server.meta.ops import tasks
from ffs.server.meta.ops.routing import hold_routing
from ffs.server.meta.store import Transaction
from ffs.wire.operators import TaskKind
from tests.sim.world import SECOND

if TYPE_CHECKING:
    from tests.sim.cluster.run import Cluster

REQUESTS: Final = 6
LASTS_NS: Final = 5 * SECOND
"""He begins nothing after that."""
DRAINS: Final = (TaskKind.DRAIN_NODE, TaskKind.DRAIN_TARGET)


class Operator:
    """Asks for things, and knows when all of them are done."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self._cluster = cluster
        self._dice = random.Random(seed)

    def plan(self) -> None:
        """Schedule what is asked for; the last one drains a node."""
        world = self._cluster.world
        for _ in range(REQUESTS):
            world.after(self._dice.randrange(LASTS_NS), self._ask)
        world.after(LASTS_NS, self._drain, TaskKind.DRAIN_NODE)

    def _ask(self) -> None:
        wanted = self._dice.choice([*DRAINS, TaskKind.REBALANCE, None])
        if wanted is None:
            kind = self._dice.choice([*DRAINS, TaskKind.REBALANCE])
            self._write(lambda tx: self._cancel(tx, {kind}), f"cancel {kind.name}")
        elif wanted in DRAINS:
            self._drain(wanted)
        else:
            self._write(lambda tx: tasks.begin(tx, Task(TaskKind.REBALANCE)), "rebalance")

    def _drain(self, kind: TaskKind) -> None:
        routing = self._cluster.ledger.newest()
        if kind is TaskKind.DRAIN_NODE:
            subject = self._dice.choice([node.node for node in routing.nodes])
        else:
            members = [target for chain in routing.chains for target in chain.targets]
            subject = self._dice.choice(members)

        self.drain(kind, subject)

    def drain(self, kind: TaskKind, subject: int) -> None:
        """Drain a node or a target, and nothing else any more."""

        def operation(tx: Transaction) -> None:
            self._cancel(tx, set(DRAINS))
            tasks.begin(tx, Task(kind, subject))

        self._write(operation, f"{kind.name} {subject}")

    def accept_loss(self, chain: int) -> None:
        """Let who is left of a chain serve."""
        task = Task(TaskKind.ACCEPT_LOSS, chain)
        self._write(lambda tx: tasks.begin(tx, task), f"{task.kind.name} {chain}")

    def _cancel(self, tx: Transaction, kinds: set[TaskKind]) -> None:
        hold_routing(tx)
        for task in tasks.load(tx):
            if task.kind in kinds:
                tasks.end(tx, task.kind, task.subject)

    def _write(self, operation: Callable[[Transaction], None], what: str) -> None:
        self._cluster.world.log("operator", what)
        self._cluster.database.run(operation)

    def satisfied(self) -> bool:
        """Whether nothing is left to do: all chains have their replicas, none of them drained, and
        what has left its chain is empty."""
        asked = self._cluster.database.run(tasks.load)
        drained = {task.subject for task in asked if task.kind is TaskKind.DRAIN_NODE}
        routing = self._cluster.ledger.newest()
        homes = {target.target: target.node for target in routing.targets}
        nodes = [[homes[target] for target in chain.targets] for chain in routing.chains]
        used = {target for chain in routing.chains for target in chain.targets}
        return (
            all(task.kind in DRAINS for task in asked)
            and all(len(n) == len(set(n)) == 3 and not drained & set(n) for n in nodes)
            and not any(d.chunks for d in self._cluster.ledger.disks if d.target not in used)
        )
