"""rmdir: an empty directory, or a whole tree in one transaction.

Previous hop: `service`. Next hop: `release`. A tree goes by a handful of statements, however many
names it has: its directories are collected level by level inside SQL, then names, inodes, segments
and references go set by set. Reservations below die with their directory; the write sessions that
held them end in NotFoundError at close.
"""

from __future__ import annotations

from typing import Final

from ffs.errors import DirectoryExpectedError, NotEmptyError, NotFoundError
from ffs.server.meta.ops.context import Context
from ffs.server.meta.ops.release import doom, release_doomed
from ffs.server.meta.ops.resolve import Key, locate, lookup, refuse_root, touch_directories
from ffs.server.meta.store import Transaction
from ffs.types import FileType
from ffs.wire.messages import RmdirReply, RmdirRequest

_DOOM_TREE: Final = f"""
INSERT INTO doomed (inode, links)
WITH RECURSIVE tree (inode) AS (
    SELECT d.inode FROM dentries d WHERE d.parent = ? AND d.type = {FileType.DIRECTORY:d}
    UNION ALL
    SELECT d.inode FROM tree CROSS JOIN dentries d
    WHERE d.parent = tree.inode AND d.type = {FileType.DIRECTORY:d}
)
SELECT inode, 1 FROM tree
"""
_DOOM_FILES: Final = f"""
INSERT INTO doomed (inode, links)
SELECT d.inode, count(*) FROM dentries d
WHERE d.parent IN (SELECT inode FROM doomed) AND d.type <> {FileType.DIRECTORY:d} GROUP BY d.inode
"""


def rmdir(tx: Transaction, context: Context, request: RmdirRequest) -> RmdirReply:
    """Remove a directory. Raises NotEmptyError unless it is empty or `recursive`."""
    key, _ = locate(tx, request.path)
    refuse_root(key, "removed")
    there = lookup(tx, [key]).get(key)
    if there is None:
        raise NotFoundError("no such directory", path=request.path)
    inode, type_ = there
    if type_ != FileType.DIRECTORY:
        raise DirectoryExpectedError("not a directory", path=request.path)
    below = 0
    if not is_empty(tx, inode):
        if not request.recursive:
            raise NotEmptyError("directory is not empty", path=request.path)
        below = _remove_below(tx, context.now_ns, inode)
    remove_empty(tx, context.now_ns, key, inode)
    return RmdirReply(below + 1)


def is_empty(tx: Transaction, directory: int) -> bool:
    """Return whether a directory has no names; reserved ones do not count."""
    return tx.row("SELECT 1 FROM dentries WHERE parent = ? LIMIT 1", (directory,)) is None


def remove_empty(tx: Transaction, now_ns: int, key: Key, inode: int) -> None:
    """Take away the name of a directory that is empty, and its inode."""
    tx.run("DELETE FROM dentries WHERE parent = ? AND name = ?", key)
    tx.run("DELETE FROM reservations WHERE parent = ?", (inode,))
    doom(tx, [inode])
    release_doomed(tx, now_ns)
    touch_directories(tx, now_ns, {key[0]: -1})


def _remove_below(tx: Transaction, now_ns: int, directory: int) -> int:
    """Remove everything under a directory and return how many names went."""
    tx.run(_DOOM_TREE, (directory,))
    # The directory itself too, for its files; it is taken out again before release.
    doom(tx, [directory])
    tx.run(_DOOM_FILES)
    gone = tx.run("DELETE FROM dentries WHERE parent IN (SELECT inode FROM doomed)")
    tx.run("DELETE FROM reservations WHERE parent IN (SELECT inode FROM doomed)")
    tx.run("DELETE FROM doomed WHERE inode = ?", (directory,))
    release_doomed(tx, now_ns)
    return gone
