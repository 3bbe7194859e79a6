"""What operators ask of the cluster: drains, rebalances, nodes that come and go.

Previous hop: `service`. Next hop: `ops.tasks`, which writes down what is asked for, and
`cluster.planned`, which says what comes of it; the cluster manager does it (`cluster.evaluate`).
Any server answers, the manager or not: it judges by when daemons were heard last.

Invariant: what would leave a chain without a place for one of its replicas is refused before it
begins. What makes it impossible later leaves it waiting, and `tasks` says for what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from ffs.errors import InvalidError, StillNeededError, UnavailableError
from ffs.seams import Clock
from ffs.server.meta.cluster import planned
from ffs.server.meta.cluster.liveness import Life
from ffs.server.meta.cluster.view import Task, View
from ffs.server.meta.ops import chains, tasks
from ffs.server.meta.ops.context import Context
from ffs.server.meta.ops.routing import hold_routing
from ffs.server.meta.store import Transaction
from ffs.wire import operators as wire
from ffs.wire.membership import TargetReport
from ffs.wire.method import Empty
from ffs.wire.operators import TaskKind


class Operators:
    """The operations; each runs within a transaction.

    Args:    heard, reports: as `ManagerRole` has them
    Threads: the store's
    """

    def __init__(
        self,
        clock: Clock,
        lease_ns: int,
        *,
        heard: Callable[[], Mapping[int, int] | None],
        reports: Callable[[], Sequence[TargetReport]],
    ) -> None:
        self._clock = clock
        self._lease_ns = lease_ns
        self._began_ns = clock.monotonic_ns()
        self._heard = heard
        self._reports = reports

    def tasks(self, tx: Transaction, request: wire.TasksRequest) -> wire.TasksReply:
        """Return how far everything is."""
        view = self._view(tx)
        paths: dict[int, str] = dict(tx.rows("SELECT target, label FROM targets"))
        return wire.TasksReply(
            [planned.report(view, task) for task in view.tasks],
            planned.under_way(view),
            planned.disk_uses(view, paths),
        )

    def plan(self, tx: Transaction, request: wire.PlanRequest) -> wire.PlanReply:
        """Return what a task would do. Raises: NotFoundError, InvalidError"""
        kind = _kind_of(request.kind)
        tasks.check_subject(tx, kind, request.subject)
        view = self._view(tx)
        found = planned.plan(view, kind, request.subject)
        if found.stuck:
            _check_heard(view, view.lives)
        return wire.PlanReply(found.moves, "; ".join(found.stuck), found.effects)

    def begin(
        self, tx: Transaction, context: Context, request: wire.BeginRequest
    ) -> wire.BeginReply:
        """Write down that a task is wanted.

        Raises:  NotFoundError, InvalidError; StillNeededError: it would leave too few replicas
        """
        kind = _kind_of(request.kind)
        hold_routing(tx)
        tasks.check_subject(tx, kind, request.subject)
        subject = request.subject
        if kind is TaskKind.ADD_NODE:
            subject = tx.highest("node")
        elif kind is TaskKind.REBALANCE:
            subject = 0
        view = self._view(tx)
        if any((task.kind, task.subject) == (kind, subject) for task in view.tasks):
            return wire.BeginReply(subject)
        found = planned.plan(view, kind, subject)
        if found.stuck:
            _check_heard(view, view.lives)
            if kind is TaskKind.ACCEPT_LOSS:
                raise InvalidError(found.stuck[0], hint="`ffs status` shows who serves it")
            raise StillNeededError(
                found.stuck[0],
                hint="add a node, or one with more room, and ask again",
            )
        total_bytes = sum(move.total_bytes for move in found.moves)
        tasks.begin(tx, Task(kind, subject, request.host, context.now_ns, total_bytes))
        return wire.BeginReply(subject)

    def cancel(
        self, tx: Transaction, context: Context, request: wire.CancelRequest
    ) -> wire.CancelReply:
        """Take a task away."""
        hold_routing(tx)
        return wire.CancelReply(tasks.end(tx, _kind_of(request.kind), request.subject))

    def remove_node(
        self, tx: Transaction, context: Context, request: wire.RemoveNodeRequest
    ) -> Empty:
        """Forget a node. Raises: NotFoundError, StillNeededError"""
        hold_routing(tx)
        view = self._view(tx)
        _check_heard(view, [request.node])
        if view.lives.get(request.node) is Life.ALIVE:
            raise StillNeededError(
                f"node {request.node} still runs",
                hint="stop its daemon; a moment later it counts as gone",
                node=request.node,
            )
        tasks.forget_node(tx, request.node)
        return Empty()

    # --- what is known ------------------------------------------------------------------------

    def _view(self, tx: Transaction) -> View:
        return chains.load_view(tx, self._judge, self._heard(), self._reports())

    def _judge(self, heard_ns: int) -> Life:
        shared = self._heard() is None
        now_ns = self._clock.wall_ns() if shared else self._clock.monotonic_ns()
        if heard_ns:
            return Life.ALIVE if now_ns - heard_ns <= self._lease_ns else Life.DEAD
        young = self._clock.monotonic_ns() - self._began_ns <= self._lease_ns
        return Life.UNKNOWN if young else Life.DEAD


def _check_heard(view: View, nodes: Iterable[int]) -> None:
    """Raises: UnavailableError: this server has not listened for long enough to judge a node"""
    for node in sorted(nodes):
        if view.lives.get(node) is Life.UNKNOWN:
            raise UnavailableError(
                "the metadata server does not know yet whether a node lives",
                hint="ask again in a moment",
                node=node,
            )


def _kind_of(kind: int) -> TaskKind:
    try:
        return TaskKind(kind)
    except ValueError:
        raise InvalidError(
            f"there is no task of kind {kind}", hint="is this an older server?"
        ) from None
