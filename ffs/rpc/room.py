"""Who may hold how much memory of a server, and who is too slow with it: counts, no I/O.

Used by ffs.rpc.aio. A Room is given out first come, first served: who does not fit waits, and until
it had its turn nobody overtakes it. So a request that needs much is not starved by a stream of
small ones. What a peer may hold without moving is judged by its pace (docs/limits.md).
"""

from __future__ import annotations

from typing import Generic, TypeVar

from ffs.limits import CROWDED_GRACE_MS, CROWDED_RATE_MIN, FRAME_GRACE_MS, FRAME_RATE_MIN

Who = TypeVar("Who")


class Room(Generic[Who]):
    """A bounded number of bytes and the queue of those who wait for some of them.

    Invariants: `used` exceeds the bound only by what `add` put there, or for one single taker
    """

    __slots__ = ("_waiting", "limit_bytes", "used")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._waiting: dict[Who, None] = {}
        self.used = 0

    @property
    def first_waiting(self) -> Who | None:
        """Whose turn it is once there is room."""
        return next(iter(self._waiting), None)

    def take(self, who: Who, size: int) -> bool:
        """Take `size` bytes, or queue up; the one whose turn it is may call again."""
        if self.first_waiting in (None, who) and (
            self.used == 0 or self.used + size <= self.limit_bytes
        ):
            self._waiting.pop(who, None)
            self.used += size
            return True
        self._waiting.setdefault(who)
        return False

    def add(self, size: int) -> None:
        """Count what cannot wait (or, with a negative size, what is given back)."""
        self.used += size
        assert self.used >= 0

    def leave(self, who: Who) -> None:
        """Wait no more."""
        self._waiting.pop(who, None)


def too_slow(moved_bytes: int, elapsed_ns: int, *, crowded: bool) -> bool:
    """Say whether a peer that moved so much of something it began has to go.

    Args:    crowded: others wait for the memory that it holds
    """
    grace_ms = CROWDED_GRACE_MS if crowded else FRAME_GRACE_MS
    rate = CROWDED_RATE_MIN if crowded else FRAME_RATE_MIN
    late_ns = elapsed_ns - grace_ms * 1_000_000
    return late_ns > 0 and moved_bytes * 1_000_000_000 < rate * late_ns
