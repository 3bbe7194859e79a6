"""Users and revocations in the database: bounds, versions, and what is forgotten."""

from __future__ import annotations

import pytest

from ffs.auth.token import LIFE_MS_MAX
from ffs.errors import BusyError, InvalidError
from ffs.limits import REVOCATIONS_MAX, USERS_MAX
from ffs.server.meta.ops import users
from ffs.server.meta.store import Transaction
from ffs.wire import auth as wire
from tests.namespace import Namespace


def add(ns: Namespace, name: str, uid: int) -> None:
    user = wire.User(name, uid, [uid])
    ns.transact(lambda tx: users.add_user(tx, ns.context(), wire.AddUserRequest(b"", user)))


def revoke(ns: Namespace, **what: object) -> None:
    request = wire.RevokeRequest(b"", **what)  # type: ignore[arg-type]
    ns.transact(lambda tx: users.revoke(tx, ns.context(), request))


def test_users_max(ns: Namespace) -> None:
    rows = [(f"u{i}", i, "1") for i in range(1_000, 1_000 + USERS_MAX - 1)]
    ns.transact(lambda tx: tx.insert("users", ("name", "uid", "gids"), rows))
    add(ns, "last", 7)
    with pytest.raises(BusyError):
        add(ns, "more", 8)
    add(ns, "last", 7)
    assert len(ns.transact(lambda tx: users.users(tx, wire.UsersRequest())).users) == USERS_MAX


def test_revocations_max(ns: Namespace) -> None:
    columns = ("revocation", "token_id", "user_name", "issued_until_ms", "expires_ms")
    rows = [(-i, b"", f"u{i}", 0, i) for i in range(1, REVOCATIONS_MAX)]
    ns.transact(lambda tx: tx.insert("revocations", columns, rows))
    revoke(ns, user="ann")
    with pytest.raises(BusyError):
        revoke(ns, user="bob")
    revoke(ns, user="ann")  # the same again takes the place of the first


def test_revocations_are_kept_while_a_token_may_live(ns: Namespace) -> None:
    before = ns.transact(users.revocations).version
    revoke(ns, token_id=b"t" * 16)
    found = ns.transact(users.revocations)
    assert found.version > before
    (entry,) = found.entries
    assert (entry.token_id, entry.user) == (b"t" * 16, "")
    assert entry.expires_ms - entry.issued_until_ms == LIFE_MS_MAX

    def reap(tx: Transaction, ms: int) -> int:
        return users.reap_revocations(tx, ms * 1_000_000)

    assert ns.transact(lambda tx: reap(tx, entry.expires_ms - 1)) == 0
    assert ns.transact(lambda tx: reap(tx, entry.expires_ms)) == 1
    revoke(ns, user="ann")
    assert ns.transact(users.revocations).version > found.version


@pytest.mark.parametrize(
    "what", [{}, {"token_id": b"t" * 16, "user": "ann"}, {"token_id": b"t"}, {"user": "Ann"}]
)
def test_what_cannot_be_revoked(ns: Namespace, what: dict[str, object]) -> None:
    with pytest.raises(InvalidError):
        revoke(ns, **what)
