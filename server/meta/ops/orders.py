"""What daemons are told to do with targets: create one, or empty one that left its chain.

Previous hop: whoever changes where data lies (`order_target`, `order_retirement`), and `service`,
which hands orders out with heartbeats. Next hop: SQL. Invariants: an order is told until the daemon
reports what it was for, so that neither a lost answer nor a restart loses it, and doing it twice is
doing it once; a target that is ordered or being emptied belongs to no chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ffs.server.meta.ops.routing import grow_version, hold_routing
from ffs.server.meta.ops.storage import confirm_drops
from ffs.server.meta.store import Transaction
from ffs.types import TargetState
from ffs.wire.membership import NewTarget, TargetReport

_IN_DOUBT: Final = (
    "SELECT t.target FROM chains k JOIN chain_targets c ON c.chain = k.chain"
    " JOIN targets t ON t.target = c.target WHERE k.doubtful <> 0 AND t.node = ? ORDER BY t.target"
)


@dataclass(frozen=True, slots=True)
class Orders:
    """What a daemon has still to do."""

    create: list[NewTarget]
    retire: list[int]
    compare: list[int]


def order_target(tx: Transaction, node: int, beside: int) -> int:
    """Have a daemon create a target on the disk of another one of its own; return its id."""
    hold_routing(tx)
    (target,) = tx.allocate("target", 1)
    tx.insert(
        "targets",
        ("target", "node", "state", "label", "beside", "stopped"),
        [(target, node, int(TargetState.WAITING), "", beside, 1)],
    )
    grow_version(tx)
    return target


def order_retirement(tx: Transaction, targets: Sequence[int]) -> None:
    """Have targets emptied that have left their chains; they are free once they are empty.

    No blob waits for them any more: all that they have is dropped.
    """
    for target in sorted(targets):
        tx.run(
            "UPDATE targets SET retiring = 1, spare = 1, state = ? WHERE target = ?",
            (int(TargetState.WAITING), target),
        )
        dropped = tx.rows("SELECT blob FROM drops WHERE target = ? ORDER BY blob", (target,))
        confirm_drops(tx, [target], [blob for (blob,) in dropped])


def orders(tx: Transaction, node: int) -> Orders:
    """Return what was ordered of a daemon and not reported as done."""
    rows = tx.rows(
        "SELECT target, beside, retiring FROM targets"
        " WHERE node = ? AND (beside <> 0 OR retiring <> 0) ORDER BY target",
        (node,),
    )
    return Orders(
        [NewTarget(target, beside) for target, beside, _ in rows if beside],
        [target for target, beside, retiring in rows if retiring and not beside],
        [target for (target,) in tx.rows(_IN_DOUBT, (node,))],
    )


def done(given: Orders, reports: Sequence[TargetReport]) -> Orders:
    """Return those of the orders that a daemon's reports show to be done."""
    reported = {report.target for report in reports}
    empty = {report.target for report in reports if not report.stopped and not report.chunks}
    return Orders(
        [order for order in given.create if order.target in reported],
        [target for target in given.retire if target in empty],
        [],
    )


def note_done(tx: Transaction, finished: Orders, reports: Sequence[TargetReport]) -> None:
    """Give orders no more that were carried out."""
    labels = {report.target: report.label for report in reports}
    for order in finished.create:
        tx.run(
            "UPDATE targets SET beside = 0, stopped = 0, label = ? WHERE target = ?",
            (labels[order.target], order.target),
        )
    for target in finished.retire:
        tx.run("UPDATE targets SET retiring = 0 WHERE target = ?", (target,))
