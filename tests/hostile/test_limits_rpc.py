"""Every bound of the RPC port and its handshake, met from both sides (docs/limits.md names these).

Where a bound is too large to be met in a test by real bytes, the server under test has a smaller
one; that the larger one is what runs is what `test_numbers_in_use` says.
"""

from __future__ import annotations

import asyncio
import inspect
import socket
import struct
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import msgpack
import pytest

from ffs.errors import (
    AuthError,
    BusyError,
    DeadlineError,
    FFSError,
    ProtocolError,
    UnavailableError,
    error_class,
)
from ffs.handshake import MESSAGE, ClientHandshake, ClusterKey, HandshakeKind, ServerHandshake
from ffs.limits import (
    CROWDED_GRACE_MS,
    CROWDED_RATE_MIN,
    FRAME_GRACE_MS,
    FRAME_RATE_MIN,
    HANDSHAKE_FRAME_BYTES_MAX,
    HANDSHAKE_MS_MAX,
    HANDSHAKES_MAX,
    IDLE_MS_MIN,
    RPC_CONNECTIONS_MAX,
    RPC_ELEMENTS_MAX,
    RPC_FRAME_BYTES_MAX,
    RPC_IDLE_CONNECTIONS_MAX,
    RPC_IN_FLIGHT_BYTES_MAX,
    RPC_IN_FLIGHT_MAX,
    RPC_LIST_MAX,
    RPC_REPLY_BYTES_MAX,
    RPC_REPLY_RESERVE_BYTES,
    RPC_REPLY_RESERVE_FACTOR,
    RPC_SERVER_BYTES_MAX,
    RPC_SERVER_REPLY_BYTES_MAX,
    RPC_WHERE_MAX,
)
from ffs.rpc import _aio_connection, aio, door
from ffs.rpc._aio_connection import reserve_bytes
from ffs.rpc.aio import AsyncRpcClient, RpcServer
from ffs.rpc.blocking import RpcClient
from ffs.rpc.codec import (
    FrameDecoder,
    decode_reply,
    decode_request,
    encode_error,
    encode_reply,
    encode_request,
    parse_outcome,
)
from ffs.rpc.room import Room, too_slow
from ffs.types import Attr, Layout, Segment
from ffs.wire import messages as wire
from ffs.wire.method import Fault, Method
from tests.unit.conftest import RunAsync
from tests.unit.rpc.support import (
    ECHO,
    Echo,
    Held,
    Service,
    dial,
    framed,
    replies,
    serving,
    serving_in_thread,
    until,
)

KIB, MIB = 1 << 10, 1 << 20
SECOND_NS = 1_000_000_000


class HandClock:
    """A clock that moves when a test says so."""

    def __init__(self) -> None:
        self.now_ns = SECOND_NS

    def monotonic_ns(self) -> int:
        """The hand's position."""
        return self.now_ns

    def wall_ns(self) -> int:
        """The same."""
        return self.now_ns


def test_numbers_in_use(key: ClusterKey) -> None:
    server = RpcServer({}, key)
    assert server.replies.limit_bytes == RPC_SERVER_REPLY_BYTES_MAX
    assert inspect.signature(RpcServer).parameters["max_connections"].default == RPC_CONNECTIONS_MAX
    assert vars(aio)["RPC_SERVER_BYTES_MAX"] == RPC_SERVER_BYTES_MAX
    assert vars(door)["HANDSHAKES_MAX"] == HANDSHAKES_MAX
    assert vars(door)["HANDSHAKE_MS_MAX"] == HANDSHAKE_MS_MAX


# --- what one frame may be ------------------------------------------------------------------------


def test_rpc_frame_bytes_max() -> None:
    body = bytes(RPC_FRAME_BYTES_MAX)
    decoder = FrameDecoder()
    decoder.feed(struct.pack("<I", len(body)) + body)
    assert decoder.next_frame() == body
    with pytest.raises(ProtocolError, match=str(RPC_FRAME_BYTES_MAX + 1)):
        decoder.feed(struct.pack("<I", RPC_FRAME_BYTES_MAX + 1))


