"""open_many: attributes and segments of many files, for reading; nothing is left behind.

Previous hop: `service`. Next hop: `stat` for the attributes, then one join of segments and blobs.
"""

from __future__ import annotations

from typing import Final

from ffs.errors import FileExpectedError
from ffs.limits import CHUNK_BYTES_DEFAULT
from ffs.server.meta.ops.access import Caller, Want, allowed, denied
from ffs.server.meta.ops.context import fault
from ffs.server.meta.ops.resolve import Walker
from ffs.server.meta.ops.stat import absence, resolved_rows
from ffs.server.meta.store import Transaction
from ffs.types import ZERO_BLOB, Attr, FileType, Layout, Segment
from ffs.wire.messages import OpenFile, OpenManyReply, OpenManyRequest
from ffs.wire.method import Fault

_SEGMENTS: Final = """
WITH keys(inode) AS (VALUES {keys})
SELECT keys.inode, s.blob, s.length, b.chunk_size_bytes, b.stripe, b.chain_table, b.seed
FROM keys CROSS JOIN segments s LEFT JOIN blobs b ON b.blob = s.blob
WHERE s.inode = keys.inode ORDER BY s.inode, s.place
"""
_ZERO_LAYOUT: Final = Layout(CHUNK_BYTES_DEFAULT, 1, 0, 0)
"""What a segment of zeros carries, since it lies nowhere."""


def segments_of(tx: Transaction, inodes: list[int]) -> dict[int, list[Segment]]:
    """Return the content of files, in order; an empty file has no segment and no entry."""
    content: dict[int, list[Segment]] = {}
    for inode, blob, length, *layout in tx.rows_for(_SEGMENTS, [(inode,) for inode in inodes]):
        where = _ZERO_LAYOUT if blob == ZERO_BLOB else Layout(*layout)
        content.setdefault(inode, []).append(Segment(blob, length, where))
    return content


def open_many(tx: Transaction, caller: Caller, request: OpenManyRequest) -> OpenManyReply:
    """Return what reading each file needs, or a fault for it."""
    walker = Walker(tx, caller, request.paths)
    rows = resolved_rows(tx, walker)
    files: list[Attr | Fault] = []
    for key, row, path in zip(walker.keys, rows, request.paths, strict=True):
        if row is None:
            files.append(absence(key))
        elif row[1] == FileType.DIRECTORY:
            files.append(fault(FileExpectedError("is a directory")))
        elif allowed(attr := Attr._make(row), caller, Want.READ):
            files.append(attr)
        else:
            files.append(fault(denied(path)))
    inodes = sorted({attr.inode for attr in files if isinstance(attr, Attr)})
    content = segments_of(tx, inodes)
    return OpenManyReply(
        [
            OpenFile(entry, content.get(entry.inode, [])) if isinstance(entry, Attr) else entry
            for entry in files
        ]
    )
