"""Idle connections to one node: which of them a read is given."""

from __future__ import annotations

import os
import resource
import socket
import struct
from collections.abc import Iterator

import pytest

from ffs import _reader
from ffs.client import connections as client_connections
from ffs.client.connections import Connections
from ffs.errors import UnavailableError
from ffs.key import ClusterKey
from ffs.rpc.dial import Line
from ffs.wire.frame import Priority

NODE = ("node", 1)
READ_OP = bytearray(struct.pack("<QQIIIIHHI", 1, 0, 0, 1, 0, 1, 0, _reader.STATUS_PENDING, 0))
"""One byte of one chunk."""
PRIORITY_AT = 44
"""In a frame's header."""


@pytest.fixture
def ours() -> Iterator[Connections]:
    """Connections of a client that looks for daemons on its own host, none of them opened."""
    made = Connections(
        ClusterKey(bytes(32)),
        connect_ms=1_000,
        congestion="",
        receive_buffer_bytes=0,
        same_host=True,
    )
    yield made
    made.close()


@pytest.fixture
def far_ends() -> Iterator[list[socket.socket]]:
    """The other ends, which say nothing."""
    ends: list[socket.socket] = []
    yield ends
    for end in ends:
        end.close()


def give(ours: Connections, far_ends: list[socket.socket], count: int, *, local: bool) -> None:
    """Have so many idle connections."""
    for _ in range(count):
        near, far = socket.socketpair()
        far_ends.append(far)
        ours.checkin(NODE, _reader.Connection(near.detach(), local=local))


def test_a_read_gets_connections_of_one_kind(
    ours: Connections, far_ends: list[socket.socket]
) -> None:
    assert ours.idle_alike(NODE, 2) == []
    give(ours, far_ends, 2, local=True)
    give(ours, far_ends, 2, local=False)
    (alone,) = ours.idle_alike(NODE, 2)
    assert alone.local, "one is enough: the caller reads by itself"
    ours.checkin(NODE, alone)
    ours.pool(NODE).elsewhere = True
    both = ours.idle_alike(NODE, 2)
    assert [connection.local for connection in both] == [False, False]
    for connection in both:
        ours.checkin(NODE, connection)


def test_too_few_are_left_where_they_were(ours: Connections, far_ends: list[socket.socket]) -> None:
    give(ours, far_ends, 3, local=False)
    ours.pool(NODE).elsewhere = True
    assert ours.idle_alike(NODE, 4) == []
    assert len(ours.idle_alike(NODE, 3)) == 3
    assert ours.idle_alike(NODE, 1) == []


def test_what_another_thread_learns_meanwhile_mixes_nothing(
    ours: Connections, far_ends: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    give(ours, far_ends, 2, local=True)
    give(ours, far_ends, 2, local=False)
    pool = ours.pool(NODE)
    take = ours._idle

    def learn(idle: list[_reader.Connection]) -> _reader.Connection | None:
        pool.elsewhere = not pool.elsewhere
        return take(idle)

    monkeypatch.setattr(ours, "_idle", learn)
    for elsewhere in (True, False):
        pool.elsewhere = elsewhere
        kinds = {connection.local for connection in ours.idle_alike(NODE, 2)}
        assert kinds == {not elsewhere}


def test_a_socket_without_a_descriptor_to_spare_is_closed_and_said(
    ours: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = socket.socketpair()
    monkeypatch.setattr(client_connections, "dial", lambda *_, **__: Line(near, None))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(far.fileno())
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        ours.pool(NODE).elsewhere = True
        with pytest.raises(UnavailableError, match="Too many open files"):
            ours.checkout(NODE, timeout_ms=1_000)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert near.fileno() == -1
    with far:
        assert far.recv(1) == b""


def test_requests_have_their_clients_priority(
    far_ends: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = socket.socketpair()
    far_ends.append(far)
    monkeypatch.setattr(client_connections, "dial", lambda *_, **__: Line(near, None))
    ours = Connections(
        ClusterKey(bytes(32)),
        connect_ms=1_000,
        congestion="",
        receive_buffer_bytes=0,
        priority=Priority.BATCH,
    )
    connection = ours.checkout(NODE, timeout_ms=1_000)
    _reader.read_batch((connection,), READ_OP, bytearray(1), deadline_ms=1)
    assert far.recv(64)[PRIORITY_AT] == Priority.BATCH
    ours.close()
