"""Letting go of inodes and of content: links, references, and the death of blobs.

Previous hop: remove, rmdir, rename, copy, close, setattr, sessions. Next hop: SQL over the scratch
table `doomed`. Invariant: a blob's `refs` is the number of segments that name it; it is DEAD from
the transaction in which the last one went.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from ffs.server.meta.schema import BlobState
from ffs.server.meta.store import Transaction
from ffs.types import FileType

_UNCOUNT: Final = """
UPDATE blobs SET refs = blobs.refs - held.n
FROM (SELECT blob, count(*) AS n FROM segments WHERE inode IN (SELECT inode FROM doomed)
      GROUP BY blob) AS held
WHERE blobs.blob = held.blob
"""


def doom(tx: Transaction, inodes: Iterable[int]) -> None:
    """Put inodes into the scratch table, one link each; twice the same inode is two links."""
    tx.run_each(
        "INSERT INTO doomed (inode, links) VALUES (?, 1)"
        " ON CONFLICT (inode) DO UPDATE SET links = doomed.links + 1",
        ((inode,) for inode in inodes),
    )


def release_doomed(tx: Transaction, now_ns: int) -> None:
    """Take the doomed links off their inodes; inodes without a link go, and with them content.

    A directory goes with its one name. Leaves the scratch table empty.
    """
    tx.run(
        "UPDATE inodes SET nlink = CASE WHEN type = ? THEN 0 ELSE inodes.nlink - doomed.links END,"
        " ctime_ns = ? FROM doomed WHERE inodes.inode = doomed.inode",
        (FileType.DIRECTORY, now_ns),
    )
    tx.run(
        "DELETE FROM doomed WHERE inode IN (SELECT i.inode FROM doomed d JOIN inodes i"
        " ON i.inode = d.inode WHERE i.nlink > 0)"
    )
    _release_content(tx, now_ns)
    tx.run("DELETE FROM inodes WHERE inode IN (SELECT inode FROM doomed)")
    tx.run("DELETE FROM doomed")


def release_content(tx: Transaction, now_ns: int, inodes: Iterable[int]) -> None:
    """Drop the segments of files that stay, since they get others."""
    doom(tx, inodes)
    _release_content(tx, now_ns)
    tx.run("DELETE FROM doomed")


def _release_content(tx: Transaction, now_ns: int) -> None:
    tx.run(_UNCOUNT)
    tx.run(
        "UPDATE blobs SET state = ?, changed_ns = ? WHERE refs = 0 AND state = ? AND blob IN"
        " (SELECT blob FROM segments WHERE inode IN (SELECT inode FROM doomed))",
        (BlobState.DEAD, now_ns, BlobState.LIVE),
    )
    tx.run("DELETE FROM segments WHERE inode IN (SELECT inode FROM doomed)")


def release_blobs(tx: Transaction, now_ns: int, blobs: Sequence[int]) -> None:
    """Take one reference off each blob named (twice: two), as many segments having gone."""
    tx.run_each(
        "UPDATE blobs SET refs = refs - 1, state = CASE WHEN refs = 1 THEN ? ELSE state END,"
        " changed_ns = CASE WHEN refs = 1 THEN ? ELSE changed_ns END WHERE blob = ?",
        [(BlobState.DEAD, now_ns, blob) for blob in blobs],
    )


def share_content(tx: Transaction, source: int, target: int) -> None:
    """Give the empty file `target` the segments of `source`: references, no data."""
    tx.run(
        "INSERT INTO segments (inode, place, blob, length)"
        " SELECT ?, place, blob, length FROM segments WHERE inode = ?",
        (target, source),
    )
    tx.run(
        "UPDATE blobs SET refs = blobs.refs + held.n FROM (SELECT blob, count(*) AS n"
        " FROM segments WHERE inode = ? GROUP BY blob) AS held WHERE blobs.blob = held.blob",
        (target,),
    )
