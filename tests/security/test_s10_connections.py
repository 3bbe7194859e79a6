"""S10: whoever opens connections without end takes no place from others, nor the door's time."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffs._storage import EVENT_CLOSED
from ffs.errors import BusyError
from ffs.handshake import HandshakeKind, prove
from ffs.key import ClusterKey
from ffs.rpc import door
from ffs.rpc.aio import Peer
from ffs.rpc.door import listen
from ffs.rpc.greeting import Greeting
from ffs.rpc.shares import Shares
from ffs.server.storage import data_port
from ffs.server.storage.data_port import DataPort
from ffs.tls import Role
from ffs.wire.frame import Op
from tests.native.data_loop import pack
from tests.native.data_loop import serving as data_serving
from tests.security.certificates import Authority
from tests.unit.conftest import RunAsync, run_async
from tests.unit.rpc.support import Address, Echo, Service, framed, replies, serving, until

__all__ = ["run_async"]

GREEDY, OTHER = "127.0.0.2", "127.0.0.3"
PLACES = 6


class Held(Service):
    """`echo` is answered only at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.end = asyncio.Event()

    async def echo(self, request: Echo, peer: Peer) -> Echo:
        self.running += 1
        await self.end.wait()
        return Echo(request.data)


def dial_from(
    host: str, address: Address, key: ClusterKey, kind: HandshakeKind = HandshakeKind.RPC
) -> socket.socket:
    """An authenticated connection that comes from `host`."""
    sock = socket.create_connection(address, timeout=20, source_address=(host, 0))
    try:
        prove(sock, address, key, kind, timeout_ms=20_000)
    except BaseException:
        sock.close()
        raise
    sock.settimeout(20)
    return sock


