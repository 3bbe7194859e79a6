"""Peers that hold the key and break the protocol all the same."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ffs.errors import FFSError, ProtocolError, UnavailableError
from ffs.handshake import MESSAGE, ClusterKey, HandshakeKind, ServerHandshake
from ffs.limits import RPC_FRAME_BYTES_MAX, RPC_IN_FLIGHT_MAX
from ffs.rpc.aio import AsyncRpcClient
from ffs.rpc.blocking import RpcClient
from tests.unit.conftest import RunAsync
from tests.unit.rpc.support import (
    ECHO,
    Address,
    Echo,
    Service,
    dial,
    framed,
    replies,
    serving,
    serving_in_thread,
    until,
)

# --- against the server ---------------------------------------------------------------------------

BROKEN_STREAMS = {
    "length lie": struct.pack("<I", RPC_FRAME_BYTES_MAX + 1),
    "empty frame": struct.pack("<I", 0),
    "no msgpack": struct.pack("<I", 3) + b"\xc1\xc1\xc1",
    "deep nesting": struct.pack("<I", 50_001) + b"\x91" * 50_000 + b"\xc0",
    "huge array": struct.pack("<I", 5) + b"\xdd\xff\xff\xff\xff",
    "no envelope": framed({"method": "echo"}),
    "wrong id": framed([-1, "echo", [b"x"]]),
    "wrong method": framed([1, 7, [b"x"]]),
}


@pytest.mark.parametrize("name", BROKEN_STREAMS)
def test_broken_stream_is_told_and_cut(run_async: RunAsync, key: ClusterKey, name: str) -> None:
    async def main() -> None:
        async with serving(key) as (server, address):
            good = await asyncio.to_thread(dial, address, key)
            bad = await asyncio.to_thread(dial, address, key)
            bad.sendall(BROKEN_STREAMS[name])
            (told,) = await asyncio.to_thread(replies, bad)  # and then end-of-file
            assert told[:2] == [0, ProtocolError.code]
            bad.close()
            await until(lambda: server.connections == 1)
            assert (server.request_bytes, server.replies.used) == (0, 0)
            good.sendall(framed([1, "echo", [b"still here"]]))
            (answer,) = await asyncio.to_thread(replies, good, 1)
            assert answer[:2] == [1, 0]
            good.close()

    run_async(main)


def test_wrong_fields_cost_only_their_request(run_async: RunAsync, key: ClusterKey) -> None:
    async def main() -> None:
        service = Service()
        async with serving(key, service) as (_, address):
            sock = await asyncio.to_thread(dial, address, key)
            wrong: list[Any] = [[], ["text"], [b"x", True], [b"x", 1.5], 7, None, {}]
            for i, fields in enumerate(wrong):
                sock.sendall(framed([i, "echo", fields]))
                (answer,) = await asyncio.to_thread(replies, sock, 1)
                assert answer[:2] == [i, ProtocolError.code]
            sock.sendall(framed([99, "echo", [b"x", 0, 0, "a later version's field"], 5, "more"]))
            (answer,) = await asyncio.to_thread(replies, sock, 1)
            assert answer == [99, 0, [b"x", 0, 0]]
            assert service.started == 1
            sock.close()

    run_async(main)


def test_a_client_that_sends_and_never_reads_is_held_back(
    run_async: RunAsync, key: ClusterKey
) -> None:
    """Thousands of requests are pushed: no more than the bound is in work at any time."""

    async def main() -> None:
        service = Service()
        async with serving(key, service) as (server, address):
            sock = await asyncio.to_thread(dial, address, key)
            sock.setblocking(False)
            request = framed([1, "echo", [b"x", 30, 50_000]])
            for _ in range(2_000):
                try:
                    sock.send(request)
                except BlockingIOError:
                    await asyncio.sleep(0.001)
            await until(lambda: service.running == 0)
            assert service.running_max <= RPC_IN_FLIGHT_MAX
            assert service.started < 2_000, "it must have stopped reading"
            sock.close()
            await until(lambda: server.connections == 0)

    run_async(main)


def test_hanging_up_in_the_middle(run_async: RunAsync, key: ClusterKey) -> None:
    async def main() -> None:
        service = Service()
        async with serving(key, service) as (server, address):
            whole = framed([1, "echo", [b"x", 100, 0]])
            for cut in (0, 3, 10, len(whole)):
                sock = await asyncio.to_thread(dial, address, key)
                sock.sendall(whole[:cut])
                sock.close()
            await until(lambda: server.connections == 0)
            await until(lambda: service.finished == service.started)

    run_async(main)


def test_strangers_do_not_get_to_the_codec(run_async: RunAsync, key: ClusterKey) -> None:
    async def main() -> None:
        service = Service()
        async with serving(key, service) as (server, address):
            loop = asyncio.get_running_loop()
            for hello in (b"GET / HTTP/1.1\r\n\r\n", framed([1, "echo", [b"x"]]), b"\x00" * 100):
                sock = socket.create_connection(address)
                sock.setblocking(False)
                await loop.sock_sendall(sock, hello)
                try:
                    answer = await loop.sock_recv(sock, 100)
                except ConnectionResetError:
                    answer = b""
                assert answer in (b"", MESSAGE.pack(b"FFSH", ProtocolError.code, 1, 0, bytes(32)))
                sock.close()
            await until(lambda: server.connections == 0)
            assert service.started == 0

    run_async(main)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    stream=st.lists(
        st.binary(max_size=40)
        | st.tuples(st.integers(0, 9), st.sampled_from(["echo", "fail", "x"]), st.lists(st.none()))
        .map(list)
        .map(framed),
        max_size=6,
    ).map(b"".join)
)
def test_any_stream_leaves_the_server_serving(
    shared_server: Address, key: ClusterKey, stream: bytes
) -> None:
    sock = dial(shared_server, key)
    sock.sendall(stream)
    sock.shutdown(socket.SHUT_WR)
    while True:
        try:
            if not sock.recv(65_536):
                break
        except ConnectionResetError:
            break
    sock.close()
    client = RpcClient([shared_server], key)
    assert client.call(ECHO, Echo(b"x"), deadline_ms=5_000) == Echo(b"x")
    client.close()


@pytest.fixture
def shared_server(key: ClusterKey) -> Iterator[Address]:
    """A server for all the examples of one test."""
    with serving_in_thread(key) as address:
        yield address


# --- against the clients --------------------------------------------------------------------------

Reply = Callable[[int], bytes]


@contextmanager
def hostile_server(key: ClusterKey, reply: Reply) -> Iterator[Address]:
    """Proves itself, reads one request, sends `reply(request_id)`, closes; again for the next."""

    def serve() -> None:
        while True:
            sock, _ = listener.accept()
            with closing(sock):
                sock.settimeout(60)
                half = ServerHandshake(key, HandshakeKind.RPC)
                first = sock.recv(MESSAGE.size, socket.MSG_WAITALL)
                if not first:
                    return
                sock.sendall(half.receive(first))
                sock.sendall(half.receive(sock.recv(MESSAGE.size, socket.MSG_WAITALL)))
                (length,) = struct.unpack("<I", sock.recv(4, socket.MSG_WAITALL))
                request = msgpack.unpackb(sock.recv(length, socket.MSG_WAITALL))
                sock.sendall(reply(request[0]))

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()
        socket.create_connection(listener.getsockname()).close()
        thread.join()


HOSTILE: dict[str, tuple[Reply, type[FFSError]]] = {
    "nothing": (lambda i: b"", UnavailableError),
    "half a length": (lambda i: b"\x05\x00", UnavailableError),
    "half a frame": (lambda i: framed([i, 0, [b"x", 0, 0]])[:-1], UnavailableError),
    "length lie": (lambda i: b"\xff\xff\xff\xff", ProtocolError),
    "garbage": (lambda i: struct.pack("<I", 4) + b"\xc1\xc1\xc1\xc1", ProtocolError),
    "no envelope": (lambda i: framed("hello"), ProtocolError),
    "wrong type": (lambda i: framed([i, 0, ["text", 0, 0]]), ProtocolError),
    "too few fields": (lambda i: framed([i, 0, []]), ProtocolError),
    "broken error": (lambda i: framed([i, 100, ["m"]]), ProtocolError),
    "broken off": (
        lambda i: framed([0, ProtocolError.code, ["cannot read you", "", {}]]),
        ProtocolError,
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_both_clients_see_the_same(run_async: RunAsync, key: ClusterKey, name: str) -> None:
    reply, expected = HOSTILE[name]

    async def main() -> None:
        with hostile_server(key, reply) as address:
            blocking = RpcClient([address], key)
            for _ in range(2):  # the second time on a new connection: the first one is spoilt
                with pytest.raises(expected):
                    await asyncio.to_thread(blocking.call, ECHO, Echo(b"x"), deadline_ms=5_000)
            blocking.close()
            client = AsyncRpcClient([address], key)
            for _ in range(2):
                with pytest.raises(expected):
                    await client.call(ECHO, Echo(b"x"), deadline_ms=5_000)
            await client.close()

    run_async(main)


@pytest.mark.parametrize(
    "reply",
    [
        lambda i: framed([i + 1, 0, [b"x", 0, 0]]),
        lambda i: framed([i, 0, [b"x", 0, 0]]) + framed([i, 0, [b"y", 0, 0]]),
    ],
    ids=["another's id", "twice"],
)
def test_blocking_client_takes_only_its_own_reply(key: ClusterKey, reply: Reply) -> None:
    with (
        hostile_server(key, reply) as address,
        closing(RpcClient([address], key)) as client,
        pytest.raises(ProtocolError, match="no outstanding request"),
    ):
        client.call(ECHO, Echo(b"x"), deadline_ms=5_000)


JUNK_REPLIES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(0, 70_000)
    | st.text(max_size=4)
    | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=6,
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(code=st.integers(0, 500), body=JUNK_REPLIES)
def test_any_reply_is_an_error_or_a_typed_value(key: ClusterKey, code: int, body: Any) -> None:
    with (
        hostile_server(key, lambda i: framed([i, code, body])) as address,
        closing(RpcClient([address], key)) as client,
    ):
        try:
            reply = client.call(ECHO, Echo(b"x"), deadline_ms=5_000)
        except FFSError:
            return
        assert type(reply.data) is bytes
        assert type(reply.sleep_ms) is int
