"""Forking a process that holds a store and a data loop: the child harms and holds nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ffs import _storage
from ffs.wire import frame as wire
from tests.native.data_loop import CLUSTER, REPLY, TARGET, Server, fill, pack, read_frame, serving


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as made:
        yield made


@contextmanager
def idle_child() -> Iterator[None]:
    """A forked child that has all our descriptors and does nothing."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)
        time.sleep(60)
        os._exit(0)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_child_that_closes_harms_nothing(server: Server) -> None:
    data = fill(server, 1, 0, 10_000)
    peer = server.peer()
    child = os.fork()
    if child == 0:
        try:
            server.loop.close()
            server.store.close()
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    peer.send(read_frame((1, 0, 0, 10_000)))
    assert peer.reply().payload == data
    fill(server, 2, 0, 10_000)
    with pytest.raises(BlockingIOError):
        _storage.ChunkStore(str(server.path), cluster_id=CLUSTER, target_id=TARGET)


def test_a_child_is_refused_what_it_has_no_threads_for(server: Server) -> None:
    child = os.fork()
    if child == 0:
        refused = 0
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)
        try:
            for use in (
                lambda: server.store.put(1, 0, b"x", bytes(4)),
                lambda: server.store.drop([1]),
                server.loop.poll,
                lambda: server.loop.ack(1, 0),
            ):
                with pytest.raises(RuntimeError, match="before a fork"):
                    use()
                refused += 1
        finally:
            os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4


def test_a_child_keeps_no_connection_open(server: Server) -> None:
    """Nor does epoll go on to report a connection whose memory is gone."""
    bad, good = server.peer(), server.peer()
    with idle_child():
        bad.socket.settimeout(30)
        bad.send(bytes(64))
        assert bad.is_closed()
        server.kind(_storage.EVENT_CLOSED)
        for _ in range(100):
            good.send(pack(wire.Op.PING))
            assert good.reply().op == wire.Op.PING | REPLY


def test_a_child_keeps_no_closed_store_locked(server: Server) -> None:
    with idle_child():
        server.store.close()
        _storage.ChunkStore(str(server.path), cluster_id=CLUSTER, target_id=TARGET).close()
