"""The data port under a crowd: idle connections make place, strangers take none."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from ffs.errors import BusyError
from ffs.handshake import ClusterKey, HandshakeKind, connect
from ffs.rpc.door import listen
from ffs.server.storage import data_port
from ffs.server.storage.data_port import DataPort
from ffs.wire import frame as wire
from tests.native.data_loop import MIB, pack, serving, write_frame
from tests.unit.conftest import RunAsync
from tests.unit.rpc.support import until

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


def test_idle_connections_make_place_and_busy_ones_do_not(
    run_async: RunAsync, key: ClusterKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_port, "CONNECTIONS_PER_DAEMON_MAX", 6)
    monkeypatch.setattr(data_port, "SPARE_PLACES", 2)

    async def main() -> None:
        listener = listen("127.0.0.1", 0)
        address = listener.getsockname()[:2]
        with serving(tmp_path) as server:
            port = asyncio.create_task(DataPort(listener, key, server.loop).serve())
            places = server.loop.stats
            idle = [await asyncio.to_thread(dial, address, key) for _ in range(4)]
            await until(lambda: places()["connections"] == 4)
            busy: list[socket.socket] = []
            for _ in range(6):  # half a chunk each: they are not idle, and each has its 5 s
                busy.append(await asyncio.to_thread(dial, address, key))
                busy[-1].sendall(write_frame(1, 0, bytes(MIB))[:1_000])
            assert [await asyncio.to_thread(ping, sock) for sock in idle] == [b""] * 4
            await until(lambda: places()["connections"] == 6)
            with pytest.raises(BusyError):
                await asyncio.to_thread(dial, address, key)
            for sock in (*idle, *busy):
                sock.close()
            await until(lambda: places()["connections"] == 0)
            port.cancel()
            await asyncio.gather(port, return_exceptions=True)
        listener.close()

    run_async(main)
