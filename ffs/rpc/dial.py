"""How clients come to a server: TCP, TLS where it is configured, the proof of the key.

Previous hop: ffs.rpc.blocking and ffs.rpc._aio_client, and who opens data connections; next hop:
ffs.handshake, and ffs.tls for certificates. Where they are configured the proof goes through the
channel that they make and is tied to it, so that nobody in between can pass it on; nothing is said
without TLS then, and a server that has none is an error. Failure behaviour: as
ffs.handshake.connect, and TlsError.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Generator
from typing import Final, NamedTuple

from ffs.handshake import (
    MESSAGE,
    ClientHandshake,
    Credential,
    HandshakeKind,
    Timer,
    connect,
    connect_async,
    connect_tcp,
    connect_tcp_async,
    explained,
)
from ffs.limits import HANDSHAKE_MS_MAX
from ffs.seams import Clock, SystemClock
from ffs.tls import Role, Tls
from ffs.tls_channel import TlsChannel
from ffs.tls_relay import TlsRelay

_RECEIVE_BYTES: Final = 16 << 10
_ROLES: Final = {HandshakeKind.RPC: Role.META, HandshakeKind.DATA: Role.STORAGE}
"""Who answers on which port."""


class Line(NamedTuple):
    """A connection that is open both ways. `channel`: what goes through it is encrypted by this."""

    sock: socket.socket
    channel: TlsChannel | None

    def plain(self, relay: TlsRelay | None) -> socket.socket:
        """Return a socket for who does not know of TLS: a data engine. Raises OSError"""
        if self.channel is None:
            return self.sock
        assert relay is not None, "whoever made the channel has one"
        return relay.carry(self.sock, self.channel)


def dial(
    host: str,
    port: int,
    key: Credential,
    tls: Tls | None,
    kind: HandshakeKind = HandshakeKind.RPC,
    *,
    timeout_ms: int,
    congestion: str | None = None,
    receive_buffer_bytes: int = 0,
    clock: Clock | None = None,
) -> Line:
    """Open an authenticated connection; the socket is blocking.

    Args:    timeout_ms: for all of it; else as for `ffs.handshake.connect`
    Raises:  UnavailableError, DeadlineError, AuthError, TlsError, ProtocolError, BusyError
    Threads: any; Fork: the socket is the caller's to close in the child
    """
    if tls is None:
        sock = connect(
            host,
            port,
            key,
            kind,
            timeout_ms=timeout_ms,
            congestion=congestion,
            receive_buffer_bytes=receive_buffer_bytes,
            clock=clock,
        )
        return Line(sock, None)
    timer = Timer(clock or SystemClock(), timeout_ms)
    with explained(host, port, timeout_ms):
        sock = connect_tcp(host, port, timer, congestion, receive_buffer_bytes)
        try:
            timer.limit(HANDSHAKE_MS_MAX)
            channel = tls.client(_ROLES[kind])
            _drive(sock, _conversation(channel, key, kind), timer)
            sock.settimeout(None)
        except BaseException:
            sock.close()
            raise
    return Line(sock, channel)


async def dial_async(
    host: str,
    port: int,
    key: Credential,
    tls: Tls | None,
    kind: HandshakeKind = HandshakeKind.RPC,
    *,
    timeout_ms: int,
    congestion: str | None = None,
) -> Line:
    """Open an authenticated connection from a coroutine; the socket is non-blocking."""
    if tls is None:
        sock = await connect_async(
            host, port, key, kind, timeout_ms=timeout_ms, congestion=congestion
        )
        return Line(sock, None)
    with explained(host, port, timeout_ms):
        async with asyncio.timeout(timeout_ms / 1e3):
            sock = await connect_tcp_async(host, port, congestion)
            try:
                channel = tls.client(_ROLES[kind])
                await _drive_async(sock, _conversation(channel, key, kind))
            except BaseException:
                sock.close()
                raise
    return Line(sock, channel)


_Conversation = Generator[bytes, bytes, None]
"""Yields what to send, perhaps nothing; is sent what came in answer; ends when all is said."""


def _conversation(channel: TlsChannel, key: Credential, kind: HandshakeKind) -> _Conversation:
    to_send = channel.greet()
    while not channel.established:
        to_send = channel.greet((yield to_send))
    handshake = ClientHandshake(key, kind, binding=channel.binding)
    to_send += channel.seal(handshake.start())
    received = b""
    while not handshake.done:
        received += channel.open((yield to_send))
        to_send = b""
        if len(received) >= MESSAGE.size:
            message, received = received[: MESSAGE.size], received[MESSAGE.size :]
            to_send = channel.seal(handshake.receive(message))


def _drive(sock: socket.socket, conversation: _Conversation, timer: Timer) -> None:
    to_send = next(conversation)
    while True:
        sock.settimeout(timer.left_s())
        sock.sendall(to_send)
        sock.settimeout(timer.left_s())
        received = _not_empty(sock.recv(_RECEIVE_BYTES))
        try:
            to_send = conversation.send(received)
        except StopIteration:
            return


async def _drive_async(sock: socket.socket, conversation: _Conversation) -> None:
    loop = asyncio.get_running_loop()
    to_send = next(conversation)
    while True:
        await loop.sock_sendall(sock, to_send)
        received = _not_empty(await loop.sock_recv(sock, _RECEIVE_BYTES))
        try:
            to_send = conversation.send(received)
        except StopIteration:
            return


def _not_empty(received: bytes) -> bytes:
    if not received:
        raise ConnectionResetError(errno.ECONNRESET, "closed during the handshake")
    return received
