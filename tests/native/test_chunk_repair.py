"""What finds and mends damage in a chunk store: keys, verify, put_many, replace, on real files."""

from __future__ import annotations

import random
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ffs import _storage
from ffs._reader import block_crcs, crc32c
from ffs.errors import (
    OK,
    ChecksumError,
    ChunkConflictError,
    ChunkMissingError,
    StorageIOError,
    TargetStoppedError,
)
from ffs.types import BLOCK_BYTES

CLUSTER = bytes(range(16))
KEY = struct.Struct("<QIIII")
MIB = 1 << 20
NEVER = 1 << 30
POOL = random.Random(2).randbytes(3 * MIB)


def open_store(path: Path) -> _storage.ChunkStore:
    return _storage.ChunkStore(
        str(path), cluster_id=CLUSTER, target_id=3, create=True, drop_delay_ms=0
    )


@pytest.fixture
def path(quick_path: Path) -> Path:
    return quick_path / "target"


@pytest.fixture
def store(path: Path) -> Iterator[_storage.ChunkStore]:
    opened = open_store(path)
    yield opened
    _storage.fault_set("*", 0, 0)
    opened.close()


def content(blob: int, chunk: int, length: int) -> tuple[bytes, bytes]:
    start = (blob * 7919 + chunk * 104_729) % MIB
    data = POOL[start : start + length]
    return data, block_crcs(data, blob, chunk)


def put(store: _storage.ChunkStore, blob: int, chunk: int, length: int) -> None:
    assert store.put(blob, chunk, *content(blob, chunk, length)) == OK


def is_whole(store: _storage.ChunkStore, blob: int, chunk: int, length: int) -> bool:
    data, crcs = content(blob, chunk, length)
    return store.read(blob, chunk, 0, length) == (OK, data, crcs)


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 7, 500])
def test_keys_page_in_order_of_names(store: _storage.ChunkStore, limit: int) -> None:
    names = [(blob, chunk) for blob in (1, 2, 3, 1 << 63) for chunk in (0, 5, (1 << 32) - 1)]
    for blob, chunk in random.Random(4).sample(names, len(names)):
        put(store, blob, chunk, 10 + chunk % 5)
    found: list[tuple[int, int]] = []
    after = (0, 0)
    while page := store.keys(*after, limit):
        for blob, chunk, length, digest, zero in KEY.iter_unpack(page):
            assert (length, digest) == store.lookup(blob, chunk)
            assert zero == 0
            found.append((blob, chunk))
        assert len(page) <= limit * KEY.size
        after = found[-1]
    assert found == sorted(names)


def test_keys_of_many_chunks_are_the_first_ones(store: _storage.ChunkStore) -> None:
    rows = [(blob, chunk, 0, 1) for blob in range(1, 101) for chunk in range(10)]
    assert set(store.put_many(rows, b"x", bytes(4 * len(rows)))) == {OK}
    page = [key[:2] for key in KEY.iter_unpack(store.keys(40, 4, 13))]
    assert page == [row[:2] for row in rows if row[:2] > (40, 4)][:13]


@pytest.mark.parametrize("limit", [0, -1, (1 << 20) + 1])
def test_keys_are_bounded(store: _storage.ChunkStore, limit: int) -> None:
    with pytest.raises(ValueError, match="limit"):
        store.keys(0, 0, limit)


# --- put_many -------------------------------------------------------------------------------------


def test_many_chunks_share_a_commit(store: _storage.ChunkStore) -> None:
    put(store, 1, 0, 4096)  # makes the class's files
    rows, data, crcs = [], b"", b""
    for chunk in range(1, 9):
        piece, piece_crcs = content(1, chunk, 4096)
        rows.append((1, chunk, len(data), len(piece)))
        data, crcs = data + piece, crcs + piece_crcs
    _storage.fault_set("fdatasync", NEVER, 5)
    assert store.put_many(rows, data, crcs) == [OK] * 8
    assert _storage.fault_counts()["fdatasync"] == 3
    assert all(is_whole(store, 1, chunk, 4096) for chunk in range(9))


def test_each_of_many_has_its_own_status(store: _storage.ChunkStore) -> None:
    put(store, 1, 0, 100)
    data, crcs = content(1, 0, 100)
    statuses = store.put_many([(1, 0, 0, 100), (1, 0, 1, 50), (2, 0, 5, 9)], data, crcs + bytes(8))
    assert statuses == [OK, ChunkConflictError.code, OK]
    assert store.put_many([], b"", b"") == []


@pytest.mark.parametrize(
    ("rows", "crcs"),
    [
        ([(1, 0, 0, 0)], bytes(4)),
        ([(1, 0, -1, 5)], bytes(4)),
        ([(1, 0, 96, 5)], bytes(4)),
        ([(1, 0, 0, 5)], b""),
        ([(1, 0, 0, 5)], bytes(8)),
        ([(1, 0, 0, 5)] * 1001, bytes(4004)),
    ],
)
def test_wrong_rows_store_nothing(
    store: _storage.ChunkStore, rows: list[tuple[int, int, int, int]], crcs: bytes
) -> None:
    with pytest.raises(ValueError, match=r"."):
        store.put_many([(9, 9, 0, 5), *rows][-1001:], bytes(100), bytes(4) + crcs)
    assert store.stats()["chunks"] == 0


