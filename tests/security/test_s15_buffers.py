"""S15: what a daemon sends of one blob holds no byte of another one, wherever that was before.

Somebody else's chunk is all 0xA5: it goes through the buffers that chunks are received and read
into, and lies on the disk where a shorter chunk comes to lie later. Then everything that is sent of
the shorter one, headers and paddings too, is searched for it.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from ffs import _storage
from ffs.errors import OK
from tests.native.data_loop import (
    KIB,
    MIB,
    Peer,
    Server,
    evict,
    fill,
    read_frame,
    serving,
    write_frame,
)

POISON = 0xA5
RUN = bytes([POISON]) * 8
"""Random bytes of a test have no such run: the seeds are fixed."""


@pytest.fixture(params=["buffered", "direct"])
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    """A store of which cold chunks are read through the page cache, or past it."""
    with serving(tmp_path, io=request.param, read_buffer_bytes=8 * MIB) as made:
        yield made


def write(server: Server, peer: Peer, blob: int, data: bytes) -> None:
    """Write a chunk as a client does, through the daemon's own buffers."""
    before = len([e for e in server.events if e[0] == _storage.EVENT_WRITE])
    peer.send(write_frame(blob, 0, data))
    write_id = server.kind(_storage.EVENT_WRITE, before + 1)[-1][1]
    persisted = len([e for e in server.events if e[0] == _storage.EVENT_PERSISTED])
    server.loop.persist([write_id])
    assert server.kind(_storage.EVENT_PERSISTED, persisted + 1)[-1][2] == OK
    server.loop.ack(write_id, OK)
    assert peer.reply().status == OK


def everything(peer: Peer, frame: bytes, count: int) -> bytes:
    """All bytes that come in answer to a READ of so many ranges."""
    peer.send(frame)
    got, answered = bytearray(), 0
    while answered < count:
        header = peer.receive(64)
        fields = struct.unpack_from("<IBBHQQQIIIBBHIIII", header)
        answered += fields[12]
        got += header + peer.receive(fields[13]) + peer.receive(fields[14])
    return bytes(got)


def poison(server: Server, peer: Peer, blob: int, size: int) -> None:
    """Take a chunk of somebody else's through every buffer, then let it go."""
    write(server, peer, blob, bytes([POISON]) * size)
    for _ in range(2):
        assert RUN in everything(peer, read_frame((blob, 0, 0, size)), 1)
        evict(server)
    server.store.drop([blob])


@pytest.mark.parametrize("size", [1, 100, 4_095, 4_097, 60_001, 300_007])
def test_s15_no_byte_of_another_blob_is_sent(server: Server, size: int) -> None:
    mine, theirs = server.peer(), server.peer()
    slot = 1 << (size - 1).bit_length() if size > 4 * KIB else 4 * KIB
    for blob in range(10, 14):
        poison(server, theirs, blob, slot)
    data = random.Random(size).randbytes(size)
    write(server, mine, 2, data)
    ranges = [(0, size), (0, 1), (size - 1, 1), (size // 2, size - size // 2)]
    for _ in range(2):  # from the page cache, then from the disk
        for offset, length in ranges:
            sent = everything(mine, read_frame((2, 0, offset, length)), 1)
            assert RUN not in sent
            assert data[offset : offset + length] in sent
        beyond = everything(mine, read_frame((2, 0, size - 1, 4 * KIB), (2, 0, size, 1)), 2)
        assert RUN not in beyond and len(beyond) < 4 * KIB
        evict(server)


def test_s15_what_is_not_there_is_answered_without_bytes(server: Server) -> None:
    peer = server.peer()
    fill(server, 1, 0, 64 * KIB)
    poison(server, peer, 10, 64 * KIB)
    for gone in ((10, 0, 0, 64 * KIB), (1, 1, 0, 100), (99, 0, 0, 1)):
        assert RUN not in everything(peer, read_frame(gone), 1)
