"""A real peer on a real socket that speaks the data port's frames, honestly or not.

It stands where ffs._storage stands (client -> ffs._reader -> (wire) -> THIS) and takes its layout
from ffs/wire/frame.py alone. What it does with a request is a function, so that each test states
its lie: `honest` answers everything; `Frame` lets a test change any field of an answer.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from ffs import _reader
from ffs.types import BLOCK_BYTES
from ffs.wire import frame as wire

READ_OP = struct.Struct("<QQIIIIHHI")
WRITE_OP = struct.Struct("<QQIIIIIHH")
PENDING = _reader.STATUS_PENDING


@dataclass(frozen=True)
class Descriptor:
    """One READ descriptor as it arrived."""

    blob: int
    chunk: int
    target: int
    offset: int
    length: int


@dataclass(frozen=True)
class Request:
    """One request frame, taken apart."""

    op: int
    request_id: int
    blob: int
    trace_id: int
    deadline_ms: int
    chain_version: int
    priority: int
    flags: int
    descriptors: tuple[Descriptor, ...] = ()
    chunk: int = 0
    target: int = 0
    chain: int = 0
    crcs: bytes = b""
    payload: bytes = b""


@dataclass
class Frame:
    """One reply, every field of which a test may change before `encode`."""

    request_id: int
    op: int = wire.Op.READ | wire.REPLY_BIT
    status: int = 0
    entries: list[tuple[int, int, int]] = field(default_factory=list)
    crcs: bytes = b""
    payload: bytes = b""
    magic: int = wire.MAGIC
    version: int = wire.VERSION
    count: int | None = None
    body_bytes: int | None = None
    payload_bytes: int | None = None
    header_crc_xor: int = 0

    def encode(self) -> bytes:
        """The frame as bytes; counts and lengths are the true ones unless a test set others."""
        entries = b"".join(wire.REPLY_ENTRY.pack(*entry) for entry in self.entries)
        body = entries + self.crcs
        head = wire.HEADER.pack(
            self.magic,
            self.version,
            self.op,
            self.status,
            self.request_id,
            *(0, 0, 0, 0, 0, 0, 0),
            len(self.entries) if self.count is None else self.count,
            len(body) if self.body_bytes is None else self.body_bytes,
            len(self.payload) if self.payload_bytes is None else self.payload_bytes,
            0,
            0,
        )[:-4]
        crc = _reader.crc32c(head) ^ self.header_crc_xor
        return head + struct.pack("<I", crc) + body + self.payload


Behaviour = Callable[["Peer", Request], object]


class Peer:
    """One connection's server side: a thread that reads requests and lets `behaviour` answer.

    `connection` is the client's end, already in C's hands. Leaving the context closes both ends and
    waits for the thread; what the thread raised is raised again.
    """

    def __init__(
        self,
        behaviour: Behaviour,
        chunks: dict[tuple[int, int], bytes],
        *,
        tcp: bool = False,
        priority: int = 0,
    ) -> None:
        self.chunks = chunks
        self.requests: list[Request] = []
        self.error: BaseException | None = None
        self.released = threading.Event()
        """For behaviours that wait until the test lets them go on; set when the context is left."""
        self._behaviour = behaviour
        client, self.socket = _tcp_pair() if tcp else socket.socketpair()
        try:
            self.connection = _reader.Connection(client.fileno(), priority=priority)
        except OSError:
            client.close()
            self.socket.close()
            raise
        client.detach()
        self._thread = threading.Thread(target=self._run, name="peer", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.released.set()
        self.connection.close()
        self._thread.join(20)
        assert not self._thread.is_alive(), "the peer's thread hangs"
        self.socket.close()
        if self.error is not None and error is None:
            raise self.error

    def _run(self) -> None:
        try:
            while (request := self._receive()) is not None:
                self.requests.append(request)
                self._behaviour(self, request)
        except (ConnectionError, TimeoutError):
            pass  # the client has closed, as it must after many a lie
        except BaseException as error:
            self.error = error

    def _exactly(self, count: int) -> bytes | None:
        data = bytearray()
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                return None
            data += piece
        return bytes(data)

    def _receive(self) -> Request | None:
        head = self._exactly(wire.HEADER.size)
        if head is None:
            return None
        fields = wire.HEADER.unpack(head)
        assert fields[0] == wire.MAGIC
        assert fields[1] == wire.VERSION
        assert fields[-1] == _reader.crc32c(head[:-4])
        op, _status, request_id, blob, trace_id, deadline_ms, chain_version = fields[2:9]
        _grant, priority, flags, count, body_bytes, payload_bytes, _reserved = fields[9:16]
        body = self._exactly(body_bytes)
        payload = self._exactly(payload_bytes)
        if body is None or payload is None:
            return None
        common = (op, request_id, blob, trace_id, deadline_ms, chain_version, priority, flags)
        if op == wire.Op.READ:
            assert len(body) == count * wire.READ_DESCRIPTOR.size
            found = tuple(Descriptor(*d) for d in wire.READ_DESCRIPTOR.iter_unpack(body))
            return Request(*common, descriptors=found)
        assert op == wire.Op.WRITE
        assert count == 1
        chunk, target, chain, length = wire.WRITE_DESCRIPTOR.unpack_from(body)
        assert length == payload_bytes
        crcs = body[wire.WRITE_DESCRIPTOR.size :]
        return Request(*common, (), chunk, target, chain, crcs, payload)

    def send(self, *frames: Frame | bytes) -> None:
        """Send frames, or bytes that are none, in one piece."""
        self.socket.sendall(b"".join(f if isinstance(f, bytes) else f.encode() for f in frames))

    def answer(self, request: Request, indexes: Sequence[int] | None = None) -> Frame:
        """The honest reply frame for these descriptors of a READ (all of them by default)."""
        reply = Frame(request.request_id)
        crcs, payload = [], []
        for index in range(len(request.descriptors)) if indexes is None else indexes:
            piece = request.descriptors[index]
            stored = self.chunks[piece.blob, piece.chunk]
            begin, end = piece.offset, piece.offset + piece.length
            assert end <= len(stored)
            if not request.flags & wire.FLAG_NO_CRC:
                begin -= begin % BLOCK_BYTES
                end = min(len(stored), -(-end // BLOCK_BYTES) * BLOCK_BYTES)
                first = begin // BLOCK_BYTES
                crcs.append(_reader.block_crcs(stored[begin:end], piece.blob, piece.chunk, first))
            reply.entries.append((index, 0, end - begin))
            payload.append(stored[begin:end])
        reply.crcs, reply.payload = b"".join(crcs), b"".join(payload)
        return reply


def honest(peer: Peer, request: Request) -> None:
    """Answer everything in one frame; store what is written."""
    if request.op == wire.Op.WRITE:
        crcs = _reader.block_crcs(request.payload, request.blob, request.chunk)
        assert crcs == request.crcs
        peer.chunks[request.blob, request.chunk] = request.payload
        peer.send(Frame(request.request_id, op=wire.Op.WRITE | wire.REPLY_BIT))
    else:
        peer.send(peer.answer(request))


def one_by_one(peer: Peer, request: Request) -> None:
    """Answer each descriptor in its own frame, the last one first."""
    for index in reversed(range(len(request.descriptors))):
        peer.send(peer.answer(request, [index]))


def read_ops(*ranges: tuple[int, int, int, int, int], conn: int = 0) -> bytearray:
    """An array of READ operations from (blob, chunk, offset, length, dest_offset) each."""
    return bytearray().join(
        READ_OP.pack(blob, dest, chunk, 1, offset, length, conn, PENDING, tag)
        for tag, (blob, chunk, offset, length, dest) in enumerate(ranges)
    )


def write_ops(*chunks: tuple[int, int, int, int], conn: int = 0) -> bytearray:
    """An array of WRITE operations from (blob, chunk, source_offset, length) each."""
    return bytearray().join(
        WRITE_OP.pack(blob, source, chunk, 1, 9, length, 3, conn, PENDING)
        for blob, chunk, source, length in chunks
    )


def read_statuses(ops: bytearray) -> list[int]:
    """The statuses in an array of READ operations."""
    return [op[7] for op in READ_OP.iter_unpack(ops)]


def write_statuses(ops: bytearray) -> list[int]:
    """The statuses in an array of WRITE operations."""
    return [op[8] for op in WRITE_OP.iter_unpack(ops)]


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _address = listener.accept()
    for one in (client, server):
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client, server
