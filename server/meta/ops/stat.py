"""stat_many: attributes of many paths.

Previous hop: `service`. Next hop: `resolve`, then one join of names and inodes for the batch; a
second one only where a link in the last place was followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

from ffs.errors import DirectoryExpectedError, FFSError, NotFoundError
from ffs.server.meta.ops.access import Caller
from ffs.server.meta.ops.context import Context, fault
from ffs.server.meta.ops.directories import SUMMED, pending_changes, with_pending
from ffs.server.meta.ops.names import Key
from ffs.server.meta.ops.resolve import Walker
from ffs.server.meta.store import ConflictError, Row, Transaction
from ffs.types import Attr, FileType
from ffs.wire.messages import StatManyReply, StatManyRequest
from ffs.wire.method import Fault

MaybeRow = TypeVar("MaybeRow", Row, Row | None)

ATTR_COLUMNS: Final = (
    "i.inode, i.type, i.mode, i.uid, i.gid, i.nlink, i.size, i.version,"
    " i.atime_ns, i.mtime_ns, i.ctime_ns"
)
_ATTRS: Final = f"""
WITH keys(place, parent, name) AS (VALUES {{keys}})
SELECT keys.place, {ATTR_COLUMNS}
FROM keys CROSS JOIN dentries d CROSS JOIN inodes i
WHERE d.parent = keys.parent AND d.name = keys.name AND i.inode = d.inode
"""
_ATTR_OF: Final = f"""
SELECT {ATTR_COLUMNS}, c.changed_ns, c.changes, c.subdirectories
FROM inodes i LEFT JOIN (
    SELECT {SUMMED} FROM directory_changes WHERE inode = ? GROUP BY inode
) AS c ON c.inode = i.inode WHERE i.inode = ?
"""
_DIRECTORY: Final = int(FileType.DIRECTORY)
_SYMLINK: Final = int(FileType.SYMLINK)


def attr_rows(tx: Transaction, keys: Sequence[Key | FFSError]) -> list[Row | None]:
    """Return the attributes, as a row, of what stands at each key; None where nothing does."""
    rows: list[Row | None] = [None] * len(keys)
    places = [(place, *key) for place, key in enumerate(keys) if not isinstance(key, FFSError)]
    for row in tx.rows_for(_ATTRS, places):
        rows[row[0]] = row[1:]
    if tx.shared:
        up_to_date(tx, rows)
    return rows


def up_to_date(tx: Transaction, rows: list[MaybeRow]) -> None:
    """Add to the directories among rows of attributes what is pending for them."""
    directories = {row[0] for row in rows if row is not None and row[1] == _DIRECTORY}
    pending = pending_changes(tx, directories)
    if pending:
        for place, row in enumerate(rows):
            if row is not None and row[0] in pending:
                rows[place] = with_pending(row, *pending[row[0]])


def attr_of(tx: Transaction, inode: int) -> Attr:
    """Return the attributes of an inode that is there."""
    row = tx.row(_ATTR_OF, (inode, inode))
    if row is None and tx.shared:
        raise ConflictError("removed since its name was read")
    assert row is not None, f"inode {inode} has a name and no row"
    *attr, changed_ns, changes, subdirectories = row
    if changes is None:
        return Attr(*attr)
    return Attr(*with_pending(tuple(attr), changed_ns, changes, subdirectories))


def resolved_rows(tx: Transaction, walker: Walker, *, follow: bool = True) -> list[Row | None]:
    """Return the attributes, as a row, of what each path of a batch stands for; None: of nothing.

    Where a link in the last place is followed, or a path with a slash at its end stands for no
    directory, the walker's keys change.
    """
    rows = attr_rows(tx, walker.keys)
    if follow or walker.slashed:
        links = {
            place: row[0]
            for place, row in enumerate(rows)
            if row is not None and row[1] == _SYMLINK and (follow or place in walker.slashed)
        }
        if links:
            walker.follow(links)
            ends = attr_rows(tx, [walker.keys[place] for place in links])
            for place, row in zip(links, ends, strict=True):
                rows[place] = row
    for place in walker.slashed:
        row = rows[place]
        if row is not None and row[1] != _DIRECTORY:
            rows[place] = None
            walker.keys[place] = DirectoryExpectedError("not a directory", path=walker.paths[place])
    return rows


def attr_at(
    tx: Transaction,
    caller: Caller,
    path: bytes,
    *,
    follow: bool = True,
    context: Context | None = None,
) -> tuple[Walker, Attr]:
    """Resolve one path whole. Raises NotFoundError and what kept the walker from its key.

    Args:    context: of an operation that changes what the path names
    """
    walker = Walker(tx, caller, [path], context=context)
    (row,) = resolved_rows(tx, walker, follow=follow)
    walker.one()
    if row is None:
        raise NotFoundError("no such file or directory", path=path)
    return walker, Attr(*row)


def stat_many(tx: Transaction, caller: Caller, request: StatManyRequest) -> StatManyReply:
    """Return attributes or a fault for each path.

    Why: a data set of a million files must cost a thousand calls, each a few statements.
    Copies:  rows become `Attr` tuples once;  Threads: a reader's
    """
    walker = Walker(tx, caller, request.paths)
    rows = resolved_rows(tx, walker, follow=request.follow)
    return StatManyReply(
        [
            Attr._make(row) if row is not None else absence(key)
            for key, row in zip(walker.keys, rows, strict=True)
        ]
    )


def absence(key: Key | FFSError) -> Fault:
    """Return why there are no attributes of what a path stands for."""
    return fault(key if isinstance(key, FFSError) else NotFoundError("no such file or directory"))
