"""rmdir: an empty directory, or a whole tree in one transaction.

Previous hop: `service`. Next hop: `release`. A tree goes by a handful of statements, however many
names it has: its directories are collected level by level inside SQL and held, again until no new
one has come in meanwhile; then names, inodes, segments and references go set by set. Reserved names
below die with their directory; the write sessions that held them end in NotFoundError at close.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ffs.errors import DirectoryExpectedError, NotEmptyError, NotFoundError
from ffs.server.meta.ops.charges import forget_quotas, uncharge_directory, uncharge_doomed
from ffs.server.meta.ops.context import Context
from ffs.server.meta.ops.directories import delete_names, touch_directories
from ffs.server.meta.ops.names import Key, lookup, refuse_root, visible
from ffs.server.meta.ops.release import doom, release_doomed
from ffs.server.meta.ops.resolve import Walker
from ffs.server.meta.ops.tree import (
    NOTHING,
    hold_alone,
    hold_tree,
    refuse_emptying,
    refuse_snapshots,
)
from ffs.server.meta.schema import RESERVED
from ffs.server.meta.store import Transaction
from ffs.types import FileType
from ffs.wire.messages import RmdirReply, RmdirRequest

_DOOM_FILES: Final = f"""
INSERT INTO doomed (inode, links)
SELECT d.inode, count(*) FROM dentries d
WHERE d.parent IN (SELECT inode FROM doomed) AND d.type NOT IN ({RESERVED}, {FileType.DIRECTORY:d})
GROUP BY d.inode
"""
_HOLD_RESERVED: Final = f"""
WITH keys(parent) AS (VALUES {{keys}})
SELECT d.parent, d.name FROM keys CROSS JOIN dentries d
WHERE d.parent = keys.parent AND d.type = {RESERVED} ORDER BY d.parent, d.name FOR UPDATE OF d
"""


def rmdir(tx: Transaction, context: Context, request: RmdirRequest) -> RmdirReply:
    """Remove a directory. Raises NotEmptyError if it has names, with `recursive` snapshots."""
    walker = Walker(tx, context.caller, [request.path], context=context)
    key = walker.one()
    refuse_root(key, "removed")
    there = visible(lookup(tx, [key]).get(key))
    if there is None:
        raise NotFoundError("no such directory", path=request.path)
    inode, type_ = there
    if refusal := walker.guard.take_refusal(key[0], inode, request.path):
        raise refusal
    if type_ != FileType.DIRECTORY:
        raise DirectoryExpectedError("not a directory", path=request.path)
    tree = {inode}
    if request.recursive:
        tree, (_, held) = hold_tree(tx, key, inode, left_out=NOTHING)
    else:
        _, held = hold_alone(tx, key, tree)
    quotas = {directory: held[directory].quota for directory in tree}
    below = 0
    if len(tree) > 1 or not is_empty(tx, inode):
        if not request.recursive:
            raise NotEmptyError("directory is not empty", path=request.path)
        refuse_snapshots(tx, inode, request.path)
        refuse_emptying(tx, context.caller, tree, request.path)
        below = _remove_below(tx, context.now_ns, inode, quotas)
    remove_empty(tx, context.now_ns, key, inode, quotas[inode])
    return RmdirReply(below + 1)


def remove_tree(tx: Transaction, now_ns: int, key: Key, inode: int) -> int:
    """Remove a directory with all below it, snapshots too; return how many names went."""
    tree, (_, held) = hold_tree(tx, key, inode, left_out=NOTHING)
    quotas = {directory: held[directory].quota for directory in tree}
    below = _remove_below(tx, now_ns, inode, quotas)
    remove_empty(tx, now_ns, key, inode, quotas[inode])
    return below + 1


def is_empty(tx: Transaction, directory: int) -> bool:
    """Return whether a directory that is held alone has no names; reserved ones do not count."""
    visible_names = f"SELECT 1 FROM dentries WHERE parent = ? AND type <> {RESERVED} LIMIT 1"
    return tx.row(visible_names, (directory,)) is None


def remove_empty(tx: Transaction, now_ns: int, key: Key, inode: int, quota: int) -> None:
    """Take away the name of a directory that is empty, and the directory, which has a quota."""
    delete_names(tx, [key])
    forget_empty(tx, now_ns, inode, quota)
    touch_directories(tx, now_ns, {key[0]: -1})


def forget_empty(tx: Transaction, now_ns: int, inode: int, quota: int) -> None:
    """Take away a directory that is empty and held alone; its name is the caller's.

    Args:    quota: that it belongs to
    """
    uncharge_directory(tx, inode, quota)
    _free_reserved(tx, [inode])
    doom(tx, [inode])
    release_doomed(tx, now_ns)


def _remove_below(tx: Transaction, now_ns: int, directory: int, quotas: dict[int, int]) -> int:
    """Remove everything under a directory and return how many names went.

    Args:    quotas: what each directory of the tree belongs to
    """
    _free_reserved(tx, quotas)
    # The directory itself too, for its files; it is taken out again before release.
    doom(tx, quotas)
    tx.run(_DOOM_FILES)
    gone = tx.run("DELETE FROM dentries WHERE parent IN (SELECT inode FROM doomed)")
    tx.run("DELETE FROM doomed WHERE inode = ?", (directory,))
    uncharge_doomed(tx, quotas[directory])
    forget_quotas(tx, {inode: quota for inode, quota in quotas.items() if inode != directory})
    release_doomed(tx, now_ns)
    return gone


def _free_reserved(tx: Transaction, directories: Iterable[int]) -> None:
    """Take away the reserved names in directories that go, which a reaper may be at as well."""
    keys = [(inode,) for inode in sorted(directories)]
    delete_names(tx, [(parent, name) for parent, name in tx.rows_for(_HOLD_RESERVED, keys)])