def test_an_idle_connection_keeps_no_long_frame() -> None:
    tracemalloc.start()
    decoder = FrameDecoder()
    decoder.feed(struct.pack("<I", RPC_FRAME_BYTES_MAX) + bytes(RPC_FRAME_BYTES_MAX) + b"\x05\x00")
    assert decoder.next_frame() is not None
    assert decoder.buffered_bytes == 2
    assert tracemalloc.get_traced_memory()[0] < 64 * KIB
    tracemalloc.stop()


def test_rpc_elements_max() -> None:
    most = RPC_LIST_MAX - 1
    rows = RPC_ELEMENTS_MAX // most
    left = RPC_ELEMENTS_MAX - 3 - (rows + 1) - rows * most
    fields = [[0] * most] * rows + [[0] * left]
    assert len(decode_request(msgpack.packb([1, "m", fields])).fields) == rows + 1
    fields[-1] = [0] * (left + 1)
    with pytest.raises(ProtocolError, match="elements"):
        decode_request(msgpack.packb([1, "m", fields]))


def test_rpc_list_max() -> None:
    assert len(decode_request(msgpack.packb([1, "m", [0] * RPC_LIST_MAX])).fields) == RPC_LIST_MAX
    too_long = msgpack.packb([1, "m", [0] * (RPC_LIST_MAX + 1)])
    header_alone = b"\x93\x01\xa1m\xdd" + struct.pack(">I", 1 << 31)
    tracemalloc.start()
    for frame in (too_long, header_alone):
        with pytest.raises(ProtocolError):
            decode_request(frame)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MIB


def test_rpc_where_max() -> None:
    facts: dict[str, Any] = {f"fact_{i}": i for i in range(RPC_WHERE_MAX + 1)}
    error = parse_outcome(ECHO, decode_reply(encode_error(1, FFSError("m", **facts))[4:]))
    assert isinstance(error, FFSError)
    assert len(error.where) == RPC_WHERE_MAX
    with pytest.raises(ProtocolError):
        decode_reply(msgpack.packb([1, FFSError.code, ["m", "", facts]]))


# --- what one connection may have in work ---------------------------------------------------------


def test_rpc_in_flight_max(run_async: RunAsync, key: ClusterKey) -> None:
    async def main() -> None:
        service = Held()
        async with serving(key, service) as (_, address):
            sock = await asyncio.to_thread(dial, address, key)
            for i in range(RPC_IN_FLIGHT_MAX + 1):
                sock.sendall(framed([i, "echo", [b"x", 300]]))
            await until(lambda: service.running == RPC_IN_FLIGHT_MAX)
            service.end.set()
            answers = await asyncio.to_thread(replies, sock, RPC_IN_FLIGHT_MAX + 1)
            assert len(answers) == RPC_IN_FLIGHT_MAX + 1
            assert service.running_max == RPC_IN_FLIGHT_MAX
            sock.close()

    run_async(main)


def test_rpc_in_flight_bytes_max(
    run_async: RunAsync, key: ClusterKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_aio_connection, "RPC_REPLY_BYTES_MAX", 1 << 40)
    third = RPC_IN_FLIGHT_BYTES_MAX // 3 + KIB

    async def main() -> None:
        service = Held()
        async with serving(key, service) as (_, address):
            client = AsyncRpcClient([address], key)
            request = Echo(bytes(third), sleep_ms=1)
            calls = [client.call(ECHO, request, deadline_ms=60_000) for _ in range(4)]
            work = asyncio.gather(*calls)
            await until(lambda: service.running == 3)
            service.end.set()
            assert await work == [request_reply(third)] * 4
            assert service.running_max == 3
            await client.close()

    run_async(main)


