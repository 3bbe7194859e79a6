"""Tokens: signed claims about a user, and the secret that proves who may show them.

Role: `ffs auth token` issues one with the cluster key; a client loads it from a file and hands it
to ffs.handshake; servers verify it by `TokenKeys`, which follow from the cluster key.

A token is msgpack claims and an Ed25519 signature over them. Whoever sees one on its way can do
nothing with it: the handshake asks for a proof of the token's secret, an HMAC over the token under
a key that servers alone can derive. The secret never travels, and a server proves it as well.

Failure behaviour: bytes that are no token of this cluster are an AuthError that does not say why.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import re
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from ffs.errors import AuthError, ConfigError, InvalidError
from ffs.key import ClusterKey, read_secret
from ffs.limits import GROUPS_MAX, TOKEN_BYTES_MAX

TOKEN_ID_BYTES: Final = 16
JOB_BYTES_MAX: Final = 64
ID_MAX: Final = (1 << 32) - 2
"""The highest uid and gid; one more means "as it is" to chown(2)."""
LIFE_MS_MAX: Final = 366 * 86_400_000
"""How long a token may live: what is revoked has to be remembered for as long."""
SKEW_MS_MAX: Final = 60_000
"""How far behind the issuer's clock a server's may be."""

_VERSION: Final = 1
_CLAIMS: Final = 8
_CLAIMS_MAX: Final = 9
"""With what later versions have added; what comes after that is for others."""
_SIGNATURE_BYTES: Final = 64
_SECRET_BYTES: Final = 32
_SIGN_LABEL: Final = b"ffs token signature"
_SECRET_LABEL: Final = b"ffs token secret"
_PREFIX: Final = "ffs-token-1"
_USER: Final = re.compile(r"[a-z_][a-z0-9_.-]{0,31}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Claims:
    """Whom a token speaks for, and until when (milliseconds since 1970)."""

    token_id: bytes
    user: str
    uid: int
    gids: tuple[int, ...]
    """The first is the group that new files get."""
    job: str
    issued_ms: int
    expires_ms: int
    same_host: bytes = b""
    """What names the sockets of daemons on the holder's host (ffs.same_host), if it may read their
    files there; empty: it may not."""

    @property
    def name(self) -> str:
        """The token's id, as people write it."""
        return self.token_id.hex()


def check_user(user: str, uid: int, gids: tuple[int, ...]) -> None:
    """Raise InvalidError unless these may be a user's name, id and groups."""
    if not _USER.fullmatch(user):
        raise InvalidError(
            f"{user!r} is no user name", hint="up to 32 of a-z 0-9 _ . -, a letter or _ first"
        )
    if not 0 < uid <= ID_MAX:
        raise InvalidError(f"uid {uid} is outside of 1..{ID_MAX}: root is who holds the key")
    if not 0 < len(gids) <= GROUPS_MAX or not all(0 <= gid <= ID_MAX for gid in gids):
        raise InvalidError(f"a user has 1 to {GROUPS_MAX} groups of 0..{ID_MAX}")


