"""The counts that `ffs status` prints, and the cluster's identity.

Previous hop: `service`. Next hop: SQL.
"""

from __future__ import annotations

from dataclasses import dataclass

from ffs.errors import FormatError
from ffs.server.meta.ops.directories import INODE_COLUMNS, insert_names
from ffs.server.meta.ops.storage import counters_of, health_of
from ffs.server.meta.schema import COUNTERS, ROOT_PARENT, BlobState
from ffs.server.meta.store import Transaction
from ffs.types import ROOT_INODE, FileType
from ffs.wire.membership import DataLoopCounters, TargetReport

CLUSTER_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class Counts:
    """How many of each thing there are."""

    inodes: int
    blobs: int
    sessions: int
    dead_blobs: int


def counts(tx: Transaction) -> Counts:
    """Count what is stored; blobs are those that are not dead."""
    row = tx.row(
        "SELECT (SELECT count(*) FROM inodes), (SELECT count(*) FROM blobs),"
        " (SELECT count(*) FROM sessions),"
        f" (SELECT count(*) FROM blobs WHERE state >= {BlobState.DEAD:d})"
    )
    assert row is not None
    inodes, blobs, sessions, dead = row
    return Counts(inodes, blobs - dead, sessions, dead)


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One storage daemon; `heard_ns` is 0 where the database is not the place for what it told."""

    node: int
    host: str
    port: int
    pid: int
    heard_ns: int
    counters: DataLoopCounters | None


def nodes(tx: Transaction) -> list[NodeRow]:
    """Return every storage daemon that is registered."""
    rows = tx.rows("SELECT node, host, port, pid, heard_ns, counters FROM nodes ORDER BY node")
    return [
        NodeRow(node, host, port, pid, heard_ns, counters_of(text))
        for node, host, port, pid, heard_ns, text in rows
    ]


def target_reports(tx: Transaction) -> list[TargetReport]:
    """Return what every target last reported, in a shared database."""
    rows = tx.rows(
        "SELECT label, target, capacity_bytes, used_bytes, chunks, stopped, disk, synced, damaged,"
        " health, stored_bytes, holds FROM targets ORDER BY target"
    )
    return [
        TargetReport(
            *(label, target, capacity, used, chunks),
            stopped=bool(stopped),
            disk=disk,
            synced=synced,
            damaged=bool(damaged),
            health=health_of(health),
            stored_bytes=stored,
            holds=holds,
        )
        for label, target, capacity, used, chunks, stopped, disk, synced, damaged, *more in rows
        for health, stored, holds in [more]
    ]


def initialise(tx: Transaction, cluster_id: bytes, now_ns: int) -> bytes:
    """Make the root and the counters in a database that has none; return the cluster's id.

    Args:    cluster_id: what a new cluster is to be called
    """
    tx.lock("initialise")
    row = tx.row("SELECT value FROM settings WHERE name = 'cluster_id'")
    if row is not None:
        found = bytes(row[0])
        if len(found) != CLUSTER_ID_BYTES:
            raise FormatError("the database's cluster id is damaged")
        return found
    assert len(cluster_id) == CLUSTER_ID_BYTES
    tx.insert("settings", ("name", "value"), [("cluster_id", cluster_id)])
    tx.insert(
        "counters",
        ("name", "value"),
        [(name, ROOT_INODE if name == "inode" else 0) for name in COUNTERS],
    )
    root = (ROOT_INODE, int(FileType.DIRECTORY), 0o755, 0, 0, 2, 0, 1, now_ns, now_ns, now_ns)
    tx.insert("inodes", INODE_COLUMNS, [root])
    insert_names(tx, [(ROOT_PARENT, b"", ROOT_INODE, int(FileType.DIRECTORY))])
    return cluster_id
