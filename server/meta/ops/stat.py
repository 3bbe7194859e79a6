"""stat_many: attributes of many paths.

Previous hop: `service`. Next hop: `resolve`, then one join of names and inodes for the batch; a
second one only where a link in the last place was followed.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from ffs.errors import DirectoryExpectedError, FFSError, NotFoundError
from ffs.server.meta.ops.access import Caller
from ffs.server.meta.ops.context import fault
from ffs.server.meta.ops.directories import SUMMED, pending_changes, with_pending
from ffs.server.meta.ops.names import Key
from ffs.server.meta.ops.resolve import Walker
from ffs.server.meta.store import ConflictError, Row, Transaction
from ffs.types import Attr, FileType
from ffs.wire.messages import Fault, StatManyReply, StatManyRequest

ATTR_COLUMNS: Final = (
    "i.inode, i.type, i.mode, i.uid, i.gid, i.nlink, i.size, i.version,"
    " i.atime_ns, i.mtime_ns, i.ctime_ns"
)
_ATTRS: Final = f"""
WITH keys(parent, name) AS (VALUES {{keys}})
SELECT keys.parent, keys.name, {ATTR_COLUMNS}
FROM keys CROSS JOIN dentries d CROSS JOIN inodes i
WHERE d.parent = keys.parent AND d.name = keys.name AND i.inode = d.inode
"""
_ATTR_OF: Final = f"""
SELECT {ATTR_COLUMNS}, c.changed_ns, c.changes, c.subdirectories
FROM inodes i LEFT JOIN (
    SELECT {SUMMED} FROM directory_changes WHERE inode = ? GROUP BY inode
) AS c ON c.inode = i.inode WHERE i.inode = ?
"""
_NOT_FOUND: Final = NotFoundError("no such file or directory")


def attr_rows(tx: Transaction, keys: Collection[Key]) -> dict[Key, Row]:
    """Return the attributes, as rows, of the names that are there."""
    found = {(row[0], row[1]): row[2:] for row in tx.rows_for(_ATTRS, list(keys))}
    if tx.shared:
        up_to_date(tx, found)
    return found


def up_to_date(tx: Transaction, rows: dict[Any, Row]) -> None:
    """Add to the directories among rows of attributes what is pending for them."""
    keys = {row[0]: key for key, row in rows.items() if row[1] == FileType.DIRECTORY}
    for inode, pending in pending_changes(tx, keys).items():
        rows[keys[inode]] = with_pending(rows[keys[inode]], *pending)


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


def resolved_rows(tx: Transaction, walker: Walker, *, follow: bool = True) -> dict[Key, Row]:
    """Return the attributes, as rows, of what a batch's paths stand for.

    Where a link in the last place is followed, or a path with a slash at its end stands for no
    directory, the walker's keys change.
    """
    rows = attr_rows(tx, walker.good())
    if follow or walker.slashed:
        linked = {key for key, row in rows.items() if row[1] == FileType.SYMLINK}
        if linked:
            before = rows.keys()
            walker.follow(
                {
                    place: rows[key][0]
                    for place, key in enumerate(walker.keys)
                    if not isinstance(key, FFSError)
                    and key in linked
                    and (follow or place in walker.slashed)
                }
            )
            rows = {**rows, **attr_rows(tx, walker.good() - before)}
    for place in walker.slashed:
        key = walker.keys[place]
        if not isinstance(key, FFSError) and key in rows and rows[key][1] != FileType.DIRECTORY:
            walker.keys[place] = DirectoryExpectedError("not a directory", path=walker.paths[place])
    return rows


def attr_at(
    tx: Transaction, caller: Caller, path: bytes, *, follow: bool = True
) -> tuple[Walker, Attr]:
    """Resolve one path whole. Raises NotFoundError and what kept the walker from its key."""
    walker = Walker(tx, caller, [path])
    rows = resolved_rows(tx, walker, follow=follow)
    row = rows.get(walker.one())
    if row is None:
        raise NotFoundError("no such file or directory", path=path)
    return walker, Attr(*row)


def stat_many(tx: Transaction, caller: Caller, request: StatManyRequest) -> StatManyReply:
    """Return attributes or a fault for each path.

    Why: a data set of a million files must cost a thousand calls, each a few statements.
    Copies:  rows become `Attr` objects once;  Threads: a reader's
    """
    walker = Walker(tx, caller, request.paths)
    rows = resolved_rows(tx, walker, follow=request.follow)
    missing = fault(_NOT_FOUND)
    attrs: list[Attr | Fault] = []
    for key in walker.keys:
        if isinstance(key, FFSError):
            attrs.append(fault(key))
        elif (row := rows.get(key)) is None:
            attrs.append(missing)
        else:
            attrs.append(Attr(*row))
    return StatManyReply(attrs)
