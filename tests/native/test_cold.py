"""Ranges that the page cache does not have: the same bytes by every way of reading, in any order.

What is cold is made so by posix_fadvise(DONTNEED) on the extent files, or is a chunk of a file of
its own that nobody has sent from a mapping before.
"""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ffs import _reader, _storage
from ffs.errors import OK, ChunkMissingError, StorageIOError
from ffs.types import BLOCK_BYTES
from ffs.wire import frame as wire
from tests.native.data_loop import (
    CLUSTER,
    KIB,
    MIB,
    TARGET,
    Peer,
    Server,
    check,
    evict,
    fill,
    read_frame,
    serving,
)

PIECE = 4 * MIB
"""Ranges up to here are read as a whole (FFS_COLD_WHOLE_BYTES_MAX)."""


@dataclass(frozen=True)
class Way:
    """One way of reading from the disk."""

    reads: str
    io: str
    strategy: str
    """How such a range is counted."""


WAYS = [
    Way("ring", "direct", "direct"),
    Way("ring", "buffered", "disk"),
    Way("ring", "auto", "direct"),
    Way("threads", "direct", "direct"),
    Way("threads", "buffered", "disk"),
]


@pytest.fixture(params=WAYS, ids=lambda way: f"{way.reads}-{way.io}")
def way(request: pytest.FixtureRequest) -> Way:
    assert isinstance(request.param, Way)
    return request.param


@pytest.fixture
def server(tmp_path: Path, way: Way) -> Iterator[Server]:
    with serving(tmp_path, io=way.io, reads=way.reads, read_buffer_bytes=4 * PIECE) as made:
        yield made


def from_disk(server: Server, way: Way) -> int:
    return server.loop.stats()[f"{way.strategy}_ranges_total"]


def settle(server: Server) -> None:
    """Wait until everything that was read for somebody has been given back."""
    server.wait_until(lambda: server.loop.stats()["read_buffer_bytes"] == 0)


