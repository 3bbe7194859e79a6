"""Whose requests the disk serves first: see native/storage/cold_turns.c.

The disk is one thread, which is held in its first read until everything has been asked for; what
order it goes on in is then the loop's decision alone. That order is read off the daemon's own
events: each READ is a slow one here, and is told when its last byte is out.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from ffs import _storage
from ffs.wire import frame as wire
from tests.native.data_loop import (
    KIB,
    MIB,
    Peer,
    Server,
    evict,
    fill,
    pack,
    read_frame,
    serving,
)

HANG = -1
RANGES = 60
"""Of a request: a socket takes all of its answer, whether or not anybody reads."""
MEMORY = 8 * MIB
PATIENT, URGENT = int(wire.Priority.BATCH), int(wire.Priority.TRAINING)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A daemon whose disk does one thing at a time, and is held at the first."""
    with serving(
        tmp_path,
        loops=1,
        io="direct",
        reads="threads",
        read_buffer_bytes=MEMORY,
        slow_read_ms=0,
    ) as made:
        for blob in range(1, 9):
            fill(made, blob, 0, MIB)
        evict(made)
        _storage.fault_set("thread", 2, errno.EAGAIN)
        first = made.peer()
        first.send(read_frame((1, 0, 0, 512), flags=wire.FLAG_NO_CRC))
        first.reply()
        assert _storage.fault_counts()["thread"] == 2, "there is one thread that reads"
        assert finished(made, 1) == [1]
        made.events.clear()
        _storage.fault_set("pread", 1, HANG)
        yield made


def ask(server: Server, blob: int, count: int, priority: int, *, length: int = 512) -> Peer:
    """Ask for ranges of a blob; on return all of them wait for the disk."""
    peer = server.peer()
    ranges = [(blob, 0, i * 4 * KIB % MIB, length) for i in range(count)]
    peer.send(read_frame(*ranges, flags=wire.FLAG_NO_CRC, priority=priority))
    peer.send(pack(wire.Op.PING, 2))
    assert peer.reply_of(wire.Op.PING)[0] == 2
    return peer


def finished(server: Server, count: int) -> list[int]:
    """The blobs of so many requests, in the order in which they were answered."""
    return [event[3] for event in server.kind(_storage.EVENT_SLOW_READ, count)]


def go(server: Server) -> None:
    """Let the disk go on."""
    _storage.fault_set("*", 0, 0)


def test_training_goes_before_batch_that_came_first(server: Server) -> None:
    batch = [ask(server, blob, RANGES, PATIENT) for blob in (1, 2, 3)]
    training = ask(server, 5, RANGES, URGENT)
    go(server)
    assert finished(server, 4)[0] == 5
    for peer in (*batch, training):
        assert len(peer.answers(RANGES)) == RANGES


def test_batch_is_not_starved(server: Server) -> None:
    """More is asked for by those in a hurry than the disk is given at once: of what waits behind
    that, every so often one is batch's."""
    for blob in range(1, 7):
        ask(server, blob, RANGES, URGENT)
    ask(server, 8, 10, PATIENT)
    go(server)
    assert finished(server, 7)[4:] == [8, 5, 6]


def test_any_other_class_is_batch(server: Server) -> None:
    ask(server, 1, RANGES, 255)
    ask(server, 2, RANGES, 7)
    ask(server, 3, RANGES, PATIENT)
    ask(server, 5, RANGES, URGENT)
    go(server)
    assert finished(server, 4)[0] == 5


def test_batch_leaves_memory_to_others(server: Server) -> None:
    for blob in (1, 2, 3):
        ask(server, blob, 20, PATIENT, length=256 * KIB)
    used = MEMORY // 2
    server.wait_until(lambda: server.loop.stats()["read_buffer_bytes"] == used)
    ask(server, 5, 1, URGENT, length=256 * KIB)
    used += 256 * KIB
    server.wait_until(lambda: server.loop.stats()["read_buffer_bytes"] == used)
