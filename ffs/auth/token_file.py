"""A token that is read again when its file changes, so that a job outlives its token.

Role: client/core.py makes one of `token_file`; whoever connects asks it for the token of the
moment, as certificates are looked at when a connection begins (ffs.tls). Put another file in its
place by a rename before the old token is over, and nothing notices.
Invariants: a handshake uses one token from its start to its end; a file that holds none, or is not
there, leaves the token that was read before. Failure: ConfigError for the first one alone.
Threads: any; two that look at once read it twice. Fork: the child goes on with what was read.
"""

from __future__ import annotations

import logging
import os
from typing import Final

from ffs.auth.token import Token
from ffs.errors import ConfigError
from ffs.seams import Clock, SystemClock

LOOK_NS: Final = 1_000_000_000
"""How long the file is not looked at again, unless a server has refused what it held."""

log = logging.getLogger("ffs.auth")


class TokenFile:
    """The token of a file. Its secret appears in no repr, as the `Token`'s own.

    Attributes: before: what the token before this one shows; empty: there was none
    """

    def __init__(self, path: str, clock: Clock | None = None) -> None:
        self._path = path
        self._clock = clock or SystemClock()
        self._facts = _facts(path)
        self._token = Token.load(path)
        self._looked_ns = self._clock.monotonic_ns()
        self.before = b""

    @property
    def shown(self) -> bytes:
        """See `Credential`."""
        return self._token.shown

    @property
    def same_host(self) -> bytes:
        """See `Credential`."""
        return self._token.same_host

    def mac(self, *parts: bytes) -> bytes:
        """See `Credential`."""
        return self._token.mac(*parts)

    def current(self, *, look: bool = False) -> Token:
        """Return the token to use from now on.

        Args:    look: at the file in any case: the token was refused
        """
        now_ns = self._clock.monotonic_ns()
        if look or now_ns - self._looked_ns >= LOOK_NS:
            self._looked_ns = now_ns
            self._look()
        return self._token

    def _look(self) -> None:
        facts = _facts(self._path)
        if facts is None or facts == self._facts:
            return
        self._facts = facts
        try:
            token = Token.load(self._path)
        except ConfigError as error:
            log.warning("token_not_read", extra={"path": self._path, "reason": error.message})
            return
        if token.shown != self._token.shown:
            self.before, self._token = self._token.shown, token


def _facts(path: str) -> tuple[int, int, int] | None:
    """What changes when a file is replaced or written; None: it is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