# --- bytes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [0, wire.FLAG_NO_CRC], ids=["crc", "plain"])
@pytest.mark.parametrize("length", [1, 10_000, MIB, 9 * MIB + 77])
def test_cold_bytes_are_the_bytes(server: Server, way: Way, length: int, flags: int) -> None:
    data = fill(server, 1, 0, length)
    peer = server.peer()
    rng = random.Random(length)
    cuts = [(0, length), (length - 1, 1)]
    cuts += [(start := rng.randrange(length), rng.randint(1, length - start)) for _ in range(3)]
    for offset, size in cuts:
        evict(server)
        peer.send(read_frame((1, 0, offset, size), flags=flags))
        reply = peer.reply()
        if flags:
            assert reply.entries == [(0, OK, size)]
            assert reply.payload == data[offset : offset + size]
            continue
        check((reply.entries[0][1], reply.payload), data, offset, size)
        first = offset // BLOCK_BYTES
        crcs = _reader.block_crcs(data, 1, 0)
        assert reply.crcs == crcs[4 * first : 4 * -(-(offset + size) // BLOCK_BYTES)]
    assert from_disk(server, way) >= 1
    settle(server)


def test_a_request_of_many_cold_ranges(server: Server, way: Way) -> None:
    chunks = {(blob, 0): fill(server, blob, 0, 700_000) for blob in range(1, 9)}
    evict(server)
    rng = random.Random(1)
    ranges = []
    for _ in range(1500):
        offset, size = rng.randrange(600_000), rng.choice([1, 4096, 30_000, 90_000])
        ranges.append((rng.randint(1, 8), 0, offset, size))
    ranges[700] = (99, 0, 0, 1)
    peer = server.peer()
    answers: dict[int, tuple[int, bytes]] = {}
    reader = threading.Thread(target=lambda: answers.update(peer.answers(len(ranges))))
    reader.start()
    peer.send(read_frame(*ranges))
    reader.join()
    assert answers.pop(700) == (ChunkMissingError.code, b"")
    for index, answer in answers.items():
        blob, chunk, offset, size = ranges[index]
        check(answer, chunks[blob, chunk], offset, size)
    assert from_disk(server, way) > 0
    settle(server)


# --- order ----------------------------------------------------------------------------------------


def test_what_is_in_memory_does_not_wait(server: Server, way: Way) -> None:
    """The cold range is asked for first; the disk holds it back until the warm ones are out."""
    cold = fill(server, 1, 0, 50_000)
    evict(server)
    warm = fill(server, 2, 0, 300_000)
    # The first attempts at the cold range are interrupted: the warm frames go out meanwhile.
    call = "io_uring_read" if way.reads == "ring" else "pread"
    peer = server.peer()
    _storage.fault_set(call, 1, errno.EINTR)
    peer.send(read_frame((1, 0, 0, 50_000), (2, 0, 0, 10_000), (2, 0, 0, 300_000)))
    replies = [peer.reply() for _ in range(3)]
    order = [entry[0] for reply in replies for entry in reply.entries]
    assert order == [1, 2, 0]
    assert replies[2].payload == cold
    assert replies[0].payload == warm[: 3 * BLOCK_BYTES]
    assert _storage.fault_counts()[call] >= 2


def test_later_requests_overtake(server: Server, way: Way) -> None:
    cold = fill(server, 1, 0, 50_000)
    evict(server)
    fill(server, 2, 0, 5_000)
    peer = server.peer()
    call = "io_uring_read" if way.reads == "ring" else "pread"
    _storage.fault_set(call, 1, errno.EINTR)
    frames = [read_frame((1, 0, 0, 50_000), request_id=1), read_frame((2, 0, 0, 10), request_id=2)]
    peer.send(b"".join(frames))
    replies = [peer.reply(), peer.reply()]
    assert [reply.request_id for reply in replies] == [2, 1]
    assert replies[1].payload == cold


def test_small_ranges_that_are_ready_together_share_frames(server: Server) -> None:
    fill(server, 1, 0, MIB)
    evict(server)
    peer = server.peer()
    peer.send(read_frame(*[(1, 0, i * 4096, 4096) for i in range(256)]))
    frames = 0
    left = 256
    while left:
        left -= len(peer.reply().entries)
        frames += 1
    assert frames < 256


# --- faults ---------------------------------------------------------------------------------------


def test_a_disk_error_fails_one_cold_range(server: Server, way: Way) -> None:
    data = fill(server, 1, 0, 100_000)
    evict(server)
    peer = server.peer()
    call = "io_uring_read" if way.reads == "ring" else "pread"
    ranges = [(1, 0, 0, 4096), (1, 0, 20_480, 4096), (1, 0, 40_960, 4096)]
    _storage.fault_set(call, 2, errno.EIO)
    peer.send(read_frame(*ranges, flags=wire.FLAG_NO_CRC))
    answers = peer.answers(3)
    failed = [index for index, answer in answers.items() if answer == (StorageIOError.code, b"")]
    assert len(failed) == 1
    for index, (_, _, offset, size) in enumerate(ranges):
        if index not in failed:
            check(answers[index], data, offset, size)
    settle(server)


def test_short_and_interrupted_reads_are_carried_on(server: Server, way: Way) -> None:
    call = "io_uring_read" if way.reads == "ring" else "pread"
    peer = server.peer()
    faults = [(1, 0), (2, 0), (1, errno.EAGAIN), (2, errno.EINTR), (1, errno.EINVAL)]
    for blob, (nth, error) in enumerate(faults, 1):
        # Each in an extent file of its own: one that has refused direct reads is not asked again.
        length = 100_000 * blob
        data = fill(server, blob, 0, length)
        evict(server)
        refused = error == errno.EINVAL and way.strategy == "disk"
        _storage.fault_set(call, nth, error)
        peer.send(read_frame((blob, 0, 5_000, length - 6_000), flags=wire.FLAG_NO_CRC))
        answer = peer.answers(1)[0]
        _storage.fault_set("*", 0, 0)
        assert answer == ((StorageIOError.code, b"") if refused else (OK, data[5_000:-1_000]))


def test_a_file_that_ends_early(server: Server) -> None:
    fill(server, 1, 0, 9 * MIB)
    evict(server)
    (name,) = server.path.glob("*.data")
    os.truncate(name, 5 * MIB)
    peer = server.peer()
    peer.send(read_frame((1, 0, 6 * MIB, 10_000)))
    assert peer.reply().entries == [(0, StorageIOError.code, 0)]
    # The header of the whole is out before the missing half is met.
    peer.send(read_frame((1, 0, 0, 9 * MIB)))
    with pytest.raises(ConnectionResetError):
        peer.reply()
    settle(server)


def test_without_memory_a_range_is_refused(server: Server) -> None:
    data = fill(server, 1, 0, 50_000)
    evict(server)
    peer = server.peer()
    _storage.fault_set("mmap", 1, errno.ENOMEM)
    peer.send(read_frame((1, 0, 0, 50_000), flags=wire.FLAG_NO_CRC))
    first = peer.answers(1)[0]
    _storage.fault_set("*", 0, 0)
    peer.send(read_frame((1, 0, 0, 50_000), flags=wire.FLAG_NO_CRC))
    assert peer.answers(1)[0] == (OK, data)
    assert first[0] != OK


# --- peers that go, or do not take what they asked for --------------------------------------------


def test_connections_that_go_with_reads_in_flight(server: Server, way: Way) -> None:
    rounds = 10 * int(os.environ.get("FFS_ROUNDS", "1"))
    for blob in range(1, 5):
        fill(server, blob, 0, MIB)
    ranges = [(1 + i % 4, 0, 32 * KIB * i % MIB, 32 * KIB) for i in range(32)]
    for _ in range(rounds):
        evict(server)
        for _ in range(4):
            with Peer(server.loop).socket as going:
                going.sendall(read_frame(*ranges))
    server.wait_until(lambda: server.loop.stats()["connections"] == 0)
    settle(server)
    assert server.store.drop([1, 2, 3, 4]) == 4


def test_a_loop_closes_with_reads_in_flight(tmp_path: Path, way: Way) -> None:
    for i in range(5):
        path = tmp_path / str(i)
        with serving(path, io=way.io, reads=way.reads, read_buffer_bytes=2 * PIECE) as server:
            for blob in range(1, 5):
                fill(server, blob, 0, MIB)
            evict(server)
            for blob in range(1, 5):
                server.peer().send(read_frame((blob, 0, 0, MIB)))
        block = _storage.ChunkStore.read_superblock(str(path / "t"))
        assert block is not None and block["clean"]


def test_who_takes_nothing_does_not_keep_the_memory(tmp_path: Path) -> None:
    """There is memory for two of these ranges; three connections ask for some and take nothing."""
    with serving(tmp_path, io="direct", read_buffer_bytes=2 * PIECE) as server:
        for blob in range(1, 4):
            fill(server, blob, 0, PIECE)
        data = fill(server, 20, 0, 30_000)
        evict(server)
        for blob in range(1, 4):
            server.peer().send(read_frame((blob, 0, 0, PIECE), (blob, 0, 0, PIECE)))
        server.wait_until(lambda: server.loop.stats()["read_buffer_bytes"] == 2 * PIECE)
        peer = server.peer()
        peer.send(read_frame((20, 0, 0, 30_000)))
        assert peer.reply().payload == data


def test_connections_share_the_memory(server: Server) -> None:
    """One asks for far more than there is memory for; another one is served meanwhile."""
    data = {blob: fill(server, blob, 0, MIB) for blob in range(1, 5)}
    evict(server)
    greedy, modest = server.peer(), server.peer()
    ranges = [(1 + i % 4, 0, 0, MIB) for i in range(60)]
    answers: dict[int, tuple[int, bytes]] = {}
    reader = threading.Thread(target=lambda: answers.update(greedy.answers(len(ranges))))
    greedy.send(read_frame(*ranges))
    reader.start()
    modest.send(read_frame((2, 0, 4096, 4096)))
    assert modest.reply().payload == data[2][4096:8192]
    reader.join()
    assert all(answers[i] == (OK, data[1 + i % 4]) for i in range(60))


# --- what is worth caching ------------------------------------------------------------------------


def test_what_is_read_again_goes_through_the_page_cache(tmp_path: Path) -> None:
    with serving(tmp_path, io="auto") as server:
        data = fill(server, 1, 0, MIB)
        peer = server.peer()
        seen: list[list[int]] = []
        for _ in range(3):
            if len(seen) < 2:
                evict(server)
            peer.send(read_frame((1, 0, 0, MIB)))
            assert peer.reply().payload == data
            stats = server.loop.stats()
            seen.append([stats[f"{name}_ranges_total"] for name in ("direct", "disk", "sendfile")])
        assert seen == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_a_ring_that_is_refused(tmp_path: Path) -> None:
    store = _storage.ChunkStore(
        str(tmp_path / "t"), cluster_id=CLUSTER, target_id=TARGET, create=True
    )
    try:
        _storage.fault_set("io_uring_setup", 1, errno.EPERM)
        loop = _storage.DataLoop({TARGET: store}, loops=1)
        stats = loop.stats()
        assert (stats["ring"], stats["ring_errno"]) == (0, errno.EPERM)
        loop.close()
        _storage.fault_set("io_uring_setup", 1, errno.ENOSYS)
        with pytest.raises(OSError, match="not implemented"):
            _storage.DataLoop({}, reads="ring")
    finally:
        _storage.fault_set("*", 0, 0)
        store.close()


def test_options_are_checked() -> None:
    for options in ({"io": "fast"}, {"reads": "aio"}, {"read_buffer_bytes": MIB}):
        with pytest.raises(ValueError, match=r"(io is|multiple of)"):
            _storage.DataLoop({}, **options)  # type: ignore[arg-type]
