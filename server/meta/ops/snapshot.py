"""snapshot, remove_snapshot: what a directory was at one moment, below a name of its own.

Previous hop: `service`. Next hop: `clone`, `rmdir`. The snapshot NAME of a directory is the tree
`DIRECTORY/.snapshots/NAME`: inodes of its own that share the blobs, with owners, modes and times of
the originals, so who could read them can read it. Its ctime says when it was made. It is found and
read like any path; listings, walks of trees, pins and clones of the directory leave it out.
Invariants: nothing at or below a name `.snapshots` is changed by any other operation
(`resolve.Walker`), so a snapshot stays what it was; `.snapshots` is there exactly while it has
snapshots, and a directory that has some is not removed (`rmdir`). They move along with it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ffs.errors import (
    BadNameError,
    DirectoryExpectedError,
    ExistsError,
    FFSError,
    InvalidError,
    NotFoundError,
    StillNeededError,
)
from ffs.server.meta.ops.access import ROOT, denied, owns
from ffs.server.meta.ops.clone import Source, clone_tree
from ffs.server.meta.ops.context import Context
from ffs.server.meta.ops.directories import make_directories
from ffs.server.meta.ops.names import SNAPSHOTS, Key, lookup, visible
from ffs.server.meta.ops.paths import check_name
from ffs.server.meta.ops.resolve import Walker
from ffs.server.meta.ops.rmdir import is_empty, remove_tree
from ffs.server.meta.ops.stat import attr_at
from ffs.server.meta.ops.trash import is_trash
from ffs.server.meta.store import Transaction
from ffs.types import Attr, FileType
from ffs.wire.messages import RmdirReply
from ffs.wire.snapshots import CloneReply, RemoveSnapshotRequest, SnapshotRequest

_MODE: Final = 0o755
_PINNED: Final = """
SELECT owner FROM pins WHERE path = ? OR (path > ? AND path < ?) ORDER BY pin LIMIT 1
"""


def snapshot(tx: Transaction, context: Context, request: SnapshotRequest) -> CloneReply:
    """Make a snapshot of a directory, for who owns it; see `SnapshotRequest`.

    Raises:  NotFoundError, DirectoryExpectedError, ExistsError, AccessError, BadNameError;
             ReadOnlyError in a snapshot; InvalidError in the trash, or for a tree that is too large
    """
    check_name(request.name)
    if b"/" in request.name:
        raise BadNameError("a snapshot's name is one name", path=request.name)
    walker, top = _directory(tx, context, request.path)
    if is_trash(walker.real_path()):
        raise InvalidError("what is in the trash has no snapshots", path=request.path)
    key = (_home(tx, context, top.inode), request.name)
    if key in lookup(tx, [key]):
        raise ExistsError("the directory has a snapshot of this name", path=request.path)
    source = Source(walker.one(), top.inode, request.path, exact=True)
    reply = clone_tree(tx, context, source, key, request.name)
    if reply.attr.mtime_ns == top.mtime_ns:
        return reply
    # It was changed by the first of its snapshots, that is by us.
    tx.run("UPDATE inodes SET mtime_ns = ? WHERE inode = ?", (top.mtime_ns, reply.attr.inode))
    return replace(reply, attr=reply.attr._replace(mtime_ns=top.mtime_ns))


def remove_snapshot(
    tx: Transaction, context: Context, request: RemoveSnapshotRequest
) -> RmdirReply:
    """Remove a snapshot, for who owns the directory.

    Raises:  NotFoundError, AccessError; StillNeededError while a pin names its path
    """
    walker, top = _directory(tx, context, request.path)
    above = (top.inode, SNAPSHOTS)
    home = visible(lookup(tx, [above]).get(above))
    key = (home[0] if home else 0, request.name)
    found = visible(lookup(tx, [key]).get(key))
    if home is None or found is None:
        raise NotFoundError("no such snapshot", path=request.path)
    directory = walker.real_path().rstrip(b"/")
    _refuse_pinned(tx, b"/".join((directory, SNAPSHOTS, request.name)))
    removed = remove_tree(tx, context.now_ns, key, found[0])
    if is_empty(tx, home[0]):
        remove_tree(tx, context.now_ns, above, home[0])
    return RmdirReply(removed)


def _directory(tx: Transaction, context: Context, path: bytes) -> tuple[Walker, Attr]:
    """Return a directory whose snapshots the caller may make and remove."""
    walker, top = attr_at(tx, context.caller, path, context=context)
    if top.type != FileType.DIRECTORY:
        raise DirectoryExpectedError("not a directory", path=path)
    if not owns(top, context.caller):
        raise denied(path)
    return walker, top


def _home(tx: Transaction, context: Context, directory: int) -> int:
    """Return the directory that a directory's snapshots are in; the first one makes it."""
    key: Key = (directory, SNAPSHOTS)
    found = lookup(tx, [key]).get(key)
    if found is None:
        made = make_directories(tx, replace(context, caller=ROOT), [key], _MODE)[key]
        if isinstance(made, FFSError):
            raise made
        found = made
    if found[1] != FileType.DIRECTORY:
        raise ExistsError("a name that belongs to snapshots is taken", path=SNAPSHOTS)
    return found[0]


def _refuse_pinned(tx: Transaction, path: bytes) -> None:
    row = tx.row(_PINNED, (path, path + b"/", path + b"0"))
    if row is not None:
        raise StillNeededError(
            f"the snapshot is pinned by {row[0]}", hint="`ffs pin list` shows pins", path=path
        )
