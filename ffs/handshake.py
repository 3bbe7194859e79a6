"""The mutual proof of the cluster key that opens every connection, on both ports.

Next hop: ffs.rpc (RPC port), or the native engines, which get the descriptor (data port). Therefore
this layer reads exact byte counts: after `accept` and `connect` nothing beyond the handshake has
been taken from the socket.

Four messages of 40 bytes each (magic, u16 status or kind, u8, u8, 32 bytes; docs/wire.md):

1. HELLO      client -> server   kind, lowest and highest version it speaks, client nonce
2. CHALLENGE  server -> client   status, chosen version, server nonce
3. PROOF      client -> server   HMAC-SHA256(key, client label, HELLO, CHALLENGE, token)
4. ACCEPT     server -> client   status, HMAC-SHA256(key, server label, HELLO, CHALLENGE, token)

The key is the cluster's, or that of a token (ffs.auth), which HELLO announces and PROOF is followed
by; a server derives a token's key from the cluster's, so both sides prove themselves either way.
Both MACs cover both nonces, the kind and the versions, so nothing can be replayed, reflected,
moved to the other port or talked down to an older version. Through TLS (ffs.rpc.dial) they cover
the name of the channel too, so nobody in between can pass them on. The client proves itself first:
a stranger gets no MAC to look at. A server that refuses sends CHALLENGE or ACCEPT with a status (a
code of ffs.errors) and zeros, and closes. A refusal is not authenticated and says nothing secret.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import logging
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Final

from ffs.auth.credential import Credential
from ffs.auth.token import Claims
from ffs.auth.verifier import TokenVerifier
from ffs.errors import (
    OK,
    AuthError,
    BusyError,
    DeadlineError,
    FFSError,
    ProtocolError,
    TlsError,
    UnavailableError,
    error_class,
)
from ffs.key import ClusterKey
from ffs.limits import HANDSHAKE_FRAME_BYTES_MAX, HANDSHAKE_MS_MAX, TOKEN_BYTES_MAX
from ffs.seams import Clock, Randomness, SystemClock, SystemRandomness

__all__ = [
    "ClientHandshake",
    "ClusterKey",
    "Credential",
    "HandshakeKind",
    "ServerHandshake",
    "Timer",
    "connect",
    "connect_async",
    "connect_tcp",
    "connect_tcp_async",
    "explained",
    "prove",
    "refusal",
    "set_options",
]

log = logging.getLogger("ffs.handshake")

MAGIC: Final = b"FFSH"
MESSAGE: Final = struct.Struct("<4sHBB32s")
VERSION_MIN: Final = 1
VERSION_MAX: Final = 1
NONCE_BYTES: Final = 32
TOKEN_BIT: Final = 0x100
"""In the kind of a HELLO: a token follows the PROOF, whose status is its length."""
_CLIENT_LABEL: Final = b"ffs client proof\0"
_SERVER_LABEL: Final = b"ffs server proof\0"
_KEEP_ALIVE: Final = (
    (socket.TCP_KEEPIDLE, 60),
    (socket.TCP_KEEPINTVL, 10),
    (socket.TCP_KEEPCNT, 6),
)
"""A peer that lost its power is noticed after two silent minutes, not the kernel's two hours."""
_ZEROS: Final = bytes(NONCE_BYTES)

assert MESSAGE.size <= HANDSHAKE_FRAME_BYTES_MAX


class HandshakeKind(IntEnum):
    """Which port the client means; a connection to the wrong one is refused."""

    RPC = 1
    DATA = 2
    LOCAL = 3


# --- sans-IO ------------------------------------------------------------------------------------


def _unpack(message: bytes) -> tuple[int, int, int, bytes]:
    if len(message) != MESSAGE.size:
        raise ProtocolError(f"a handshake message has {MESSAGE.size} bytes, not {len(message)}")
    magic, first, second, third, payload = MESSAGE.unpack(message)
    check_magic(magic)
    return first, second, third, payload


def _check_tail(version: int, agreed: int, reserved: int) -> None:
    """PROOF and ACCEPT have fields that no MAC covers: they may have one value only."""
    if version != agreed or reserved:
        raise ProtocolError(f"a handshake message of version {version}, {agreed} was agreed on")


def check_magic(partial: bytes | bytearray) -> None:
    """Refuse a peer that speaks something else, as early as its first byte shows it."""
    if not MAGIC.startswith(partial[: len(MAGIC)]):
        raise ProtocolError(
            "the peer does not speak the FFS handshake",
            hint="check that host and port are those of an FFS server",
            got=bytes(partial[: len(MAGIC)]).hex(),
        )