def request_reply(size: int) -> Echo:
    """What the service says to so many zeros."""
    return Echo(bytes(size))


async def ask(sock: socket.socket, first: int, count: int, padding_bytes: int) -> None:
    """Send requests for long replies from a socket that is not read."""
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    for i in range(first, first + count):
        await loop.sock_sendall(sock, framed([i, "echo", [b"x", 0, padding_bytes]]))


def test_rpc_reply_bytes_max(run_async: RunAsync, key: ClusterKey) -> None:
    """Replies that are not taken stop the work at the bound; taken, all of them come."""
    padding, count = RPC_REPLY_RESERVE_BYTES - KIB, 120

    async def main() -> None:
        service = Service()
        async with serving(key, service) as (server, address):
            sock = await asyncio.to_thread(dial, address, key)
            await ask(sock, 1, count, padding)
            await until(lambda: service.running == 0 and service.started > 60)
            await asyncio.sleep(0.2)
            assert RPC_REPLY_BYTES_MAX * 0.9 < server.replies.used <= RPC_REPLY_BYTES_MAX
            assert service.started < count
            sock.settimeout(20)
            answers = await asyncio.to_thread(replies, sock, count)
            assert sorted(answer[0] for answer in answers) == list(range(1, count + 1))
            await until(lambda: server.replies.used == 0)
            sock.close()

    run_async(main)


# --- what a server holds in all -------------------------------------------------------------------


