"""What an operator asks about users and tokens, and what servers must know of revoked ones.

Declared and sent as `ffs.wire.method` says. Previous hop: client/users.py (`ffs auth`); next hop:
server/meta/service.py. Tokens themselves are issued where the cluster key is: none of these
messages holds a secret. Grants (ffs.auth.grant) are asked for by who holds a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ffs.wire.method import Empty, Method


class Revocation(NamedTuple):
    """One token, or all of a user's that were issued up to a time, that count no more."""

    token_id: bytes
    """Empty: those of `user`."""
    user: str
    issued_until_ms: int
    expires_ms: int
    """When the last token that it concerns is over."""


@dataclass(frozen=True, slots=True)
class Revocations:
    """All that is revoked and would still count, as of a version."""

    version: int
    entries: list[Revocation]


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who may have tokens. The first of `gids` is the group that new files get."""

    name: str
    uid: int
    gids: list[int]


@dataclass(frozen=True, slots=True)
class AddUserRequest:
    """Make a user known, or change one's groups; a uid is one user's."""

    mutation: bytes
    user: User


@dataclass(frozen=True, slots=True)
class UsersRequest:
    """Who is known?"""


@dataclass(frozen=True, slots=True)
class UsersReply:
    """In order of their names."""

    users: list[User]


@dataclass(frozen=True, slots=True)
class RemoveUserRequest:
    """Forget a user, and revoke all tokens that there are for it."""

    mutation: bytes
    name: str


@dataclass(frozen=True, slots=True)
class RevokeRequest:
    """Revoke one token, or with `user` all that were issued for it up to now."""

    mutation: bytes
    token_id: bytes = b""
    user: str = ""


@dataclass(frozen=True, slots=True)
class RenewGrantsRequest:
    """Let grants of the caller's token count for longer.

    `before`, a token as it is shown (no secret is in it): also those of that one, which the
    caller's user had before this one and which was not revoked.
    """

    grants: list[bytes]
    before: bytes = b""


@dataclass(frozen=True, slots=True)
class RenewGrantsReply:
    """In place of them, perhaps fewer; what cannot be renewed is left out: open the file again."""

    grants: list[bytes]


ADD_USER = Method("add_user", AddUserRequest, Empty, mutation=True)
USERS = Method("users", UsersRequest, UsersReply)
REMOVE_USER = Method("remove_user", RemoveUserRequest, Empty, mutation=True)
REVOKE = Method("revoke", RevokeRequest, Empty, mutation=True)
RENEW_GRANTS = Method("renew_grants", RenewGrantsRequest, RenewGrantsReply)
