"""Both ends of a connection on the same host, for tests: frames of LOCATE, and ffs._reader."""

from __future__ import annotations

import array
import os
import socket
import struct
import time
from collections.abc import Callable

from ffs import _reader, _storage
from ffs.errors import OK
from ffs.wire import frame as wire
from tests.native.data_loop import REPLY, TARGET, Peer, pack

READ_OP = struct.Struct("<QQIIIIHHI")
PENDING = _reader.STATUS_PENDING
Location = tuple[int, int, int, int, int, int]
"""status, file, pin, length, data offset, CRC offset."""


def connect(loop: _storage.DataLoop, *, mapped: bool = False) -> _reader.Connection:
    """A client of a loop."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        loop.adopt(theirs.fileno(), local=True)
        theirs.detach()
        connection = _reader.Connection(ours.fileno(), local=True, mapped=mapped)
        ours.detach()
    return connection


def read(
    connection: _reader.Connection,
    ranges: list[tuple[int, int, int, int]],
    *,
    verify: bool = True,
    target: int = TARGET,
    deadline_ms: int = 20_000,
) -> list[tuple[int, bytes]]:
    """(status, bytes) of each (blob, chunk, offset, length)."""
    ops = bytearray()
    at = 0
    for blob, chunk, offset, length in ranges:
        ops += READ_OP.pack(blob, at, chunk, target, offset, length, 0, PENDING, 0)
        at += length
    out = bytearray(at)
    done = _reader.read_batch([connection], ops, out, deadline_ms=deadline_ms, verify=verify)
    found, at = [], 0
    for op, (_, _, _, length) in zip(READ_OP.iter_unpack(ops), ranges, strict=True):
        found.append((op[7], bytes(out[at : at + length])))
        at += length
    assert done == sum(status == OK for status, _ in found)
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread is about to do."""
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


# --- the client's side of the wire --------------------------------------------------------------


def locate_frame(
    *chunks: tuple[int, int], target: int = TARGET, request_id: int = 1, flags: int = 0
) -> bytes:
    """A LOCATE of (blob, chunk)s."""
    body = b"".join(wire.READ_DESCRIPTOR.pack(b, c, target, 0, 0) for b, c in chunks)
    fields = {"count": len(chunks), "body_bytes": len(body), "flags": flags}
    return pack(wire.Op.LOCATE, request_id, **fields) + body


def release_frame(*pins: int) -> bytes:
    """A RELEASE of pins."""
    body = b"".join(wire.PIN.pack(pin) for pin in pins)
    return pack(wire.Op.RELEASE, 0, count=len(pins), body_bytes=len(body)) + body


def locations(peer: Peer, request_id: int = 1) -> tuple[list[Location], list[int]]:
    """The answer to a LOCATE, and the descriptors that came with it (the caller's to close)."""
    data, descriptors, wanted = b"", array.array("i"), 64
    while len(data) < wanted:
        left = wanted - len(data)
        piece, parts, flags, _ = peer.socket.recvmsg(left, socket.CMSG_SPACE(4 * 128))
        assert not flags & socket.MSG_CTRUNC
        if not piece:
            raise ConnectionResetError
        data += piece
        for _, _, fds in parts:
            descriptors.frombytes(fds)
        if len(data) == wanted == 64:
            wanted += _reader.unpack_header(data)["body_bytes"]
    header = _reader.unpack_header(data[:64])
    assert (header["op"], header["request_id"]) == (wire.Op.LOCATE | REPLY, request_id)
    assert (header["status"], header["payload_bytes"]) == (OK, 0)
    found = [(*row[:4], *row[5:]) for row in wire.LOCATION.iter_unpack(data[64:])]
    assert len(found) == header["count"]
    return found, list(descriptors)


# --- the daemon's side --------------------------------------------------------------------------


class Daemon:
    """The daemon's end of a client's connection, which says whatever a test wants."""

    def __init__(self) -> None:
        ours, self.socket = socket.socketpair()
        self.socket.settimeout(20)
        self.connection = _reader.Connection(ours.detach(), local=True)

    def request(self) -> dict[str, int]:
        """Receive a request; its header."""
        return self.whole_request()[0]

    def whole_request(self) -> tuple[dict[str, int], bytes]:
        """Receive a request; its header and its body."""
        header = _reader.unpack_header(self._receive(64))
        return header, self._receive(header["body_bytes"])

    def answer(
        self,
        request_id: int,
        rows: list[Location],
        descriptors: list[int],
        tail: bytes = b"",
        **fields: int,
    ) -> None:
        """Send locations with copies of descriptors, and `tail` after them."""
        body = b"".join(wire.LOCATION.pack(*row[:4], 0, *row[4:]) for row in rows)
        fields = {"count": len(rows), "body_bytes": len(body)} | fields
        frame = pack(wire.Op.LOCATE | REPLY, request_id, **fields) + body + tail
        if descriptors:
            socket.send_fds(self.socket, [frame], descriptors)
        else:
            self.socket.sendall(frame)

    def close(self) -> None:
        """Leave."""
        self.socket.close()
        self.connection.close()

    def _receive(self, count: int) -> bytes:
        got = b""
        while len(got) < count:
            piece = self.socket.recv(count - len(got))
            assert piece
            got += piece
        return got


def open_files() -> int:
    """Descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))
