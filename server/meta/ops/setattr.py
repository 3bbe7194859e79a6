"""setattr: mode, owner, times, and the size of a file.

Previous hop: `service`. Next hop: inodes and segments. A smaller size cuts the list of segments
and drops the references of those that went; a larger one adds zeros, explicitly, as a segment of
blob 0. Chunks are never touched.
"""

from __future__ import annotations

from ffs.errors import (
    BusyError,
    FileExpectedError,
    InvalidError,
    NotPermittedError,
)
from ffs.limits import SEGMENTS_MAX
from ffs.server.meta.ops.access import (
    Caller,
    Want,
    allowed,
    denied,
    mode_set,
    mode_without_privileges,
    owns,
)
from ffs.server.meta.ops.charges import charge
from ffs.server.meta.ops.content import DELETE_SEGMENTS, SIZE_MAX
from ffs.server.meta.ops.context import Context
from ffs.server.meta.ops.directories import fold_directory
from ffs.server.meta.ops.names import Key, hold_inodes, hold_names
from ffs.server.meta.ops.release import release_blobs
from ffs.server.meta.ops.stat import attr_at, attr_of
from ffs.server.meta.store import ConflictError, Transaction
from ffs.types import ZERO_BLOB, Attr, FileType
from ffs.wire.messages import AttrReply, SetattrRequest

ID_MAX = (1 << 32) - 1


def setattr_path(tx: Transaction, context: Context, request: SetattrRequest) -> AttrReply:
    """Apply the fields that are not None.

    Raises:  NotFoundError, FileExpectedError, InvalidError; AccessError as POSIX would;
             NotPermittedError for the mode of a symbolic link; BusyError for too many segments
    """
    _check_bounds(request)
    walker, attr = attr_at(tx, context.caller, request.path, follow=request.follow, context=context)
    resizes = request.size is not None and attr.type == FileType.FILE
    quota = _hold_quota(tx, walker.one(), attr.inode) if resizes else 0
    if not hold_inodes(tx, [attr.inode]):
        raise ConflictError("what the path named was removed, or replaced")
    if attr.type == FileType.DIRECTORY:
        fold_directory(tx, attr.inode)
    attr = attr_of(tx, attr.inode)
    _refuse_type(request, attr)
    _refuse_caller(request, attr, context.caller)
    changes: dict[str, int] = {"ctime_ns": context.now_ns}
    if request.size is not None:
        charge(tx, quota, request.size - attr.size, 0)
        _resize(tx, context, attr, request.size)
        changes |= {
            "size": request.size,
            "mtime_ns": context.now_ns,
            "version": attr.version + 1,
        }
    for field in ("uid", "gid", "atime_ns", "mtime_ns"):
        value: int | None = getattr(request, field)
        if value is not None:
            changes[field] = value
    changes |= _mode_after(request, attr, context.caller)
    assignments = ", ".join(f"{column} = ?" for column in changes)
    tx.run(f"UPDATE inodes SET {assignments} WHERE inode = ?", (*changes.values(), attr.inode))
    return AttrReply(attr_of(tx, attr.inode))


def _hold_quota(tx: Transaction, key: Key, inode: int) -> int:
    """Hold the name of a file that is to be resized; return the quota that it belongs to."""
    standing, alive = hold_names(tx, [key])
    if standing.get(key, (0, 0))[0] != inode:
        raise ConflictError("the file was removed, or replaced")
    return alive[key[0]].quota


def _refuse_type(request: SetattrRequest, attr: Attr) -> None:
    """Raise for what an inode of this type does not have."""
    if request.size is not None and attr.type == FileType.DIRECTORY:
        raise FileExpectedError("a directory has no size to set", path=request.path)
    if request.size is not None and attr.type == FileType.SYMLINK:
        raise InvalidError("a symbolic link has no size to set", path=request.path)
    if request.mode is not None and attr.type == FileType.SYMLINK:
        raise NotPermittedError("a symbolic link's mode means nothing", path=request.path)


