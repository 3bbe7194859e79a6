"""The metadata server as a process: starting, refusing, stopping, and dying at any moment."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ffs.errors import FFSError, LeaseExpiredError
from ffs.key import ClusterKey
from ffs.rpc.blocking import RpcClient
from ffs.server.meta.sqlite import DATABASE_NAME, SqliteTransaction, open_database
from ffs.types import Attr
from ffs.wire import messages as wire
from ffs.wire.membership import REGISTER, RegisterRequest, TargetReport
from ffs.wire.method import Fault, Method
from ffs.wire.status import STATUS, StatusRequest
from tests.harness import Process
from tests.namespace import ME, check_database, good, kind
from tests.ports import free_port

KILL_ROUNDS = 20
BATCH = 8


class Server:
    """One metadata server process and a client of it."""

    def __init__(self, directory: Path, **settings: object) -> None:
        self.directory = directory
        self.key_file = directory / "cluster.key"
        self.key = ClusterKey.create(self.key_file)
        arguments = [f"--set={name.replace('__', '.')}={v}" for name, v in settings.items()]
        self._arguments = arguments
        self.process = Process("meta", self.argv(free_port()), directory)
        self.client: RpcClient | None = None

    def argv(self, port: int) -> list[str]:
        """The command line."""
        return [
            *(sys.executable, "-m", "ffs.server.meta", "--exit-with-parent"),
            *("--data", str(self.directory / "data"), "--host", "127.0.0.1"),
            *("--port", str(port), "--key-file", str(self.key_file)),
            *self._arguments,
        ]

    def start(self) -> None:
        """Start, connect, and register a target (again)."""
        self._disconnect()
        self.process.start()
        host, _, port = self.process.ready.rpartition(":")
        self.client = RpcClient([(host, int(port))], self.key)
        report = TargetReport("disk", 0, 1, 0, 0, False)
        self.call(REGISTER, RegisterRequest(0, b"", 1, "h", 1, [report]))

    def call(self, method: Method[Any, Any], request: object) -> Any:
        """One RPC."""
        assert self.client is not None
        return self.client.call(method, request, deadline_ms=10_000)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self._disconnect()

    def _disconnect(self) -> None:
        if self.client is not None:
            self.client.close()

    @property
    def database(self) -> Path:
        """The file."""
        return self.directory / "data" / DATABASE_NAME


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A running server with short timers."""
    one = Server(tmp_path, meta__session_ttl_ms=3_000, meta__gc_delay_s=0)
    one.start()
    yield one
    one.kill()


def test_ready_line_and_clean_stop(server: Server) -> None:
    assert server.process.ready.startswith("127.0.0.1:")
    server.call(wire.MKDIR, wire.MkdirRequest(os.urandom(16), b"/d"))
    assert server.process.terminate() == 0
    assert not list(server.database.parent.glob("*-wal"))
    server.start()
    (attr,) = server.call(wire.STAT_MANY, wire.StatManyRequest([b"/d"])).attrs
    assert isinstance(attr, Attr)


