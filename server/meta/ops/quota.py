"""quota, set_quota: how many bytes and files there may be below a directory, and how many are.

Previous hop: `service`. Next hop: `charges` and the quotas tables. Quotas nest: what is below
several counts in each, and each has the last word. Every directory's row names the nearest quota
at or above it, so that operations need not look for it; setting a quota where none was, or taking
one away, writes that into every directory below, which are held alone meanwhile: who makes
something there waits. Changing the bounds of a quota costs one row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Final

from ffs.errors import DirectoryExpectedError, InvalidError, QuotaBorderError
from ffs.server.meta.ops.access import Caller, denied
from ffs.server.meta.ops.charges import UNLIMITED, Charges, delete_quota
from ffs.server.meta.ops.content import SIZE_MAX
from ffs.server.meta.ops.context import Context
from ffs.server.meta.ops.resolve import Walker
from ffs.server.meta.ops.stat import attr_at
from ffs.server.meta.ops.tree import INODES, NOTHING, hold_tree
from ffs.server.meta.schema import RESERVED
from ffs.server.meta.store import Transaction
from ffs.types import Attr, FileType
from ffs.wire.messages import QuotaInfo, QuotaReply, QuotaRequest, SetQuotaRequest

_QUOTA_OF: Final = "SELECT quota FROM inodes WHERE inode = ?"
_BELOW: Final = f"""
WITH RECURSIVE keys(top) AS (SELECT CAST(? AS BIGINT)), {INODES}
SELECT CAST(coalesce(sum(CASE WHEN i.type = {FileType.FILE:d} THEN i.size ELSE 0 END), 0)
    AS BIGINT), count(*) - 1
FROM found f CROSS JOIN inodes i WHERE i.inode = f.inode
"""
_LINKED: Final = f"""
WITH keys(parent) AS (VALUES {{keys}})
SELECT i.inode, i.nlink, count(*) FROM keys CROSS JOIN dentries d CROSS JOIN inodes i
WHERE d.parent = keys.parent AND d.type NOT IN ({RESERVED}, {FileType.DIRECTORY:d})
    AND i.inode = d.inode AND i.nlink > 1
GROUP BY i.inode, i.nlink
"""
_MOVE_DIRECTORIES: Final = """
WITH keys(inode, was, is_now) AS (VALUES {keys})
UPDATE inodes SET quota = keys.is_now FROM keys
WHERE inodes.inode = keys.inode AND inodes.quota = keys.was
"""
_MOVE_QUOTAS: Final = """
WITH keys(inode, was, is_now) AS (VALUES {keys})
UPDATE quotas SET above = keys.is_now FROM keys
WHERE quotas.inode = keys.inode AND quotas.above = keys.was
"""


def quota(tx: Transaction, caller: Caller, request: QuotaRequest) -> QuotaReply:
    """Return the quotas that hold at a path, the nearest first."""
    return _quotas_at(tx, *attr_at(tx, caller, request.path))


def set_quota(tx: Transaction, context: Context, request: SetQuotaRequest) -> QuotaReply:
    """Bound what is below a directory, or no longer; return what then holds there. For root.

    More may be there already: then nothing can be added. Raises QuotaBorderError if files below
    have other names outside, to whom nobody could say how much they take.
    """
    if not context.caller.is_root:
        raise denied(request.path)
    for most in (request.bytes_max, request.files_max):
        if not UNLIMITED <= most <= SIZE_MAX:
            raise InvalidError(f"a quota of {most} is out of bounds", path=request.path)
    walker, attr = attr_at(tx, context.caller, request.path)
    if attr.type != FileType.DIRECTORY:
        raise DirectoryExpectedError("only directories have quotas", path=request.path)
    inode, bounds = attr.inode, (request.bytes_max, request.files_max)
    update = "UPDATE quotas SET bytes_max = ?, files_max = ? WHERE inode = ?"
    if bounds == (UNLIMITED, UNLIMITED):
        _remove(tx, walker, inode)
    elif not tx.run(update, (*bounds, inode)):
        _make(tx, walker, inode, bounds)
    return _quotas_at(tx, walker, attr)


def quota_of(tx: Transaction, directory: int) -> int:
    """Return the nearest quota at or above a directory; 0: none. Holds nothing."""
    row = tx.row(_QUOTA_OF, (directory,))
    return 0 if row is None else int(row[0])


def amount_below(tx: Transaction, top: int) -> tuple[int, int]:
    """Return (bytes, files) below a directory that is held with all below it."""
    row = tx.row(_BELOW, (top, NOTHING))
    assert row is not None
    return row[0], row[1]


def refuse_straddling(tx: Transaction, tree: Collection[int]) -> None:
    """Raise QuotaBorderError if a file in directories that are held has names elsewhere too."""
    names: Counter[int] = Counter()
    links: dict[int, int] = {}
    for inode, nlink, count in tx.rows_for(_LINKED, [(inode,) for inode in sorted(tree)]):
        names[inode] += count
        links[inode] = nlink
    if any(names[inode] < nlink for inode, nlink in links.items()):
        raise border_error()


def border_error() -> QuotaBorderError:
    """Return what is raised where a file would have names in two quotas."""
    return QuotaBorderError(
        "a file has one name below the quota and another outside",
        hint="remove its other names, or copy the file: a copy costs no space",
    )


def change_quota(tx: Transaction, tree: Collection[int], was: int, is_now: int) -> None:
    """Let directories that are held alone belong to another quota, if they belonged to `was`."""
    keys = [(inode, was, is_now) for inode in sorted(tree)]
    tx.run_for(_MOVE_QUOTAS, keys)
    tx.run_for(_MOVE_DIRECTORIES, keys)


def _make(tx: Transaction, walker: Walker, inode: int, bounds: tuple[int, int]) -> None:
    tree, (_, held) = hold_tree(tx, walker.one(), inode, left_out=NOTHING)
    above = held[inode].quota
    refuse_straddling(tx, tree)
    change_quota(tx, tree, above, inode)
    row = (inode, above, *bounds, *amount_below(tx, inode))
    columns = ("inode", "above", "bytes_max", "files_max", "bytes", "files")
    tx.insert("quotas", columns, [row])


def _remove(tx: Transaction, walker: Walker, inode: int) -> None:
    if quota_of(tx, inode) != inode:
        return
    tree, _ = hold_tree(tx, walker.one(), inode, left_out=NOTHING)
    row = tx.row("SELECT above FROM quotas WHERE inode = ? FOR UPDATE", (inode,))
    if row is not None:
        change_quota(tx, tree, inode, row[0])
        delete_quota(tx, inode)


def _quotas_at(tx: Transaction, walker: Walker, attr: Attr) -> QuotaReply:
    lineage = walker.lineage()
    if attr.type == FileType.DIRECTORY:
        lineage.append((attr.inode, walker.real_path()))
    nearest = quota_of(tx, lineage[-1][0]) if lineage else 0
    charges, paths = Charges(tx, [nearest]), dict(lineage)
    found: list[QuotaInfo] = []
    for inode in charges.chain(nearest):
        room = charges.rooms[inode]
        bounds = (room.bytes_max, room.files_max)
        if inode in paths:  # it may have moved since the path was resolved
            found.append(QuotaInfo(paths[inode], *bounds, room.bytes_used, room.files_used))
    return QuotaReply(found)
