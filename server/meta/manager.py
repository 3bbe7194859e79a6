"""What one metadata server knows of daemons and time, sans-IO: who was heard, what is news or due.

Previous hop: `service` tells it what was heard and asks what to do. Next hop: nothing; it never
reads a clock, a socket or the database, so the simulator can drive it. All times are monotonic
nanoseconds given by the caller.

What it remembers is of those daemons that talk to this server; where the database is shared, what
all servers must know of daemons is there, and this is only what tells news from repetition.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from ffs.errors import NotFoundError
from ffs.wire.membership import DataLoopCounters, HeartbeatRequest, TargetReport
from ffs.wire.status import RETURNS_KEPT_S

DROPS_PER_HEARTBEAT_MAX: Final = 4_096
_SECOND_NS: Final = 1_000_000_000
_RECORDS_EVERY_NS: Final = 60 * _SECOND_NS
_RETURNS_MAX: Final = 64


class Chore(Enum):
    """What the metadata server does by itself from time to time."""

    REAP_SESSIONS = "reap_sessions"
    SCHEDULE_DROPS = "schedule_drops"
    REAP_PINS = "reap_pins"
    REAP_RECORDS = "reap_records"
    FOLD_CHANGES = "fold_changes"
    REAP_TRASH = "reap_trash"


class NodeState(Enum):
    """How long ago a node was heard of."""

    UNKNOWN = "unknown"
    """Not since this server started."""
    UP = "up"
    DOWN = "down"


_TargetFacts = tuple[int, bool, int, bool, int, int]
"""Target, stopped, synced, damaged, holds, compared."""


@dataclass(slots=True)
class _Node:
    """One storage daemon as of its last words."""

    heard_ns: int | None = None
    reports: list[TargetReport] = field(default_factory=list)
    facts: list[_TargetFacts] | None = None
    """What its last heartbeat said of its targets that matters to chains; None: nothing yet."""
    pid: int = 0
    """Of its process, as its last words tell."""
    counters: DataLoopCounters | None = None
    returned_ns: deque[int] = field(default_factory=lambda: deque(maxlen=_RETURNS_MAX))
    """When it came back, after silence or anew."""


@dataclass(frozen=True, slots=True)
class Beat:
    """What a heartbeat means for the database."""

    working: list[int]
    """Targets that can take drops."""
    news: bool
    """Whether it says something of a target that may change its chain."""


class Manager:
    """State machine over registrations, heartbeats and time.

    Args:    node_lease_ns: a node silent for longer is down; session_ttl_ns: of write sessions
    Threads: one caller at a time (the event loop)
    """

    def __init__(self, *, node_lease_ns: int, session_ttl_ns: int, now_ns: int) -> None:
        self._node_lease_ns = node_lease_ns
        self._nodes: dict[int, _Node] = {}
        self._every: Final = {
            Chore.REAP_SESSIONS: max(_SECOND_NS // 10, min(session_ttl_ns // 4, 5 * _SECOND_NS)),
            Chore.SCHEDULE_DROPS: _SECOND_NS,
            Chore.REAP_PINS: _SECOND_NS,
            Chore.REAP_RECORDS: _RECORDS_EVERY_NS,
            Chore.FOLD_CHANGES: 2 * _SECOND_NS,
            Chore.REAP_TRASH: 5 * _SECOND_NS,
        }
        self._next = {chore: now_ns + every for chore, every in self._every.items()}
        self._session_ttl_ns = session_ttl_ns
        self._leases_seen_wall_ns: int | None = None

    # --- nodes ------------------------------------------------------------------------------------

    def expect(self, node: int) -> None:
        """Know a node from the database that has not spoken yet."""
        self._nodes.setdefault(node, _Node())

    def forget_all_but(self, nodes: Set[int]) -> None:
        """Know only these nodes: others were removed, and must register again if they live."""
        for node in self._nodes.keys() - nodes:
            del self._nodes[node]

    def registered(
        self, node: int, reports: Sequence[TargetReport], now_ns: int, pid: int = 0
    ) -> None:
        """A daemon came up as `node`, or asks anew; `reports` carry the ids it was given."""
        known = _Node(now_ns, list(reports), _facts(reports), pid)
        before = self._nodes.get(node)
        if before is not None:
            known.returned_ns = before.returned_ns
            if before.heard_ns is not None and (pid != before.pid or self._silent(before, now_ns)):
                known.returned_ns.append(now_ns)
        self._nodes[node] = known

    def _silent(self, node: _Node, now_ns: int) -> bool:
        return node.heard_ns is None or now_ns - node.heard_ns > self._node_lease_ns

    def heard(self, request: HeartbeatRequest, now_ns: int) -> Beat:
        """Take a heartbeat. Raises NotFoundError for a node that must register first."""
        node = self._nodes.get(request.node)
        if node is None:
            raise NotFoundError(
                "no such storage node", hint="the daemon must register again", node=request.node
            )
        silent = self._silent(node, now_ns)
        facts = _facts(request.targets)
        news = silent or facts != node.facts
        if silent and node.heard_ns is not None:
            node.returned_ns.append(now_ns)
        node.heard_ns, node.reports, node.facts = now_ns, list(request.targets), facts
        node.counters, node.pid = request.counters, request.pid
        return Beat([report.target for report in request.targets if not report.stopped], news)

    def heard_ns(self) -> dict[int, int]:
        """Return when each node was heard last; 0: not by this server."""
        return {node: known.heard_ns or 0 for node, known in self._nodes.items()}

    def state(self, node: int, now_ns: int) -> NodeState:
        """Return whether a node is alive, as far as we know."""
        known = self._nodes.get(node)
        if known is None or known.heard_ns is None:
            return NodeState.UNKNOWN
        return NodeState.UP if now_ns - known.heard_ns <= self._node_lease_ns else NodeState.DOWN

    def counters(self, node: int) -> DataLoopCounters | None:
        """Return what a node's last heartbeat told of its data loop, if it told it to us."""
        known = self._nodes.get(node)
        return None if known is None else known.counters

    def returns(self, node: int, now_ns: int) -> int:
        """Return how often a node came back of late, after silence or anew."""
        known = self._nodes.get(node)
        since_ns = now_ns - RETURNS_KEPT_S * _SECOND_NS
        return 0 if known is None else sum(at_ns >= since_ns for at_ns in known.returned_ns)

    def reports(self) -> list[TargetReport]:
        """Return the last report of every target that was heard of."""
        latest: dict[int, TargetReport] = {}
        for node in sorted(self._nodes.values(), key=lambda n: n.heard_ns or 0):
            latest.update((report.target, report) for report in node.reports)
        return [latest[target] for target in sorted(latest)]

    # --- chores -----------------------------------------------------------------------------------

    def due(self, now_ns: int) -> list[Chore]:
        """Return the chores whose time has come, and set their next one."""
        chores = [chore for chore, at_ns in self._next.items() if at_ns <= now_ns]
        for chore in chores:
            self._next[chore] = now_ns + self._every[chore]
        return chores

    def again(self, chore: Chore, now_ns: int) -> None:
        """Make a chore due at once: its last run left work behind."""
        self._next[chore] = now_ns

    def leases_may_end(self, wall_ns: int) -> bool:
        """Return whether clients could renew their leases since `leases_seen`.

        Leases end in wall-clock time. If that has gone on by much more than the time between two
        turns, the clock was set, this process stood still, or its database was away: then no lease
        may end, and each gets a full term instead.
        """
        before = self._leases_seen_wall_ns
        gap_ns = self._every[Chore.REAP_SESSIONS] + self._session_ttl_ns // 2
        return before is None or wall_ns - before <= gap_ns

    def leases_seen(self, wall_ns: int) -> None:
        """A turn at the leases has succeeded."""
        self._leases_seen_wall_ns = wall_ns

    def wait_ns(self, now_ns: int) -> int:
        """Return how long it is until the next chore is due."""
        return max(0, min(self._next.values()) - now_ns)


def _facts(reports: Sequence[TargetReport]) -> list[_TargetFacts]:
    return sorted((r.target, r.stopped, r.synced, r.damaged, r.holds, r.compared) for r in reports)


def disk_bytes(reports: Sequence[TargetReport]) -> tuple[int, int]:
    """Return capacity and used bytes of all disks, each once however many targets it has."""
    disks: dict[object, tuple[int, int]] = {}
    for report in reports:
        known = disks.get(report.disk or report.target, (0, 0))
        disks[report.disk or report.target] = max(known, (report.capacity_bytes, report.used_bytes))
    return sum(c for c, _ in disks.values()), sum(u for _, u in disks.values())
