"""What operators have asked for, as rows: begun, loaded by the manager, ended; and nodes forgotten.

Previous hop: `server/meta/operators.py` for operators, `chains` for the manager. Next hop: SQL. A
task is a row for as long as it is wanted, so neither the operator's program nor a manager has to
live to see it through. Invariants: a task is there once, however often it was asked for; a node is
forgotten only while no chain has a target of it, and its targets that come back one day are emptied
before anything is put on them.
"""

from __future__ import annotations

from typing import Final

from ffs.errors import NotFoundError, StillNeededError
from ffs.server.meta.cluster.view import Task
from ffs.server.meta.ops.orders import order_retirement
from ffs.server.meta.ops.routing import grow_version, hold_routing, hold_targets
from ffs.server.meta.store import Transaction
from ffs.wire.operators import TaskKind

_IN_CHAINS: Final = (
    "SELECT c.chain FROM chain_targets c JOIN targets t ON t.target = c.target"
    " WHERE t.node = ? ORDER BY c.chain"
)
_SEE: Final = "`ffs status` shows all of them"


def load(tx: Transaction) -> list[Task]:
    """Return all tasks, the oldest first."""
    rows = tx.rows(
        "SELECT kind, subject, host, began_ns, total_bytes FROM cluster_tasks"
        " ORDER BY began_ns, kind, subject"
    )
    return [Task(TaskKind(kind), *rest) for kind, *rest in rows]


def begin(tx: Transaction, task: Task) -> None:
    """Write a task down, unless it is there."""
    tx.insert(
        "cluster_tasks",
        ("kind", "subject", "host", "began_ns", "total_bytes"),
        [(int(task.kind), task.subject, task.host, task.began_ns, task.total_bytes)],
        conflict="DO NOTHING",
    )


def end(tx: Transaction, kind: TaskKind, subject: int) -> bool:
    """Take a task away; return whether it was there. The routing must be held.

    What moves for a rebalance goes back: the manager lets the newcomers go.
    """
    if kind is TaskKind.REBALANCE:
        tx.run("UPDATE chain_targets SET moving = 0 WHERE moving <> 0")
    gone = tx.run("DELETE FROM cluster_tasks WHERE kind = ? AND subject = ?", (int(kind), subject))
    return gone > 0


def check_subject(tx: Transaction, kind: TaskKind, subject: int) -> None:
    """Raises: NotFoundError for a task about what is not there"""
    if kind is TaskKind.DRAIN_NODE:
        _check_node(tx, subject)
    if kind is TaskKind.DRAIN_TARGET:
        row = tx.row("SELECT 1 FROM targets WHERE target = ?", (subject,))
        if row is None:
            raise NotFoundError("no such target", hint=_SEE, target=subject)
    if kind is TaskKind.ACCEPT_LOSS:
        row = tx.row("SELECT 1 FROM chains WHERE chain = ?", (subject,))
        if row is None:
            raise NotFoundError("no such chain", hint=_SEE, chain=subject)


def _check_node(tx: Transaction, node: int) -> None:
    if tx.row("SELECT 1 FROM nodes WHERE node = ?", (node,)) is None:
        raise NotFoundError("no such node", hint=_SEE, node=node)


def forget_node(tx: Transaction, node: int) -> None:
    """Forget a node that is gone, its targets, and what was asked about them.

    Raises:  NotFoundError: there is no such node; StillNeededError: chains have targets of it
    """
    hold_routing(tx)
    _check_node(tx, node)
    if chains := [str(chain) for (chain,) in tx.rows(_IN_CHAINS, (node,))]:
        raise StillNeededError(
            f"node {node} has members of chain {', '.join(dict.fromkeys(chains))}",
            hint=f"`ffs cluster drain {node}` copies what they hold to other nodes first",
            node=node,
        )
    rows = tx.rows("SELECT target FROM targets WHERE node = ? ORDER BY target", (node,))
    targets = [target for (target,) in rows]
    hold_targets(tx, targets)
    order_retirement(tx, targets)
    tx.insert("removed_targets", ("target",), [(t,) for t in targets], conflict="DO NOTHING")
    tx.run("DELETE FROM targets WHERE node = ?", (node,))
    tx.run("DELETE FROM nodes WHERE node = ?", (node,))
    end(tx, TaskKind.DRAIN_NODE, node)
    for target in targets:
        end(tx, TaskKind.DRAIN_TARGET, target)
    grow_version(tx)
