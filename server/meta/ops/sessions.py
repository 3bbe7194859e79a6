"""Write sessions after their creation: leases, abort, reaping.

Previous hop: `service` (renew, abort_many) and its housekeeping (reap). A client's sessions live as
long as its lease, which every request that carries the client renews. A reaped or aborted session's
blob dies; its reservation goes. Times are wall-clock, so that leases survive a restart of the
server; `extend_leases` gives each a full term from then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ffs.errors import InvalidError
from ffs.server.meta.ops.context import Context
from ffs.server.meta.schema import RESERVED, BlobState
from ffs.server.meta.store import Transaction
from ffs.wire.messages import AbortManyRequest, CreateMode, RenewReply, RenewRequest
from ffs.wire.method import Empty

CLIENT_BYTES_MAX: Final = 64
LEASE_MARGIN: Final = 8
"""A renewed lease runs for this part of a term longer, and is not written again while it lasts."""

SESSION_COLUMNS: Final = ("session", "client", "blob", "parent", "name", "create_mode", "mode")

_COLUMNS: Final = "s.session, s.blob, s.parent, s.name, s.create_mode"
_NAMED: Final = f"""
WITH keys(session) AS (VALUES {{keys}})
SELECT {_COLUMNS}, s.client FROM sessions s
WHERE s.session IN (SELECT session FROM keys) ORDER BY s.session FOR UPDATE OF s
"""
_OF_CLIENTS: Final = f"""
WITH keys(client) AS (VALUES {{keys}})
SELECT {_COLUMNS} FROM sessions s
WHERE s.client IN (SELECT client FROM keys) ORDER BY s.session FOR UPDATE OF s
"""
_KILL_BLOBS: Final = f"""
WITH keys(blob, now_ns) AS (VALUES {{keys}})
UPDATE blobs SET state = {BlobState.DEAD:d}, changed_ns = keys.now_ns
FROM keys WHERE blobs.blob = keys.blob
"""
_HOLD_RESERVED: Final = f"""
WITH keys(parent, name, holder) AS (VALUES {{keys}})
SELECT d.inode FROM keys CROSS JOIN dentries d
WHERE d.parent = keys.parent AND d.name = keys.name AND d.inode = keys.holder
    AND d.type = {RESERVED} ORDER BY d.parent, d.name FOR UPDATE OF d
"""
_DELETE_RESERVED: Final = f"""
WITH keys(parent, name, holder) AS (VALUES {{keys}})
DELETE FROM dentries WHERE type = {RESERVED}
    AND (name, parent, inode) IN (SELECT name, parent, holder FROM keys)
"""
_DELETE_SESSIONS: Final = """
WITH keys(session) AS (VALUES {keys})
DELETE FROM sessions WHERE session IN (SELECT session FROM keys)
"""
"""In order of the keys, also on PostgreSQL: its index is searched in that order."""
_DELETE_RANGE: Final = "DELETE FROM sessions WHERE session BETWEEN ? AND ?"
"""In no order that others could rely on: where there is one writer."""
_DELETE_LEASES: Final = """
WITH keys(client) AS (VALUES {keys})
DELETE FROM leases WHERE client IN (SELECT client FROM keys)
"""


def lease(tx: Transaction, context: Context, client: bytes) -> None:
    """Start or renew a client's lease. Raises InvalidError for an id that is none.

    Written only when it would end too soon: requests of one client do not wait for each other. Held
    in any case, so that it is not reaped before the sessions that are made now can be seen.
    """
    if not 0 < len(client) <= CLIENT_BYTES_MAX:
        raise InvalidError(
            f"client id has {len(client)} bytes, 1 to {CLIENT_BYTES_MAX} are allowed"
        )
    expires_ns, soon_ns = _term(context)
    lasting = "SELECT 1 FROM leases WHERE client = ? AND expires_ns >= ? FOR KEY SHARE"
    if tx.row(lasting, (client, soon_ns)) is None:
        tx.run(
            "INSERT INTO leases (client, expires_ns) VALUES (?, ?)"
            " ON CONFLICT (client) DO UPDATE SET expires_ns ="
            " CASE WHEN leases.expires_ns < excluded.expires_ns"
            " THEN excluded.expires_ns ELSE leases.expires_ns END",
            (client, expires_ns),
        )


def renew_lease(tx: Transaction, context: Context, client: bytes) -> None:
    """Renew a client's lease if it has one and that would end too soon."""
    expires_ns, soon_ns = _term(context)
    tx.run(
        "UPDATE leases SET expires_ns = ? WHERE client = ? AND expires_ns < ?",
        (expires_ns, client, soon_ns),
    )