class ClientHandshake:
    """The client's half: `start()`, then `receive` each message until `done`.

    Args:    binding: names the channel that it goes through, alike on both sides; empty: none
    """

    def __init__(
        self,
        key: Credential,
        kind: HandshakeKind,
        randomness: Randomness | None = None,
        *,
        binding: bytes = b"",
    ) -> None:
        self._key = key
        self._binding = binding
        nonce = (randomness or SystemRandomness()).token(NONCE_BYTES)
        announced = kind | TOKEN_BIT if key.shown else kind
        self._hello = MESSAGE.pack(MAGIC, announced, VERSION_MIN, VERSION_MAX, nonce)
        self._challenge = b""
        self.version = 0
        self.done = False

    def start(self) -> bytes:
        """Return HELLO."""
        return self._hello

    def receive(self, message: bytes) -> bytes:
        """Take the server's next message; return what to send, perhaps nothing."""
        assert not self.done
        status, version, reserved, payload = _unpack(message)
        if status != OK:
            raise _refused(status, by_token=bool(self._key.shown))
        if self._challenge:
            _check_tail(version, self.version, reserved)
            return self._receive_accept(payload)
        if not VERSION_MIN <= version <= VERSION_MAX:
            raise ProtocolError(f"the server chose version {version}, which was not offered")
        self.version = version
        self._challenge = message
        shown = self._key.shown
        mac = self._key.mac(_CLIENT_LABEL, self._hello, message, shown, self._binding)
        return MESSAGE.pack(MAGIC, len(shown), version, 0, mac) + shown

    def _receive_accept(self, mac: bytes) -> bytes:
        told = (self._hello, self._challenge, self._key.shown, self._binding)
        expected = self._key.mac(_SERVER_LABEL, *told)
        if not hmac.compare_digest(mac, expected):
            raise AuthError(
                "the server did not prove that it holds the cluster key",
                hint="something else answers at this address, or key_file is another cluster's",
            )
        self.done = True
        return b""


class ServerHandshake:
    """The server's half: `receive` each message until `done`; on an error send `refusal`.

    Args:    binding: as for the client; tokens: says which tokens count; None: none do here
    Attributes: wanted_bytes: of the client's next message; claims: of the token that was shown
    """

    def __init__(
        self,
        key: ClusterKey,
        kind: HandshakeKind,
        randomness: Randomness | None = None,
        *,
        binding: bytes = b"",
        tokens: TokenVerifier | None = None,
    ) -> None:
        self._key = key
        self._binding = binding
        self._kind = kind
        self._tokens = tokens
        self._by_token = False
        self._proof = b""
        self.wanted_bytes = MESSAGE.size
        self.claims: Claims | None = None
        self._nonce = (randomness or SystemRandomness()).token(NONCE_BYTES)
        self._hello = b""
        self._challenge = b""
        self.version = 0
        self.done = False

    def receive(self, message: bytes) -> bytes:
        """Take the client's next message; return what to send."""
        assert not self.done
        if self._proof:
            return self._receive_token(message)
        if self._hello:
            return self._receive_proof(message)
        kind, version_min, version_max, _ = _unpack(message)
        self._by_token = bool(kind & TOKEN_BIT) and self._tokens is not None
        if kind != (self._kind | TOKEN_BIT if self._by_token else self._kind):
            raise ProtocolError(
                f"this is the {self._kind.name.lower()} port, the client wants kind {kind}",
                hint="connect to the other port of this server",
            )
        version = min(version_max, VERSION_MAX)
        if version < max(version_min, VERSION_MIN):
            raise ProtocolError(
                f"no common version: the client speaks {version_min}..{version_max}, "
                f"this server {VERSION_MIN}..{VERSION_MAX}",
                hint="upgrade the older side",
            )
        self.version = version
        self._hello = message
        self._challenge = MESSAGE.pack(MAGIC, OK, version, 0, self._nonce)
        return self._challenge

    def _receive_proof(self, message: bytes) -> bytes:
        length, version, reserved, mac = _unpack(message)
        if self._by_token:
            _check_tail(version, self.version, reserved)
            if not 0 < length <= TOKEN_BYTES_MAX:
                raise ProtocolError(f"a token of {length} bytes, 1 to {TOKEN_BYTES_MAX} can be")
            self._proof, self.wanted_bytes = mac, length
            return b""
        _check_tail(version, self.version, length | reserved)
        answer = self._answer(self._key, mac)
        self.done = True
        return answer

    def _receive_token(self, shown: bytes) -> bytes:
        """Believe a token only once its secret was proven: a signature takes a hundred times as
        long to verify, and a stranger shall not have us do so."""
        assert self._tokens is not None
        answer = self._answer(self._tokens.credential(shown), self._proof)
        self.claims = self._tokens.accept(shown, local=self._kind is HandshakeKind.LOCAL)
        self.done = True
        return answer

    def _answer(self, credential: Credential, mac: bytes) -> bytes:
        """Return ACCEPT for a client that has proven a secret. Raises AuthError."""
        told = (self._hello, self._challenge, credential.shown, self._binding)
        if not hmac.compare_digest(mac, credential.mac(_CLIENT_LABEL, *told)):
            raise AuthError(
                "the client did not prove that it holds the cluster key",
                hint="set FFS_KEY_FILE or key_file to this cluster's cluster.key",
            )
        return MESSAGE.pack(MAGIC, OK, self.version, 0, credential.mac(_SERVER_LABEL, *told))


