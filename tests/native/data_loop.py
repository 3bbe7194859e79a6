"""A data loop over socket pairs, for tests: frames from ffs/wire/frame.py, the client's end."""

from __future__ import annotations

import os
import random
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ffs import _reader, _storage
from ffs.errors import OK
from ffs.types import BLOCK_BYTES
from ffs.wire import frame as wire

CLUSTER = bytes(range(16))
TARGET = 3
KIB, MIB = 1 << 10, 1 << 20
REPLY = wire.REPLY_BIT
Event = tuple[int, ...]


def pack(op: int, request_id: int = 1, **fields: int) -> bytes:
    """A header from the Python definition; its CRC is the last field."""
    values = {"blob": 0, "count": 0, "body_bytes": 0, "payload_bytes": 0, "flags": 0} | fields
    body = wire.HEADER.pack(
        *(wire.MAGIC, wire.VERSION, op, values.get("status", 0), request_id, values["blob"]),
        *(values.get("trace_id", 0), values.get("deadline_ms", 0)),
        *(values.get("chain_version", 0), 0, values.get("priority", 0)),
        *(values["flags"], values["count"]),
        *(values["body_bytes"], values["payload_bytes"], 0, 0),
    )
    return body[:60] + _reader.crc32c(body[:60]).to_bytes(4, "little")


def read_frame(*ranges: tuple[int, ...], request_id: int = 1, **fields: int) -> bytes:
    """A READ of (blob, chunk, offset, length[, target]) ranges."""
    body = b"".join(
        wire.READ_DESCRIPTOR.pack(r[0], r[1], r[4] if len(r) > 4 else TARGET, r[2], r[3])
        for r in ranges
    )
    header = pack(wire.Op.READ, request_id, count=len(ranges), body_bytes=len(body), **fields)
    return header + body


def write_frame(
    blob: int, chunk: int, data: bytes, *, target: int = TARGET, request_id: int = 1, hop: int = 0
) -> bytes:
    """A WRITE of one chunk, in chain 5 of version 6."""
    body = wire.WRITE_DESCRIPTOR.pack(chunk, target, 5, len(data))
    body += _reader.block_crcs(data, blob, chunk)
    fields = {"body_bytes": len(body), "payload_bytes": len(data), "chain_version": 6, "flags": hop}
    return pack(wire.Op.WRITE, request_id, blob=blob, count=1, **fields) + body + data


@dataclass(frozen=True)
class Reply:
    """A reply frame, taken apart."""

    op: int
    request_id: int
    status: int
    entries: list[tuple[int, int, int]]
    crcs: bytes
    payload: bytes


class Peer:
    """The client's end of a connection."""

    def __init__(self, loop: _storage.DataLoop, *, local: bool = False) -> None:
        self.socket, other = socket.socketpair()
        self.socket.settimeout(20)
        try:
            self.id = loop.adopt(other.fileno(), local=local)
        except OSError:
            self.socket.close()
            other.close()
            raise
        other.detach()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self, count: int) -> bytes:
        got = bytearray()
        while len(got) < count:
            piece = self.socket.recv(min(count - len(got), MIB))
            if not piece:
                raise ConnectionResetError
            got += piece
        return bytes(got)

    def reply(self) -> Reply:
        header = _reader.unpack_header(self.receive(64))
        body = self.receive(header["body_bytes"])
        payload = self.receive(header["payload_bytes"])
        split = header["count"] * wire.REPLY_ENTRY.size
        entries = list(wire.REPLY_ENTRY.iter_unpack(body[:split]))
        assert len(payload) == sum(entry[2] for entry in entries)
        request_id = header["request_id"]
        return Reply(header["op"], request_id, header["status"], entries, body[split:], payload)

    def reply_of(self, op: int) -> tuple[int, int, bytes]:
        """Request id, status and payload of the next frame, which answers such a request."""
        header = _reader.unpack_header(self.receive(64))
        assert (header["op"], header["count"], header["body_bytes"]) == (op | REPLY, 0, 0)
        return header["request_id"], header["status"], self.receive(header["payload_bytes"])

    def answers(self, count: int) -> dict[int, tuple[int, bytes]]:
        """Status and bytes of each of a request's descriptors, over as many frames as it takes."""
        found: dict[int, tuple[int, bytes]] = {}
        while len(found) < count:
            reply = self.reply()
            at = 0
            for index, status, size in reply.entries:
                assert index not in found
                found[index] = status, reply.payload[at : at + size]
                at += size
        return found

    def is_closed(self) -> bool:
        try:
            while self.socket.recv(MIB):
                pass
        except ConnectionResetError:
            pass
        return True


@dataclass
class Server:
    """A store and its loop, with the part of the daemon that decides about writes."""

    path: Path
    store: _storage.ChunkStore
    loop: _storage.DataLoop
    peers: list[Peer]
    events: list[Event] = field(default_factory=list)

    def peer(self, *, local: bool = False) -> Peer:
        """A new connection, closed when the test ends."""
        made = Peer(self.loop, local=local)
        self.peers.append(made)
        return made

    def wait(self, condition: Callable[[list[Event]], bool], seconds: float = 20) -> list[Event]:
        """Collect events until the condition holds for all of them so far."""
        deadline = time.monotonic() + seconds
        while not condition(self.events):
            left = deadline - time.monotonic()
            assert left > 0, f"waited in vain: {self.events}"
            select.select([self.loop.event_fd()], [], [], left)
            self.events += self.loop.poll()
        return self.events

    def wait_until(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        """Wait for what a loop's thread is about to do."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain: {self.loop.stats()}"
            time.sleep(0.001)

    def kind(self, kind: int, count: int = 1) -> list[Event]:
        """Wait for so many events of a kind."""
        events = self.wait(lambda found: sum(e[0] == kind for e in found) >= count)
        return [event for event in events if event[0] == kind]


@contextmanager
def serving(path: Path, *, target: int = TARGET, **options: Any) -> Iterator[Server]:
    """A fresh store below `path` and two loops that serve it."""
    path.mkdir(exist_ok=True)
    store = _storage.ChunkStore(
        str(path / "t"), cluster_id=CLUSTER, target_id=target, create=True, drop_delay_ms=0
    )
    loop = _storage.DataLoop({target: store}, **({"loops": 2} | options))
    made = Server(path / "t", store, loop, [])
    try:
        yield made
    finally:  # what a failed test leaves behind would fail another one
        _storage.fault_set("*", 0, 0)
        loop.close()
        store.close()
        for peer in made.peers:
            peer.socket.close()


def fill(server: Server, blob: int, chunk: int, length: int) -> bytes:
    data = random.Random(blob << 16 | chunk).randbytes(length)
    assert server.store.put(blob, chunk, data, _reader.block_crcs(data, blob, chunk)) == OK
    return data


def evict(server: Server) -> None:
    """Take what nobody has mapped out of the page cache: the next reader waits for the disk."""
    evict_below(server.path)


def evict_below(target: Path) -> None:
    """The same for a target's directory."""
    for path in (*target.glob("*.data"), *target.glob("*.crc")):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def check(answer: tuple[int, bytes], data: bytes, offset: int, length: int) -> None:
    """The bytes of a range, widened to blocks and clipped at the chunk's end."""
    start = offset - offset % BLOCK_BYTES
    end = min(len(data), -(-(offset + length) // BLOCK_BYTES) * BLOCK_BYTES)
    assert answer == (OK, data[start:end])
