"""What operations take of quotas, and give back.

Previous hop: operations that make, remove, move or resize something; they hold the directory, whose
row says which quota it belongs to (`names.hold_directories`). Next hop: the quotas tables. An inode
is charged to the quota of the directory that it has its name in, and to all quotas above that; a
file has all its names inside of one quota (`QuotaBorderError`), and so is charged once.

Where the database is shared, a charge is a row of its own in `quota_changes`, so that writers of
one tree do not wait for each other; the server folds them from time to time. So each sees what was
committed before, and several that commit at the same moment may all find the same room: a quota is
overrun by what is under way at one moment at most. One writer never overruns any.

Invariants: a quota and its pending rows together are the files and bytes below it (`check` counts
them); directories without quota cost no statement. Whoever changes which quotas a directory belongs
to holds it alone, so they do not change under whoever holds it. Failure: QuotaExceededError.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ffs.errors import QuotaExceededError
from ffs.server.meta.store import Transaction
from ffs.types import FileType

UNLIMITED: Final = -1

_SUMS: Final = (
    "CAST(coalesce(sum(bytes), 0) AS BIGINT) AS bytes,"
    " CAST(coalesce(sum(files), 0) AS BIGINT) AS files"
)
_LOAD: Final = """
WITH RECURSIVE keys(quota) AS (VALUES {keys}),
chain(inode, above) AS (
    SELECT q.inode, q.above FROM keys CROSS JOIN quotas q WHERE q.inode = keys.quota
    UNION
    SELECT q.inode, q.above FROM chain c CROSS JOIN quotas q WHERE q.inode = c.above
)
SELECT q.inode, q.above, q.bytes_max, q.files_max,
    CAST(q.bytes + coalesce((SELECT sum(x.bytes) FROM quota_changes x
                             WHERE x.quota = q.inode), 0) AS BIGINT),
    CAST(q.files + coalesce((SELECT sum(x.files) FROM quota_changes x
                             WHERE x.quota = q.inode), 0) AS BIGINT)
FROM chain c CROSS JOIN quotas q WHERE q.inode = c.inode
"""
_ADD: Final = """
WITH keys(quota, bytes, files) AS (VALUES {keys})
UPDATE quotas SET bytes = quotas.bytes + keys.bytes, files = quotas.files + keys.files
FROM keys WHERE quotas.inode = keys.quota
"""
_FREED: Final = f"""
WITH keys(inode, quota, links) AS (VALUES {{keys}})
SELECT keys.quota, CASE WHEN i.type = {FileType.FILE:d} THEN i.size ELSE 0 END
FROM keys CROSS JOIN inodes i WHERE i.inode = keys.inode AND i.nlink <= keys.links
"""
_DOOMED: Final = f"""
SELECT CAST(coalesce(sum(CASE WHEN i.type = {FileType.FILE:d} THEN i.size ELSE 0 END), 0)
    AS BIGINT), count(*)
FROM doomed d CROSS JOIN inodes i WHERE i.inode = d.inode
    AND (i.type = {FileType.DIRECTORY:d} OR i.nlink <= d.links)
"""
_HOLD_CHANGED: Final = """
SELECT q.inode FROM quotas q WHERE q.inode IN (SELECT quota FROM quota_changes)
ORDER BY q.inode FOR NO KEY UPDATE OF q SKIP LOCKED
"""
_TAKE: Final = f"""
WITH keys(quota) AS (VALUES {{keys}}),
taken AS (DELETE FROM quota_changes WHERE quota IN (SELECT quota FROM keys)
          RETURNING quota, bytes, files)
