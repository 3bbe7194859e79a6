"""One end of a TLS connection as plain calls: bytes in, bytes out, no socket.

Made by ffs.tls; used by ffs.rpc.dial and ffs.rpc.greeting while a connection is opened, then by
ffs.rpc.blocking and ffs.rpc._aio_tls for what goes through it. Why not the socket wrappers of
`ssl`: the server's door hears its strangers without a task each, and a connection that it has
opened is then handed to a transport; no wrapper can be handed over.

Facts that this relies on: a TLS 1.3 client is done before the server has seen its certificate, so a
refusal reaches it with the first bytes it reads. Both sides' Finished messages are MACs over the
whole handshake, certificates and key shares included, so the client's (what `tls-unique` is, which
`ssl` offers for 1.3 too) names this channel and no other: whoever sits in between, even with a
certificate of the cluster's, has two channels with two names.

Failure behaviour: TlsError; `pending` is what to send before closing.
"""

from __future__ import annotations

import ssl
from typing import Final, cast

from ffs.errors import TlsError

__all__ = ["TLS_FIRST_BYTE", "TlsChannel"]

TLS_FIRST_BYTE: Final = 0x16
"""What every TLS connection begins with (a handshake record), and no FFS handshake."""
_RECORD_BYTES: Final = 16 << 10
_SLICE_BYTES: Final = 256 << 10
"""Encrypted at a time: the buffer for it stays small, whatever the length of the whole."""
_NOT_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL"})


class TlsChannel:
    """Encrypts what goes out and decrypts what comes in, once `greet` has established it.

    Args:    wanted: URIs of which the peer's certificate must have one
    Copies:  each byte once into the library and once out of it
    Threads: one at a time; Fork: not used in the child
    """

    def __init__(
        self, context: ssl.SSLContext, *, server_side: bool, wanted: frozenset[str]
    ) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._wanted = wanted
        self.established = False
        self.binding = b""
        """Names this channel, alike on both sides, once it is established."""

    def greet(self, received: bytes = b"") -> bytes:
        """Take what the peer sent (a client begins with nothing), return what to send it.

        Raises:  TlsError if the peer does not speak TLS 1.3, or its certificate will not do
        """
        assert not self.established
        self._incoming.write(received)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return self._outgoing.read()
        except ssl.SSLError as error:
            raise _failed(error) from error
        self.established = True
        name = self._tls.get_channel_binding("tls-unique")
        assert name, "a proof that is tied to nothing could be passed on"
        self.binding = name
        self._check_roles()
        return self._outgoing.read()

    def seal(self, data: bytes | memoryview) -> bytes:
        """Encrypt; what the library has to say by itself goes before it."""
        assert self.established
        parts = []
        for first in range(0, len(data), _SLICE_BYTES):
            self._tls.write(data[first : first + _SLICE_BYTES])
            parts.append(self._outgoing.read())
        return b"".join(parts) if parts else self._outgoing.read()

    def open(self, received: bytes) -> bytes:
        """Decrypt as much as has come whole; the rest follows with the next bytes.

        Raises:  TlsError if bytes were changed on their way, or the peer refused us
        """
        assert self.established
        self._incoming.write(received)
        parts = []
        try:
            while part := self._tls.read(_RECORD_BYTES):
                parts.append(part)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            raise _failed(error) from error
        return b"".join(parts)

    def pending(self) -> bytes:
        """Return what the library wants to say, such as why it gave up."""
        return self._outgoing.read()

    def _check_roles(self) -> None:
        certificate = self._tls.getpeercert() or {}
        pairs = cast("tuple[tuple[str, str], ...]", certificate.get("subjectAltName", ()))
        names = {value for kind, value in pairs if kind == "URI"}
        if not names & self._wanted:
            raise TlsError(
                f"the peer's certificate has none of the roles {', '.join(sorted(self._wanted))}",
                hint="issue it one with `ffs auth ca issue NAME --role ROLE`",
                roles=", ".join(sorted(names)) or "none",
            )


def _failed(error: ssl.SSLError) -> TlsError:
    """Say what went wrong in terms of what the user has configured."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return TlsError(
            f"the peer's certificate was refused: {error.verify_message}",
            hint="it has to be issued by the authority of tls.ca_file, and not be expired",
        )
    reason = error.reason or str(error)
    if reason in _NOT_TLS:
        return TlsError(
            "the peer does not speak TLS",
            hint="set [tls] for all processes of the cluster, or for none",
        )
    if "ALERT" in reason:
        alert = reason.partition("ALERT_")[2].lower().replace("_", " ")
        return TlsError(
            f"the peer refused this side's certificate or its TLS: {alert}",
            hint="tls.cert_file has to be issued by the peer's authority, and not be expired",
        )
    return TlsError(f"TLS failed: {reason.lower().replace('_', ' ')}")
