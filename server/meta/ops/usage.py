"""usage_many: how much lies at and below paths, each inode and each blob once.

Previous hop: `service`. Next hop: recursion inside SQL, two statements for all paths of a batch.
Symbolic links are counted and not followed, the last one of a path neither. Snapshots are left out.
"""

from __future__ import annotations

from typing import Final

from ffs.server.meta.ops.access import Caller, denied
from ffs.server.meta.ops.context import fault
from ffs.server.meta.ops.names import SNAPSHOTS
from ffs.server.meta.ops.resolve import Walker
from ffs.server.meta.ops.stat import absence, resolved_rows
from ffs.server.meta.ops.tree import INODES, unlistable
from ffs.server.meta.store import Transaction
from ffs.types import ZERO_BLOB, FileType
from ffs.wire.messages import Usage, UsageManyReply, UsageManyRequest
from ffs.wire.method import Fault

_COUNT: Final = f"""
WITH RECURSIVE keys(top) AS (VALUES {{keys}}), {INODES}
SELECT f.top, i.type, count(*), CAST(sum(i.size) AS BIGINT)
FROM found f CROSS JOIN inodes i WHERE i.inode = f.inode GROUP BY f.top, i.type
"""
_STORED: Final = f"""
WITH RECURSIVE keys(top) AS (VALUES {{keys}}), {INODES}
SELECT held.top, CAST(sum(b.length) AS BIGINT) FROM (
    SELECT DISTINCT f.top, s.blob FROM found f CROSS JOIN segments s
    WHERE s.inode = f.inode AND s.blob <> {ZERO_BLOB}
) AS held CROSS JOIN blobs b WHERE b.blob = held.blob GROUP BY held.top
"""


def usage_many(tx: Transaction, caller: Caller, request: UsageManyRequest) -> UsageManyReply:
    """Return what each path's tree holds, or a fault for it."""
    walker = Walker(tx, caller, request.paths)
    rows = resolved_rows(tx, walker, follow=False)
    tops = {row[0] for row in rows if row is not None}
    usages = usage_of(tx, tops)
    hidden = unlistable(tx, caller, tops)
    replies: list[Usage | Fault] = []
    for key, row, path in zip(walker.keys, rows, request.paths, strict=True):
        if row is None:
            replies.append(absence(key))
        elif row[0] in hidden:
            replies.append(fault(denied(path)))
        else:
            replies.append(usages[row[0]])
    return UsageManyReply(replies)


def usage_of(tx: Transaction, tops: set[int]) -> dict[int, Usage]:
    """Return what is at and below each of these inodes."""
    keys = [(inode,) for inode in sorted(tops)]
    counted: dict[tuple[int, int], tuple[int, int]] = {
        (top, type_): (count, size)
        for top, type_, count, size in tx.rows_for(_COUNT, keys, (SNAPSHOTS,))
    }
    stored: dict[int, int] = dict(tx.rows_for(_STORED, keys, (SNAPSHOTS,)))
    none = (0, 0)
    return {
        top: Usage(
            files=counted.get((top, FileType.FILE), none)[0],
            directories=counted.get((top, FileType.DIRECTORY), none)[0],
            symlinks=counted.get((top, FileType.SYMLINK), none)[0],
            size_bytes=counted.get((top, FileType.FILE), none)[1],
            stored_bytes=stored.get(top, 0),
        )
        for top in tops
    }
