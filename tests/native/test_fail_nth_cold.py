"""Reading what is not in memory, with every use of every system call failing in turn.

Promised: each range is answered with its bytes or with a typed status of its own, or its connection
is closed; afterwards everybody is served again, and neither memory, descriptors, threads nor pins
are left.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from ffs import _reader, _storage
from ffs.errors import OK, BusyError, StorageIOError
from tests.native.data_loop import CLUSTER, MIB, TARGET, Peer, evict_below, read_frame
from tests.native.fail_nth import WAYS, Ledger, faults, injected, uses_of

LENGTHS = (10_000, 100_000, 5 * MIB)
"""One that shares a frame, one that does not, and one that is sent while it is read."""
FAILURES = {BusyError.code, StorageIOError.code}
CALLS = {
    "ring": ("io_uring_setup", "io_uring_register", "io_uring_enter", "io_uring_read"),
    "threads": ("pread", "thread"),
}
COMMON = ("alloc", "mmap", "epoll_ctl", "eventfd", "cachestat", "preadv2")


@pytest.fixture(autouse=True)
def _no_fault_left() -> Iterator[None]:
    yield
    _storage.fault_set("*", 0, 0)


def content(blob: int) -> bytes:
    return random.Random(blob).randbytes(LENGTHS[blob - 1])


def filled(path: Path) -> _storage.ChunkStore:
    """A store with a blob of each length."""
    store = _storage.ChunkStore(
        str(path), cluster_id=CLUSTER, target_id=TARGET, create=True, drop_delay_ms=0
    )
    for blob in range(1, len(LENGTHS) + 1):
        data = content(blob)
        assert store.put(blob, 0, data, _reader.block_crcs(data, blob, 0)) == OK
    return store


def read_cold(store: _storage.ChunkStore, path: Path, reads: str) -> set[int]:
    """Ask for everything once; the blobs whose bytes came."""
    evict_below(path)
    try:
        loop = _storage.DataLoop(
            {TARGET: store}, loops=1, io="direct", reads=reads, read_buffer_bytes=4 * MIB
        )
    except (OSError, MemoryError):
        return set()
    came: set[int] = set()
    try:
        peer = Peer(loop)
    except (OSError, MemoryError):
        loop.close()
        return set()
    try:
        peer.send(read_frame(*[(blob, 0, 0, length) for blob, length in enumerate(LENGTHS, 1)]))
        for index, (status, data) in peer.answers(len(LENGTHS)).items():
            assert status in FAILURES | {OK}
            if status == OK:
                assert data == content(index + 1)
                came.add(index + 1)
    except ConnectionError:
        pass
    finally:
        peer.socket.close()
        loop.close()
    return came


@pytest.mark.parametrize(
    ("reads", "call"), [(reads, call) for reads in CALLS for call in (*CALLS[reads], *COMMON)]
)
def test_cold_reads_survive_the_nth_failure(tmp_path: Path, reads: str, call: str) -> None:
    path = tmp_path / "t"
    store = filled(path)
    everything = set(range(1, len(LENGTHS) + 1))
    way = "auto" if reads == "ring" else reads
    uses = uses_of(_storage, lambda: read_cold(store, path, way))[call]
    assert uses > 0
    ledger = Ledger()
    for fault in faults(call, uses):
        with injected(_storage, fault):
            read_cold(store, path, way)
        ledger.settle(fault)
    assert read_cold(store, path, way) == everything
    assert store.drop(sorted(everything)) == len(everything)
    store.close()
    block = _storage.ChunkStore.read_superblock(str(path))
    assert block is not None and block["clean"], "something is still pinned"
    assert call in WAYS