SELECT quota, {_SUMS} FROM taken GROUP BY quota ORDER BY quota
"""
_FORGET: Final = """
DELETE FROM quota_changes
WHERE NOT EXISTS (SELECT 1 FROM quotas q WHERE q.inode = quota_changes.quota)
"""


@dataclass(slots=True)
class Room:
    """One quota: its bounds (UNLIMITED: none) and what is below it, with what was added now."""

    above: int
    bytes_max: int
    files_max: int
    bytes_used: int
    files_used: int

    def problem(self, size: int, files: int) -> QuotaExceededError | None:
        """Return why so much more cannot be below it; what does not grow always can."""
        for what, more, used, most in (
            ("bytes", size, self.bytes_used, self.bytes_max),
            ("files", files, self.files_used, self.files_max),
        ):
            if more > 0 and most != UNLIMITED and used + more > most:
                return QuotaExceededError(
                    f"quota exceeded: {used} of {most} {what} are used, {more} more are wanted",
                    hint="remove something, or ask for more; `ffs quota get` says which quota",
                )
        return None


class Charges:
    """What one transaction takes of the quotas that directories belong to.

    Args:    quotas: of directories, as their rows say it; 0 is no quota
    """

    def __init__(self, tx: Transaction, quotas: Iterable[int]) -> None:
        self._tx = tx
        self.rooms: dict[int, Room] = {}
        self._added: dict[int, tuple[int, int]] = {}
        if wanted := sorted({quota for quota in quotas if quota}):
            self.rooms = {
                quota: Room(*room)
                for quota, *room in tx.rows_for(_LOAD, [(quota,) for quota in wanted])
            }

    def chain(self, quota: int) -> list[int]:
        """Return a quota and those above it, the nearest first."""
        found: list[int] = []
        while quota in self.rooms:
            found.append(quota)
            quota = self.rooms[quota].above
        return found

    def refusal(self, quota: int, size: int, files: int) -> QuotaExceededError | None:
        """Return why a quota, or one above it, has no room for so much."""
        problems = (self.rooms[one].problem(size, files) for one in self.chain(quota))
        return next((problem for problem in problems if problem is not None), None)

    def add(self, quota: int, size: int, files: int) -> QuotaExceededError | None:
        """Charge a quota and those above it, unless one has no room: then return why."""
        return self.move(0, quota, size, files) if quota else None

    def move(self, source: int, target: int, size: int, files: int) -> QuotaExceededError | None:
        """Charge one quota instead of another, or nothing: what is above both stays as it is."""
        before, after = self.chain(source), self.chain(target)
        gained = [quota for quota in after if quota not in before]
        for quota in gained:
            if problem := self.rooms[quota].problem(size, files):
                return problem
        for quota in gained:
            self._count(quota, size, files)
        for quota in before:
            if quota not in after:
                self._count(quota, -size, -files)
        return None

    def settle(self) -> None:
        """Write down what was charged since the last time."""
        changed = sorted((quota, *more) for quota, more in self._added.items() if any(more))
        self._added.clear()
        if not changed:
            return
        if self._tx.shared:
            self._tx.insert("quota_changes", ("quota", "bytes", "files"), changed)
        else:
            self._tx.run_for(_ADD, changed)

    def _count(self, quota: int, size: int, files: int) -> None:
        room = self.rooms[quota]
        room.bytes_used += size
        room.files_used += files
        size_before, files_before = self._added.get(quota, (0, 0))
        self._added[quota] = (size_before + size, files_before + files)


def charge(tx: Transaction, quota: int, size: int, files: int) -> None:
    """Charge a quota and those above it. Raises QuotaExceededError."""
    charge_move(tx, 0, quota, size, files)


def charge_move(tx: Transaction, source: int, target: int, size: int, files: int) -> None:
    """Charge one quota instead of another. Raises QuotaExceededError."""
    if source == target:
        return
    charges = Charges(tx, (source, target))
    if problem := charges.move(source, target, size, files):
        raise problem
    charges.settle()


def uncharge_names(tx: Transaction, names: Sequence[tuple[int, int]]) -> None:
    """Give back what inodes take that are about to lose names, if these are their last ones.

    Args:    names: (inode, quota of the directory of the name); the inodes are held
    """
    links = Counter(name for name in names if name[1])
    if not links:
        return
    charges = Charges(tx, (quota for _, quota in links))
    keys = sorted((inode, quota, count) for (inode, quota), count in links.items())
    for quota, size in tx.rows_for(_FREED, keys):
        charges.add(quota, -size, -1)
    charges.settle()


def uncharge_doomed(tx: Transaction, quota: int) -> None:
    """Give back to a quota what the doomed inodes take that go now, directories among them."""
    if quota:
        row = tx.row(_DOOMED)
        assert row is not None
        charge(tx, quota, -row[0], -row[1])


def uncharge_directory(tx: Transaction, inode: int, quota: int) -> None:
    """Give back what a directory takes that goes now, empty, and its own quota with it.

    Args:    quota: that it belongs to
    """
    if not quota:
        return
    charges = Charges(tx, [quota])
    around = charges.rooms[quota].above if quota == inode else quota
    charges.add(around, 0, -1)
    charges.settle()
    forget_quotas(tx, {inode: quota})


def forget_quotas(tx: Transaction, directories: Mapping[int, int]) -> None:
    """Let quotas go with their directories, which go now.

    Args:    directories: inode -> the quota that it belongs to
    """
    for inode, quota in sorted(directories.items()):
        if inode == quota:
            delete_quota(tx, quota)


def delete_quota(tx: Transaction, quota: int) -> None:
    """Delete the rows of one quota."""
    tx.run("DELETE FROM quotas WHERE inode = ?", (quota,))
    tx.run("DELETE FROM quota_changes WHERE quota = ?", (quota,))


def fold_charges(tx: Transaction) -> None:
    """Put pending charges into the quotas, as `directories.fold_changes` does with its rows."""
    if tx.shared:
        tx.run_for(_ADD, tx.rows_for(_TAKE, tx.rows(_HOLD_CHANGED)))
        tx.run(_FORGET)
