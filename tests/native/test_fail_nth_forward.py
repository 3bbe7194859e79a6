"""Forwarding and listing with every use of every system call and every allocation failing in turn.

Promised: a client's write ends with a typed status or its connection is closed; what was
acknowledged is in both stores; a page is complete or refused. Nothing is leaked: neither
descriptors, threads, buffers, connections, peers nor pins.
"""

from __future__ import annotations

import random
import shutil
import socket
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
    ConnectionLostError,
    NoSpaceError,
    StorageIOError,
    TargetStoppedError,
)
from ffs.wire import frame as wire
from tests.native.data_loop import CLUSTER, Peer, pack, read_frame, write_frame
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

HEAD, TAIL = 3, 4
WRITTEN = {(5, 0): 9_000, (5, 1): 300_000}
"""One chunk that fits the socket and one that does not."""
FAILURES = {
    kind.code
    for kind in (
        BusyError,
        ConnectionLostError,
        NoSpaceError,
        StorageIOError,
        TargetStoppedError,
    )
}
CALLS = ("alloc", "recvmsg", "sendmsg", "epoll_ctl", "epoll_wait", "fcntl", "setsockopt", "close")


@pytest.fixture(autouse=True)
def _no_fault_left() -> Iterator[None]:
    yield
    _storage.fault_set("*", 0, 0)


@cache
def content(blob: int, chunk: int) -> bytes:
    return random.Random(blob << 8 | chunk).randbytes(WRITTEN[blob, chunk])


def open_store(path: Path, target: int) -> _storage.ChunkStore:
    return _storage.ChunkStore(
        str(path), cluster_id=CLUSTER, target_id=target, create=True, drop_delay_ms=0
    )