def refusal(error: FFSError) -> bytes:
    """Return the message that tells the client why it is not let in."""
    return MESSAGE.pack(MAGIC, error.code, VERSION_MAX, 0, _ZEROS)


def _refused(status: int, *, by_token: bool) -> FFSError:
    """Return what a refusing status means to the client."""
    if status == AuthError.code and by_token:
        return AuthError(
            "the server refused the token",
            hint="it may be over or revoked: ask for a new one (`ffs auth token`)",
        )
    if status == AuthError.code:
        return AuthError(
            "the server refused the cluster key",
            hint="set FFS_KEY_FILE or key_file to the cluster.key of this cluster",
        )
    if status == TlsError.code:
        return TlsError(
            "the server takes nobody without TLS and a certificate with a role of this cluster",
            hint="set tls.ca_file, tls.cert_file and tls.key_file; `ffs auth ca issue` makes them",
        )
    if status == BusyError.code:
        return BusyError("the server has no room for another connection")
    if status == ProtocolError.code:
        return ProtocolError(
            "the server refused the handshake",
            hint="check the port, and that client and server versions go together",
            status=status,
        )
    return error_class(status)("the server refused the connection", status=status)


# --- blocking driver ----------------------------------------------------------------------------


def connect(
    host: str,
    port: int,
    key: Credential,
    kind: HandshakeKind,
    *,
    timeout_ms: int,
    congestion: str | None = None,
    receive_buffer_bytes: int = 0,
    clock: Clock | None = None,
) -> socket.socket:
    """Open an authenticated connection; the socket is blocking, TCP_NODELAY and CLOEXEC.

    Args:    timeout_ms: for connecting and the handshake together (the handshake itself is given
             at most HANDSHAKE_MS_MAX); congestion: a TCP congestion control, used if the kernel
             has it; receive_buffer_bytes: 0 leaves the kernel's choice
    Raises:  UnavailableError, DeadlineError, AuthError, ProtocolError, BusyError
    Threads: any; Fork: the socket is the caller's to close in the child
    """
    timer = Timer(clock or SystemClock(), timeout_ms)
    with explained(host, port, timeout_ms):
        sock = connect_tcp(host, port, timer, congestion, receive_buffer_bytes)
        try:
            timer.limit(HANDSHAKE_MS_MAX)
            _prove(sock, ClientHandshake(key, kind), timer)
            sock.settimeout(None)
        except BaseException:
            sock.close()
            raise
    return sock


def prove(
    sock: socket.socket,
    address: tuple[str, int],
    key: Credential,
    kind: HandshakeKind,
    *,
    timeout_ms: int,
) -> None:
    """Take a connected socket through the handshake; it is blocking afterwards.

    Raises:  UnavailableError, DeadlineError, AuthError, ProtocolError, BusyError
    """
    with explained(*address, timeout_ms):
        timer = Timer(SystemClock(), min(timeout_ms, HANDSHAKE_MS_MAX))
        _prove(sock, ClientHandshake(key, kind), timer)
        sock.settimeout(None)


class Timer:
    """The time that is left of a whole, as a socket timeout."""

    def __init__(self, clock: Clock, timeout_ms: int) -> None:
        self._clock = clock
        self._end_ns = clock.monotonic_ns() + timeout_ms * 1_000_000

    def limit(self, timeout_ms: int) -> None:
        """Let it be over in so much time at the latest."""
        end_ns = self._clock.monotonic_ns() + timeout_ms * 1_000_000
        self._end_ns = min(self._end_ns, end_ns)

    def left_s(self) -> float:
        """Return how much is left; raises TimeoutError once nothing is."""
        left_ns = self._end_ns - self._clock.monotonic_ns()
        if left_ns <= 0:
            raise TimeoutError
        return left_ns / 1e9


