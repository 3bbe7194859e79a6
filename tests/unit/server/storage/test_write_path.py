"""The data port and the write pump on a real data loop, written to by the client's C engine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from ffs import _reader
from ffs._storage import ChunkStore, DataLoop
from ffs.errors import OK, AuthError, ProtocolError, StaleChainError, TargetStoppedError
from ffs.handshake import HandshakeKind, connect
from ffs.key import ClusterKey
from ffs.log import facts_of
from ffs.rpc.door import listen
from ffs.server.storage.chain import ChainLogic
from ffs.server.storage.daemon import COUNTER_NAMES, counters_of
from ffs.server.storage.data_port import DataPort
from ffs.server.storage.peers import Peers
from ffs.server.storage.pump import WritePump
from ffs.types import ChainInfo, Routing, TargetInfo, TargetState

KEY = ClusterKey(bytes(range(32)))
READ_OP = struct.Struct("<QQIIIIHHI")
WRITE_OP = struct.Struct("<QQIIIIIHH")
TARGET, CHAIN, LENGTH = 3, 9, 10_000


def routing(version: int) -> Routing:
    return Routing(
        version=version,
        nodes=[],
        targets=[TargetInfo(target=TARGET, node=1, state=TargetState.SERVING)],
        chains=[ChainInfo(chain=CHAIN, version=version, targets=[TARGET])],
        tables=[],
    )


class Daemon:
    """A data port, a data loop with one store, and a pump."""

    def __init__(self, path: Path, slow_read_ms: int = 1_000) -> None:
        self.store = ChunkStore(str(path), cluster_id=bytes(16), target_id=TARGET, create=True)
        self.data = DataLoop({TARGET: self.store}, loops=1, slow_read_ms=slow_read_ms)
        self.logic = ChainLogic([TARGET])
        self.refreshes = 0
        self.failures: list[Exception] = []
        self.pump = WritePump(
            self.data,
            self.logic,
            Peers(self.data, KEY),
            on_stopped=lambda target: None,
            on_refresh=self._count_refresh,
            on_suspect=lambda target, blob, chunk: None,
            on_failure=self.failures.append,
        )
        self.pump.routing_changed(routing(1))
        self.listener = listen("127.0.0.1", 0)

    def _count_refresh(self) -> None:
        self.refreshes += 1

    @property
    def port(self) -> int:
        port: int = self.listener.getsockname()[1]
        return port

    def connect(
        self, key: ClusterKey = KEY, kind: HandshakeKind = HandshakeKind.DATA
    ) -> socket.socket:
        return connect("127.0.0.1", self.port, key, kind, timeout_ms=3_000)

    def write(self, blobs: list[int], chain_version: int = 1, fill: bytes = b"x") -> list[int]:
        """Write chunk 0 of each blob through the port; return the statuses."""
        connection = _reader.Connection(self.connect().detach())
        ops = bytearray()
        for blob in blobs:
            ops += WRITE_OP.pack(
                *(blob, 0, 0, TARGET, CHAIN, LENGTH, chain_version, 0),
                _reader.STATUS_PENDING,
            )
        try:
            _reader.write_batch([connection], ops, fill * LENGTH, deadline_ms=5_000)
        finally:
            connection.close()
        return [fields[-1] for fields in WRITE_OP.iter_unpack(ops)]


@contextlib.asynccontextmanager
async def running(path: Path, slow_read_ms: int = 1_000) -> AsyncIterator[Daemon]:
    daemon = Daemon(path, slow_read_ms)
    daemon.pump.start()
    serving = asyncio.create_task(DataPort(daemon.listener, KEY, daemon.data).serve())
    try:
        yield daemon
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        daemon.pump.stop()
        daemon.listener.close()
        daemon.data.close()
        daemon.store.close()


def run(story: Callable[[Daemon], Coroutine[Any, Any, None]], path: Path) -> None:
    async def main() -> None:
        async with running(path) as daemon, asyncio.timeout(30):
            await story(daemon)
            assert daemon.failures == []
            assert daemon.logic.writes_pending == 0

    path.mkdir()
    asyncio.run(main())


def test_written_chunks_are_durable_and_acknowledged(tmp_path: Path) -> None:
    async def story(daemon: Daemon) -> None:
        blobs = list(range(1, 41))
        assert await asyncio.to_thread(daemon.write, blobs) == [OK] * 40
        assert daemon.store.blobs() == blobs
        assert daemon.data.stats()["buffer_bytes"] == 0
        assert await asyncio.to_thread(daemon.write, blobs) == [OK] * 40

    run(story, tmp_path / "t")


def test_all_that_the_data_loop_counts_goes_into_heartbeats(tmp_path: Path) -> None:
    async def story(daemon: Daemon) -> None:
        before = counters_of(daemon.data, 1)
        assert set(daemon.data.stats()) == set(COUNTER_NAMES), "add it to DataLoopCounters"
        assert await asyncio.to_thread(daemon.write, [1, 2]) == [OK] * 2
        after = counters_of(daemon.data, 2)
        assert (before.age_ns, after.age_ns) == (1, 2)
        assert after.write_bytes_total - before.write_bytes_total == 2 * LENGTH

    run(story, tmp_path / "t")


def test_same_chunk_twice_in_one_batch_is_done_once(tmp_path: Path) -> None:
    async def story(daemon: Daemon) -> None:
        assert await asyncio.to_thread(daemon.write, [7] * 20) == [OK] * 20
        assert daemon.store.stats()["chunks"] == 1

    run(story, tmp_path / "t")


def test_stale_writers_are_refused_and_newer_ones_make_us_ask(tmp_path: Path) -> None:
    async def story(daemon: Daemon) -> None:
        daemon.pump.routing_changed(routing(2))
        assert await asyncio.to_thread(daemon.write, [1], 1) == [StaleChainError.code]
        assert daemon.refreshes == 0
        assert await asyncio.to_thread(daemon.write, [1], 3) == [StaleChainError.code]
        assert daemon.refreshes == 1
        assert await asyncio.to_thread(daemon.write, [1], 2) == [OK]

    run(story, tmp_path / "t")


def test_stopped_target_refuses_writes(tmp_path: Path) -> None:
    async def story(daemon: Daemon) -> None:
        daemon.logic.target_stopped(TARGET)
        assert await asyncio.to_thread(daemon.write, [1]) == [TargetStoppedError.code]

    run(story, tmp_path / "t")


def test_writer_that_goes_away_leaves_no_buffer(tmp_path: Path) -> None:
    async def story(daemon: Daemon) -> None:
        for _ in range(20):
            sock = await asyncio.to_thread(daemon.connect)
            header = _reader.pack_header(
                op=2, request_id=1, blob=5, chain_version=1, count=1, body_bytes=28,
                payload_bytes=LENGTH,
            )  # fmt: skip
            sock.sendall(header + bytes(1_000))
            sock.close()
        assert await asyncio.to_thread(daemon.write, [1]) == [OK]
        while daemon.data.stats()["connections"] > 0:  # noqa: ASYNC110  C tells no event of it
            await asyncio.sleep(0.01)
        assert daemon.data.stats()["buffer_bytes"] == 0

    run(story, tmp_path / "t")


def test_strangers_are_refused_and_do_not_stand_in_the_way(tmp_path: Path) -> None:
    async def story(daemon: Daemon) -> None:
        silent = [socket.create_connection(("127.0.0.1", daemon.port)) for _ in range(20)]
        with pytest.raises(AuthError):
            await asyncio.to_thread(daemon.connect, ClusterKey(bytes(32)))
        with pytest.raises(ProtocolError):
            await asyncio.to_thread(daemon.connect, KEY, HandshakeKind.RPC)
        assert await asyncio.to_thread(daemon.write, [1]) == [OK]
        for sock in silent:
            sock.close()

    run(story, tmp_path / "t")


def test_a_slow_read_is_logged_with_its_trace_id(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "ffs.storage.read")
    logging.getLogger("ffs").addHandler(caplog.handler)
    logged = asyncio.Event()

    def note(record: logging.LogRecord) -> bool:
        logged.set()
        return True

    logging.getLogger("ffs.storage.read").addFilter(note)

    def read(daemon: Daemon) -> int:
        connection = _reader.Connection(daemon.connect().detach())
        op = READ_OP.pack(7, 0, 0, TARGET, 0, LENGTH, 0, _reader.STATUS_PENDING, 0)
        out = bytearray(LENGTH)
        try:
            return _reader.read_batch(
                [connection], bytearray(op), out, deadline_ms=5_000, trace_id=0xABC
            )
        finally:
            connection.close()

    async def main() -> None:
        async with running(tmp_path / "t", slow_read_ms=0) as daemon, asyncio.timeout(30):
            assert await asyncio.to_thread(daemon.write, [7]) == [OK]
            assert await asyncio.to_thread(read, daemon) == 1
            await asyncio.wait_for(logged.wait(), 20)

    try:
        asyncio.run(main())
    finally:
        logging.getLogger("ffs").removeHandler(caplog.handler)
        logging.getLogger("ffs.storage.read").removeFilter(note)
    facts = facts_of(next(r for r in caplog.records if r.message == "read_slow"))
    assert facts["trace_id"] == "0000000000000abc"
    assert (facts["blob"], facts["ranges"], facts["bytes"]) == (7, 1, LENGTH)
