"""What an operator asks about users and tokens.

Role: `ffs auth` calls THIS; the next hop is the metadata server (`ffs.wire.auth`). Tokens are
issued here, by the cluster key that the caller holds: no secret ever travels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ffs.auth.token import TOKEN_ID_BYTES, Claims, Token, TokenKeys
from ffs.errors import NotFoundError
from ffs.key import ClusterKey
from ffs.seams import Clock, Randomness, SystemClock, SystemRandomness
from ffs.wire import auth as wire

if TYPE_CHECKING:
    from ffs.client.meta import MetaClient

_MS: Final = 1_000_000


class Users:
    """One operator's view of a cluster's users. Threads: safe; Fork: as its `MetaClient`."""

    def __init__(
        self,
        meta: MetaClient,
        *,
        clock: Clock | None = None,
        randomness: Randomness | None = None,
    ) -> None:
        self._meta = meta
        self._clock = clock or SystemClock()
        self._randomness = randomness or SystemRandomness()

    def all(self) -> list[wire.User]:
        """Return who may have tokens."""
        return self._meta.call(wire.USERS, wire.UsersRequest()).users

    def add(self, name: str, uid: int, gids: list[int]) -> None:
        """Make a user known, or change one's groups. Raises ExistsError, InvalidError."""
        user = wire.User(name, uid, gids)
        self._meta.call(wire.ADD_USER, wire.AddUserRequest(self._meta.mutation(), user))

    def remove(self, name: str) -> None:
        """Forget a user and revoke its tokens. Raises NotFoundError."""
        self._meta.call(wire.REMOVE_USER, wire.RemoveUserRequest(self._meta.mutation(), name))

    def revoke_token(self, token_id: bytes) -> None:
        """Let a token count no more."""
        request = wire.RevokeRequest(self._meta.mutation(), token_id=token_id)
        self._meta.call(wire.REVOKE, request)

    def revoke_user(self, name: str) -> None:
        """Let all tokens count no more that a user has; one that is issued later does."""
        self._meta.call(wire.REVOKE, wire.RevokeRequest(self._meta.mutation(), user=name))

    def issue(
        self, key: ClusterKey, name: str, *, job: str, life_ms: int, same_host: bool = False
    ) -> tuple[Token, Claims]:
        """Issue a token for a user as it is known now.

        Args:    same_host: its holder may read the files of daemons on its own host, all of them
        Raises:  NotFoundError, InvalidError
        """
        user = next((user for user in self.all() if user.name == name), None)
        if user is None:
            raise NotFoundError(
                f"no user {name!r}", hint=f"`ffs auth user add {name} --uid ...` makes one"
            )
        now_ms = self._clock.wall_ns() // _MS
        claims = Claims(
            token_id=self._randomness.token(TOKEN_ID_BYTES),
            user=user.name,
            uid=user.uid,
            gids=tuple(user.gids),
            job=job,
            issued_ms=now_ms,
            expires_ms=now_ms + life_ms,
            same_host=key.same_host if same_host else b"",
        )
        return TokenKeys(key).issue(claims), claims
