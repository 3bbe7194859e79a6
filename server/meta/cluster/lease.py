"""Who is the cluster manager: a lease in the database, with a term; a pure object.

Previous hop: `role`, which carries rows between this and the database in transactions that hold the
row. Next hop: nothing. A server takes the lease when nobody has it, when it has ended, or when it
was its own in an earlier life, each time with the next term; it renews it while it has it. Times
are of the one clock that all servers of a database agree on.

Invariants: terms only grow, and each has one holder; whoever changes chains holds the row with its
own term in the same transaction (`holds`), so an old manager that stood still, or whose clock is
wrong, changes nothing any more. The lease is for liveness; the term alone is for safety.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

_NEVER_NS: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """The lease as the database has it; term 0: nobody has had it yet."""

    term: int
    holder: str
    expires_ns: int


NOBODY: Final = LeaseRow(0, "", 0)


class ManagerLease:
    """One server's side of the lease.

    Args:    me: what tells this server from the others; lease_ns: for how long it is taken;
             alone: no other server can use the database, so the lease never ends
    """

    def __init__(self, me: str, lease_ns: int, *, alone: bool) -> None:
        self._me = me
        self._lease_ns = lease_ns
        self._alone = alone
        self._term = 0

    @property
    def term(self) -> int:
        """The term in which we are, or were, the manager; 0: never."""
        return self._term

    def holds(self, row: LeaseRow) -> bool:
        """Return whether the lease is ours, by the row as it is in this transaction."""
        return self._term != 0 and (row.term, row.holder) == (self._term, self._me)

    def bid(self, row: LeaseRow, now_ns: int) -> LeaseRow | None:
        """Return what the row must become for us to be the manager; None: another one is.

        The same row as before: nothing needs to be written.
        """
        if self.holds(row):
            return (
                row if row.expires_ns - now_ns > self._lease_ns // 2 else self._until(row, now_ns)
            )
        ours_before = row.holder == self._me
        # A lease that ends later than any can was taken by a clock that was wrong.
        over = row.expires_ns <= now_ns or row.expires_ns > now_ns + 2 * self._lease_ns
        if row.term == 0 or ours_before or over or self._alone:
            return self._until(LeaseRow(row.term + 1, self._me, 0), now_ns)
        return None

    def took(self, row: LeaseRow) -> bool:
        """Know that our bid is durable; return whether a new term began with it."""
        began = row.term != self._term
        self._term = row.term
        return began

    def _until(self, row: LeaseRow, now_ns: int) -> LeaseRow:
        return replace(row, expires_ns=_NEVER_NS if self._alone else now_ns + self._lease_ns)
