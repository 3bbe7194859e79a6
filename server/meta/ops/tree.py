"""Whole trees: the directories below one, holding them, and what others than root may do in them.

Previous hop: `rmdir`, `rename`, `clone`, `usage`, `quota`. Next hop: recursion inside SQL, so that
a tree of a million names is a handful of statements. Symbolic links are names like others here,
never followed. Snapshots are left out, but where a tree is to go.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from ffs.errors import NotEmptyError
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
from ffs.server.meta.ops.names import SNAPSHOTS, Found, Key, hold_names
from ffs.server.meta.schema import RESERVED
from ffs.server.meta.store import ConflictError, Row, Transaction
from ffs.types import FileType

TREE: Final = f"""
tree(top, inode) AS (
    SELECT top, top FROM keys WHERE top IS NOT NULL
    UNION ALL
    SELECT t.top, d.inode FROM tree t CROSS JOIN dentries d
    WHERE d.parent = t.inode AND d.type = {FileType.DIRECTORY:d} AND d.name <> ?
)"""
"""`tree`: each of `keys(top)` with itself and the directories below it. Its one parameter is
`SNAPSHOTS`."""
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


_BELOW: Final = f"""
WITH RECURSIVE tree (inode) AS (
    SELECT d.inode FROM dentries d
    WHERE d.parent = ? AND d.type = {FileType.DIRECTORY:d} AND d.name <> ?
    UNION ALL
    SELECT d.inode FROM tree CROSS JOIN dentries d
    WHERE d.parent = tree.inode AND d.type = {FileType.DIRECTORY:d} AND d.name <> ?
)
SELECT inode FROM tree
"""
_HAS_SNAPSHOTS: Final = f"""
WITH RECURSIVE tree (inode) AS (
    SELECT CAST(? AS BIGINT)
    UNION ALL
    SELECT d.inode FROM tree CROSS JOIN dentries d
    WHERE d.parent = tree.inode AND d.type = {FileType.DIRECTORY:d}
)
SELECT 1 FROM tree CROSS JOIN dentries d WHERE d.parent = tree.inode AND d.name = ? LIMIT 1
"""

NOTHING: Final = b""
"""No directory below another one has this name: nothing is left out of a tree."""
Held = tuple[dict[Key, Found], dict[int, Permissions]]
"""What `hold_names` returns."""


def directories_at(tx: Transaction, top: int, *, left_out: bytes = SNAPSHOTS) -> set[int]:
    """Return a directory and the directories below it, as they are now."""
    return {top, *(inode for (inode,) in tx.rows(_BELOW, (top, left_out, left_out)))}


def hold_tree(
    tx: Transaction,
    key: Key,
    top: int,
    *,
    more: Collection[Key] = (),
    left_out: bytes = SNAPSHOTS,
) -> tuple[set[int], Held]:
    """Hold every directory of a tree alone, so that it stays as it is, and some names.

    Args:    key: the name of the tree's top; more: names that are held besides, in the same order;
             left_out: directories of this name are not part of the tree
    Returns: the directories, `top` too; what is held of the names
    """
    held: set[int] = set()
    names: Held = ({}, {})
    while True:
        tree = directories_at(tx, top, left_out=left_out)
        if tree <= held:
            return tree, names
        held |= tree
        names = hold_alone(tx, key, held, more)
        if not tx.shared:
            return tree, names


def hold_alone(tx: Transaction, key: Key, alone: set[int], more: Collection[Key] = ()) -> Held:
    """Hold directories alone, and the name of the one that it is about, which is among them."""
    held = hold_names(tx, {key, *more}, alone=alone)
    if held[0].get(key, (0, 0))[0] not in alone:
        raise ConflictError("the directory was moved, or removed")
    return held


def refuse_snapshots(tx: Transaction, top: int, path: bytes) -> None:
    """Raise NotEmptyError if a directory of a tree that is to go has snapshots."""
    if tx.row(_HAS_SNAPSHOTS, (top, SNAPSHOTS)) is not None:
        raise NotEmptyError(
            "the directory, or one below it, has snapshots",
            hint="`ffs snapshot list` shows them, `ffs snapshot remove` removes them",
            path=path,
        )


def unlistable(tx: Transaction, caller: Caller, tops: Collection[int]) -> set[int]:
    """Return those of `tops` at or below which is a directory that the caller may not list."""
    if caller.is_root or not tops:
        return set()
    rows = tx.rows_for(_DIRECTORIES, [(top,) for top in sorted(tops)], (SNAPSHOTS,))
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