# --- verify ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 4096, 9000, MIB, 2 * MIB + 5])
@pytest.mark.parametrize("place", ["memory", "disk"])
def test_any_flipped_byte_that_counts_is_found(
    quick_path: Path, tmp_path: Path, length: int, place: str
) -> None:
    path = (quick_path if place == "memory" else tmp_path) / "target"
    store = open_store(path)
    put(store, 6, 2, length)
    assert store.verify(6, 2) == OK
    [data_file], [crc_file], [index_file] = (
        list(path.glob(f"*.{kind}")) for kind in ("data", "crc", "index")
    )
    crc_bytes = 4 * -(-length // BLOCK_BYTES)
    rng = random.Random(length)
    flips = [(data_file, offset) for offset in (0, length - 1, rng.randrange(length))]
    flips += [(crc_file, offset) for offset in (0, crc_bytes - 1, rng.randrange(crc_bytes))]
    flips += [(index_file, offset) for offset in (0, 20, 44, 63)]
    for file, offset in flips:
        flip(file, offset)
        assert store.verify(6, 2) == ChecksumError.code, (file, offset)
        flip(file, offset)
        assert store.verify(6, 2) == OK, (file, offset)
    store.close()


def test_what_is_not_here_or_cannot_be_read(store: _storage.ChunkStore) -> None:
    put(store, 1, 0, 9000)
    assert store.verify(1, 1) == ChunkMissingError.code
    for nth in (1, 2, 3):
        _storage.fault_set("pread", nth, 5)
        assert store.verify(1, 0) == StorageIOError.code
    assert store.verify(1, 0) == OK
    assert not store.stats()["stopped"]


def test_without_direct_reads_the_page_cache_is_emptied_first(tmp_path: Path) -> None:
    """The disk's bytes are judged where the file system refuses direct reads in the middle."""
    store = open_store(tmp_path / "target")
    put(store, 1, 0, 9000)
    _storage.fault_set("fadvise", NEVER, 5)
    assert store.verify(1, 0) == OK
    directly = _storage.fault_counts()["fadvise"]
    _storage.fault_set("pread", 3, 22)  # EINVAL for the first direct read
    assert store.verify(1, 0) == (OK if directly == 2 else StorageIOError.code)
    _storage.fault_set("*", 0, 0)
    store.close()


# --- replace --------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [10, 9000, MIB])
def test_a_damaged_chunk_is_replaced(path: Path, length: int) -> None:
    store = open_store(path)
    put(store, 1, 0, length)
    put(store, 1, 1, length)
    before = store.stats()
    [data_file] = path.glob("*.data")
    flip(data_file, length // 2)
    assert store.verify(1, 0) == ChecksumError.code
    assert store.replace(1, 0, *content(1, 0, length)) == OK
    assert store.verify(1, 0) == OK
    assert is_whole(store, 1, 0, length)
    store.close()
    store = open_store(path)
    assert is_whole(store, 1, 0, length)
    assert is_whole(store, 1, 1, length)
    after = store.stats()
    for name in ("chunks", "stored_bytes", "allocated_bytes", "damaged_entries"):
        assert after[name] == before[name], name
    store.close()


def test_a_replacement_may_have_another_length(store: _storage.ChunkStore) -> None:
    put(store, 1, 0, 100)
    assert store.replace(1, 0, *content(1, 0, 9000)) == OK
    assert is_whole(store, 1, 0, 9000)
    assert store.replace(1, 0, *content(1, 0, 4096)) == OK
    assert is_whole(store, 1, 0, 4096)
    assert store.chunks(1) == [(0, 4096)]
    assert store.stats()["stored_bytes"] == 4096


def test_a_missing_chunk_is_put(store: _storage.ChunkStore) -> None:
    assert store.replace(1, 0, *content(1, 0, 100)) == OK
    assert is_whole(store, 1, 0, 100)


def test_readers_never_miss_a_chunk_that_is_being_replaced(store: _storage.ChunkStore) -> None:
    put(store, 1, 0, 9000)
    stop, missed = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            if not is_whole(store, 1, 0, 9000):
                missed.append(store.read(1, 0, 0, 9000)[0])

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(100):
        assert store.replace(1, 0, *content(1, 0, 9000)) == OK
    stop.set()
    reader.join()
    assert missed == []
    assert store.drop([1]) == 1
    assert store.stats()["chunks"] == 0


def _fail_write_of_zeros(path: Path, crash: Callable[[_storage.ChunkStore], None]) -> None:
    store = open_store(path)
    put(store, 1, 0, 4096)
    data, crcs = content(1, 7, 4096)  # other bytes, to tell which one is found
    for nth in range(1, 40):
        _storage.fault_set("pwritev", nth, 5)
        if store.replace(1, 0, data, crcs) == OK:
            raise AssertionError("the entry of the old chunk was not zeroed")
        _storage.fault_set("*", 0, 0)
        crash(store)
        again = open_store(path)
        if again.lookup(1, 0) == (4096, crc32c(crcs)):
            assert again.read(1, 0, 0, 4096) == (OK, data, crcs)
            assert again.stats()["allocated_bytes"] == 4096
            assert again.stats()["damaged_entries"] == 0
            again.close()
            return
        assert is_whole(again, 1, 0, 4096)
        store = again


def test_of_two_entries_that_a_crash_left_the_newer_holds(path: Path) -> None:
    """Every write of a replacement fails in turn: old and whole, and in the end new and whole."""
    _fail_write_of_zeros(path, lambda store: store.close())


def test_a_target_that_stopped_replaces_nothing(store: _storage.ChunkStore) -> None:
    put(store, 1, 0, 100)
    _storage.fault_set("fdatasync", 1, 5)
    assert store.replace(1, 0, *content(1, 0, 100)) == TargetStoppedError.code
    _storage.fault_set("*", 0, 0)
    assert store.replace(1, 0, *content(1, 0, 100)) == TargetStoppedError.code
    assert store.verify(1, 0) == TargetStoppedError.code