def test_rpc_server_bytes_max(
    run_async: RunAsync, key: ClusterKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a frame counts as soon as it is here, and the oldest goes first when all is taken."""
    monkeypatch.setattr(aio, "RPC_SERVER_BYTES_MAX", MIB)

    async def main() -> None:
        service = Held()
        async with serving(key, service) as (server, address):
            client = AsyncRpcClient([address], key)
            halves = [await asyncio.to_thread(dial, address, key) for _ in range(2)]
            for sock in halves:
                sock.sendall(struct.pack("<I", MIB) + bytes(400 * KIB))
            await until(lambda: server.request_bytes >= 800 * KIB)
            fits = Echo(bytes(200 * KIB))
            assert await client.call(ECHO, fits, deadline_ms=5_000) == fits
            exceeds = Echo(bytes(300 * KIB))
            assert await client.call(ECHO, exceeds, deadline_ms=5_000) == exceeds
            [told] = await asyncio.to_thread(replies, halves[0])
            assert told[:2] == [0, BusyError.code]
            assert server.request_bytes == 400 * KIB + 4
            worker = AsyncRpcClient([address], key)
            held = asyncio.create_task(
                worker.call(ECHO, Echo(bytes(600 * KIB), sleep_ms=1), deadline_ms=60_000)
            )
            await until(lambda: service.running == 1)
            with pytest.raises((BusyError, UnavailableError)):
                await client.call(ECHO, Echo(bytes(600 * KIB)), deadline_ms=5_000)
            service.end.set()
            assert await held == request_reply(600 * KIB)
            assert await client.call(ECHO, exceeds, deadline_ms=5_000) == exceeds
            await client.close()
            await worker.close()
            for sock in halves:
                sock.close()
            await until(lambda: server.request_bytes == 0)

    run_async(main)


def test_rpc_server_reply_bytes_max(
    run_async: RunAsync, key: ClusterKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who take no replies hold up the others for a second or two, then they are gone."""
    bound = 8 * MIB
    monkeypatch.setattr(aio, "RPC_SERVER_REPLY_BYTES_MAX", bound)

    async def main() -> None:
        async with serving(key) as (server, address):
            client = AsyncRpcClient([address], key)
            greedy = [await asyncio.to_thread(dial, address, key) for _ in range(8)]
            for sock in greedy:
                await ask(sock, 1, 40, RPC_REPLY_RESERVE_BYTES - KIB)
            await until(lambda: server.replies.first_waiting is not None)
            assert server.replies.used <= bound
            call = asyncio.create_task(client.call(ECHO, Echo(b"x"), deadline_ms=30_000))
            assert await call == Echo(b"x")
            assert server.replies.used <= bound
            assert await client.call(ECHO, Echo(b"y"), deadline_ms=30_000) == Echo(b"y")
            for sock in greedy:
                sock.close()
            await client.close()
            await until(lambda: server.replies.used == 0)

    run_async(main)


def test_rooms_are_given_out_in_turn() -> None:
    room = Room[str](10)
    assert room.take("a", 10)
    assert not room.take("b", 8)
    assert not room.take("c", 1), "b came first"
    room.add(-10)
    assert not room.take("c", 1)
    assert room.first_waiting == "b"
    assert room.take("b", 8)
    assert room.take("c", 2)
    assert not room.take("a", 1)
    room.leave("a")
    room.add(-10)
    assert room.take("d", 11), "alone, one may have more than the bound"


def worst_replies() -> Iterator[tuple[int, int]]:
    """(request bytes, reply bytes) of the batches whose answers are longest for what they ask."""
    most = (1 << 63) - 1
    attr = Attr(*([most] * 11))
    layout = Layout(1 << 26, 65_535, (1 << 32) - 1, (1 << 64) - 1)
    opened = wire.OpenFile(attr, [Segment(most, most, layout)] * 16)
    fault = Fault(65_535, "m" * 200)
    paths = [b"/a"] * 1_000
    pairs: list[tuple[Method[Any, Any], Any, Any]] = [
        (wire.STAT_MANY, wire.StatManyRequest(paths), wire.StatManyReply([attr] * 1_000)),
        (wire.STAT_MANY, wire.StatManyRequest(paths), wire.StatManyReply([fault] * 1_000)),
        (wire.OPEN_MANY, wire.OpenManyRequest(paths), wire.OpenManyReply([opened] * 1_000)),
    ]
    for method, request, reply in pairs:
        yield len(encode_request(1, method, request)) - 4, len(encode_reply(1, method, reply))


def test_rpc_reply_reserve() -> None:
    """What is set aside is enough for the longest answers, and never more than a frame."""
    assert reserve_bytes(1) == RPC_REPLY_RESERVE_BYTES + RPC_REPLY_RESERVE_FACTOR
    assert reserve_bytes(RPC_FRAME_BYTES_MAX) == RPC_FRAME_BYTES_MAX
    for request_bytes, reply_bytes in worst_replies():
        assert reply_bytes <= reserve_bytes(request_bytes)
    most = RPC_IN_FLIGHT_MAX * reserve_bytes(200)
    assert most <= RPC_REPLY_BYTES_MAX, "a connection may have all its requests in work"


# --- places ---------------------------------------------------------------------------------------


def test_rpc_connections_max(run_async: RunAsync, key: ClusterKey) -> None:
    """All places taken by work: refused. One is idle: it makes place. Below: nobody is hurt."""

    async def main() -> None:
        service = Held()
        async with serving(key, service, max_connections=4) as (server, address):
            socks = [await asyncio.to_thread(dial, address, key) for _ in range(4)]
            await until(lambda: server.connections == 4)
            for sock in socks[1:]:
                sock.sendall(framed([1, "echo", [b"x", 1]]))
            await until(lambda: service.running == 3)
            newcomer = await asyncio.to_thread(dial, address, key)
            assert await asyncio.to_thread(socks[0].recv, 1) == b"", "it was idle"
            newcomer.sendall(framed([1, "echo", [b"x", 1]]))
            await until(lambda: service.running == 4)
            with pytest.raises(BusyError):
                await asyncio.to_thread(dial, address, key)
            service.end.set()
            for sock in (*socks[1:], newcomer):
                assert await asyncio.to_thread(replies, sock, 1) == [[1, 0, [b"x", 0, 0]]]
            for sock in (*socks, newcomer):
                sock.close()

    run_async(main)


def test_rpc_idle_ms_min(run_async: RunAsync, key: ClusterKey) -> None:
    """A newcomer takes no place of one who came, or was answered, less than a second ago."""

    async def main() -> None:
        async with serving(key, max_connections=1) as (server, address):
            first = await asyncio.to_thread(dial, address, key)
            await until(lambda: server.idle)
            [since_ns] = server.idle.values()
            second = await asyncio.to_thread(dial, address, key)
            assert server.clock.monotonic_ns() - since_ns >= IDLE_MS_MIN * 1_000_000
            assert await asyncio.to_thread(first.recv, 1) == b""
            first.close()
            second.close()

    run_async(main)


def test_rpc_idle_connections_max(key: ClusterKey) -> None:
    together = threading.Barrier(RPC_IDLE_CONNECTIONS_MAX + 4)

    def call(client: RpcClient) -> None:
        together.wait()
        client.call(ECHO, Echo(b"x", sleep_ms=1), deadline_ms=60_000)

    with (
        serving_in_thread(key, Held(together.parties)) as address,
        closing(RpcClient([address], key)) as client,
    ):
        threads = [threading.Thread(target=call, args=(client,)) for _ in range(together.parties)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(client._idle) == RPC_IDLE_CONNECTIONS_MAX


# --- the handshake --------------------------------------------------------------------------------


def test_handshake_frame_bytes_max(key: ClusterKey) -> None:
    assert MESSAGE.size <= HANDSHAKE_FRAME_BYTES_MAX
    hello = ClientHandshake(key, HandshakeKind.RPC).start()
    assert len(ServerHandshake(key, HandshakeKind.RPC).receive(hello)) == MESSAGE.size
    for wrong in (hello[:-1], hello + b"\0", hello + bytes(HANDSHAKE_FRAME_BYTES_MAX)):
        with pytest.raises(ProtocolError, match="40 bytes"):
            ServerHandshake(key, HandshakeKind.RPC).receive(wrong)


def test_handshake_ms_max(
    run_async: RunAsync, key: ClusterKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "HANDSHAKE_MS_MAX", 3_000)

    async def main() -> None:
        async with serving(key) as (server, address):
            silent = socket.create_connection(address)
            slow = socket.create_connection(address)
            slow.settimeout(60)
            half = ClientHandshake(key, HandshakeKind.RPC)
            slow.sendall(half.start())
            proof = half.receive(await asyncio.to_thread(slow.recv, MESSAGE.size))
            await asyncio.sleep(0.3)
            slow.sendall(proof)
            half.receive(await asyncio.to_thread(slow.recv, MESSAGE.size))
            assert half.done
            silent.settimeout(60)
            assert await asyncio.to_thread(silent.recv, 1) == b""
            assert server.connections == 1
            silent.close()
            slow.close()

    run_async(main)


def test_handshakes_max(
    run_async: RunAsync, key: ClusterKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strangers have places of their own: when those are taken, the oldest stranger goes."""
    monkeypatch.setattr(door, "HANDSHAKES_MAX", 8)

    async def main() -> None:
        async with serving(key, max_connections=2) as (server, address):
            client = AsyncRpcClient([address], key)
            assert await client.call(ECHO, Echo(b"x"), deadline_ms=5_000) == Echo(b"x")
            silent = [socket.create_connection(address) for _ in range(8)]
            await until(lambda: server.connections == 9)
            silent.append(socket.create_connection(address))
            silent[0].settimeout(60)
            assert await asyncio.to_thread(silent[0].recv, 1) == b""
            silent[1].setblocking(False)
            with pytest.raises(BlockingIOError):
                silent[1].recv(1)
            newcomer = await asyncio.to_thread(dial, address, key)
            assert await client.call(ECHO, Echo(b"y"), deadline_ms=5_000) == Echo(b"y")
            for sock in (*silent, newcomer):
                sock.close()
            await client.close()

    run_async(main)


def persistently(client: RpcClient) -> Echo:
    """Call until the server lets the client in, as every client does with retryable errors."""
    for _ in range(10):
        with suppress(BusyError, DeadlineError, UnavailableError):
            return client.call(ECHO, Echo(b"x"), deadline_ms=20_000)
    raise AssertionError("never let in")


def test_a_crowd_of_strangers_takes_no_place_from_others(key: ClusterKey) -> None:
    """4,500 connections that say nothing: those inside do not notice, newcomers do come in."""
    with serving_in_thread(key) as address, closing(RpcClient([address], key)) as client:
        assert client.call(ECHO, Echo(b"x"), deadline_ms=5_000) == Echo(b"x")
        crowd: list[socket.socket] = []
        for _ in range(4_500):
            crowd.append(socket.socket())
            crowd[-1].setblocking(False)
            with suppress(BlockingIOError):
                crowd[-1].connect(address)
        with closing(RpcClient([address], key, connect_ms=20_000)) as newcomer:
            assert persistently(newcomer) == Echo(b"x")
        assert client.call(ECHO, Echo(b"x"), deadline_ms=5_000) == Echo(b"x")
        for sock in crowd:
            sock.close()


def test_a_wrong_key_takes_no_place(run_async: RunAsync, key: ClusterKey) -> None:
    async def main() -> None:
        async with serving(key, max_connections=1) as (server, address):
            client = AsyncRpcClient([address], key)
            assert await client.call(ECHO, Echo(b"x"), deadline_ms=5_000) == Echo(b"x")
            with pytest.raises(AuthError):
                await asyncio.to_thread(dial, address, ClusterKey(bytes(32)))
            assert server.connections == 1
            assert await client.call(ECHO, Echo(b"x"), deadline_ms=5_000) == Echo(b"x")
            await client.close()

    run_async(main)


# --- pace -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("crowded", "grace_ms", "rate"),
    [(False, FRAME_GRACE_MS, FRAME_RATE_MIN), (True, CROWDED_GRACE_MS, CROWDED_RATE_MIN)],
)
def test_pace(crowded: bool, grace_ms: int, rate: int) -> None:
    grace_ns = grace_ms * 1_000_000
    assert not too_slow(0, grace_ns, crowded=crowded)
    assert too_slow(0, grace_ns + 1, crowded=crowded)
    assert not too_slow(3 * rate, grace_ns + 3 * SECOND_NS, crowded=crowded)
    assert too_slow(3 * rate - 1, grace_ns + 3 * SECOND_NS, crowded=crowded)


def test_half_a_request_is_not_kept_for_ever(run_async: RunAsync, key: ClusterKey) -> None:
    """The one that stopped goes, with a word; the one that keeps its pace and the idle one stay."""

    async def main() -> None:
        clock = HandClock()
        async with serving(key, clock=clock) as (server, address):
            stopped, steady, idle = [await asyncio.to_thread(dial, address, key) for _ in range(3)]
            stopped.sendall(struct.pack("<I", 100) + b"\x93")
            whole = framed([1, "echo", [bytes(2 * MIB)]])
            steady.sendall(whole[: 3 * FRAME_RATE_MIN])
            await until(lambda: server.request_bytes == 5 + 3 * FRAME_RATE_MIN)
            clock.now_ns += FRAME_GRACE_MS * 1_000_000 + 2 * SECOND_NS
            [told] = await asyncio.to_thread(replies, stopped)
            assert error_class(told[1]) is DeadlineError
            steady.sendall(whole[3 * FRAME_RATE_MIN :])
            assert (await asyncio.to_thread(replies, steady, 1))[0][:2] == [1, 0]
            idle.sendall(framed([2, "echo", [b"still here"]]))
            assert (await asyncio.to_thread(replies, idle, 1))[0][:2] == [2, 0]
            for sock in (stopped, steady, idle):
                sock.close()

    run_async(main)