def test_an_address_with_all_places_gives_them_up(run_async: RunAsync, key: ClusterKey) -> None:
    """Its idle connections first, then those at work, until both addresses have as many."""

    async def main() -> None:
        service = Held()
        async with serving(key, service, max_connections=PLACES) as (server, address):

            async def dial(host: str) -> socket.socket:
                return await asyncio.to_thread(dial_from, host, address, key)

            taken = [await dial(GREEDY) for _ in range(PLACES)]
            for sock in (*taken[:2], *taken[3:]):
                sock.sendall(framed([1, "echo", [b"x"]]))
            await until(lambda: service.running == PLACES - 1)

            others = [await dial(OTHER) for _ in range(PLACES // 2)]
            for gone in (taken[2], taken[0], taken[1]):
                [[number, code, _]] = await asyncio.to_thread(replies, gone)
                assert (number, code) == (0, BusyError.code), "it is told, and may come again"
            for sock in others:
                sock.sendall(framed([2, "echo", [b"y"]]))
            await until(lambda: service.running == PLACES - 1 + len(others))
            for host in (GREEDY, OTHER):
                with pytest.raises(BusyError):
                    await dial(host)
            assert server.connections == PLACES

            service.end.set()
            for sock in taken[3:]:
                assert await asyncio.to_thread(replies, sock, 1) == [[1, 0, [b"x", 0, 0]]]
            for sock in others:
                assert await asyncio.to_thread(replies, sock, 1) == [[2, 0, [b"y", 0, 0]]]
            for sock in (*taken, *others):
                sock.close()

    run_async(main)


def ping_from(host: str, address: Address, key: ClusterKey) -> socket.socket:
    """A connection to a data port that comes from `host` and has had an answer."""
    while True:
        with contextlib.suppress(BusyError):
            sock = dial_from(host, address, key, HandshakeKind.DATA)
            assert ping(sock)
            return sock


def ping(sock: socket.socket) -> bytes:
    """Ask whether a connection lives; b"" if it was closed."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sock.sendall(pack(Op.PING, 7))
        return sock.recv(64, socket.MSG_WAITALL)
    return b""


def test_an_address_with_all_places_of_a_daemon_gives_them_up(
    run_async: RunAsync, key: ClusterKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest ones first, at work or not, until both addresses have as many."""
    monkeypatch.setattr(data_port, "CONNECTIONS_PER_DAEMON_MAX", PLACES)
    monkeypatch.setattr(data_port, "SPARE_PLACES", 0)

    async def main() -> None:
        with closing(listen("127.0.0.1", 0)) as listener, data_serving(tmp_path) as server:
            port = DataPort(listener, key, server.loop)

            def closed() -> None:
                for event in server.loop.poll():
                    if event[0] == EVENT_CLOSED:
                        port.closed(event[1])

            loop = asyncio.get_running_loop()
            loop.add_reader(server.loop.event_fd(), closed)
            task = asyncio.create_task(port.serve())
            address = listener.getsockname()[:2]

            async def dial(host: str) -> socket.socket:
                return await asyncio.to_thread(ping_from, host, address, key)

            greedy = [await dial(GREEDY) for _ in range(PLACES)]
            for sock in greedy:  # begun and not ended: none of them is idle
                sock.sendall(pack(Op.PING, 8)[:32])
            others = [await dial(OTHER) for _ in range(PLACES // 2)]
            half = PLACES // 2
            assert [await asyncio.to_thread(sock.recv, 1) for sock in greedy[:half]] == [b""] * half
            assert all([await asyncio.to_thread(ping, sock) for sock in others])
            for sock in greedy[half:]:
                sock.sendall(pack(Op.PING, 8)[32:])
                assert await asyncio.to_thread(sock.recv, 64, socket.MSG_WAITALL)
            for sock in (*greedy, *others):
                sock.close()
            await until(lambda: not server.loop.stats()["connections"])
            loop.remove_reader(server.loop.event_fd())
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run_async(main)


def test_while_there_are_places_everybody_takes_them(run_async: RunAsync, key: ClusterKey) -> None:
    async def main() -> None:
        async with serving(key, max_connections=PLACES) as (server, address):
            socks = [await asyncio.to_thread(dial_from, GREEDY, address, key) for _ in range(5)]
            socks.append(await asyncio.to_thread(dial_from, OTHER, address, key))
            await until(lambda: server.connections == PLACES)
            for sock in socks:
                sock.sendall(framed([1, "echo", [b"x"]]))
                assert await asyncio.to_thread(replies, sock, 1) == [[1, 0, [b"x", 0, 0]]]
                sock.close()

    run_async(main)


@given(st.lists(st.sampled_from("abcd"), max_size=60), st.sampled_from("abcde"))
def test_shares_are_counts(came: list[str], newcomer: str) -> None:
    """Added and removed alike; the greediest is one with at least two more than the newcomer."""
    shares = Shares()
    for host in came + came:
        shares.add(host)
    for host in came:
        shares.remove(host)
    greedy = shares.greedier_than(newcomer)
    most = max(map(came.count, came), default=0)
    if greedy is None:
        assert most < came.count(newcomer) + 2
    else:
        assert came.count(greedy) == most >= came.count(newcomer) + 2


def test_strangers_with_tls_get_few_turns_at_a_look(
    run_async: RunAsync,
    key: ClusterKey,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a look at the door costs is bounded, however many begin with TLS and come no further."""
    turns: list[int] = []
    looked: Callable[[door.Door], None] = door.Door._look
    greeted: Callable[..., bool] = door.Door._greet

    def look(self: door.Door) -> None:
        turns.append(0)
        looked(self)

    def greet(self: door.Door, greeting: Greeting) -> bool:
        turns[-1] += 1
        return greeted(self, greeting)

    monkeypatch.setattr(door.Door, "_look", look)
    monkeypatch.setattr(door.Door, "_greet", greet)
    meta, mine = authority.tls("meta", Role.META), authority.tls("mine", Role.CLIENT)

    async def main() -> None:
        async with serving(key, tls=meta) as (server, address):
            strangers = [
                await asyncio.to_thread(socket.create_connection, address) for _ in range(90)
            ]
            for sock in strangers:
                sock.sendall(mine.client().greet())
            await until(lambda: server.connections == len(strangers))
            for sock in strangers:
                assert await asyncio.to_thread(sock.recv, 1) == b"\x16", "it was answered"
            for sock in strangers:
                sock.close()

    run_async(main)
    assert sum(turns) >= 90
    assert max(turns) <= 2 * door._TLS_AT_ONCE, "those who spoke, and those who came"
