"""One stranger's way through the server's half of the handshake, as far as its bytes have come.

Previous hop: ffs.rpc.door, which accepts and listens to strangers; next hop: ServerHandshake of
ffs.handshake, which knows what the messages mean, through a channel of ffs.tls where there is one.
Nothing here waits, and nothing beyond the handshake is taken from the socket. A stranger costs one
object and what the kernel keeps until its first message is whole: whoever talks nonsense is refused
on its first bytes, and who does not speak TLS where it is wanted is told so on the first one.
"""

from __future__ import annotations

import socket
from typing import Final

from ffs.auth.token import Claims
from ffs.auth.verifier import TokenVerifier
from ffs.errors import FFSError, ProtocolError, TlsError, UnavailableError
from ffs.handshake import (
    MESSAGE,
    ClusterKey,
    HandshakeKind,
    ServerHandshake,
    check_magic,
    refusal,
    set_options,
)
from ffs.limits import TLS_GREETING_BYTES_MAX
from ffs.tls import Tls
from ffs.tls_channel import TLS_FIRST_BYTE, TlsChannel

_NOW: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class Greeting:
    """The server's end of a connection that has not proven itself. Its socket may be blocking.

    Threads: one; Fork: none
    """

    __slots__ = (
        "_accept",
        "_came_bytes",
        "_handshake",
        "_received",
        "_tls",
        "channel",
        "peer",
        "since",
        "sock",
    )

    def __init__(
        self, sock: socket.socket, peer: tuple[str, int], since: float, tls: Tls | None = None
    ) -> None:
        self.sock = sock
        self.peer = peer
        self.since = since
        """When it came, or, once it has proven itself, since when it waits for a place."""
        self.channel: TlsChannel | None = None
        """What the connection goes through, where there is TLS."""
        self._tls = tls
        self._handshake: ServerHandshake | None = None
        self._received = b""
        self._came_bytes = 0
        self._accept = b""

    @property
    def address(self) -> str:
        """Who it is, for people."""
        return f"{self.peer[0]}:{self.peer[1]}"

    @property
    def host(self) -> str:
        """Where it comes from, whatever its port."""
        return self.peer[0]

    @property
    def version(self) -> int:
        """What version was agreed on."""
        assert self._handshake is not None
        return self._handshake.version

    @property
    def claims(self) -> Claims | None:
        """Of the token that it has proven itself by; None: by the cluster key."""
        return self._handshake.claims if self._handshake is not None else None

    def hear(
        self, key: ClusterKey, kind: HandshakeKind, tokens: TokenVerifier | None = None
    ) -> bool:
        """Take what has arrived and answer it; True once the client has proven itself.

        Args:    tokens: says which tokens count; None: none do here
        Raises:  AuthError, ProtocolError: to be refused; UnavailableError: it is gone
        """
        while not self._accept:
            message = self._next_message()
            if message is None:
                return False
            if self._handshake is None:
                binding = self.channel.binding if self.channel is not None else b""
                self._handshake = ServerHandshake(key, kind, binding=binding, tokens=tokens)
            answer = self._handshake.receive(message)
            if self._handshake.done:
                self._accept = answer
            elif answer:
                self._say(answer)
        if self._received:
            raise ProtocolError("the client did not wait to be let in")
        return True

    def let_in(self) -> None:
        """Tell the client that it is in, make its socket ready for what comes."""
        self._say(self._accept)
        try:
            self.sock.setblocking(False)
            set_options(self.sock)
        except OSError as error:
            raise _lost(error.strerror) from error

    def refuse(self, error: FFSError) -> None:
        """Tell the client why, as far as that fits without waiting, and close."""
        word = refusal(error)
        if self.channel is not None:
            word = self.channel.seal(word) if self.channel.established else self.channel.pending()
        try:
            self.sock.send(word, _NOW)
        except OSError:
            pass  # it is gone already: nobody is left to be told
        finally:
            self.sock.close()

    def _next_message(self) -> bytes | None:
        wanted = MESSAGE.size if self._handshake is None else self._handshake.wanted_bytes
        if self._tls is not None:
            if len(self._received) < wanted and not self._hear_sealed(self._tls):
                return None
        elif not self._hear_plain(wanted):
            return None
        if wanted == MESSAGE.size:  # else it is a token
            check_magic(self._received)
        if len(self._received) < wanted:
            return None
        message, self._received = self._received[:wanted], self._received[wanted:]
        return message

    def _hear_plain(self, wanted: int) -> bool:
        data = self._take(wanted - len(self._received))
        self._received += data or b""
        return data is not None

    def _hear_sealed(self, tls: Tls) -> bool:
        data = self._take(TLS_GREETING_BYTES_MAX - self._came_bytes)
        if data is None:
            return False
        self._came_bytes += len(data)
        if self._came_bytes == TLS_GREETING_BYTES_MAX:
            raise ProtocolError("a handshake of so many bytes")
        if self.channel is None:
            if data[0] != TLS_FIRST_BYTE:
                raise TlsError("the client does not speak TLS")
            self.channel = tls.server()
        if not self.channel.established:
            self._send(self.channel.greet(data))
            data = b""
        if self.channel.established:
            self._received += self.channel.open(data)
        return True

    def _take(self, bytes_max: int) -> bytes | None:
        """Return what has come, at most so much; None: nothing. Raises: UnavailableError"""
        try:
            data = self.sock.recv(bytes_max, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            raise _lost(error.strerror) from error
        if not data:
            raise _lost("closed")
        return data

    def _say(self, message: bytes) -> None:
        self._send(message if self.channel is None else self.channel.seal(message))

    def _send(self, message: bytes) -> None:
        """Send few bytes on a socket that has sent no more than that: they fit, or it is gone."""
        try:
            sent = self.sock.send(message, _NOW)
        except OSError as error:
            raise _lost(error.strerror) from error
        if sent < len(message):
            raise _lost("full")


def _lost(why: str | None) -> UnavailableError:
    return UnavailableError(f"lost during the handshake: {why}")
