"""Whole trees: the directories below one, and what callers who are not root may do in them.

Previous hop: `rmdir`, `usage`. Next hop: recursion inside SQL, so that a tree of a million names is
a handful of statements. Symbolic links are names like others here, never followed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from ffs.server.meta.ops.access import (
    CHANGE_NAMES,
    LIST_NAMES,
    STICKY,
    Caller,
    Permissions,
    allowed,
    denied,
    owns,
)
from ffs.server.meta.schema import RESERVED
from ffs.server.meta.store import Row, Transaction
from ffs.types import FileType

TREE: Final = f"""
tree(top, inode) AS (
    SELECT top, top FROM keys WHERE top IS NOT NULL
    UNION ALL
    SELECT t.top, d.inode FROM tree t CROSS JOIN dentries d
    WHERE d.parent = t.inode AND d.type = {FileType.DIRECTORY:d}
)"""
"""`tree`: each of `keys(top)` with itself and the directories below it."""
INODES: Final = f"""
{TREE},
found(top, inode) AS (
    SELECT top, inode FROM tree
    UNION
    SELECT t.top, d.inode FROM tree t CROSS JOIN dentries d
    WHERE d.parent = t.inode AND d.type NOT IN ({RESERVED}, {FileType.DIRECTORY:d})
)"""
"""`found`: each of `keys(top)` with every inode at and below it, once."""

_DIRECTORIES: Final = f"""
WITH RECURSIVE keys(top) AS (VALUES {{keys}}), {TREE}
SELECT t.top, i.mode, i.uid, i.gid FROM tree t CROSS JOIN inodes i
WHERE i.inode = t.inode AND i.type = {FileType.DIRECTORY:d}
"""
_EMPTYING: Final = f"""
WITH keys(inode) AS (VALUES {{keys}})
SELECT i.inode, i.mode, i.uid, i.gid,
    EXISTS (SELECT 1 FROM dentries d WHERE d.parent = i.inode AND d.type <> {RESERVED})
FROM keys CROSS JOIN inodes i WHERE i.inode = keys.inode
"""
_FOREIGN: Final = """
SELECT 1 FROM dentries d CROSS JOIN inodes i
WHERE d.parent = ? AND i.inode = d.inode AND i.uid <> ? LIMIT 1
"""


def unlistable(tx: Transaction, caller: Caller, tops: Collection[int]) -> set[int]:
    """Return those of `tops` at or below which is a directory that the caller may not list."""
    if caller.is_root or not tops:
        return set()
    rows = tx.rows_for(_DIRECTORIES, [(top,) for top in sorted(tops)])
    return {top for top, *owned in rows if not allowed(Permissions(*owned), caller, LIST_NAMES)}


def refuse_emptying(
    tx: Transaction, caller: Caller, directories: Iterable[int], path: bytes
) -> None:
    """Raise AccessError unless the caller may list these directories and take all their names."""
    if caller.is_root:
        return
    rows = tx.rows_for(_EMPTYING, [(inode,) for inode in sorted(directories)])
    if any(_keeps_names(tx, caller, row) for row in rows):
        raise denied(path)


def _keeps_names(tx: Transaction, caller: Caller, row: Row) -> bool:
    inode, mode, uid, gid, has_names = row
    directory = Permissions(mode, uid, gid)
    if not allowed(directory, caller, LIST_NAMES | (CHANGE_NAMES if has_names else 0)):
        return True
    if not mode & STICKY or owns(directory, caller):
        return False
    return tx.row(_FOREIGN, (inode, caller.uid)) is not None
