"""Who has how many of a server's places: one address does not keep the others out.

Used by ffs.rpc.aio. As long as there are places, everybody takes as many as it likes. When all are
taken, whoever comes from an address with fewer connections gets the place of one with more, until
they have as many: what one host holds open, idle or at work, costs others nothing. Counts, no I/O.
"""

from __future__ import annotations

from collections import Counter

_WORTH_IT = 2
"""Less of a difference would only turn round with the exchange."""


class Shares:
    """Counts the connections of each address (a host, without the port)."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()

    def add(self, host: str) -> None:
        """Count one more."""
        self._held[host] += 1

    def remove(self, host: str) -> None:
        """Count one less."""
        self._held[host] -= 1
        if not self._held[host]:
            del self._held[host]

    def greedier_than(self, host: str) -> str | None:
        """Return the address that has most, if that is enough more than this one has; else None."""
        if not self._held:
            return None
        most = max(self._held, key=self._held.__getitem__)
        return most if self._held[most] >= self._held[host] + _WORTH_IT else None
