"""Ranges sent from extent files, mapped or by sendfile, and what may happen to those meanwhile."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ffs import _reader, _storage
from ffs.errors import OK, StorageIOError
from tests.native.data_loop import (
    KIB,
    MIB,
    Peer,
    Server,
    check,
    evict,
    fill,
    read_frame,
    serving,
)
from tests.native.fail_nth import wait_until

PIECES = {"mapped": 32 * KIB, "sendfile": 64 * KIB}
"""Ranges that travel together, by how they are sent."""
WHOLE = 32 * MIB

both_ways = pytest.mark.parametrize("how", PIECES)


@pytest.fixture(autouse=True)
def _best_means() -> Iterator[None]:
    yield
    _storage.residency_force("cachestat")


def strategies(server: Server) -> dict[str, int]:
    stats = server.loop.stats()
    return {
        name: stats[f"{name}_ranges_total"] for name in ("mapped", "sendfile", "buffered", "disk")
    }


def ask_for_all(server: Server, blob: int, how: str) -> tuple[Peer, int]:
    """Ask for a large chunk in small ranges, far more than a socket holds, and take nothing yet."""
    peer, piece = server.peer(), PIECES[how]
    count = WHOLE // piece
    before = strategies(server)[how]
    peer.send(read_frame(*[(blob, 0, i * piece, piece) for i in range(count)]))
    wait_until(lambda: strategies(server)[how] > before, "nothing is being sent")
    time.sleep(0.05)  # until the socket is full: what is left is sent later
    return peer, count


def check_all(peer: Peer, count: int, data: bytes, how: str) -> None:
    for index, answer in peer.answers(count).items():
        check(answer, data, index * PIECES[how], PIECES[how])


@pytest.mark.parametrize(
    ("means", "used"),
    [("cachestat", {"mapped"}), ("mincore", {"mapped"}), ("none", {"buffered", "disk"})],
)
def test_each_means_to_ask_gives_the_same_bytes(tmp_path: Path, means: str, used: set[str]) -> None:
    _storage.residency_force(means)
    rng = random.Random(means)
    with serving(tmp_path) as server:
        chunks = [
            fill(server, 1, i, length) for i, length in enumerate((3 * MIB + 5, 4097, 70_000))
        ]
        peer = server.peer()
        for _ in range(4):
            ranges = []
            for _ in range(100):
                chunk = rng.randrange(len(chunks))
                offset = rng.randrange(len(chunks[chunk]))
                length = min(rng.choice((1, 4096, 50_000)), len(chunks[chunk]) - offset)
                ranges.append((1, chunk, offset, length))
            peer.send(read_frame(*ranges))
            for index, answer in peer.answers(len(ranges)).items():
                _, chunk, offset, length = ranges[index]
                check(answer, chunks[chunk], offset, length)
        assert {name for name, count in strategies(server).items() if count} <= used


def test_the_checksums_come_along(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        data = fill(server, 7, 0, 20_000)
        peer = server.peer()
        peer.send(read_frame((7, 0, 4096, 4096), (7, 0, 16_384, 10), (7, 0, 0, 20_000)))
        reply = peer.reply()
        crcs = _reader.block_crcs(data, 7, 0)
        assert reply.crcs == crcs[4:8] + crcs[16:20] + crcs
        assert strategies(server)["mapped"] == 3


def test_what_is_stored_later_shows_up_in_a_mapping(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        peer = server.peer()
        for chunk in range(40):  # grows the files several times
            data = fill(server, 1, chunk, 100_000)
            peer.send(read_frame((1, chunk, 50_000, 20_000), (1, chunk, 0, 1)))
            answers = peer.answers(2)
            check(answers[0], data, 50_000, 20_000)
            check(answers[1], data, 0, 1)
        assert strategies(server) == {"mapped": 80, "sendfile": 0, "buffered": 0, "disk": 0}


@both_ways
def test_a_page_that_is_evicted_before_it_is_sent_is_read_again(tmp_path: Path, how: str) -> None:
    with serving(tmp_path) as server:
        data = fill(server, 1, 0, WHOLE)
        peer, count = ask_for_all(server, 1, how)
        evict(server)
        check_all(peer, count, data, how)


def test_what_is_not_cached_is_read_from_the_disk(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        data = fill(server, 1, 0, 100_000)
        evict(server)
        peer = server.peer()
        peer.send(read_frame((1, 0, 0, 4096), (1, 0, 90_000, 10_000)))
        answers = peer.answers(2)
        check(answers[0], data, 0, 4096)
        check(answers[1], data, 90_000, 10_000)


@both_ways
def test_a_file_that_is_cut_while_it_is_sent_costs_a_connection(tmp_path: Path, how: str) -> None:
    with serving(tmp_path) as server:
        fill(server, 1, 0, WHOLE)
        other = fill(server, 2, 0, 5_000)
        peer, count = ask_for_all(server, 1, how)
        os.truncate(server.path / f"{WHOLE}.data", 0)
        with pytest.raises(ConnectionResetError):
            check_all(peer, count, bytes(WHOLE), how)
        peer = server.peer()
        peer.send(read_frame((1, 0, 0, 4096), (2, 0, 0, 5_000), (1, 0, WHOLE - 4096, 4096)))
        answers = peer.answers(3)
        assert answers[0] == answers[2] == (StorageIOError.code, b"")
        check(answers[1], other, 0, 5_000)


@pytest.mark.parametrize("size", [64 << 10, MIB])
def test_a_file_that_is_cut_while_it_is_trusted_costs_one_connection(
    tmp_path: Path, size: int
) -> None:
    """A range that is asked for alone goes from the file, whose end comes as no error."""
    with serving(tmp_path) as server:
        fill(server, 1, 0, size)
        peer = server.peer()
        peer.send(read_frame((1, 0, 0, size)))
        assert peer.answers(1)[0][0] == OK
        os.truncate(server.path / f"{size}.data", 0)
        codes = []
        for _ in range(5):
            peer = server.peer()
            peer.send(read_frame((1, 0, 0, size)))
            with contextlib.suppress(ConnectionResetError):
                codes.append(peer.answers(1)[0][0])
        assert set(codes) == {StorageIOError.code} and len(codes) >= 4


def test_a_chunk_whose_file_can_not_be_sent_is_read_from_then_on(tmp_path: Path) -> None:
    """The page cache may keep a page that the disk failed: it looks resident for ever."""
    with serving(tmp_path) as server:
        data = fill(server, 1, 0, MIB)
        peer = server.peer()
        _storage.fault_set("sendfile", 1, errno.EIO)
        peer.send(read_frame((1, 0, 0, MIB)))
        assert peer.is_closed()
        _storage.fault_set("*", 0, 0)
        before = strategies(server)["sendfile"]
        peer = server.peer()
        peer.send(read_frame((1, 0, 0, MIB)))
        check(peer.answers(1)[0], data, 0, MIB)
        assert strategies(server)["sendfile"] == before


def test_large_ranges_share_frames_and_calls(tmp_path: Path) -> None:
    """Those of one file that follow each other take one sendfile, in the order of the request."""
    size, pieces = 64 * KIB, [3, 4, 5, 9, 0, 1]
    with serving(tmp_path) as server:
        data = fill(server, 1, 0, MIB)
        peer = server.peer()
        peer.send(read_frame(*[(1, 0, i * size, size) for i in pieces], (9, 9, 0, 1)))
        for index, answer in peer.answers(len(pieces) + 1).items():
            if index < len(pieces):
                check(answer, data, pieces[index] * size, size)
        wait_until(lambda: server.loop.stats()["frames_total"] == 1, server.loop.stats())
        stats = server.loop.stats()
        assert stats["sendfile_ranges_total"] == len(pieces)
        assert stats["send_calls_total"] - stats["short_sends_total"] <= 4


def test_files_and_memory_do_not_share_frames(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        data = fill(server, 1, 0, MIB)
        peer = server.peer()
        ranges = [(1, 0, 0, 100), (1, 0, 4096, 70_000), (1, 0, 9, 64 * KIB), (1, 0, 5_000, 5_000)]
        peer.send(read_frame(*ranges))
        for index, answer in peer.answers(len(ranges)).items():
            check(answer, data, *ranges[index][2:])
        wait_until(lambda: server.loop.stats()["frames_total"] == 3, server.loop.stats())
        assert strategies(server) == {"mapped": 2, "sendfile": 2, "buffered": 0, "disk": 0}


def test_lost_checksums_fail_their_ranges(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        fill(server, 1, 0, 5_000)
        peer = server.peer()
        peer.send(read_frame((1, 0, 0, 5_000)))
        assert peer.answers(1)[0][0] == OK
        os.truncate(server.path / "8192.crc", 0)
        codes = []
        for _ in range(20):
            peer = server.peer()
            peer.send(read_frame((1, 0, 0, 5_000)))
            with contextlib.suppress(ConnectionResetError):
                codes.append(peer.answers(1)[0][0])
        assert set(codes) == {StorageIOError.code} and len(codes) >= 19


@both_ways
def test_a_drop_waits_for_what_is_being_sent(tmp_path: Path, how: str) -> None:
    with serving(tmp_path) as server:
        data = fill(server, 1, 0, WHOLE)
        peer, count = ask_for_all(server, 1, how)
        assert server.store.drop([1]) == 1
        answers = {}
        with contextlib.suppress(TimeoutError):
            answers = peer.answers(count)
        sent = [index for index, answer in answers.items() if answer[0] == OK]
        for index in sent:  # of the frame that was on its way then; the rest is not found any more
            check(answers[index], data, index * PIECES[how], PIECES[how])
        assert sent and len(answers) == count
        wait_until(lambda: server.store.stats()["allocated_bytes"] == 0, "an extent stays pinned")


@both_ways
def test_a_connection_that_ends_leaves_no_pin(tmp_path: Path, how: str) -> None:
    with serving(tmp_path) as server:
        fill(server, 1, 0, WHOLE)
        peer, _ = ask_for_all(server, 1, how)
        peer.socket.close()
        assert server.store.drop([1]) == 1
        wait_until(lambda: server.store.stats()["allocated_bytes"] == 0, "an extent stays pinned")
