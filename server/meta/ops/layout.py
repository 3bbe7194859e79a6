"""layout, set_layout: how new files below a directory are laid out.

Previous hop: `service`; `create` asks for what holds for its entries. Next hop: the layouts table,
one row for each directory that says something. The nearest directory above a new file that has a
row decides; what its row leaves open is the cluster's default. Links lead elsewhere: it is the
directories of the real path that count. A file's own layout is that of its first blob, for good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ffs.errors import DirectoryExpectedError, InvalidError
from ffs.limits import CHUNK_BYTES_MAX, CHUNK_BYTES_MIN
from ffs.server.meta.ops.access import Caller, denied, owns
from ffs.server.meta.ops.context import Context, Defaults
from ffs.server.meta.ops.names import hold_directories
from ffs.server.meta.ops.resolve import Walker
from ffs.server.meta.ops.stat import attr_at
from ffs.server.meta.store import ConflictError, Transaction
from ffs.types import ZERO_BLOB, Attr, FileType
from ffs.wire.messages import LayoutReply, LayoutRequest, SetLayoutRequest

STRIPE_MAX: Final = 1 << 16

_LAYOUTS: Final = """
WITH keys(inode) AS (VALUES {keys})
SELECT l.inode, l.chunk_size_bytes, l.stripe FROM keys CROSS JOIN layouts l
WHERE l.inode = keys.inode
"""
_FIRST_BLOB: Final = f"""
SELECT b.chunk_size_bytes, b.stripe FROM segments s JOIN blobs b ON b.blob = s.blob
WHERE s.inode = ? AND s.blob <> {ZERO_BLOB} ORDER BY s.place LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class DirectoryLayout:
    """What a directory says. `chunk_size_bytes` 0 and `stripe` -1: nothing about it."""

    chunk_size_bytes: int
    stripe: int


def layout_problem(chunk_size_bytes: int, stripe: int) -> InvalidError | None:
    """Return what is wrong with a wish for a layout; 0 and -1 are no wish."""
    size = chunk_size_bytes
    if size and not (CHUNK_BYTES_MIN <= size <= CHUNK_BYTES_MAX and size & (size - 1) == 0):
        return InvalidError(
            f"chunk size of {size} bytes is no power of two from {CHUNK_BYTES_MIN}"
            f" to {CHUNK_BYTES_MAX}"
        )
    if not -1 <= stripe <= STRIPE_MAX:
        return InvalidError(f"stripe of {stripe} chains, 0 (all) to {STRIPE_MAX} are allowed")
    return None


def nearest_layouts(
    tx: Transaction, trails: Mapping[int, Sequence[int]]
) -> dict[int, DirectoryLayout]:
    """Return what holds below directories, for those above which one says something.

    Args:    trails: directory -> the inodes from the root down to it, that one included
    """
    above = {inode for trail in trails.values() for inode in trail}
    rows = tx.rows_for(_LAYOUTS, [(inode,) for inode in sorted(above)])
    said = {inode: DirectoryLayout(size, stripe) for inode, size, stripe in rows}
    found: dict[int, DirectoryLayout] = {}
    for directory, trail in trails.items() if said else ():
        nearest = next((inode for inode in reversed(trail) if inode in said), None)
        if nearest is not None:
            found[directory] = said[nearest]
    return found


def layout(
    tx: Transaction, caller: Caller, defaults: Defaults, request: LayoutRequest
) -> LayoutReply:
    """Return how a file is laid out, or new files in a directory; and who says so."""
    walker, attr = attr_at(tx, caller, request.path)
    return _effective(tx, defaults, walker, attr)


def set_layout(tx: Transaction, context: Context, request: SetLayoutRequest) -> LayoutReply:
    """Let a directory say something, or nothing any more; return what then holds in it."""
    if problem := layout_problem(request.chunk_size_bytes, request.stripe):
        raise problem
    walker, attr = attr_at(tx, context.caller, request.path, context=context)
    if attr.type != FileType.DIRECTORY:
        raise DirectoryExpectedError("only directories say how files are laid out")
    if not owns(attr, context.caller):
        raise denied(request.path)
    if attr.inode not in hold_directories(tx, [attr.inode]):
        raise ConflictError("the directory was removed, or replaced")
    if not request.chunk_size_bytes and request.stripe < 0:
        tx.run("DELETE FROM layouts WHERE inode = ?", (attr.inode,))
    else:
        tx.insert(
            "layouts",
            ("inode", "chunk_size_bytes", "stripe"),
            [(attr.inode, request.chunk_size_bytes, request.stripe)],
            conflict="(inode) DO UPDATE SET chunk_size_bytes = excluded.chunk_size_bytes,"
            " stripe = excluded.stripe",
        )
    return _effective(tx, context.defaults, walker, attr)


def _effective(tx: Transaction, defaults: Defaults, walker: Walker, attr: Attr) -> LayoutReply:
    lineage = walker.lineage()
    if attr.type == FileType.FILE:
        row = tx.row(_FIRST_BLOB, (attr.inode,))
        if row is not None:
            return LayoutReply(row[0], row[1], walker.real_path())
    elif attr.type == FileType.DIRECTORY:
        lineage.append((attr.inode, walker.real_path()))
    inodes = [(inode,) for inode, _ in lineage]
    said = {inode: (size, stripe) for inode, size, stripe in tx.rows_for(_LAYOUTS, inodes)}
    for inode, path in reversed(lineage):
        if inode in said:
            size, stripe = said[inode]
            return LayoutReply(
                size or defaults.chunk_size_bytes, defaults.stripe if stripe < 0 else stripe, path
            )
    return LayoutReply(defaults.chunk_size_bytes, defaults.stripe, b"")
