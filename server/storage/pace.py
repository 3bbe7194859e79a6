"""How much of its time a node is asked for, and how many bytes a disk is read in a second: pure
rules about when to go on. Times are nanoseconds of one monotonic clock.

Used by server/storage/recovery.py (turns) and server/storage/scrubber.py (bytes).

A source is used in turns: one request at a time from each daemon that syncs from it, and after each
a rest, so that all of them together keep it busy for at most `share` of the time. Whatever a
request takes from readers while it lasts, they have the rest to themselves: that is how they keep
at least 1 - share of what the node can do, on any disk and network, with nothing to be measured.
"""

from __future__ import annotations

from typing import Final

SECOND: Final = 1_000_000_000


class Turns:
    """When one daemon may use one source again.

    Args:    share: of the source's time, for all who pull from it together, above 0 up to 1
    """

    def __init__(self, share: float) -> None:
        assert 0 < share <= 1
        self._share = share
        self._next_ns = 0

    def wait_ns(self, now_ns: int) -> int:
        """Return how long to wait for the next turn."""
        return max(0, self._next_ns - now_ns)

    def ended(self, began_ns: int, now_ns: int, pullers: int) -> None:
        """A turn is over; `pullers` daemons share the source, us included."""
        period_ns = (now_ns - began_ns) * max(1, pullers) / self._share
        self._next_ns = began_ns + round(period_ns)


class ByteRate:
    """When the next bytes may be read, at so many a second in the long run.

    What was not read in time is not made up for: a burst would hurt readers.
    """

    def __init__(self, bytes_per_s: int) -> None:
        assert bytes_per_s > 0
        self._ns_per_byte = SECOND / bytes_per_s
        self._next_ns = 0

    def wait_ns(self, now_ns: int) -> int:
        """Return how long to wait before reading on."""
        return max(0, self._next_ns - now_ns)

    def used(self, size: int, now_ns: int) -> None:
        """So many bytes are being read from now on."""
        self._next_ns = max(self._next_ns, now_ns) + round(size * self._ns_per_byte)