@dataclass
class Chain:
    """Two loops, joined by a peer, and Python's part of both."""

    head: _storage.DataLoop
    tail: _storage.DataLoop
    legs: dict[int, list[int]] = field(default_factory=dict)
    peer_id: int | None = None
    acknowledged: set[tuple[int, int]] = field(default_factory=set)

    def connect(self) -> None:
        """Have the head's peer lead to the tail, unless something fails."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            try:
                self.tail.adopt(theirs.fileno())
                theirs.detach()
                self.peer_id = self.head.add_peer(ours.fileno())
                ours.detach()
            except (OSError, MemoryError):
                return

    def pump(self) -> None:
        for loop in (self.head, self.tail):
            try:
                events = loop.poll()
            except MemoryError:
                continue
            for event in events:
                self.decide(loop, event)

    def decide(self, loop: _storage.DataLoop, event: tuple[int, ...]) -> None:
        kind, write_id = event[:2]
        if kind == _storage.EVENT_WRITE:
            self.start(loop, write_id)
        elif kind in (_storage.EVENT_PERSISTED, _storage.EVENT_FORWARDED):
            if loop is self.tail:
                loop.ack(write_id, event[2])
                return
            legs = self.legs[write_id]
            legs.append(event[2])
            if len(legs) == 2:
                loop.ack(write_id, max(self.legs.pop(write_id)))
        elif kind == _storage.EVENT_PEER_CLOSED:
            assert event[1] == self.peer_id
            self.peer_id = None

    def start(self, loop: _storage.DataLoop, write_id: int) -> None:
        """Both legs; without memory for an id nothing has started (the daemon would end)."""
        for _ in range(2):
            try:
                loop.persist([write_id])
                break
            except MemoryError:
                continue
        if loop is self.tail:
            return
        self.legs[write_id] = []
        try:
            if self.peer_id is None:
                raise MemoryError
            loop.forward([write_id], self.peer_id, TAIL)
        except MemoryError:
            self.legs[write_id].append(ConnectionLostError.code)

    def receive(self, peer: Peer, count: int) -> bytes:
        """Exactly so many bytes; ConnectionError once the loop has closed."""
        got = bytearray()
        give_up = time.monotonic() + WAIT_S
        peer.socket.settimeout(0.001)
        while len(got) < count:
            assert time.monotonic() < give_up, "neither an answer nor an end"
            self.pump()
            try:
                piece = peer.socket.recv(count - len(got))
            except TimeoutError:
                continue
            if not piece:
                raise ConnectionResetError
            got += piece
        return bytes(got)

    def write(self, peer: Peer) -> None:
        names = list(WRITTEN)
        peer.socket.settimeout(20)
        for number, name in enumerate(names):
            peer.send(write_frame(*name, content(*name), target=HEAD, request_id=number))
        for _ in names:
            header = _reader.unpack_header(self.receive(peer, 64))
            assert header["status"] in FAILURES | {OK}
            if header["status"] == OK:
                self.acknowledged.add(names[header["request_id"]])

    def ask(self, peer: Peer) -> None:
        """Ask for all chunks, then ping and read one."""
        body = wire.LIST_DESCRIPTOR.pack(0, 0, HEAD, 10, 0)
        peer.send(pack(wire.Op.LIST, 9, count=1, body_bytes=len(body)) + body)
        header = _reader.unpack_header(self.receive(peer, 64))
        entries = self.receive(peer, header["payload_bytes"])
        assert header["status"] in FAILURES | {OK}
        if header["status"] == OK:
            listed = {entry[:2] for entry in wire.LIST_ENTRY.iter_unpack(entries)}
            assert self.acknowledged <= listed <= WRITTEN.keys()
        suspect = read_frame((5, 0, 0, 0, HEAD))
        peer.send(pack(wire.Op.SUSPECT, 10, count=1, body_bytes=24) + suspect[64:])
        assert _reader.unpack_header(self.receive(peer, 64))["status"] in FAILURES | {OK}

    def run(self) -> None:
        self.connect()
        try:
            peer = Peer(self.head)
        except (OSError, MemoryError):
            return
        try:
            self.write(peer)
            self.ask(peer)
        except ConnectionError:
            pass
        finally:
            peer.socket.close()

    def settle(self) -> None:
        """Close the peer; then everything comes to its end and is given back."""
        if self.peer_id is not None:
            self.head.close_peer(self.peer_id)

        def idle() -> bool:
            self.pump()
            stats = [loop.stats() for loop in (self.head, self.tail)]
            return self.peer_id is None and all(
                s["connections"] == s["buffer_bytes"] == 0 for s in stats
            )

        wait_until(idle, self.head.stats())


def conversation(head: _storage.ChunkStore, tail: _storage.ChunkStore) -> set[tuple[int, int]]:
    """Write through both; what was acknowledged. The fault may hit anything in here."""
    loops: list[_storage.DataLoop] = []
    try:
        for target, store in ((HEAD, head), (TAIL, tail)):
            loops.append(_storage.DataLoop({target: store}, loops=1))
        chain = Chain(loops[0], loops[1])
        chain.run()
        chain.settle()
        return chain.acknowledged
    except (OSError, MemoryError):
        return set()
    finally:
        for loop in loops:
            loop.close()


def open_both(path: Path) -> tuple[_storage.ChunkStore, _storage.ChunkStore]:
    path.mkdir(exist_ok=True)
    return open_store(path / "head", HEAD), open_store(path / "tail", TAIL)


@pytest.mark.parametrize("call", [call for call in CALLS if call in WAYS])
def test_a_chain_survives_the_nth_failure(quick_path: Path, call: str) -> None:
    path = quick_path / "chain"
    stores = open_both(path)
    uses = uses_of(_storage, lambda: conversation(*stores))[call]
    for store in stores:
        store.close()
    shutil.rmtree(path)
    ledger = Ledger()
    for fault in faults(call, uses):
        stores = open_both(path)
        with injected(_storage, fault):
            acknowledged = conversation(*stores)
        check_afterwards(path, stores, acknowledged, fault)
        ledger.settle(fault)
        shutil.rmtree(path)


def check_afterwards(
    path: Path,
    stores: tuple[_storage.ChunkStore, _storage.ChunkStore],
    acknowledged: set[tuple[int, int]],
    what: Fault,
) -> None:
    """What was acknowledged is on both; with no fault armed all of it gets there."""
    if any(store.stats()["stopped"] for store in stores):
        for store in stores:
            store.close()
        stores = open_both(path)
    try:
        for store in stores:
            for name in acknowledged:
                assert store.lookup(*name) is not None, (what, name)
        assert conversation(*stores) == set(WRITTEN), what
        for store in stores:
            for name in WRITTEN:
                assert store.read(*name, 0, WRITTEN[name])[1] == content(*name), (what, name)
    finally:
        for store in stores:
            store.close()
    for place in ("head", "tail"):
        block = _storage.ChunkStore.read_superblock(str(path / place))
        assert block is not None and block["clean"], (what, "something is still pinned")
