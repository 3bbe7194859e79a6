"""The client's half of the handshake over real sockets: both drivers, hostile and slow servers."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from ffs.errors import (
    AuthError,
    DeadlineError,
    FFSError,
    ProtocolError,
    UnavailableError,
)
from ffs.handshake import (
    MESSAGE,
    ClientHandshake,
    ClusterKey,
    HandshakeKind,
    ServerHandshake,
    connect,
    connect_async,
)
from tests.promptly import promptly
from tests.unit.conftest import RunAsync

RPC, DATA = HandshakeKind.RPC, HandshakeKind.DATA
Peer = Callable[[socket.socket], None]


@contextmanager
def server_running(peer: Peer) -> Iterator[tuple[str, int]]:
    """Accept one connection in a thread and let `peer` talk to it with blocking calls."""

    def serve() -> None:
        with closing(listener.accept()[0]) as sock:
            sock.settimeout(60)
            peer(sock)

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()
        thread.join()


def receive_exactly(sock: socket.socket, count: int) -> bytes:
    """Read `count` bytes or what there is before end-of-file."""
    data = b""
    while len(data) < count and (part := sock.recv(count - len(data))):
        data += part
    return data


def honest_server(key: ClusterKey, after: bytes = b"", kind: HandshakeKind = RPC) -> Peer:
    """A server that proves itself, with `after` in the same segment as its ACCEPT."""

    def serve(sock: socket.socket) -> None:
        half = ServerHandshake(key, kind)
        sock.sendall(half.receive(receive_exactly(sock, MESSAGE.size)))
        sock.sendall(half.receive(receive_exactly(sock, MESSAGE.size)) + after)

    return serve


# --- who gets in ------------------------------------------------------------------------------


def test_connect_gives_an_open_blocking_socket(key: ClusterKey) -> None:
    with (
        server_running(honest_server(key, b"hello", DATA)) as (host, port),
        closing(
            connect(
                host,
                port,
                key,
                DATA,
                timeout_ms=5_000,
                congestion="cubic",
                receive_buffer_bytes=1 << 20,
            )
        ) as sock,
    ):
        assert sock.gettimeout() is None
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not sock.get_inheritable()
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= 1 << 20
        assert receive_exactly(sock, 5) == b"hello", "bytes after ACCEPT belong to the next layer"


def test_unknown_congestion_control_is_no_failure(key: ClusterKey) -> None:
    with (
        server_running(honest_server(key)) as (host, port),
        closing(connect(host, port, key, RPC, timeout_ms=5_000, congestion="no-such")) as sock,
    ):
        assert sock.fileno() >= 0


def test_connect_async(key: ClusterKey, run_async: RunAsync) -> None:
    async def main() -> None:
        with server_running(honest_server(key, b"hello")) as (host, port):
            sock = await connect_async(host, port, key, RPC, timeout_ms=5_000)
            loop = asyncio.get_running_loop()
            assert await loop.sock_recv(sock, 100) == b"hello"
            sock.close()

    run_async(main)


# --- who does not: the client's side ----------------------------------------------------------


def drive(peer: Peer, key: ClusterKey, timeout_ms: int = 5_000) -> FFSError:
    """Connect to a hostile server with both drivers; they must agree on the error."""
    caught = []
    with server_running(peer) as (host, port), pytest.raises(FFSError) as blocking:
        connect(host, port, key, RPC, timeout_ms=timeout_ms)
    caught.append(blocking.value)
    with server_running(peer) as (host, port), pytest.raises(FFSError) as awaited:
        asyncio.run(connect_async(host, port, key, RPC, timeout_ms=timeout_ms))
    caught.append(awaited.value)
    assert type(caught[0]) is type(caught[1])
    assert caught[0].where["address"].startswith("127.0.0.1:")
    return caught[0]


def test_server_that_speaks_something_else(key: ClusterKey) -> None:
    error = drive(lambda sock: sock.sendall(b"220 smtp\r\n"), key)
    assert isinstance(error, ProtocolError)


def test_server_that_hangs_up(key: ClusterKey) -> None:
    assert isinstance(drive(lambda sock: None, key), UnavailableError)
    assert isinstance(drive(lambda sock: sock.sendall(b"FFSH"), key), UnavailableError)


def test_server_that_says_nothing(key: ClusterKey) -> None:
    def silent(sock: socket.socket) -> None:
        while sock.recv(100):
            pass

    for watch in promptly(2):
        with watch:
            assert isinstance(drive(silent, key, timeout_ms=200), DeadlineError)


def test_server_with_another_key(key: ClusterKey) -> None:
    def impostor(sock: socket.socket) -> None:
        half = ServerHandshake(ClusterKey(bytes(32)), RPC)
        sock.sendall(half.receive(receive_exactly(sock, MESSAGE.size)))
        receive_exactly(sock, MESSAGE.size)
        sock.sendall(MESSAGE.pack(b"FFSH", 0, 1, 0, bytes(32)))

    assert isinstance(drive(impostor, key), AuthError)


def test_replaying_server(key: ClusterKey) -> None:
    client, server = ClientHandshake(key, RPC), ServerHandshake(key, RPC)
    challenge = server.receive(client.start())
    accepted = server.receive(client.receive(challenge))

    def replay(sock: socket.socket) -> None:
        receive_exactly(sock, MESSAGE.size)
        sock.sendall(challenge)
        receive_exactly(sock, MESSAGE.size)
        sock.sendall(accepted)

    assert isinstance(drive(replay, key), AuthError)


def test_nobody_listens(key: ClusterKey) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(UnavailableError, match=f"127.0.0.1:{port}"):
        connect("127.0.0.1", port, key, RPC, timeout_ms=1_000)
    with pytest.raises(UnavailableError):
        asyncio.run(connect_async("127.0.0.1", port, key, RPC, timeout_ms=1_000))


def test_unknown_host(key: ClusterKey) -> None:
    with pytest.raises(UnavailableError, match=r"no-such-host\.invalid:1"):
        connect("no-such-host.invalid", 1, key, RPC, timeout_ms=1_000)
