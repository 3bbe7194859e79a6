"""The chunk store on real files: formats, damage, full disks, failing calls, space on disk."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ffs import _storage
from ffs._reader import block_crcs, crc32c
from ffs.errors import (
    OK,
    BusyError,
    ChunkConflictError,
    ChunkLengthError,
    ChunkMissingError,
    NoSpaceError,
    StorageIOError,
    TargetStoppedError,
)
from ffs.types import BLOCK_BYTES
from tests.sim.store_model import memory_directory

CLUSTER = bytes(range(16))
OTHER_CLUSTER = bytes(range(1, 17))
TARGET = 3
MIB = 1 << 20
CHUNK_BYTES_MAX = 64 * MIB
JOURNAL_WRITE, JOURNAL_PUNCH, JOURNAL_SYNC = 2, 4, 5
POOL = random.Random(1).randbytes(4 * MIB)


def open_store(path: Path, *, create: bool = True, drop_delay_ms: int = 0) -> _storage.ChunkStore:
    return _storage.ChunkStore(
        str(path),
        cluster_id=CLUSTER,
        target_id=TARGET,
        create=create,
        drop_delay_ms=drop_delay_ms,
    )


@pytest.fixture
def path() -> Iterator[Path]:
    directory = memory_directory()
    yield directory / "target"
    shutil.rmtree(directory)


@pytest.fixture
def store(path: Path) -> Iterator[_storage.ChunkStore]:
    opened = open_store(path)
    yield opened
    _storage.fault_set("*", 0, 0)
    opened.close()


def content(blob: int, chunk: int, length: int) -> bytes:
    start = (blob * 7919 + chunk * 104_729) % (len(POOL) // 2)
    return (POOL[start:] * (length // (len(POOL) // 2) + 1))[:length]


def put(store: _storage.ChunkStore, blob: int, chunk: int, length: int) -> int:
    data = content(blob, chunk, length)
    return store.put(blob, chunk, data, block_crcs(data, blob, chunk))


def is_whole(store: _storage.ChunkStore, blob: int, chunk: int, length: int) -> bool:
    data = content(blob, chunk, length)
    crcs = block_crcs(data, blob, chunk)
    return store.read(blob, chunk, 0, length) == (OK, data, crcs)


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def disk_bytes(path: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in path.iterdir())


# --- what is stored is what is read ---------------------------------------------------------------


@pytest.mark.parametrize(
    "length",
    [1, 4095, 4096, 4097, 32768, 32769, 40960, 40961, 65536, 300_000, MIB, MIB + 1, 5 * MIB + 17],
)
def test_every_length_reads_back_and_survives_reopening(
    store: _storage.ChunkStore, path: Path, length: int
) -> None:
    assert put(store, 5, 9, length) == OK
    assert is_whole(store, 5, 9, length)
    crcs = block_crcs(content(5, 9, length), 5, 9)
    assert store.lookup(5, 9) == (length, crc32c(crcs))
    store.close()
    again = open_store(path, create=False)
    assert is_whole(again, 5, 9, length)
    assert again.chunks(5) == [(9, length)]
    again.close()


def test_the_largest_chunk(store: _storage.ChunkStore) -> None:
    data = bytes(CHUNK_BYTES_MAX)
    crcs = os.urandom(CHUNK_BYTES_MAX // BLOCK_BYTES * 4)
    assert store.put(1, 0, data, crcs) == OK
    status, got, got_crcs = store.read(1, 0, CHUNK_BYTES_MAX - 5, 5)
    assert (status, got, got_crcs) == (OK, bytes(BLOCK_BYTES), crcs[-4:])
    with pytest.raises(ValueError, match="expected 1 to"):
        store.put(1, 1, data + b"x", crcs + bytes(4))


def test_extents_waste_at_most_a_fifth(store: _storage.ChunkStore) -> None:
    for chunk, blocks in enumerate([1, 7, 9, 17, 33, 65, 130, 257]):
        assert put(store, 1, chunk, blocks * BLOCK_BYTES) == OK
        allocated = store.stats()["allocated_bytes"]
        stored = store.stats()["stored_bytes"]
        assert stored <= allocated <= stored * 1.25


def test_ranges_are_widened_to_blocks_and_clipped(store: _storage.ChunkStore) -> None:
    data = content(2, 0, 10_000)
    crcs = block_crcs(data, 2, 0)
    put(store, 2, 0, 10_000)
    assert store.read(2, 0, 4096, 1) == (OK, data[4096:8192], crcs[4:8])
    assert store.read(2, 0, 4095, 2) == (OK, data[:8192], crcs[:8])
    assert store.read(2, 0, 9_999, 1) == (OK, data[8192:], crcs[8:])
    assert store.read(2, 0, 10_000, 0) == (OK, b"", b"")
    assert store.read(2, 0, 9_999, 2)[0] == ChunkLengthError.code
    assert store.read(2, 0, 0xFFFF_FFFF, 0xFFFF_FFFF)[0] == ChunkLengthError.code
    assert store.read(2, 1, 0, 1)[0] == ChunkMissingError.code


def test_a_chunk_is_written_once(store: _storage.ChunkStore) -> None:
    assert put(store, 1, 1, 5000) == OK
    assert put(store, 1, 1, 5000) == OK
    assert put(store, 1, 1, 5001) == ChunkConflictError.code
    data = content(9, 9, 5000)
    assert store.put(1, 1, data, block_crcs(data, 1, 1)) == ChunkConflictError.code
    assert is_whole(store, 1, 1, 5000)


def test_wrong_arguments_change_nothing(store: _storage.ChunkStore) -> None:
    with pytest.raises(ValueError, match="block CRCs have 8 bytes, expected 4"):
        store.put(1, 0, b"x", bytes(8))
    with pytest.raises(ValueError, match="chunk has 0 bytes"):
        store.put(1, 0, b"", b"")
    with pytest.raises(ValueError, match="limit"):
        store.blobs(limit=0)
    with pytest.raises(TypeError):
        store.put(1, 0, "text", b"")
    assert store.stats()["chunks"] == 0


def test_listings_page_in_ascending_order(store: _storage.ChunkStore) -> None:
    blobs = random.Random(3).sample(range(1, 1 << 40), 300)
    for blob in blobs:
        assert put(store, blob, 1, 10) == OK
    put(store, blobs[0], 0, 10)
    listed: list[int] = []
    while page := store.blobs(listed[-1] if listed else 0, 7):
        listed += page
    assert listed == sorted(blobs)
    assert store.chunks(blobs[0]) == [(0, 10), (1, 10)]
    assert store.chunks(12345) == []


def test_writers_at_once_share_commits(store: _storage.ChunkStore) -> None:
    def write(blob: int) -> None:
        for chunk in range(25):
            assert put(store, blob, chunk, 4096) == OK

    _storage.fault_set("fdatasync", 1_000_000, errno.EIO)
    threads = [threading.Thread(target=write, args=(blob,)) for blob in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(is_whole(store, b, c, 4096) for b in range(8) for c in range(25))
    assert _storage.fault_counts()["fdatasync"] < 3 * 8 * 25


# --- dropping -------------------------------------------------------------------------------------


def test_drop_is_idempotent_durable_and_gives_space_back(
    store: _storage.ChunkStore, path: Path
) -> None:
    for blob in range(1, 11):
        for chunk in range(4):
            assert put(store, blob, chunk, 40_000) == OK
    full = disk_bytes(path)
    assert store.drop([1, 2, 3, 3, 99]) == 12
    assert store.drop([1, 2, 3]) == 0
    assert store.read(2, 0, 0, 1)[0] == ChunkMissingError.code
    assert store.blobs() == list(range(4, 11))
    wait_until(lambda: disk_bytes(path) <= full - 12 * 40_000)
    store.close()
    again = open_store(path)
    assert again.blobs() == list(range(4, 11))
    assert again.stats()["chunks"] == 28
    again.close()


def test_freed_extents_are_used_again(path: Path) -> None:
    store = open_store(path)
    for round_number in range(20):
        for chunk in range(16):
            assert put(store, round_number, chunk, 4096) == OK
        assert store.drop([round_number]) == 16
        wait_until(lambda: store.stats()["allocated_bytes"] == 0)
    assert (path / "4096.data").stat().st_size == 16 * 4096
    store.close()


def test_dropped_extents_rest_before_they_are_reused(path: Path) -> None:
    store = open_store(path, drop_delay_ms=1_500)
    put(store, 1, 0, 4096)
    store.drop([1])
    dropped_at = time.monotonic()
    assert put(store, 2, 0, 4096) == OK
    assert store.stats()["allocated_bytes"] == 2 * 4096
    wait_until(lambda: store.stats()["allocated_bytes"] == 4096)
    assert time.monotonic() - dropped_at >= 1.49
    store.close()


# --- opening --------------------------------------------------------------------------------------


def test_one_opener_at_a_time(store: _storage.ChunkStore, path: Path) -> None:
    with pytest.raises(BlockingIOError, match="locking"):
        open_store(path)
    store.close()
    open_store(path).close()


def test_foreign_superblocks_are_refused_by_name(store: _storage.ChunkStore, path: Path) -> None:
    store.close()
    with pytest.raises(ValueError, match=OTHER_CLUSTER.hex()):
        _storage.ChunkStore(str(path), cluster_id=OTHER_CLUSTER, target_id=TARGET)
    with pytest.raises(ValueError, match="holds target 3, expected target 4"):
        _storage.ChunkStore(str(path), cluster_id=CLUSTER, target_id=4)
    block = _storage.ChunkStore.read_superblock(str(path))
    assert block == {"cluster_id": CLUSTER, "target_id": TARGET, "format": 1, "clean": True}


def test_a_newer_format_is_refused(store: _storage.ChunkStore, path: Path) -> None:
    store.close()
    block = bytearray((path / "superblock").read_bytes())
    block[8] = 2
    block[60:] = crc32c(block[:60]).to_bytes(4, "little")
    (path / "superblock").write_bytes(block)
    with pytest.raises(ValueError, match="format 2, this program knows format 1"):
        open_store(path)


def test_what_is_not_a_target_is_not_made_one(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_store(path, create=False)
    path.mkdir()
    with pytest.raises(FileNotFoundError, match="superblock"):
        open_store(path, create=False)
    assert _storage.ChunkStore.read_superblock(str(path)) is None
    open_store(path).close()
    (path / "superblock").unlink()
    store = open_store(path)
    put(store, 1, 0, 10)
    store.close()
    (path / "superblock").unlink()
    with pytest.raises(ValueError, match=r"holds 4096\.index and no superblock"):
        open_store(path)


def test_a_closed_store_says_so(store: _storage.ChunkStore) -> None:
    store.close()
    store.close()
    with pytest.raises(ValueError, match="closed"):
        store.stats()


def test_arguments_that_close_the_store(path: Path) -> None:
    class Closing:
        def __index__(self) -> int:
            opened.close()
            return 1

    calls: list[Callable[[_storage.ChunkStore, Any], object]] = [
        lambda store, closing: store.put(1, closing, b"x", bytes(4)),
        lambda store, closing: store.read(1, closing, 0, 1),
        lambda store, closing: store.lookup(1, closing),
        lambda store, closing: store.blobs(0, closing),
    ]
    for call in calls:
        opened = open_store(path)
        with pytest.raises(ValueError, match="chunk store is closed"):
            call(opened, Closing())


def test_clean_is_lost_while_open(store: _storage.ChunkStore, path: Path) -> None:
    block = _storage.ChunkStore.read_superblock(str(path))
    assert block is not None and not block["clean"]


# --- damage ---------------------------------------------------------------------------------------


def flip(file: Path, offset: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(offset)
        byte = opened.read(1)[0]
        opened.seek(offset)
        opened.write(bytes([byte ^ (1 << (offset % 8))]))


def test_any_flipped_byte_of_the_superblock_is_refused(
    store: _storage.ChunkStore, path: Path
) -> None:
    put(store, 1, 0, 100)
    store.close()
    for offset in range(64):
        flip(path / "superblock", offset)
        with pytest.raises(ValueError, match=r"superblock in .* (damaged|not written by FFS)"):
            open_store(path)
        flip(path / "superblock", offset)
    for length in (0, 7, 63):
        original = (path / "superblock").read_bytes()
        (path / "superblock").write_bytes(original[:length])
        with pytest.raises(ValueError, match=r"cut short|damaged"):
            open_store(path)
        (path / "superblock").write_bytes(original)
    open_store(path).close()


def test_any_flipped_byte_of_the_index_loses_one_chunk_at_most(
    store: _storage.ChunkStore, path: Path
) -> None:
    for chunk in range(3):
        assert put(store, 1, chunk, 3000) == OK
    store.close()
    for offset in range(5 * 64):
        flip(path / "4096.index", offset)
        damaged = open_store(path)
        stats = damaged.stats()
        assert stats["damaged_entries"] == 1
        for chunk in range(3):
            lost = chunk == offset // 64
            assert is_whole(damaged, 1, chunk, 3000) != lost
            assert (damaged.read(1, chunk, 0, 1)[0] == ChunkMissingError.code) == lost
        assert put(damaged, 2, 0, 3000) == OK
        assert damaged.drop([2]) == 1
        damaged.close()
        flip(path / "4096.index", offset)


def test_entries_in_the_wrong_place_are_damage(store: _storage.ChunkStore, path: Path) -> None:
    for chunk in range(2):
        put(store, 1, chunk, 4096)
    store.close()
    index = (path / "4096.index").read_bytes()
    swapped = index[64:128] + index[:64] + index[128:]
    (path / "4096.index").write_bytes(swapped)
    again = open_store(path)
    assert again.stats()["damaged_entries"] == 2
    assert again.blobs() == []
    again.close()


def test_a_lost_index_is_damage(store: _storage.ChunkStore, path: Path) -> None:
    assert put(store, 1, 0, 4096) == OK
    store.close()
    (path / "4096.index").unlink()
    for _ in range(2):  # until there is an index again
        again = open_store(path)
        assert again.stats()["damaged_entries"] == 1
        assert again.blobs() == []
        again.close()
    again = open_store(path)
    assert put(again, 1, 0, 4096) == OK
    again.close()
    again = open_store(path)
    assert again.stats()["damaged_entries"] == 0
    assert is_whole(again, 1, 0, 4096)
    again.close()


def test_an_index_that_was_cut_short_is_damage(store: _storage.ChunkStore, path: Path) -> None:
    for chunk in range(100):
        assert put(store, 1, chunk, 4096) == OK
    store.close()
    os.truncate(path / "4096.index", 64 * 64)
    again = open_store(path)
    assert again.stats()["damaged_entries"] == 1
    assert again.chunks(1) == [(chunk, 4096) for chunk in range(64)]
    again.close()
    os.truncate(path / "4096.index", 0)
    again = open_store(path)
    assert again.stats()["damaged_entries"] == 1
    assert again.blobs() == []
    again.close()


def test_files_that_grew_before_their_index_are_no_damage(
    store: _storage.ChunkStore, path: Path
) -> None:
    assert put(store, 1, 0, 4096) == OK
    store.close()
    size = (path / "4096.data").stat().st_size
    with (path / "4096.data").open("r+b") as data:  # as a crash leaves it
        os.posix_fallocate(data.fileno(), size, 4096 * 256)
    again = open_store(path)
    assert again.stats()["damaged_entries"] == 0
    again.close()


def test_damage_is_known_by_its_places(store: _storage.ChunkStore, path: Path) -> None:
    for chunk in range(3):
        assert put(store, 1, chunk, 3000) == OK
    assert store.stats()["damage"] == 0
    store.close()
    seen = set()
    for flips in ([0], [1], [0, 1]):
        for slot in flips:
            flip(path / "4096.index", slot * 64)
        for _ in range(2):
            again = open_store(path)
            seen.add(again.stats()["damage"])
            again.close()
        for slot in flips:
            flip(path / "4096.index", slot * 64)
    assert len(seen) == 3 and 0 not in seen


def test_entries_whose_bytes_are_gone_are_damage(store: _storage.ChunkStore, path: Path) -> None:
    for chunk in range(20):
        put(store, 1, chunk, 4096)
    store.close()
    os.truncate(path / "4096.data", 10 * 4096)
    again = open_store(path)
    assert again.stats()["damaged_entries"] == 10
    assert again.chunks(1) == [(chunk, 4096) for chunk in range(10)]
    for chunk in range(15, 60):
        assert put(again, 1, chunk, 4096) == OK
    assert all(is_whole(again, 1, chunk, 4096) for chunk in range(15, 60))
    again.close()
    # The files reach the lost slots again, but what was lost stays lost, and what is new is not.
    again = open_store(path)
    assert again.stats()["damaged_entries"] == 10
    assert again.chunks(1) == [(chunk, 4096) for chunk in range(60) if not 10 <= chunk < 15]
    assert all(is_whole(again, 1, chunk, 4096) for chunk, _ in again.chunks(1))
    again.close()


def test_a_zeroed_entry_is_a_missing_chunk(store: _storage.ChunkStore, path: Path) -> None:
    for chunk in range(3):
        put(store, 1, chunk, 4096)
    store.close()
    with (path / "4096.index").open("r+b") as index:
        index.seek(64)
        index.write(bytes(64))
    again = open_store(path)
    assert again.read(1, 1, 0, 1)[0] == ChunkMissingError.code
    assert again.chunks(1) == [(0, 4096), (2, 4096)]
    again.close()


# --- disks that fail ------------------------------------------------------------------------------


def mount_small_disk(point: Path, size: str) -> None:
    point.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(point)],
        check=True,
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    point = tmp_path / "small"
    mount_small_disk(point, "4m")
    yield point
    subprocess.run(["umount", str(point)], check=True)


@pytest.mark.parametrize("length", [4096, 100_000, MIB])
def test_a_full_disk_refuses_and_recovers(small_disk: Path, length: int) -> None:
    store = open_store(small_disk / "t")
    stored = 0
    while (status := put(store, 1, stored, length)) == OK:
        stored += 1
    assert status == NoSpaceError.code
    assert stored >= 3 * MIB // length * 0.8
    assert store.stats()["stopped"] == 0
    assert store.read(1, stored, 0, 1)[0] == ChunkMissingError.code
    assert all(is_whole(store, 1, chunk, length) for chunk in range(stored))
    filler = small_disk / "filler"
    assert put(store, 2, 0, length) == NoSpaceError.code
    store.drop([1])
    wait_until(lambda: store.stats()["allocated_bytes"] == 0)
    assert put(store, 2, 0, length) == OK
    filler.write_bytes(bytes(1000))
    store.close()
    again = open_store(small_disk / "t")
    assert is_whole(again, 2, 0, length)
    assert again.stats()["chunks"] == 1
    again.close()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["pwritev", "fallocate"])
def test_no_space_leaves_nothing_behind(
    store: _storage.ChunkStore, path: Path, call: str, error: int
) -> None:
    length = 20_000
    statuses = []
    for nth in range(1, 4):
        _storage.fault_set(call, nth, error)
        statuses.append(put(store, nth, 0, length))
        _storage.fault_set("*", 0, 0)
        if statuses[-1] != OK:
            assert store.lookup(nth, 0) is None
            assert put(store, nth, 0, length) == OK
    assert statuses[0] in (OK, NoSpaceError.code)
    assert store.stats()["stopped"] == 0
    store.close()
    again = open_store(path)
    assert all(is_whole(again, nth, 0, length) for nth in range(1, 4))
    assert again.stats()["allocated_bytes"] == 3 * 20_480
    again.close()


def test_a_refused_entry_is_off_the_disk_before_its_slot_is_free(
    store: _storage.ChunkStore,
) -> None:
    assert put(store, 1, 0, 4096) == OK
    _storage.journal_start()
    _storage.fault_set("pwritev", 3, errno.ENOSPC)  # bytes, CRCs, then the entry
    assert put(store, 1, 1, 4096) == NoSpaceError.code
    _storage.fault_set("*", 0, 0)
    journal, at, kinds = _storage.journal_take(), 0, []
    while at < len(journal):
        kinds.append(journal[at])
        written = kinds[-1] == JOURNAL_WRITE
        at += 24 + (int.from_bytes(journal[at + 16 : at + 24], "little") if written else 0)
    assert kinds[4:7] == [JOURNAL_WRITE, JOURNAL_SYNC, JOURNAL_PUNCH]


@pytest.mark.parametrize(("call", "error"), [("pwritev", errno.EIO), ("fdatasync", errno.EIO)])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_disk_error_stops_the_target(
    store: _storage.ChunkStore, path: Path, call: str, error: int, nth: int
) -> None:
    assert put(store, 1, 0, 5000) == OK
    _storage.fault_set(call, nth, error)
    assert put(store, 2, 0, 5000) == TargetStoppedError.code
    _storage.fault_set("*", 0, 0)
    assert store.stats()["stopped"] == 1
    assert put(store, 3, 0, 5000) == TargetStoppedError.code
    assert store.read(1, 0, 0, 1)[0] == TargetStoppedError.code
    with pytest.raises(OSError, match="Input/output"):
        store.drop([1])
    store.close()
    block = _storage.ChunkStore.read_superblock(str(path))
    assert block is not None and not block["clean"]
    again = open_store(path)
    assert is_whole(again, 1, 0, 5000)
    assert again.lookup(2, 0) is None or is_whole(again, 2, 0, 5000)
    assert again.lookup(3, 0) is None
    assert again.stats()["damaged_entries"] == 0
    again.close()


def test_a_failed_sync_is_not_tried_again(store: _storage.ChunkStore) -> None:
    _storage.fault_set("fdatasync", 1, errno.EIO)
    assert put(store, 1, 0, 5000) == TargetStoppedError.code
    used = _storage.fault_counts()["fdatasync"]
    assert put(store, 1, 0, 5000) == TargetStoppedError.code
    store.close()
    assert _storage.fault_counts()["fdatasync"] == used == 1


@pytest.mark.parametrize(("call", "error"), [("pwritev", errno.EIO), ("fdatasync", errno.ENOSPC)])
def test_a_drop_that_fails_stops_the_target(
    store: _storage.ChunkStore, path: Path, call: str, error: int
) -> None:
    assert put(store, 1, 0, 5000) == OK
    assert put(store, 2, 0, 5000) == OK
    _storage.fault_set(call, 1, error)
    with pytest.raises(OSError, match="Input/output"):
        store.drop([1])
    _storage.fault_set("*", 0, 0)
    assert store.stats()["stopped"] == 1
    store.close()
    again = open_store(path)
    assert is_whole(again, 2, 0, 5000)
    assert again.lookup(1, 0) is None or is_whole(again, 1, 0, 5000)
    again.close()


def test_an_error_of_one_read_fails_that_read(store: _storage.ChunkStore) -> None:
    assert put(store, 1, 0, 5000) == OK
    for nth in (1, 2):
        _storage.fault_set("pread", nth, errno.EIO)
        assert store.read(1, 0, 0, 5000)[0] == StorageIOError.code
    _storage.fault_set("pread", 1, errno.EINTR)
    assert is_whole(store, 1, 0, 5000)
    assert store.stats()["stopped"] == 0


def test_memory_that_runs_out_refuses_one_write(store: _storage.ChunkStore) -> None:
    _storage.fault_set("alloc", 1, errno.ENOMEM)
    assert put(store, 1, 0, 10) in (OK, BusyError.code)
    _storage.fault_set("*", 0, 0)
    assert put(store, 1, 0, 10) == OK
    assert is_whole(store, 1, 0, 10)


# --- space ----------------------------------------------------------------------------------------


def test_many_small_chunks_take_little_more_than_their_bytes(
    store: _storage.ChunkStore, path: Path
) -> None:
    count, per_blob = 20_000, 2_500
    crcs = bytes(4)

    def write(blob: int) -> None:
        data = content(blob, 0, BLOCK_BYTES)
        for chunk in range(per_blob):
            assert store.put(blob, chunk, data, crcs) == OK

    threads = [threading.Thread(target=write, args=(b,)) for b in range(count // per_blob)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.stats()["chunks"] == count
    assert disk_bytes(path) <= 1.15 * count * BLOCK_BYTES


def test_a_small_store_is_small(store: _storage.ChunkStore, path: Path) -> None:
    for chunk, length in enumerate((1, 10_000, 100_000)):
        assert put(store, 1, chunk, length) == OK
    assert disk_bytes(path) < 400_000