def _refuse_caller(request: SetattrRequest, attr: Attr, caller: Caller) -> None:
    """Raise AccessError unless the caller may change what the request names."""
    if caller.is_root:
        return
    mine = owns(attr, caller)
    may = request.uid in (None, attr.uid) or (mine and request.uid == caller.uid)
    if request.uid is not None or request.gid is not None:
        may = may and mine
    if request.gid is not None:
        may = may and (request.gid == attr.gid or caller.is_in(request.gid))
    if (request.mode, request.atime_ns, request.mtime_ns) != (None, None, None):
        may = may and mine
    if request.size is not None:
        may = may and allowed(attr, caller, Want.WRITE)
    if not may:
        raise denied(request.path)


def _mode_after(request: SetattrRequest, attr: Attr, caller: Caller) -> dict[str, int]:
    """Return the mode that the file is to have, if it changes: also by an owner's change."""
    mode = attr.mode
    changes_owner = request.uid is not None or request.gid is not None
    if attr.type == FileType.FILE and (
        changes_owner or (request.size is not None and not caller.is_root)
    ):
        mode = mode_without_privileges(mode)
    if request.mode is not None:
        mode = mode_set(request.mode, attr, caller)
    return {"mode": mode} if mode != attr.mode else {}


def _check_bounds(request: SetattrRequest) -> None:
    bounds = {
        "size": SIZE_MAX,
        "uid": ID_MAX,
        "gid": ID_MAX,
        "mode": 0o7777777,
        "atime_ns": SIZE_MAX,
        "mtime_ns": SIZE_MAX,
    }
    for field, highest in bounds.items():
        value: int | None = getattr(request, field)
        if value is not None and not 0 <= value <= highest:
            raise InvalidError(f"{field} of {value} is out of bounds", path=request.path)


def _resize(tx: Transaction, context: Context, attr: Attr, size: int) -> None:
    """Make the segments of a file add up to `size`."""
    if size < attr.size:
        _cut(tx, context, attr.inode, size)
    elif size > attr.size:
        _extend(tx, attr.inode, size - attr.size)


def _segments(tx: Transaction, inode: int) -> list[tuple[int, int, int]]:
    rows = tx.rows(
        "SELECT place, blob, length FROM segments WHERE inode = ? ORDER BY place", (inode,)
    )
    return [(place, blob, length) for place, blob, length in rows]


def _cut(tx: Transaction, context: Context, inode: int, size: int) -> None:
    released: list[int] = []
    gone: list[tuple[int, int]] = []
    start = 0
    for place, blob, length in _segments(tx, inode):
        kept = min(length, max(0, size - start))
        start += length
        if kept == 0:
            gone.append((inode, place))
            released.append(blob)
        elif kept < length:
            tx.run(
                "UPDATE segments SET length = ? WHERE inode = ? AND place = ?",
                (kept, inode, place),
            )
    tx.run_for(DELETE_SEGMENTS, gone)
    release_blobs(tx, context.now_ns, [blob for blob in released if blob != ZERO_BLOB])


def _extend(tx: Transaction, inode: int, zeros: int) -> None:
    segments = _segments(tx, inode)
    place, blob, length = segments[-1] if segments else (-1, -1, 0)
    if len(segments) >= SEGMENTS_MAX and blob != ZERO_BLOB:
        raise BusyError(
            f"the file has {SEGMENTS_MAX} segments", hint="write it again in fewer segments"
        )
    if blob == ZERO_BLOB:
        tx.run(
            "UPDATE segments SET length = ? WHERE inode = ? AND place = ?",
            (length + zeros, inode, place),
        )
        return
    tx.run(
        "INSERT INTO segments (inode, place, blob, length) VALUES (?, ?, ?, ?)",
        (inode, place + 1, ZERO_BLOB, zeros),
    )
