"""copy: a file by reference; the new name shares the blobs and no data moves.

Previous hop: `service`. Next hop: `release.share_content`. Links are followed on both sides. A file
that is there keeps its inode and mode and gets the content, as if it had been written.
"""

from __future__ import annotations

from ffs.errors import ExistsError, FileExpectedError, NotFoundError
from ffs.server.meta.ops.access import (
    CHANGE_NAMES,
    Permissions,
    Want,
    allowed,
    denied,
    drop_privileges,
    group_of_new,
)
from ffs.server.meta.ops.charges import charge
from ffs.server.meta.ops.context import Context
from ffs.server.meta.ops.directories import INODE_COLUMNS, insert_names, touch_directories
from ffs.server.meta.ops.names import Key, hold_inodes, hold_names, lookup, refuse_reserved
from ffs.server.meta.ops.release import hold_content, release_content, share_content
from ffs.server.meta.ops.resolve import Walker
from ffs.server.meta.ops.stat import attr_at, attr_of
from ffs.server.meta.store import ConflictError, Transaction
from ffs.types import Attr, FileType
from ffs.wire.messages import AttrReply, CopyRequest


def copy(tx: Transaction, context: Context, request: CopyRequest) -> AttrReply:
    """Copy a file. Raises NotFoundError, ExistsError, AccessError, FileExpectedError."""
    _, source = attr_at(tx, context.caller, request.source)
    if source.type == FileType.DIRECTORY:
        raise FileExpectedError("is a directory", path=request.source)
    target = _locate_target(tx, context, request)
    standing, alive = hold_names(tx, [target])
    there = standing.get(target)
    refuse_reserved(there, request.target)
    if there is not None and there[1] == FileType.DIRECTORY:
        raise FileExpectedError("target is a directory", path=request.target)
    # Held, so that its blobs do not die while they are shared.
    both = {source.inode, source.inode if there is None else there[0]}
    if source.inode not in hold_inodes(tx, both):
        raise ConflictError("the source was removed, or replaced")
    source = attr_of(tx, source.inode)
    if not allowed(source, context.caller, Want.READ):
        raise denied(request.source)
    if there is None:
        if target[0] not in alive:
            raise NotFoundError("no such directory", path=request.target)
        if not allowed(alive[target[0]], context.caller, CHANGE_NAMES):
            raise denied(request.target)
        return AttrReply(_copy_new(tx, context, source, target, alive[target[0]]))
    if there[1] == FileType.SYMLINK:
        raise ConflictError("a symbolic link took the file's place")
    if not request.replace:
        raise ExistsError("target exists", path=request.target)
    if there[0] != source.inode:
        over = attr_of(tx, there[0])
        charge(tx, alive[target[0]].quota, source.size - over.size, 0)
        _copy_over(tx, context, request, source, over)
    elif not allowed(source, context.caller, Want.WRITE):
        raise denied(request.target)
    return AttrReply(attr_of(tx, there[0]))


def _locate_target(tx: Transaction, context: Context, request: CopyRequest) -> Key:
    """Return the name that gets the content: what a link leads to, as if it were written to."""
    make = [request.target] if request.parents else []
    walker = Walker(tx, context.caller, [request.target], make=make, context=context)
    found = lookup(tx, walker.good()).get(walker.one())
    if found is not None and found[1] == FileType.SYMLINK:
        if not request.replace:
            raise ExistsError("target exists", path=request.target)
        walker.end_of_link(found)
    if walker.slashed:
        raise FileExpectedError("a slash at the end names a directory", path=request.target)
    return walker.one()


def _copy_new(
    tx: Transaction, context: Context, source: Attr, target: Key, directory: Permissions
) -> Attr:
    charge(tx, directory.quota, source.size, 1)
    (inode,) = tx.allocate("inode", 1)
    now = context.now_ns
    # A copy belongs to whoever makes it, and so runs as nobody else.
    owner = (context.caller.uid, group_of_new(directory, context.caller))
    row = (inode, source.type, source.mode & 0o777, *owner, 1, source.size, 1, now, now, now)
    tx.insert("inodes", INODE_COLUMNS, [row])
    insert_names(tx, [(*target, inode, source.type)])
    share_content(tx, source.inode, inode)
    touch_directories(tx, now, {target[0]: 0})
    return attr_of(tx, inode)


def _copy_over(
    tx: Transaction, context: Context, request: CopyRequest, source: Attr, target: Attr
) -> None:
    if not allowed(target, context.caller, Want.WRITE):
        raise denied(request.target)
    now, inode = context.now_ns, target.inode
    hold_content(tx, [source.inode, inode])
    # Shared first: a blob that both hold must not die in between.
    tx.run("UPDATE segments SET inode = -inode WHERE inode = ?", (inode,))
    share_content(tx, source.inode, inode)
    release_content(tx, now, [-inode])
    tx.run(
        "UPDATE inodes SET size = ?, version = version + 1, mtime_ns = ?, ctime_ns = ?"
        " WHERE inode = ?",
        (source.size, now, now, inode),
    )
    drop_privileges(tx, context.caller, [target])
