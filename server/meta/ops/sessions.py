"""Write sessions after their creation: leases, abort, reaping.

Previous hop: `service` (renew, abort_many) and its housekeeping (reap). A client's sessions live as
long as its lease, which every request that carries the client renews. A reaped or aborted session's
blob dies; its reservation goes. Times are wall-clock, so that leases survive a restart of the
server; `extend_leases` gives each a full term from then.
"""

from __future__ import annotations

from ffs.errors import InvalidError
from ffs.server.meta.ops.context import Context
from ffs.server.meta.schema import BlobState
from ffs.server.meta.store import Transaction
from ffs.wire.messages import AbortManyRequest, Empty, RenewReply, RenewRequest

CLIENT_BYTES_MAX = 64


def lease(tx: Transaction, context: Context, client: bytes) -> None:
    """Start or renew a client's lease. Raises InvalidError for an id that is none."""
    if not 0 < len(client) <= CLIENT_BYTES_MAX:
        raise InvalidError(
            f"client id has {len(client)} bytes, 1 to {CLIENT_BYTES_MAX} are allowed"
        )
    tx.run(
        "INSERT INTO leases (client, expires_ns) VALUES (?, ?)"
        " ON CONFLICT (client) DO UPDATE SET expires_ns = excluded.expires_ns",
        (client, context.now_ns + context.defaults.session_ttl_ns),
    )


def renew_lease(tx: Transaction, context: Context, client: bytes) -> None:
    """Renew a client's lease if it has one."""
    tx.run(
        "UPDATE leases SET expires_ns = ? WHERE client = ?",
        (context.now_ns + context.defaults.session_ttl_ns, client),
    )


def renew(tx: Transaction, context: Context, request: RenewRequest) -> RenewReply:
    """Keep all of a client's sessions, and say how many it has."""
    renew_lease(tx, context, request.client)
    row = tx.row("SELECT count(*) FROM sessions WHERE client = ?", (request.client,))
    assert row is not None
    return RenewReply(row[0])


def abort_many(tx: Transaction, context: Context, request: AbortManyRequest) -> Empty:
    """Give up a client's own sessions; others and unknown ones are left alone."""
    renew_lease(tx, context, request.client)
    mine = tx.rows_for(
        "WITH keys(session) AS (VALUES {keys}) SELECT s.session, s.blob"
        " FROM keys CROSS JOIN sessions s WHERE s.session = keys.session AND s.client = ?",
        [(session,) for session in set(request.sessions)],
        (request.client,),
    )
    tx.run_each(
        "UPDATE blobs SET state = ?, changed_ns = ? WHERE blob = ?",
        [(BlobState.DEAD, context.now_ns, blob) for _, blob in mine],
    )
    forget(tx, [session for session, _ in mine])
    return Empty()


def forget(tx: Transaction, sessions: list[int]) -> None:
    """Delete sessions and their reservations; what becomes of the blobs is the caller's."""
    keys = [(session,) for session in sessions]
    tx.run_each("DELETE FROM reservations WHERE session = ?", keys)
    tx.run_each("DELETE FROM sessions WHERE session = ?", keys)


def reap(tx: Transaction, now_ns: int) -> int:
    """End the sessions of every client whose lease is over, and return how many there were."""
    expired = "SELECT client FROM leases WHERE expires_ns < ?"
    of_expired = f"FROM sessions WHERE client IN ({expired})"
    tx.run(
        f"UPDATE blobs SET state = ?, changed_ns = ? WHERE blob IN (SELECT blob {of_expired})",
        (BlobState.DEAD, now_ns, now_ns),
    )
    tx.run(f"DELETE FROM reservations WHERE session IN (SELECT session {of_expired})", (now_ns,))
    ended = tx.run(f"DELETE {of_expired}", (now_ns,))
    tx.run("DELETE FROM leases WHERE expires_ns < ?", (now_ns,))
    return ended


def extend_leases(tx: Transaction, expires_ns: int) -> None:
    """Let every lease run until `expires_ns` at least: no client could renew while we were down."""
    tx.run("UPDATE leases SET expires_ns = ? WHERE expires_ns < ?", (expires_ns, expires_ns))
