"""Which tokens count at a server: genuine, within their time, and not revoked.

Previous hop: ffs.handshake asks when a client shows a token; whoever serves it goes on asking while
the connection lasts. What is revoked comes from the metadata (`ffs auth revoke`): its servers read
it there, storage daemons hear it with their heartbeats.

Failure behaviour: closed. Before the revocations are known no token counts (BusyError: the client
tries again); a daemon whose metadata servers are away goes by what it heard last.
"""

from __future__ import annotations

from ffs.auth.audit import note_token
from ffs.auth.grant import GrantKeys
from ffs.auth.token import SKEW_MS_MAX, Claims, Token, TokenKeys, refused
from ffs.errors import AuthError, BusyError
from ffs.key import ClusterKey
from ffs.seams import Clock
from ffs.wire.auth import Revocations

_MS = 1_000_000


class TokenVerifier:
    """Threads: any, what is revoked is replaced as a whole; Fork: none"""

    def __init__(self, key: ClusterKey, clock: Clock) -> None:
        self._keys = TokenKeys(key)
        self.grants = GrantKeys(key, clock)
        self._clock = clock
        self._ids: frozenset[bytes] = frozenset()
        self._users: dict[str, int] = {}
        self.version = -1
        """Of the revocations that are known; -1: none are."""

    def take(self, revocations: Revocations) -> None:
        """Go by these from now on."""
        entries = revocations.entries
        users: dict[str, int] = {}
        for entry in entries:
            if not entry.token_id:
                users[entry.user] = max(entry.issued_until_ms, users.get(entry.user, 0))
        self._ids = frozenset(entry.token_id for entry in entries if entry.token_id)
        self._users = users
        self.version = revocations.version

    def credential(self, shown: bytes) -> Token:
        """Return what the holder of a token must prove that it has."""
        return self._keys.credential(shown)

    def accept(self, shown: bytes, *, local: bool = False) -> Claims:
        """Return whom a token speaks for whose secret was proven.

        Args:    local: it is shown where descriptors of files are passed, which not all may have
        Raises:  AuthError, BusyError
        """
        if self.version < 0:
            raise BusyError("the server does not know yet which tokens were revoked")
        claims = self._keys.verify(shown)
        if not self.counts(claims) or (local and not claims.same_host):
            note_token(claims)
            raise refused()
        return claims

    def counts(self, claims: Claims) -> bool:
        """Return whether a genuine token counts now."""
        now_ms = self._clock.wall_ns() // _MS
        in_time = claims.issued_ms - SKEW_MS_MAX <= now_ms < claims.expires_ms
        return in_time and not self._revoked(claims)

    def replaced(self, claims: Claims, shown: bytes) -> bytes:
        """Return the id of a token that this one has taken the place of; empty: it has not.

        It is the same user's, genuine and not revoked; it may be over.
        """
        try:
            before = self._keys.verify(shown)
        except AuthError:
            return b""
        same = (before.user, before.uid) == (claims.user, claims.uid)
        return before.token_id if same and not self._revoked(before) else b""

    def _revoked(self, claims: Claims) -> bool:
        return claims.token_id in self._ids or claims.issued_ms <= self._users.get(claims.user, -1)
