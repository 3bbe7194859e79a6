"""What an operator asks of the cluster: let nodes come and go, spread what they hold.

Declared and sent as `ffs.wire.method` says. Previous hop: client/operator.py; next hop:
server/meta/operators.py. A `Task` is what was asked, as a row of the database: the cluster manager
works at it until it is done, whoever asked has gone away, or another manager has come. Asking for
it twice is asking once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from ffs.wire.method import Empty, Method


class TaskKind(IntEnum):
    """What a task is about; the numbers are stored and sent, never renumber."""

    ADD_NODE = 1
    """Rebalance as soon as a node is there whose id is above `subject`, or that is in no chain."""
    DRAIN_NODE = 2
    """`subject`: the node. Stays when it is done: nothing comes to a node that was drained."""
    DRAIN_TARGET = 3
    """`subject`: the target. Stays as well."""
    REBALANCE = 4
    ACCEPT_LOSS = 5
    """`subject`: a chain. Who is left serves, and whoever is gone and may have more is emptied."""


@dataclass(frozen=True, slots=True)
class Move:
    """One member of a chain that another target takes the place of."""

    chain: int
    source: int
    """The target that leaves."""
    source_node: int
    node: int
    """Where its successor lies; 0: nowhere yet."""
    target: int
    """The successor; 0: it is not chosen, or not there yet."""
    total_bytes: int
    left_bytes: int


@dataclass(frozen=True, slots=True)
class DiskUse:
    """One disk of a node, and what of chains lies on it."""

    node: int
    disk: str
    path: str
    """The directory of one of its targets."""
    capacity_bytes: int
    used_bytes: int
    """By anybody."""
    stored_bytes: int
    """By members of chains."""
    members: int
    targets: int


@dataclass(frozen=True, slots=True)
class Task:
    """What was asked, and how far it is. `total_bytes`: to be copied when it was asked."""

    kind: int
    subject: int
    host: str
    """Of the node that is expected; empty: any."""
    began_ns: int
    total_bytes: int
    left_bytes: int
    moves_left: int
    waits_for: str
    """What it cannot go on without; empty: it goes on."""


@dataclass(frozen=True, slots=True)
class TasksRequest:
    """How far are they?"""


@dataclass(frozen=True, slots=True)
class TasksReply:
    """All tasks, the moves that are under way, and how full each disk is."""

    tasks: list[Task]
    moves: list[Move]
    disks: list[DiskUse]


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What would a task do? Changes nothing."""

    kind: int
    subject: int = 0


@dataclass(frozen=True, slots=True)
class PlanReply:
    """What moves where, as of now."""

    moves: list[Move]
    refusal: str
    """Why it would be refused; empty: it would not."""
    effects: list[str] = field(default_factory=list)
    """What else comes of it, for people."""


@dataclass(frozen=True, slots=True)
class BeginRequest:
    """Ask for a task."""

    mutation: bytes
    kind: int
    subject: int = 0
    host: str = ""


@dataclass(frozen=True, slots=True)
class BeginReply:
    """The task's subject; the server's own for a node that is expected."""

    subject: int


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """Ask for a task no more; what is under way for it is undone, and what is done stays."""

    mutation: bytes
    kind: int
    subject: int = 0


@dataclass(frozen=True, slots=True)
class CancelReply:
    """Whether there was such a task."""

    found: bool


@dataclass(frozen=True, slots=True)
class RemoveNodeRequest:
    """Forget a node that is gone, and its targets."""

    mutation: bytes
    node: int


CLUSTER_TASKS = Method("cluster_tasks", TasksRequest, TasksReply)
CLUSTER_PLAN = Method("cluster_plan", PlanRequest, PlanReply)
CLUSTER_BEGIN = Method("cluster_begin", BeginRequest, BeginReply, mutation=True)
CLUSTER_CANCEL = Method("cluster_cancel", CancelRequest, CancelReply, mutation=True)
REMOVE_NODE = Method("remove_node", RemoveNodeRequest, Empty, mutation=True)
