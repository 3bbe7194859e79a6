"""The data port under a crowd: idle connections make place, strangers take none."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ffs._storage import EVENT_CLOSED, EVENT_WRITE
from ffs.errors import BusyError
from ffs.handshake import ClusterKey, HandshakeKind, connect
from ffs.rpc.door import listen
from ffs.server.storage import data_port
from ffs.server.storage.data_port import DataPort
from ffs.wire import frame as wire
from tests.native.data_loop import Server, pack, serving, write_frame
from tests.unit.conftest import RunAsync

PING = pack(wire.Op.PING, 7)


def dial(address: tuple[str, int], key: ClusterKey) -> socket.socket:
    """A connection that holds the key."""
    sock = connect(*address, key, HandshakeKind.DATA, timeout_ms=20_000)
    sock.settimeout(20)
    return sock


def ping(sock: socket.socket) -> bytes:
    """Ask whether a connection lives; b"" if it was closed."""
    try:
        sock.sendall(PING)
        return sock.recv(64, socket.MSG_WAITALL)
    except (BrokenPipeError, ConnectionResetError):
        return b""


@dataclass
class Crowd:
    """A data port for six connections, the loops behind it, and those who came in."""

    address: tuple[str, int]
    key: ClusterKey
    server: Server
    inside: list[socket.socket] = field(default_factory=list)

    async def come_in(self) -> socket.socket:
        """Dial until there is a place, as a client does."""
        while True:
            try:
                sock = await asyncio.to_thread(dial, self.address, self.key)
            except BusyError:
                continue
            self.inside.append(sock)
            return sock


@asynccontextmanager
async def crowd(key: ClusterKey, path: Path) -> AsyncIterator[Crowd]:
    """Serve; whatever happens, leave nothing behind that would fail another test."""
    with closing(listen("127.0.0.1", 0)) as listener, serving(path) as server:
        port = asyncio.create_task(DataPort(listener, key, server.loop).serve())
        made = Crowd(listener.getsockname()[:2], key, server)
        try:
            yield made
        finally:
            port.cancel()
            await asyncio.gather(port, return_exceptions=True)
            for sock in made.inside:
                sock.close()


def test_idle_connections_make_place_and_busy_ones_do_not(
    run_async: RunAsync, key: ClusterKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_port, "CONNECTIONS_PER_DAEMON_MAX", 6)
    monkeypatch.setattr(data_port, "SPARE_PLACES", 2)

    async def main() -> None:
        async with crowd(key, tmp_path) as full:
            idle = [await full.come_in() for _ in range(4)]
            for count in range(1, 7):
                busy = await full.come_in()
                busy.sendall(write_frame(1, count, b"busy until somebody decides about this"))
                await asyncio.to_thread(full.server.kind, EVENT_WRITE, count)
            assert [await asyncio.to_thread(ping, sock) for sock in idle] == [b""] * 4
            assert full.server.loop.stats()["connections"] == 6
            assert len(full.server.kind(EVENT_CLOSED)) == 4
            with pytest.raises(BusyError):
                await asyncio.to_thread(dial, full.address, key)

    run_async(main)
