"""copy: a file by reference; the new name shares the blobs and no data moves.

Previous hop: `service`. Next hop: `release.share_content`. A file that is there keeps its inode and
mode and gets the content, as if it had been written.
"""

from __future__ import annotations

from ffs.errors import ExistsError, FileExpectedError, NotFoundError
from ffs.server.meta.ops.context import Context
from ffs.server.meta.ops.directories import INODE_COLUMNS, insert_names, touch_directories
from ffs.server.meta.ops.names import Key, hold_inodes, hold_names, lookup, refuse_reserved, visible
from ffs.server.meta.ops.release import release_content, share_content
from ffs.server.meta.ops.resolve import locate
from ffs.server.meta.ops.stat import attr_of
from ffs.server.meta.store import Transaction
from ffs.types import Attr, FileType
from ffs.wire.messages import AttrReply, CopyRequest


def copy(tx: Transaction, context: Context, request: CopyRequest) -> AttrReply:
    """Copy a file. Raises NotFoundError, ExistsError, FileExpectedError for a directory."""
    source_key, _ = locate(tx, request.source)
    found = visible(lookup(tx, [source_key]).get(source_key))
    if found is None:
        raise NotFoundError("no such file or directory", path=request.source)
    if found[1] == FileType.DIRECTORY:
        raise FileExpectedError("is a directory", path=request.source)
    target, _ = locate(tx, request.target, parents=request.parents, context=context)
    standing, alive = hold_names(tx, [target])
    there = standing.get(target)
    refuse_reserved(there, request.target)
    if there is not None and there[1] == FileType.DIRECTORY:
        raise FileExpectedError("target is a directory", path=request.target)
    # Held, so that its blobs do not die while they are shared.
    if found[0] not in hold_inodes(tx, {found[0], found[0] if there is None else there[0]}):
        raise NotFoundError("the source was removed meanwhile", path=request.source)
    source = attr_of(tx, found[0])
    if there is None:
        if target[0] not in alive:
            raise NotFoundError("no such directory", path=request.target)
        return AttrReply(_copy_new(tx, context, source, target))
    if not request.replace:
        raise ExistsError("target exists", path=request.target)
    if there[0] != source.inode:
        _copy_over(tx, context, source, there[0])
    return AttrReply(attr_of(tx, there[0]))


def _copy_new(tx: Transaction, context: Context, source: Attr, target: Key) -> Attr:
    (inode,) = tx.allocate("inode", 1)
    now = context.now_ns
    owner = (source.mode, source.uid, source.gid)
    row = (inode, source.type, *owner, 1, source.size, 1, now, now, now)
    tx.insert("inodes", INODE_COLUMNS, [row])
    insert_names(tx, [(*target, inode, source.type)])
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
