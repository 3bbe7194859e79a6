"""What an operator asks of a cluster: drains, rebalances, nodes that come and go.

Role: `ffs cluster` calls THIS; the next hop is the metadata server (`ffs.wire.operators`), whose
cluster manager does what is asked for, whether or not anybody waits here.
Failure behaviour: the typed errors of the calls; a wait survives servers that are away for less
than `client.meta_deadline_ms`, as every call does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ffs.wire import operators as wire
from ffs.wire.operators import Task, TaskKind

if TYPE_CHECKING:
    from ffs.client.meta import MetaClient

LOOK_S: Final = 0.5
"""How often a wait asks how far a task is."""
_STAYS: Final = (TaskKind.DRAIN_NODE, TaskKind.DRAIN_TARGET)
"""Tasks whose rows stay when all is done."""


class Operator:
    """One operator's side of a cluster. Threads: safe; Fork: as its `MetaClient`."""

    def __init__(self, meta: MetaClient) -> None:
        self._meta = meta

    def tasks(self) -> wire.TasksReply:
        """Return what was asked for and is not done, and how full each disk is."""
        return self._meta.call(wire.CLUSTER_TASKS, wire.TasksRequest())

    def plan(self, kind: TaskKind, subject: int = 0) -> wire.PlanReply:
        """Return what a task would do; nothing is done."""
        return self._meta.call(wire.CLUSTER_PLAN, wire.PlanRequest(int(kind), subject))

    def begin(self, kind: TaskKind, subject: int = 0, host: str = "") -> int:
        """Ask for a task, and return its subject; asking twice is asking once.

        Raises:  NotFoundError; StillNeededError: a drain for which there is no room elsewhere
        """
        request = wire.BeginRequest(self._meta.mutation(), int(kind), subject, host)
        return self._meta.call(wire.CLUSTER_BEGIN, request).subject

    def cancel(self, kind: TaskKind, subject: int = 0) -> bool:
        """Ask for a task no more; return whether there was one."""
        request = wire.CancelRequest(self._meta.mutation(), int(kind), subject)
        return self._meta.call(wire.CLUSTER_CANCEL, request).found

    def remove_node(self, node: int) -> None:
        """Forget a node that is gone. Raises: NotFoundError, StillNeededError"""
        self._meta.call(wire.REMOVE_NODE, wire.RemoveNodeRequest(self._meta.mutation(), node))

    def wait(
        self,
        kind: TaskKind,
        subject: int = 0,
        *,
        on_progress: Callable[[Task], None] = lambda task: None,
        look_s: float = LOOK_S,
    ) -> bool:
        """Wait until a task is done; return whether it is, else somebody has cancelled it.

        Args:    on_progress: called with each word about it; a node that was waited for is there
                 when the word is about the rebalance that follows
        """
        while True:
            tasks = {(task.kind, task.subject): task for task in self.tasks().tasks}
            task = tasks.get((kind, subject))
            if task is None and kind is TaskKind.ADD_NODE:
                kind, subject = TaskKind.REBALANCE, 0
                task = tasks.get((kind, subject))
            if task is None:
                return kind not in _STAYS
            on_progress(task)
            if kind in _STAYS and not task.moves_left and not task.waits_for:
                return True
            time.sleep(look_s)
