"""setattr: mode, owner, times, and the size of a file.

Previous hop: `service`. Next hop: inodes and segments. A smaller size cuts the list of segments
and drops the references of those that went; a larger one adds zeros, explicitly, as a segment of
blob 0. Chunks are never touched.
"""

from __future__ import annotations

from typing import Final

from ffs.errors import FileExpectedError, InvalidError, NotFoundError
from ffs.server.meta.ops.context import Context
from ffs.server.meta.ops.directories import fold_directory
from ffs.server.meta.ops.names import hold_inodes
from ffs.server.meta.ops.release import release_blobs
from ffs.server.meta.ops.stat import attr_at, attr_of
from ffs.server.meta.store import Transaction
from ffs.types import ZERO_BLOB, Attr, FileType
from ffs.wire.messages import AttrReply, SetattrRequest

SIZE_MAX = (1 << 63) - 1
ID_MAX = (1 << 32) - 1

_DELETE_SEGMENTS: Final = """
WITH keys(inode, place) AS (VALUES {keys})
DELETE FROM segments WHERE (inode, place) IN (SELECT inode, place FROM keys)
"""


def setattr_path(tx: Transaction, context: Context, request: SetattrRequest) -> AttrReply:
    """Apply the fields that are not None. Raises NotFoundError, FileExpectedError, InvalidError."""
    _check_bounds(request)
    _, attr = attr_at(tx, request.path)
    if attr.type == FileType.DIRECTORY:
        fold_directory(tx, attr.inode)
    if not hold_inodes(tx, [attr.inode]):
        raise NotFoundError("removed meanwhile", path=request.path)
    attr = attr_of(tx, attr.inode)
    changes: dict[str, int] = {"ctime_ns": context.now_ns}
    if request.size is not None:
        if attr.type == FileType.DIRECTORY:
            raise FileExpectedError("a directory has no size to set", path=request.path)
        _resize(tx, context, attr, request.size)
        changes |= {
            "size": request.size,
            "mtime_ns": context.now_ns,
            "version": attr.version + 1,
        }
    if request.mode is not None:
        changes["mode"] = request.mode & 0o7777
    for field in ("uid", "gid", "atime_ns", "mtime_ns"):
        value: int | None = getattr(request, field)
        if value is not None:
            changes[field] = value
    assignments = ", ".join(f"{column} = ?" for column in changes)
    tx.run(f"UPDATE inodes SET {assignments} WHERE inode = ?", (*changes.values(), attr.inode))
    return AttrReply(attr_of(tx, attr.inode))


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
    tx.run_for(_DELETE_SEGMENTS, gone)
    release_blobs(tx, context.now_ns, [blob for blob in released if blob != ZERO_BLOB])


def _extend(tx: Transaction, inode: int, zeros: int) -> None:
    segments = _segments(tx, inode)
    place, blob, length = segments[-1] if segments else (-1, -1, 0)
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