def _term(context: Context) -> tuple[int, int]:
    """Return until when a lease is renewed, and the end before which it must be: a full term."""
    ttl_ns = context.defaults.session_ttl_ns
    return context.now_ns + ttl_ns + ttl_ns // LEASE_MARGIN, context.now_ns + ttl_ns


def renew(tx: Transaction, context: Context, request: RenewRequest) -> RenewReply:
    """Keep all of a client's sessions, and say how many it has."""
    renew_lease(tx, context, request.client)
    row = tx.row("SELECT count(*) FROM sessions WHERE client = ?", (request.client,))
    assert row is not None
    return RenewReply(row[0])


def abort_many(tx: Transaction, context: Context, request: AbortManyRequest) -> Empty:
    """Give up a client's own sessions; others and unknown ones are left alone."""
    renew_lease(tx, context, request.client)
    wanted = [(session,) for session in sorted(set(request.sessions))]
    there = tx.rows_for(_NAMED, wanted)
    _give_up(tx, context.now_ns, [row for *row, client in there if client == request.client])
    return Empty()


def reap(tx: Transaction, now_ns: int) -> int:
    """End the sessions of every client whose lease is over, and return how many there were."""
    silent = tx.rows(
        "SELECT client FROM leases WHERE expires_ns < ? ORDER BY client FOR UPDATE", (now_ns,)
    )
    ended = tx.rows_for(_OF_CLIENTS, silent)
    _give_up(tx, now_ns, ended)
    tx.run_for(_DELETE_LEASES, silent)
    return len(ended)


def _give_up(tx: Transaction, now_ns: int, sessions: Sequence[Sequence[Any]]) -> None:
    """End held sessions, rows of `_COLUMNS`: their blobs die the names they reserve are free."""
    reserved = sorted(
        (parent, name, -session)
        for session, _, parent, name, create_mode in sessions
        if create_mode == CreateMode.EXCLUSIVE
    )
    if tx.shared:
        tx.rows_for(_HOLD_RESERVED, reserved)
    tx.run_for(_DELETE_RESERVED, reserved)
    tx.run_for(_KILL_BLOBS, [(blob, now_ns) for blob in sorted(row[1] for row in sessions)])
    forget(tx, [row[0] for row in sessions])


def forget(tx: Transaction, sessions: Sequence[int]) -> int:
    """Delete sessions and return how many there were; blobs and reserved names are the caller's."""
    ids = sorted(set(sessions))
    if ids and not tx.shared and is_range(ids):
        return tx.run(_DELETE_RANGE, (ids[0], ids[-1]))
    return tx.run_for(_DELETE_SESSIONS, [(session,) for session in ids])


def is_range(ids: Sequence[int]) -> bool:
    """Whether ids, each once and in order, are all that there are from the first to the last.

    Why: what was opened by one batch is mostly closed by one, and found in one place by its ends.
    """
    return ids[-1] - ids[0] == len(ids) - 1


def extend_leases(tx: Transaction, expires_ns: int) -> None:
    """Let every lease run until `expires_ns` at least: no client could renew while we were down."""
    tx.rows(
        "SELECT client FROM leases WHERE expires_ns < ? ORDER BY client FOR UPDATE", (expires_ns,)
    )
    tx.run("UPDATE leases SET expires_ns = ? WHERE expires_ns < ?", (expires_ns, expires_ns))