def connect_tcp(
    host: str,
    port: int,
    timer: Timer,
    congestion: str | None = None,
    receive_buffer_bytes: int = 0,
) -> socket.socket:
    """Try each address of a name in turn; the last failure is the one that is told."""
    failure: OSError | None = None
    for family, type_, proto, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, type_ | socket.SOCK_CLOEXEC, proto)
        try:
            set_options(sock, congestion, receive_buffer_bytes)
            sock.settimeout(timer.left_s())
            sock.connect(address)
        except OSError as error:
            sock.close()
            if isinstance(error, TimeoutError):
                raise
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure or OSError(errno.EHOSTUNREACH, "the name has no address")


def _prove(sock: socket.socket, handshake: ClientHandshake, timer: Timer) -> None:
    to_send = handshake.start()
    while True:
        if to_send:
            sock.settimeout(timer.left_s())
            sock.sendall(to_send)
        if handshake.done:
            return
        received = bytearray()
        while len(received) < MESSAGE.size:
            sock.settimeout(timer.left_s())
            _append(received, sock.recv(MESSAGE.size - len(received)))
        to_send = handshake.receive(bytes(received))


def _append(received: bytearray, data: bytes) -> None:
    if not data:
        raise ConnectionResetError(errno.ECONNRESET, "closed during the handshake")
    received += data
    check_magic(received)


def set_options(
    sock: socket.socket, congestion: str | None = None, receive_buffer_bytes: int = 0
) -> None:
    """Set what every FFS connection has: no delay, keep-alive, and the choices for data."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEP_ALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        if congestion:
            set_congestion(sock, congestion)
    if receive_buffer_bytes:
        # Before connecting: the window scale is settled by the first packets.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)


def set_congestion(sock: socket.socket, congestion: str) -> None:
    """Choose the congestion control of a socket that is not connected yet, or of a listening one.

    A connection that began with BBR, which may be the system's default, goes on pacing its packets
    by timers whatever it is given later: on a fast network that costs more than the sending.
    """
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode("ascii"))
    except OSError as error:  # absent from this kernel or not allowed here: slower, not wrong
        log.debug(
            "congestion_control_refused", extra={"wanted": congestion, "reason": error.strerror}
        )


@contextmanager
def explained(host: str, port: int, timeout_ms: int) -> Iterator[None]:
    """Turn what the kernel says while connecting into our errors, with the address."""
    address = f"{host}:{port}"
    try:
        yield
    except FFSError as error:
        error.where.setdefault("address", address)
        raise
    except TimeoutError as error:
        raise DeadlineError(
            f"no connection within {timeout_ms} ms",
            hint="check that the server runs and that the network lets this port through",
            address=address,
        ) from error
    except OSError as error:
        raise UnavailableError(
            f"cannot connect: {error.strerror or error}",
            hint="check that the server runs at this address",
            address=address,
        ) from error


# --- asyncio driver -----------------------------------------------------------------------------


async def connect_async(
    host: str,
    port: int,
    key: Credential,
    kind: HandshakeKind,
    *,
    timeout_ms: int,
    congestion: str | None = None,
) -> socket.socket:
    """Open an authenticated connection from a coroutine; the socket is non-blocking.

    Args:    as for `connect`
    """
    with explained(host, port, timeout_ms):
        async with asyncio.timeout(timeout_ms / 1e3):
            sock = await connect_tcp_async(host, port, congestion)
            try:
                loop = asyncio.get_running_loop()
                handshake = ClientHandshake(key, kind)
                await loop.sock_sendall(sock, handshake.start())
                await _exchange(sock, handshake.receive, lambda: handshake.done)
            except BaseException:
                sock.close()
                raise
    return sock


async def connect_tcp_async(host: str, port: int, congestion: str | None = None) -> socket.socket:
    """Do the same from a coroutine; the socket is non-blocking."""
    loop = asyncio.get_running_loop()
    failure: OSError | None = None
    for family, type_, proto, _, address in await loop.getaddrinfo(
        host, port, type=socket.SOCK_STREAM
    ):
        sock = socket.socket(family, type_ | socket.SOCK_CLOEXEC, proto)
        try:
            sock.setblocking(False)
            set_options(sock, congestion)
            await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure or OSError(errno.EHOSTUNREACH, "the name has no address")


async def _exchange(
    sock: socket.socket, receive: Callable[[bytes], bytes], done: Callable[[], bool]
) -> None:
    loop = asyncio.get_running_loop()
    while not done():
        received = bytearray()
        while len(received) < MESSAGE.size:
            _append(received, await loop.sock_recv(sock, MESSAGE.size - len(received)))
        to_send = receive(bytes(received))
        if to_send:
            await loop.sock_sendall(sock, to_send)
