"""Letting go of inodes and of content: links, references, and the death of blobs.

Previous hop: remove, rmdir, rename, copy, close, setattr, pin. Next hop: SQL over the scratch table
`doomed`. Invariant: a blob's `refs` is the number of segments and of pins that name it; it is DEAD
from the transaction in which the last one went.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from ffs.server.meta.schema import BlobState
from ffs.server.meta.store import Transaction
from ffs.types import FileType

_UNLINK: Final = f"""
UPDATE inodes SET ctime_ns = ?,
    nlink = CASE WHEN type = {FileType.DIRECTORY:d} THEN 0 ELSE inodes.nlink - held.links END
FROM (SELECT d.inode, d.links FROM doomed d CROSS JOIN inodes i WHERE i.inode = d.inode
      ORDER BY i.inode FOR UPDATE OF i) AS held
WHERE inodes.inode = held.inode
"""
_HOLD_BLOBS: Final = """
SELECT count(*) FROM (
    SELECT b.blob FROM doomed d CROSS JOIN segments s CROSS JOIN blobs b
    WHERE s.inode = d.inode AND b.blob = s.blob ORDER BY b.blob FOR UPDATE OF b
) AS held
"""
_HOLD_CONTENT: Final = """
WITH keys(inode) AS (VALUES {keys})
SELECT b.blob FROM keys CROSS JOIN segments s CROSS JOIN blobs b
WHERE s.inode = keys.inode AND b.blob = s.blob ORDER BY b.blob FOR UPDATE OF b
"""
_UNCOUNT: Final = """
UPDATE blobs SET refs = blobs.refs - held.n
FROM (SELECT s.blob, count(*) AS n FROM doomed d CROSS JOIN segments s WHERE s.inode = d.inode
      GROUP BY s.blob) AS held
WHERE blobs.blob = held.blob
"""
_RELEASE: Final = f"""
WITH keys(blob, n, now_ns) AS (VALUES {{keys}})
UPDATE blobs SET refs = refs - keys.n,
    state = CASE WHEN refs = keys.n THEN {BlobState.DEAD:d} ELSE state END,
    changed_ns = CASE WHEN refs = keys.n THEN keys.now_ns ELSE changed_ns END
FROM keys WHERE blobs.blob = keys.blob
"""


def doom(tx: Transaction, inodes: Iterable[int]) -> None:
    """Put inodes into the empty scratch table; twice the same inode is two links of it."""
    tx.insert("doomed", ("inode", "links"), sorted(Counter(inodes).items()))


def release_doomed(tx: Transaction, now_ns: int) -> None:
    """Take the doomed links off their inodes; inodes without a link go, and with them content.

    A directory goes with its one name. Leaves the scratch table empty.
    """
    tx.run(_UNLINK, (now_ns,))
    tx.run(
        "DELETE FROM doomed WHERE inode IN (SELECT i.inode FROM doomed d JOIN inodes i"
        " ON i.inode = d.inode WHERE i.nlink > 0)"
    )
    _release_content(tx, now_ns)
    for table in ("symlinks", "layouts", "inodes"):
        tx.run(f"DELETE FROM {table} WHERE inode IN (SELECT inode FROM doomed)")
    tx.run("DELETE FROM doomed")


def release_content(tx: Transaction, now_ns: int, inodes: Iterable[int]) -> None:
    """Drop the segments of files that stay and are held, since they get others."""
    doom(tx, inodes)
    _release_content(tx, now_ns)
    tx.run("DELETE FROM doomed")


def _release_content(tx: Transaction, now_ns: int) -> None:
    if tx.shared:
        tx.row(_HOLD_BLOBS)
    tx.run(_UNCOUNT)
    tx.run(
        "UPDATE blobs SET state = ?, changed_ns = ? WHERE refs = 0 AND state = ? AND blob IN"
        " (SELECT blob FROM segments WHERE inode IN (SELECT inode FROM doomed))",
        (BlobState.DEAD, now_ns, BlobState.LIVE),
    )
    tx.run("DELETE FROM segments WHERE inode IN (SELECT inode FROM doomed)")


def release_blobs(tx: Transaction, now_ns: int, blobs: Sequence[int]) -> None:
    """Take one reference off each blob named (twice: two), as many segments having gone."""
    tx.run_for(_RELEASE, [(blob, n, now_ns) for blob, n in sorted(Counter(blobs).items())])


def hold_content(tx: Transaction, inodes: Iterable[int]) -> None:
    """Hold the blobs of files that are held, all in order, before references to some change."""
    if tx.shared:
        tx.rows_for(_HOLD_CONTENT, [(inode,) for inode in sorted(set(inodes))])


def share_content(tx: Transaction, source: int, target: int) -> None:
    """Give the empty file `target` the segments of `source`, which is held: no data moves."""
    tx.run(
        "INSERT INTO segments (inode, place, blob, length)"
        " SELECT ?, place, blob, length FROM segments WHERE inode = ?",
        (target, source),
    )
    tx.run(
        "UPDATE blobs SET refs = blobs.refs + held.n FROM (SELECT blob, count(*) AS n"
        " FROM segments WHERE inode = ? GROUP BY blob ORDER BY blob) AS held"
        " WHERE blobs.blob = held.blob",
        (target,),
    )
