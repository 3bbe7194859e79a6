"""The metadata servers that share a database: who lives, and what time it is for all of them.

Previous hop: `peers`, where the database is shared; an engine that one server owns has no rows
here. Next hop: SQL. Invariants: a row is one server's own, under the address that it tells clients;
its `heard_ns` is the database's time, so no two hosts' clocks are ever compared. A server that was
killed leaves a row that its next life takes over, or that others remove.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ffs.server.meta.ops.routing import routing_version
from ffs.server.meta.store import Transaction

_CLOCK: Final = "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)"
_US: Final = 1_000


@dataclass(frozen=True, slots=True)
class Census:
    """What one server learns when it says that it lives."""

    servers: list[str]
    """Addresses of those that live, this one too."""
    routing_version: int


@dataclass(frozen=True, slots=True)
class ServerRow:
    """One metadata server as it last said of itself."""

    address: str
    pid: int
    heard_ns: int


def database_ns(tx: Transaction) -> int:
    """Return the wall-clock time of a shared database."""
    row = tx.row(_CLOCK)
    assert row is not None
    return int(row[0]) * _US


def beat(tx: Transaction, me: ServerRow, lease_ns: int, forget_ns: int) -> Census:
    """Say that a server lives, remove those that died long ago, and tell who lives.

    Args:    lease_ns: one that was silent for so long is not told; forget_ns: not kept either
    """
    tx.run(
        "INSERT INTO meta_servers (address, pid, heard_ns) VALUES (?, ?, ?) ON CONFLICT (address)"
        " DO UPDATE SET pid = excluded.pid, heard_ns = excluded.heard_ns",
        (me.address, me.pid, me.heard_ns),
    )
    if tx.try_lock("meta_servers"):  # two that removed the same ones would wait for each other
        tx.run("DELETE FROM meta_servers WHERE heard_ns < ?", (me.heard_ns - forget_ns,))
    return Census(living(tx, me.heard_ns - lease_ns), routing_version(tx))


def living(tx: Transaction, since_ns: int) -> list[str]:
    """Return the addresses of the servers that lived after a time."""
    return [row.address for row in known(tx) if row.heard_ns >= since_ns]


def known(tx: Transaction) -> list[ServerRow]:
    """Return all servers that are not forgotten, in the order of their addresses."""
    rows = tx.rows("SELECT address, pid, heard_ns FROM meta_servers ORDER BY address")
    return [ServerRow(*row) for row in rows]


def heard_since(tx: Transaction, since_ns: int) -> bool:
    """Return whether any server lived after a time."""
    return tx.row("SELECT 1 FROM meta_servers WHERE heard_ns > ?", (since_ns,)) is not None


def leave(tx: Transaction, address: str) -> None:
    """Take a server's row away: it stops."""
    tx.run("DELETE FROM meta_servers WHERE address = ?", (address,))
