"""What a client proves itself by: the cluster key, or a token.

Used by ffs.handshake, which never sends a secret: it sends MACs that only its holder could make.
"""

from __future__ import annotations

from typing import Protocol


class Credential(Protocol):
    """A secret, and what the server must be shown to find out which."""

    @property
    def shown(self) -> bytes:
        """The token as it is sent; empty for the cluster key."""
        ...

    @property
    def same_host(self) -> bytes:
        """What names the sockets of daemons on this host; empty for who may not read their
        files there."""
        ...

    def mac(self, *parts: bytes) -> bytes:
        """Return HMAC-SHA256 of the joined parts under the secret."""
        ...

    def current(self, *, look: bool = False) -> Credential:
        """Return the secret to use for a handshake that begins now.

        Args:    look: this one was refused: there may be another by now
        """
        ...
