"""Whether a daemon lives, as far as a manager can tell that has listened for so long; pure.

Previous hop: `role`, at each of its turns. Next hop: nothing. A daemon is dead once it was silent
for its lease, all of which this manager was listening. Listening begins anew with a manager's term,
and whenever time has gone on by much more than the pause between two turns, or by different amounts
on the two clocks: the process stood still, the database was away, or a clock was set, and what was
sent meanwhile may wait to be heard.

Invariant: none of these kills a daemon that beats.
"""

from __future__ import annotations

from enum import Enum


class Life(Enum):
    """What can be said of a daemon."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"
    """It was silent, but nobody has listened for long enough."""


class Liveness:
    """Judges how long daemons were silent.

    Args:    lease_ns: for how long; turn_ns: the longest pause between two turns, as planned
    """

    def __init__(self, lease_ns: int, turn_ns: int) -> None:
        self._lease_ns = lease_ns
        self._slack_ns = turn_ns + lease_ns // 2
        self._since_ns = 0
        self._seen: tuple[int, int] | None = None

    def begin(self) -> None:
        """Listen anew from the next turn on: we have just become the manager."""
        self._seen = None

    def turn(self, monotonic_ns: int, wall_ns: int) -> None:
        """A turn begins; `wall_ns` is of the clock in which daemons were heard."""
        before, self._seen = self._seen, (monotonic_ns, wall_ns)
        if before is not None:
            went_ns, wall_went_ns = monotonic_ns - before[0], wall_ns - before[1]
            if went_ns <= self._slack_ns and abs(wall_went_ns - went_ns) <= self._lease_ns // 2:
                return
        self._since_ns = wall_ns

    def judge(self, heard_ns: int) -> Life:
        """Return whether a daemon lives that was heard last at `heard_ns`; 0: never."""
        now_ns = self._now_ns
        # What was heard in the future was heard before the clock was set back.
        if heard_ns and now_ns - self._lease_ns <= heard_ns <= now_ns + self._lease_ns:
            return Life.ALIVE
        return Life.UNKNOWN if now_ns - self._since_ns <= self._lease_ns else Life.DEAD

    def next_ns(self, heard_ns: int) -> int | None:
        """Return when a judgement may change without anything being heard; None: it is final."""
        ends_ns = max(heard_ns, self._since_ns) + self._lease_ns
        return ends_ns if ends_ns >= self._now_ns else None

    @property
    def _now_ns(self) -> int:
        assert self._seen is not None, "a turn has to begin first"
        return self._seen[1]
