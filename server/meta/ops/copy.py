"""copy: a file by reference; the new name shares the blobs and no data moves.

Previous hop: `service`. Next hop: `release.share_content`. A file that is there keeps its inode and
mode and gets the content, as if it had been written.
"""

from __future__ import annotations

from ffs.errors import ExistsError, FileExpectedError, NotFoundError
from ffs.server.meta.ops.context import Context, allocate
from ffs.server.meta.ops.release import release_content, share_content
from ffs.server.meta.ops.resolve import (
    insert_dentries,
    locate,
    lookup,
    refuse_reserved,
    touch_directories,
)
from ffs.server.meta.ops.stat import attr_of
from ffs.server.meta.store import Transaction
from ffs.types import Attr, FileType
from ffs.wire.messages import AttrReply, CopyRequest


def copy(tx: Transaction, context: Context, request: CopyRequest) -> AttrReply:
    """Copy a file. Raises NotFoundError, ExistsError, FileExpectedError for a directory."""
    source_key, _ = locate(tx, request.source)
    found = lookup(tx, [source_key]).get(source_key)
    if found is None:
        raise NotFoundError("no such file or directory", path=request.source)
    if found[1] == FileType.DIRECTORY:
        raise FileExpectedError("is a directory", path=request.source)
    source = attr_of(tx, found[0])
    target, _ = locate(tx, request.target, parents=request.parents, context=context)
    there = lookup(tx, [target]).get(target)
    if there is None:
        refuse_reserved(tx, target)
        return AttrReply(_copy_new(tx, context, source, target))
    if there[1] == FileType.DIRECTORY:
        raise FileExpectedError("target is a directory", path=request.target)
    if not request.replace:
        raise ExistsError("target exists", path=request.target)
    if there[0] != source.inode:
        _copy_over(tx, context, source, there[0])
    return AttrReply(attr_of(tx, there[0]))


def _copy_new(tx: Transaction, context: Context, source: Attr, target: tuple[int, bytes]) -> Attr:
    (inode,) = allocate(tx, "inode", 1)
    now = context.now_ns
    tx.run(
        "INSERT INTO inodes (inode, type, mode, uid, gid, nlink, size, version, atime_ns,"
        " mtime_ns, ctime_ns) VALUES (?, ?, ?, ?, ?, 1, ?, 1, ?, ?, ?)",
        (inode, source.type, source.mode, source.uid, source.gid, source.size, now, now, now),
    )
    insert_dentries(tx, [(*target, inode, source.type)])
    touch_directories(tx, now, {target[0]: 0})
    share_content(tx, source.inode, inode)
    return attr_of(tx, inode)


def _copy_over(tx: Transaction, context: Context, source: Attr, inode: int) -> None:
    now = context.now_ns
    # Shared first: a blob that both hold must not die in between.
    tx.run("UPDATE segments SET inode = -inode WHERE inode = ?", (inode,))
    share_content(tx, source.inode, inode)
    release_content(tx, now, [-inode])
    tx.run(
        "UPDATE inodes SET size = ?, version = version + 1, mtime_ns = ?, ctime_ns = ?"
        " WHERE inode = ?",
        (source.size, now, now, inode),
    )