class Token:
    """What a client holds: a token and its secret, which appears in no repr, log or pickle."""

    __slots__ = ("_secret", "shown")

    def __init__(self, shown: bytes, secret: bytes) -> None:
        self.shown = shown
        self._secret = secret

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Token:
        """Read the file that `ffs auth token` wrote. Raises ConfigError."""
        hint = "set FFS_TOKEN_FILE or token_file to what `ffs auth token` wrote"
        text = read_secret(path, "token", 4 * TOKEN_BYTES_MAX, hint=hint)
        try:
            prefix, shown, secret = text.decode("ascii").strip().split(".")
            token = cls(base64.urlsafe_b64decode(shown), bytes.fromhex(secret))
        except (ValueError, binascii.Error):
            prefix, token = "", cls(b"", b"")
        right = prefix == _PREFIX and 0 < len(token.shown) <= TOKEN_BYTES_MAX
        if not right or len(token._secret) != _SECRET_BYTES:
            raise ConfigError(
                "the token file holds no token",
                hint="copy the file that `ffs auth token` wrote unchanged",
                path=os.fspath(path),
            )
        return token

    @property
    def token_id(self) -> bytes:
        """The id that it says it has: what grants name. Empty for what is no token."""
        try:
            return _unpack(self.shown[:-_SIGNATURE_BYTES]).token_id
        except (ValueError, TypeError, msgpack.UnpackException):
            return b""

    def current(self, *, look: bool = False) -> Token:
        """See `Credential`: there is one."""
        return self

    def export(self) -> str:
        """Return the token with its secret, as its file holds it."""
        shown = base64.urlsafe_b64encode(self.shown).decode("ascii")
        return f"{_PREFIX}.{shown}.{self._secret.hex()}\n"

    def mac(self, *parts: bytes) -> bytes:
        """Return HMAC-SHA256 of the joined parts."""
        return hmac.digest(self._secret, b"".join(parts), "sha256")

    @property
    def same_host(self) -> bytes:
        """What names the sockets of daemons on this host, if the token says so."""
        try:
            return _unpack(self.shown[:-_SIGNATURE_BYTES]).same_host
        except (ValueError, TypeError, msgpack.UnpackException):
            return b""  # of a later version; servers will say more

    def __repr__(self) -> str:
        return "Token(<redacted>)"

    def __reduce__(self) -> str:
        raise TypeError("a token is not pickled; pass the path of its file")


class TokenKeys:
    """What issues and verifies the tokens of one cluster."""

    def __init__(self, key: ClusterKey) -> None:
        # Here, not above: clients have no need of this library.
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self._signer = Ed25519PrivateKey.from_private_bytes(key.derive(_SIGN_LABEL))
        self._public = self._signer.public_key()
        self._secrets = key.derive(_SECRET_LABEL)

    def issue(self, claims: Claims) -> Token:
        """Sign claims. Raises InvalidError for a life that is too long, or none."""
        check_user(claims.user, claims.uid, claims.gids)
        if not 0 < claims.expires_ms - claims.issued_ms <= LIFE_MS_MAX:
            raise InvalidError(f"a token lives for up to {LIFE_MS_MAX // 86_400_000} days")
        if len(claims.job.encode()) > JOB_BYTES_MAX or not claims.job.isprintable():
            raise InvalidError(f"a job's name is up to {JOB_BYTES_MAX} printable bytes")
        body = _pack(claims)
        shown = body + self._signer.sign(body)
        return self.credential(shown)

    def credential(self, shown: bytes) -> Token:
        """Return the token that its holder must have; says nothing of whether it is genuine."""
        return Token(shown, hmac.digest(self._secrets, shown, "sha256"))

    def verify(self, shown: bytes) -> Claims:
        """Return what a token says. Raises AuthError unless this cluster has signed it."""
        from cryptography.exceptions import InvalidSignature

        body, signature = shown[:-_SIGNATURE_BYTES], shown[-_SIGNATURE_BYTES:]
        try:
            self._public.verify(signature, body)
            return _unpack(body)
        except (InvalidSignature, ValueError, TypeError, msgpack.UnpackException) as error:
            raise refused() from error


def refused() -> AuthError:
    """Return the error for every token that does not count."""
    return AuthError("the token is not valid", hint="ask for a new one: `ffs auth token`")


def _pack(claims: Claims) -> bytes:
    body: bytes = msgpack.packb(
        (
            *(_VERSION, claims.token_id, claims.user, claims.uid, claims.gids),
            *(claims.job, claims.issued_ms, claims.expires_ms, claims.same_host),
        )
    )
    return body


def _unpack(body: bytes) -> Claims:
    fields: Any = msgpack.unpackb(body, use_list=False, max_array_len=GROUPS_MAX)
    if not isinstance(fields, tuple) or len(fields) < _CLAIMS or fields[0] != _VERSION:
        raise ValueError("claims of another version")
    return Claims(*fields[1:_CLAIMS_MAX])
