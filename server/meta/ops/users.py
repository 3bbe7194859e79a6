"""add_user, users, remove_user, revoke: who may have tokens, and which of those count no more.

Previous hop: `service`, for operators alone. Next hop: the users and revocations tables. A user's
row says what the next token will say; tokens that are out say what they said when they were issued.
Invariant: the version of the revocations grows with each one, and none is forgotten before the last
token that it concerns is over. Failure: a bound that is reached is a BusyError.
"""

from __future__ import annotations

from typing import Final

from ffs.auth.token import LIFE_MS_MAX, TOKEN_ID_BYTES, check_user
from ffs.errors import BusyError, ExistsError, InvalidError, NotFoundError
from ffs.limits import REVOCATIONS_MAX, USERS_MAX
from ffs.server.meta.ops.context import Context
from ffs.server.meta.store import Transaction
from ffs.wire import auth as wire
from ffs.wire.method import Empty

_MS: Final = 1_000_000
_LOCK: Final = "users"
_COLUMNS: Final = ("revocation", "token_id", "user_name", "issued_until_ms", "expires_ms")


def add_user(tx: Transaction, context: Context, request: wire.AddUserRequest) -> Empty:
    """Enter a user, or change one's groups. Raises ExistsError, InvalidError, BusyError."""
    user = request.user
    check_user(user.name, user.uid, tuple(user.gids))
    tx.lock(_LOCK)
    taken = tx.rows("SELECT name, uid FROM users WHERE name = ? OR uid = ?", (user.name, user.uid))
    for name, uid in taken:
        if (name, uid) != (user.name, user.uid):
            raise ExistsError(
                f"user {name} has uid {uid}",
                hint="one uid is one user's; `ffs auth user list` shows them",
            )
    gids = " ".join(map(str, user.gids))
    if taken:
        tx.run("UPDATE users SET gids = ? WHERE name = ?", (gids, user.name))
        return Empty()
    if _count(tx, "users") >= USERS_MAX:
        raise BusyError(f"there are {USERS_MAX} users", hint="remove those that nobody needs")
    tx.insert("users", ("name", "uid", "gids"), [(user.name, user.uid, gids)])
    return Empty()


def users(tx: Transaction, request: wire.UsersRequest) -> wire.UsersReply:
    """Return all users."""
    rows = tx.rows("SELECT name, uid, gids FROM users ORDER BY name")
    return wire.UsersReply(
        [wire.User(name, uid, [int(gid) for gid in gids.split()]) for name, uid, gids in rows]
    )


def remove_user(tx: Transaction, context: Context, request: wire.RemoveUserRequest) -> Empty:
    """Forget a user and revoke its tokens. Raises NotFoundError, BusyError."""
    tx.lock(_LOCK)
    if not tx.run("DELETE FROM users WHERE name = ?", (request.name,)):
        raise NotFoundError(f"no user {request.name}", hint="`ffs auth user list` shows them")
    _revoke(tx, context.now_ns // _MS, b"", request.name)
    return Empty()


def revoke(tx: Transaction, context: Context, request: wire.RevokeRequest) -> Empty:
    """Let one token, or all of a user's, count no more. Raises InvalidError, BusyError."""
    if bool(request.token_id) == bool(request.user):
        raise InvalidError("a token's id or a user's name is needed")
    if request.token_id and len(request.token_id) != TOKEN_ID_BYTES:
        raise InvalidError(f"a token's id has {2 * TOKEN_ID_BYTES} hexadecimal digits")
    if request.user:
        check_user(request.user, 1, (0,))
    tx.lock(_LOCK)
    _revoke(tx, context.now_ns // _MS, request.token_id, request.user)
    return Empty()


def revocations(tx: Transaction) -> wire.Revocations:
    """Return all that is revoked."""
    rows = tx.rows(
        "SELECT token_id, user_name, issued_until_ms, expires_ms FROM revocations"
        " ORDER BY revocation"
    )
    version = tx.highest("revocation")
    return wire.Revocations(version, [wire.Revocation(bytes(row[0]), *row[1:]) for row in rows])


def revocations_version(tx: Transaction) -> int:
    """Return what tells whether anything was revoked since."""
    return tx.highest("revocation")


def reap_revocations(tx: Transaction, now_ns: int) -> int:
    """Forget what concerns no token that could count any more; return how many there were."""
    return tx.run("DELETE FROM revocations WHERE expires_ms <= ?", (now_ns // _MS,))


def _revoke(tx: Transaction, now_ms: int, token_id: bytes, user: str) -> None:
    tx.run(
        "DELETE FROM revocations WHERE token_id = ? AND user_name = ?", (token_id, user)
    )  # the new one covers it
    if _count(tx, "revocations") >= REVOCATIONS_MAX:
        raise BusyError(
            f"{REVOCATIONS_MAX} revocations are in force",
            hint="revoke users instead of their tokens one by one",
        )
    (number,) = tx.allocate("revocation", 1)
    row = (number, token_id, user, now_ms, now_ms + LIFE_MS_MAX)
    tx.insert("revocations", _COLUMNS, [row])


def _count(tx: Transaction, table: str) -> int:
    row = tx.row(f"SELECT count(*) FROM {table}")
    assert row is not None
    return int(row[0])
