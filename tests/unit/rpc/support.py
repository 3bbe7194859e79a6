"""A small service for driver tests, a server in a thread, and a bare authenticated socket."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import msgpack

from ffs.errors import NotFoundError
from ffs.handshake import ClusterKey, HandshakeKind, connect
from ffs.rpc.aio import Handler, Peer, RpcServer
from ffs.rpc.codec import FrameDecoder
from ffs.wire.method import Method

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Echo:
    """Say `data` again, after a while, with `padding_bytes` more."""

    data: bytes
    sleep_ms: int = 0
    padding_bytes: int = 0


ECHO = Method("echo", Echo, Echo)
FAIL = Method("fail", Echo, Echo)
CRASH = Method("crash", Echo, Echo)
GONE = Method("gone", Echo, Echo)
METHODS: Mapping[str, Method[Any, Any]] = {m.name: m for m in (ECHO, FAIL, CRASH, GONE)}


class Service:
    """Handlers that count what runs at once."""

    def __init__(self) -> None:
        self.running = 0
        self.running_max = 0
        self.started = 0
        self.finished = 0
        self.peers: set[Peer] = set()

    async def echo(self, request: Echo, peer: Peer) -> Echo:
        """Return the same data."""
        self.peers.add(peer)
        self.started += 1
        self.running += 1
        self.running_max = max(self.running_max, self.running)
        try:
            if request.sleep_ms:
                await self.work(request)
        finally:
            self.running -= 1
        self.finished += 1
        return Echo(request.data + bytes(request.padding_bytes))

    async def work(self, request: Echo) -> None:
        """Take as long as the request says."""
        await asyncio.sleep(request.sleep_ms / 1e3)

    async def fail(self, request: Echo, peer: Peer) -> Echo:
        """Raise a typed error."""
        raise NotFoundError("no such thing", hint="look elsewhere", path=request.data)

    async def crash(self, request: Echo, peer: Peer) -> Echo:
        """Have a bug."""
        raise RuntimeError("secret details")

    def handlers(self) -> dict[str, Handler]:
        """All but `gone`."""
        return {"echo": self.echo, "fail": self.fail, "crash": self.crash}


class Held(Service):
    """Has requests that are to take a while take it until `end`, or until so many run at once."""

    def __init__(self, together: int = 1 << 30) -> None:
        super().__init__()
        self.end = asyncio.Event()
        self._together = together

    async def work(self, request: Echo) -> None:
        """Wait for the end."""
        if self.running >= self._together:
            self.end.set()
        await self.end.wait()


@asynccontextmanager
async def serving(
    key: ClusterKey, service: Service | None = None, **options: Any
) -> AsyncIterator[tuple[RpcServer, Address]]:
    """A server on the running loop."""
    server = RpcServer((service or Service()).handlers(), key, methods=METHODS, **options)
    address = await server.start("127.0.0.1", 0)
    try:
        yield server, address
    finally:
        await server.close()


@contextmanager
def serving_in_thread(
    key: ClusterKey, service: Service | None = None, port: int = 0, **options: Any
) -> Iterator[Address]:
    """A server on a loop of its own, for tests that block, fork or are interrupted."""
    started: list[Address] = []
    ready, loop = threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    async def main() -> None:
        server = RpcServer((service or Service()).handlers(), key, methods=METHODS, **options)
        started.append(await server.start("127.0.0.1", port))
        ready.set()
        await stop.wait()
        await server.close(grace_ms=100)

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    assert ready.wait(60)
    try:
        yield started[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


async def until(holds: Callable[[], object]) -> None:
    """Wait until something has come about; fail after a minute."""
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110  # what is awaited has no event
            await asyncio.sleep(0.005)


def dial(address: Address, key: ClusterKey) -> socket.socket:
    """An authenticated RPC connection without a client around it."""
    sock = connect(*address, key, HandshakeKind.RPC, timeout_ms=60_000)
    sock.settimeout(60)
    return sock


def framed(value: Any) -> bytes:
    """Any msgpack value as a frame."""
    packed: bytes = msgpack.packb(value)
    return struct.pack("<I", len(packed)) + packed


def replies(sock: socket.socket, count: int | None = None) -> list[Any]:
    """Read `count` raw replies, or all until the server closes."""
    decoder = FrameDecoder()
    found: list[Any] = []
    while count is None or len(found) < count:
        data = sock.recv(65_536)
        if not data:
            break
        decoder.feed(data)
        while (frame := decoder.next_frame()) is not None:
            found.append(msgpack.unpackb(frame))
    return found
