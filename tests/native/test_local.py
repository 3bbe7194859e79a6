"""Reading on the same host: both native modules over a socket pair, the extent files between."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ffs import _reader
from ffs.errors import (
    OK,
    ChecksumError,
    ChunkLengthError,
    ChunkMissingError,
    ConnectionLostError,
    StaleLayoutError,
)
from ffs.wire import frame as wire
from tests.native.data_loop import MIB, Server, fill, serving
from tests.native.local import connect, locate_frame, locations, read, wait_until


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as made:
        yield made


@pytest.mark.parametrize("verify", [True, False])
def test_ranges_come_from_the_files(server: Server, verify: bool) -> None:
    lengths = {0: 1, 1: 4096, 2: 65_537, 3: 300_000, 4: 3 * MIB + 5}
    chunks = {chunk: fill(server, 7, chunk, length) for chunk, length in lengths.items()}
    rng = random.Random(1)
    ranges = [(7, chunk, 0, length) for chunk, length in lengths.items()]
    for _ in range(300):
        chunk = rng.randrange(5)
        offset = rng.randrange(lengths[chunk])
        ranges.append((7, chunk, offset, rng.randrange(1, min(9_000, lengths[chunk] - offset) + 1)))
    connection = connect(server.loop)
    before = _reader.counters()
    for _ in range(2):
        for (_, chunk, offset, length), got in zip(
            ranges, read(connection, ranges, verify=verify), strict=True
        ):
            assert got == (OK, chunks[chunk][offset : offset + length])
    after = _reader.counters()
    assert after["frames"] - before["frames"] == 1, "the second pass asks nothing"
    asked = 2 * sum(length for _, _, _, length in ranges)
    assert after["payload_bytes"] - before["payload_bytes"] == asked
    assert after["local_bytes"] - before["local_bytes"] >= asked
    assert after["wire_bytes_received"] - before["wire_bytes_received"] < 1_000
    assert after["copied_bytes"] == before["copied_bytes"]
    assert server.loop.stats()["located"] == 5


def test_each_range_has_its_own_status(server: Server) -> None:
    data = fill(server, 1, 0, 10_000)
    connection = connect(server.loop)
    got = read(connection, [(1, 0, 0, 10_000), (1, 1, 0, 1), (1, 0, 9_999, 2), (1, 0, 5, 5)])
    assert got[0] == (OK, data)
    assert [status for status, _ in got] == [OK, ChunkMissingError.code, ChunkLengthError.code, OK]
    assert read(connection, [(1, 0, 0, 1)], target=99)[0][0] == StaleLayoutError.code
    late = fill(server, 1, 1, 5_000)
    assert read(connection, [(1, 1, 0, 5_000)]) == [(OK, late)], "what failed is asked for again"
    assert connection.alive


def test_damage_is_seen(server: Server) -> None:
    data = fill(server, 1, 0, 100_000)
    connection = connect(server.loop)
    assert read(connection, [(1, 0, 0, 100_000)]) == [(OK, data)]
    path = next(p for p in server.path.iterdir() if p.suffix == ".data" and p.stat().st_size)
    with open(path, "r+b") as file:
        file.seek(50_000)
        file.write(bytes([data[50_000] ^ 1]))
    got = read(connection, [(1, 0, 0, 100_000), (1, 0, 0, 45_056), (1, 0, 49_000, 500)])
    assert [status for status, _ in got] == [ChecksumError.code, OK, ChecksumError.code]
    assert got[1][1] == data[:45_056]
    assert read(connection, [(1, 0, 49_000, 500)], verify=False) == [(OK, data[49_000:49_500])]


def test_no_byte_of_a_reused_extent_is_returned(server: Server) -> None:
    """The chunk is dropped and its slot wanted by others while a client knows where it lay."""
    old = fill(server, 1, 0, 200_000)
    connection = connect(server.loop)
    assert read(connection, [(1, 0, 0, 200_000)], verify=False) == [(OK, old)]
    assert server.store.drop([1]) == 1
    blob = 2
    while True:
        fill(server, blob, 0, 200_000)
        status, got = read(connection, [(1, 0, 0, 200_000)], verify=False)[0]
        if status != OK:
            break
        assert got == old
        blob += 1
    assert status == ConnectionLostError.code, "the drop does not wait for those who only know"
    wait_until(lambda: server.loop.stats()["located"] == 0)
    assert read(connect(server.loop), [(1, 0, 0, 1)])[0][0] == ChunkMissingError.code


def test_a_drop_waits_for_who_has_mapped_the_chunk(server: Server) -> None:
    old = fill(server, 1, 0, 200_000)
    peer = server.peer(local=True)
    peer.send(locate_frame((1, 0), flags=wire.FLAG_MAPPED))
    ((_, _, _, length, offset, _),), (data_fd, crc_fd) = locations(peer)
    held = server.store.stats()["allocated_bytes"]
    assert server.store.drop([1]) == 1
    give_up = time.monotonic() + 2.5  # longer than a loop takes to look twice
    blob = 2
    while time.monotonic() < give_up:
        fill(server, blob, 0, 200_000)
        assert os.pread(data_fd, length, offset) == old
        blob += 1
    assert server.store.drop(list(range(2, blob))) == blob - 2
    peer.socket.close()
    wait_until(lambda: server.store.stats()["allocated_bytes"] < held)
    os.close(data_fd)
    os.close(crc_fd)


def test_what_was_read_after_the_end_of_the_pins_does_not_count(server: Server) -> None:
    fill(server, 1, 0, 200_000)
    ours, theirs = socket.socketpair()
    lifeline = os.dup(theirs.fileno())
    server.loop.adopt(theirs.detach(), local=True)
    connection = _reader.Connection(ours.detach(), local=True)
    assert read(connection, [(1, 0, 0, 10)])[0][0] == OK
    with socket.socket(fileno=lifeline) as daemon:
        daemon.shutdown(socket.SHUT_RDWR)
    assert read(connection, [(1, 0, 0, 10)])[0][0] == ConnectionLostError.code
    assert not connection.alive
