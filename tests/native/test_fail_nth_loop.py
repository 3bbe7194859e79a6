"""The data loop with every use of every system call and every allocation failing in turn.

Promised: each request is answered rightly, with a typed status, or its connection is closed; the
loop goes on, and everything that was acknowledged is in the store. Nothing is leaked: neither
descriptors, threads, buffers, connections nor pins.
"""

from __future__ import annotations

import random
import select
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from ffs import _reader, _storage
from ffs.errors import (
    OK,
    BusyError,
    ChunkMissingError,
    NoSpaceError,
    StorageIOError,
    TargetStoppedError,
)
from ffs.wire import frame as wire
from tests.native.data_loop import CLUSTER, TARGET, Event, Peer, pack, read_frame, write_frame
from tests.native.fail_nth import (
    WAIT_S,
    WAYS,
    Fault,
    Ledger,
    faults,
    injected,
    uses_of,
    wait_until,
)

STORED = {(1, 0): 10_000, (1, 1): 200_000}
"""What is in the store before: a chunk that is sent from memory and one that goes by sendfile."""
WRITTEN = {(6, 0): 1 << 20, (5, 0): 9_000}
"""One chunk that does not fit the socket and is written back early, and one that does. It has to
wait until the other one has given its buffer back, while its first bytes are here already."""
FAILURES = {kind.code for kind in (BusyError, NoSpaceError, StorageIOError, TargetStoppedError)}
CALLS = tuple(call for call in WAYS if call in _storage.fault_counts())


@pytest.fixture(autouse=True)
def _no_fault_left() -> Iterator[None]:
    yield
    _storage.fault_set("*", 0, 0)
    _storage.residency_force("cachestat")


@cache
def content(blob: int, chunk: int) -> bytes:
    length = (STORED | WRITTEN)[blob, chunk]
    return random.Random(blob << 8 | chunk).randbytes(length)


def open_store(path: Path) -> _storage.ChunkStore:
    return _storage.ChunkStore(
        str(path), cluster_id=CLUSTER, target_id=TARGET, create=True, drop_delay_ms=0
    )


def put(store: _storage.ChunkStore, blob: int, chunk: int) -> int:
    data = content(blob, chunk)
    return store.put(blob, chunk, data, _reader.block_crcs(data, blob, chunk))


@dataclass
class Talk:
    """A loop, its clients one after the other, and Python's part of their writes."""

    loop: _storage.DataLoop
    acknowledged: set[tuple[int, int]] = field(default_factory=set)

    def pump(self) -> None:
        """Take what the loop tells, and decide: every write is persisted, then answered."""
        try:
            events: list[Event] = self.loop.poll()
        except MemoryError:
            return  # nothing was lost: the next call has the events
        for event in events:
            if event[0] == _storage.EVENT_WRITE:
                self.persist(event[1])
            elif event[0] == _storage.EVENT_PERSISTED:
                self.loop.ack(event[1], event[2])

    def persist(self, write_id: int) -> None:
        """Start it; without memory nothing has started (the daemon would end)."""
        try:
            self.loop.persist([write_id])
        except MemoryError:
            self.loop.persist([write_id])

    def receive(self, peer: Peer, count: int) -> bytes:
        """Exactly so many bytes; ConnectionError once the loop has closed."""
        got = bytearray()
        give_up = time.monotonic() + WAIT_S
        while len(got) < count:
            assert time.monotonic() < give_up, "neither an answer nor an end"
            ready, _, _ = select.select([peer.socket.fileno(), self.loop.event_fd()], [], [], 1)
            self.pump()
            if peer.socket.fileno() in ready:
                piece = peer.socket.recv(count - len(got))
                if not piece:
                    raise ConnectionResetError
                got += piece
        return bytes(got)

    def answer(self, peer: Peer) -> tuple[int, list[tuple[int, int, int]], bytes, int]:
        """Status, entries, payload and request id of the next frame."""
        header = _reader.unpack_header(self.receive(peer, 64))
        body = self.receive(peer, header["body_bytes"])
        payload = self.receive(peer, header["payload_bytes"])
        split = header["count"] * wire.REPLY_ENTRY.size
        entries = list(wire.REPLY_ENTRY.iter_unpack(body[:split]))
        return header["status"], entries, payload, header["request_id"]

    def read(self, peer: Peer) -> None:
        """Ask for what is stored and for a chunk that is not."""
        wanted = [*STORED, (9, 9)]
        ranges = [(blob, chunk, 0, STORED.get((blob, chunk), 1)) for blob, chunk in wanted]
        peer.send(read_frame(*ranges, request_id=1))
        left = set(range(len(wanted)))
        while left:
            status, entries, payload, request_id = self.answer(peer)
            assert (status, request_id) == (OK, 1)
            at = 0
            for index, code, size in entries:
                left.remove(index)
                self.check_range(wanted[index], code, payload[at : at + size])
                at += size

    def check_range(self, name: tuple[int, int], code: int, data: bytes) -> None:
        if name not in STORED:
            assert code in FAILURES | {ChunkMissingError.code}
        elif code == OK:
            assert data == content(*name)
        else:
            assert code in FAILURES

    def write(self, peer: Peer) -> None:
        """Write what is not stored yet, one chunk behind the other, and ping."""
        names = list(WRITTEN)
        for number, (blob, chunk) in enumerate(names):
            peer.send(write_frame(blob, chunk, content(blob, chunk), request_id=number))
        peer.send(pack(wire.Op.PING, len(names)))
        left = set(range(len(names) + 1))
        while left:
            status, entries, _, request_id = self.answer(peer)
            left.remove(request_id)
            assert entries == [] and status in FAILURES | {OK}
            if status == OK and request_id < len(names):
                self.acknowledged.add(names[request_id])

    def run(self) -> None:
        """One client reads, another one writes and reads."""
        for steps in ((self.read,), (self.write, self.read)):
            try:
                peer = Peer(self.loop)
            except (OSError, MemoryError):
                continue
            try:
                for step in steps:
                    step(peer)
            except ConnectionError:
                pass
            finally:
                peer.socket.close()

    def settle(self) -> None:
        """Wait until the loop has noticed that its clients are gone and gives everything back."""

        def idle() -> bool:
            self.pump()
            stats = self.loop.stats()
            return stats["connections"] == stats["buffer_bytes"] == 0

        wait_until(idle, self.loop.stats())


