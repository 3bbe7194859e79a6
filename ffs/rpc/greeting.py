"""One stranger's way through the server's half of the handshake, as far as its bytes have come.

Previous hop: ffs.rpc.door, which accepts and listens to strangers; next hop: ServerHandshake of
ffs.handshake, which knows what the messages mean. Nothing here waits, and nothing beyond the
handshake is taken from the socket. A stranger costs one object and what the kernel keeps until its
first message is whole: whoever talks nonsense is refused on its first bytes.
"""

from __future__ import annotations

import socket
from typing import Final

from ffs.errors import FFSError, UnavailableError
from ffs.handshake import (
    MESSAGE,
    ClusterKey,
    HandshakeKind,
    ServerHandshake,
    check_magic,
    refusal,
    set_options,
)

_NOW: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class Greeting:
    """The server's end of a connection that has not proven itself. Its socket may be blocking.

    Threads: one; Fork: none
    """

    __slots__ = ("_accept", "_handshake", "_received", "peer", "since", "sock")

    def __init__(self, sock: socket.socket, peer: tuple[str, int], since: float) -> None:
        self.sock = sock
        self.peer = peer
        self.since = since
        """When it came, or, once it has proven itself, since when it waits for a place."""
        self._handshake: ServerHandshake | None = None
        self._received = b""
        self._accept = b""

    @property
    def address(self) -> str:
        """Who it is, for people."""
        return f"{self.peer[0]}:{self.peer[1]}"

    def hear(self, key: ClusterKey, kind: HandshakeKind) -> bool:
        """Take what has arrived and answer it; True once the client has proven itself.

        Raises:  AuthError, ProtocolError: to be refused; UnavailableError: it is gone
        """
        while not self._accept:
            message = self._next_message()
            if message is None:
                return False
            if self._handshake is None:
                self._handshake = ServerHandshake(key, kind)
            answer = self._handshake.receive(message)
            if self._handshake.done:
                self._accept = answer
            else:
                self._send(answer)
        return True

    def let_in(self) -> int:
        """Tell the client that it is in, make its socket ready for what comes; the version."""
        assert self._handshake is not None
        self._send(self._accept)
        try:
            self.sock.setblocking(False)
            set_options(self.sock)
        except OSError as error:
            raise _lost(error.strerror) from error
        return self._handshake.version

    def refuse(self, error: FFSError) -> None:
        """Tell the client why, as far as 40 bytes fit without waiting, and close."""
        try:
            self.sock.send(refusal(error), _NOW)
        except OSError:
            pass  # it is gone already: nobody is left to be told
        finally:
            self.sock.close()

    def _next_message(self) -> bytes | None:
        try:
            data = self.sock.recv(MESSAGE.size - len(self._received), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            raise _lost(error.strerror) from error
        if not data:
            raise _lost("closed")
        received = self._received + data
        check_magic(received)
        whole = len(received) == MESSAGE.size
        self._received = b"" if whole else received
        return received if whole else None

    def _send(self, message: bytes) -> None:
        """Send 40 bytes on a socket that has sent no more than that: they fit, or it is gone."""
        try:
            sent = self.sock.send(message, _NOW)
        except OSError as error:
            raise _lost(error.strerror) from error
        if sent < len(message):
            raise _lost("full")


def _lost(why: str | None) -> UnavailableError:
    return UnavailableError(f"lost during the handshake: {why}")