def test_a_second_server_is_refused_in_one_line(server: Server) -> None:
    second = subprocess.run(
        server.argv(0), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert second.returncode == 1
    assert second.stdout == ""
    assert len(second.stderr.splitlines()) == 1
    assert "in use by another server" in second.stderr
    assert str(server.process.pid) in second.stderr


def test_wrong_arguments_are_refused_in_one_line(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    ClusterKey.create(key_file)
    base = [sys.executable, "-m", "ffs.server.meta", "--key-file", str(key_file)]
    for arguments, said in (
        ([], "no data directory"),
        (["--data", str(tmp_path / "d"), "--set", "meta.sesion_ttl_ms=1"], "session_ttl_ms"),
        (["--data", str(tmp_path / "d"), "--set", "nothing"], "has no ="),
        (["--data", str(key_file)], "data directory"),
    ):
        ended = subprocess.run(
            [*base, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 1, ended.stderr
        assert said in ended.stderr
        assert len(ended.stderr.splitlines()) == 1


def test_a_taken_port_is_refused_and_the_lock_released(tmp_path: Path) -> None:
    server = Server(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = subprocess.run(
            server.argv(taken.getsockname()[1]),
            stdin=subprocess.PIPE,
            capture_output=True,
            text=True,
            check=False,
        )
    assert ended.returncode == 1
    assert "cannot listen" in ended.stderr
    server.start()
    server.kill()


def test_it_ends_with_its_parent(server: Server) -> None:
    popen = server.process._popen
    assert popen is not None and popen.stdin is not None
    popen.stdin.close()
    assert popen.wait(60) == 0


def test_sessions_outlive_a_restart_and_then_their_client_must_be_heard(server: Server) -> None:
    request = wire.CreateManyRequest(
        os.urandom(16), ME, [wire.CreateEntry(b"/kept"), wire.CreateEntry(b"/lost")]
    )
    kept, lost = (good(s) for s in server.call(wire.CREATE_MANY, request).sessions)
    server.kill()
    time.sleep(3.1)  # longer than the lease: nobody could renew it meanwhile
    server.start()

    def close(session: wire.WriteSession) -> Attr | Fault:
        entry = wire.CloseEntry(session.session, 5)
        close = wire.CloseManyRequest(os.urandom(16), ME, [entry])
        attrs: list[Attr | Fault] = server.call(wire.CLOSE_MANY, close).attrs
        return attrs[0]

    assert good(close(kept)).size == 5
    deadline = time.monotonic() + 60
    while server.call(STATUS, StatusRequest()).sessions:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert kind(close(lost)) is LeaseExpiredError


# --- kill -9 --------------------------------------------------------------------------------------


class Writer(threading.Thread):
    """Publishes batches of files, one after the other, until the server is gone.

    `acknowledged` are batches whose close was answered; `in_doubt` the one that was not.
    """

    def __init__(self, server: Server, name: bytes) -> None:
        super().__init__(daemon=True)
        assert server.client is not None
        self.server = server
        self.directory = b"/" + name
        self.acknowledged: list[int] = []
        self.in_doubt: tuple[Method[Any, Any], object, int] | None = None

    def run(self) -> None:
        """Write until an error; it is the kill."""
        with contextlib.suppress(FFSError):
            for batch in range(10_000):
                self._publish(batch)

    def _publish(self, batch: int) -> None:
        entries = [wire.CreateEntry(path, parents=True) for path in self.paths(batch)]
        create = wire.CreateManyRequest(os.urandom(16), self.directory, entries)
        sessions = self._call(wire.CREATE_MANY, create, batch).sessions
        closes = [wire.CloseEntry(good(s).session, batch + 1) for s in sessions]
        self._call(
            wire.CLOSE_MANY,
            wire.CloseManyRequest(os.urandom(16), self.directory, closes),
            batch,
        )
        self.acknowledged.append(batch)
        self.in_doubt = None

    def _call(self, method: Method[Any, Any], request: object, batch: int) -> Any:
        self.in_doubt = (method, request, batch)
        return self.server.call(method, request)

    def paths(self, batch: int) -> list[bytes]:
        """The files of a batch."""
        return [b"%s/%d/%d" % (self.directory, batch % 3, batch * BATCH + i) for i in range(BATCH)]


def test_kill_at_any_moment_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    server = Server(tmp_path)
    chance = random.Random(20)
    server.start()
    for round_ in range(KILL_ROUNDS):
        writers = [Writer(server, b"r%d-w%d" % (round_, w)) for w in range(2)]
        for writer in writers:
            writer.start()
        time.sleep(chance.uniform(0.005, 0.06))
        server.kill()
        for writer in writers:
            writer.join()
        database = open_database(server.database)
        check_database(SqliteTransaction(database))
        database.close()
        server.start()
        for writer in writers:
            _check_after_kill(server, writer)
    server.kill()


def _check_after_kill(server: Server, writer: Writer) -> None:
    """Acknowledged batches are there; one in doubt is there whole or not, and can be retried."""
    for batch in writer.acknowledged:
        found = server.call(wire.STAT_MANY, wire.StatManyRequest(writer.paths(batch))).attrs
        assert [good(attr).size for attr in found] == [batch + 1] * BATCH
        assert {good(attr).version for attr in found} == {1}
    if writer.in_doubt is None:
        return
    method, request, batch = writer.in_doubt
    before = server.call(wire.STAT_MANY, wire.StatManyRequest(writer.paths(batch))).attrs
    assert len({isinstance(attr, Attr) for attr in before}) == 1, "a batch is there whole or absent"
    again = server.call(method, request)
    assert server.call(method, request) == again
    if method is wire.CLOSE_MANY:
        after = server.call(wire.STAT_MANY, wire.StatManyRequest(writer.paths(batch))).attrs
        assert after == again.attrs
        assert {good(attr).version for attr in after} == {1}