def conversation(store: _storage.ChunkStore) -> set[tuple[int, int]]:
    """Serve a store and talk to it; what was acknowledged. The fault may hit anything in here."""
    try:
        loop = _storage.DataLoop({TARGET: store}, loops=1, write_buffer_bytes=1 << 20)
    except (OSError, MemoryError):
        return set()
    talk = Talk(loop)
    try:
        talk.run()
        talk.settle()
    finally:
        loop.close()
    return talk.acknowledged


def check_afterwards(
    path: Path, store: _storage.ChunkStore, acknowledged: set[tuple[int, int]], what: Fault
) -> None:
    """With no fault armed, everybody is served again, if need be after opening the target again."""
    if store.stats()["stopped"]:
        store.close()
        store = open_store(path)
    try:
        for name in WRITTEN:
            there = store.lookup(*name) is not None
            assert there or name not in acknowledged, (what, name)
        again = conversation(store)
        assert again == set(WRITTEN), what
        for name in STORED | WRITTEN:
            assert store.read(*name, 0, len(content(*name)))[1] == content(*name), (what, name)
        assert store.drop([1, 5, 6]) == len(STORED | WRITTEN), what
    finally:
        store.close()
    block = _storage.ChunkStore.read_superblock(str(path))
    assert block is not None and block["clean"], (what, "something is still pinned")


@pytest.mark.parametrize(
    ("call", "means"),
    [(call, "cachestat") for call in CALLS]
    + [("mincore", "mincore"), ("mmap", "mincore"), ("preadv2", "none"), ("pread", "none")],
)
def test_a_loop_survives_the_nth_failure(quick_path: Path, call: str, means: str) -> None:
    path = quick_path / "t"
    _storage.residency_force(means)
    store = filled(path)
    uses = uses_of(_storage, lambda: conversation(store))[call]
    store.close()
    shutil.rmtree(path)
    ledger = Ledger()
    for fault in faults(call, uses):
        store = filled(path)
        with injected(_storage, fault):
            acknowledged = conversation(store)
        check_afterwards(path, store, acknowledged, fault)
        ledger.settle(fault)
        shutil.rmtree(path)


def filled(path: Path) -> _storage.ChunkStore:
    """A new store with what is STORED."""
    store = open_store(path)
    for name in STORED:
        assert put(store, *name) == OK
    return store
