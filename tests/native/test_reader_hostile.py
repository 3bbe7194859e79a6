"""The engine against a lying peer: every field of a reply, every kind of lie, never a wrong byte.

A lie about the protocol closes the connection; the operations that were not final by then get
ProtocolError's code. A wrong block costs its own operation alone.
"""

from __future__ import annotations

import os
import random
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffs import _reader, errors, limits
from ffs.wire import frame as wire
from tests.native.server import Frame, Peer, Request, honest, read_ops, read_statuses, write_ops
from tests.native.server import write_statuses as statuses_of_writes

CHUNK = os.urandom(300_000)
CHUNKS = {(5, 0): CHUNK}
PROTOCOL = errors.ProtocolError.code
CHECKSUM = errors.ChecksumError.code
LOST = errors.ConnectionLostError.code
DEADLINE_MS = 10_000
SHAPES = {"one": [(100, 5000)], "three": [(100, 5000), (8192, 4096), (20_000, 100)]}


def read(peer: Peer, ranges: list[tuple[int, int]], **options: Any) -> tuple[list[int], bytearray]:
    """Read ranges packed back to back; statuses and what is in the destination."""
    dest, ops = 0, []
    for offset, length in ranges:
        ops.append((5, 0, offset, length, dest))
        dest += length
    array, out = read_ops(*ops), bytearray(b"\xee" * (dest + 64))
    _reader.read_batch([peer.connection], array, out, deadline_ms=DEADLINE_MS, **options)
    assert out[dest:] == b"\xee" * 64
    assert peer.connection.bytes_in_flight == 0
    return read_statuses(array), out


def _entry(position: int, value: int) -> Callable[[Frame], None]:
    def change(frame: Frame) -> None:
        entry = list(frame.entries[0])
        entry[position] += value
        frame.entries[0] = (entry[0], entry[1], entry[2])

    return change


def _set(**fields: Any) -> Callable[[Frame], None]:
    def change(frame: Frame) -> None:
        for name, value in fields.items():
            setattr(frame, name, value)

    return change


def _add(**fields: Any) -> Callable[[Frame], None]:
    def change(frame: Frame) -> None:
        for name, value in fields.items():
            setattr(frame, name, getattr(frame, name) + value)

    return change


def _duplicate_entry(frame: Frame) -> None:
    frame.entries.append(frame.entries[0])
    frame.crcs += frame.crcs[:8]
    frame.payload += frame.payload[: frame.entries[0][2]]


def _failed_entry_with_bytes(frame: Frame) -> None:
    index, _status, count = frame.entries[0]
    frame.entries[0] = (index, 202, count)


LIES: dict[str, Callable[[Frame], None]] = {
    "magic": _set(magic=wire.MAGIC ^ 1),
    "version": _set(version=2),
    "header crc": _set(header_crc_xor=1),
    "unknown request id": _add(request_id=1),
    "request id of before": _add(request_id=-1),
    "request bit missing": _set(op=wire.Op.READ),
    "reply to a write": _set(op=wire.Op.WRITE | wire.REPLY_BIT),
    "ping": _set(op=wire.Op.PING | wire.REPLY_BIT),
    "reserved status": _set(status=0xFFFF, entries=[], crcs=b"", payload=b""),
    "status with entries": _set(status=6),
    "status with payload": _set(status=6, entries=[], crcs=b""),
    "nothing at all": _set(entries=[], crcs=b"", payload=b""),
    "count too low": _set(count=0),
    "count above the bound": _set(count=limits.FRAME_DESCRIPTORS_MAX + 1),
    "body above the bound": _set(body_bytes=limits.FRAME_BODY_BYTES_MAX + 1),
    "payload above the bound": _set(payload_bytes=limits.FRAME_PAYLOAD_BYTES_MAX + 1),
    "payload length above 2 GiB": _set(payload_bytes=0xFFFF_FFFF),
    "a crc too many": _add(crcs=b"\0\0\0\0"),
    "an odd body": _add(crcs=b"\0"),
    "no crcs": _set(crcs=b""),
    "a byte too many in the payload": _add(payload=b"x"),
    "no payload": _set(payload=b""),
    "index out of range": _entry(0, 3),
    "index far out of range": _entry(0, 0xF000),
    "reserved entry status": _entry(1, 0xFFFF),
    "entry longer than its blocks": _entry(2, 4096),
    "entry longer by one": _entry(2, 1),
    "entry much longer": _entry(2, 0xF000_0000),
    "entry shorter than its range": _entry(2, -4000),
    "empty entry": lambda f: _entry(2, -f.entries[0][2])(f),
    "entry named twice": _duplicate_entry,
    "failed entry with bytes": _failed_entry_with_bytes,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lie", LIES)
def test_a_lie_closes_the_connection(lie: str, shape: str) -> None:
    def liar(peer: Peer, request: Request) -> None:
        frame = peer.answer(request)
        LIES[lie](frame)
        peer.send(frame)

    with Peer(liar, CHUNKS) as peer:
        statuses, _out = read(peer, SHAPES[shape])
        assert statuses == [PROTOCOL] * len(SHAPES[shape])
        assert not peer.connection.alive
        assert peer.connection.fileno() == -1


@pytest.mark.parametrize("shape", SHAPES)
def test_a_lie_in_a_frame_without_checksums(shape: str) -> None:
    for length in (1, -1):

        def liar(peer: Peer, request: Request, length: int = length) -> None:
            frame = peer.answer(request)
            index, status, count = frame.entries[-1]
            frame.entries[-1] = (index, status, count + length)
            frame.payload += b"x" * length
            peer.send(frame)

        with Peer(liar, CHUNKS) as peer:
            statuses, _out = read(peer, SHAPES[shape], verify=False)
            assert statuses == [PROTOCOL] * len(SHAPES[shape])


def test_an_answer_given_twice_closes_the_connection() -> None:
    def twice(peer: Peer, request: Request) -> None:
        peer.send(peer.answer(request, [0]), peer.answer(request, [0]))

    with Peer(twice, CHUNKS) as peer:
        statuses, out = read(peer, SHAPES["three"])
        assert statuses == [0, PROTOCOL, PROTOCOL]
        assert out[:5000] == CHUNK[100:5100]
        assert not peer.connection.alive


@pytest.mark.parametrize("range_", [(100, 5000), (4096, 8192), (300_000 - 10, 10)])
def test_more_than_was_asked_for_costs_the_connection_only(range_: tuple[int, int]) -> None:
    def generous(peer: Peer, request: Request) -> None:
        peer.send(peer.answer(request), peer.answer(request))

    with Peer(generous, CHUNKS) as peer:
        statuses, out = read(peer, [range_])
        assert statuses == [0]
        assert out[: range_[1]] == CHUNK[range_[0] : sum(range_)]
        if peer.connection.alive:  # the second answer waits in the socket for the next call
            assert read(peer, [range_])[0] == [PROTOCOL]
        assert not peer.connection.alive


def test_bytes_before_anything_was_asked() -> None:
    def nothing(peer: Peer, request: Request) -> None:
        pass

    with Peer(nothing, CHUNKS) as peer:
        peer.send(Frame(1, entries=[(0, 0, 4096)], crcs=b"1234", payload=bytes(4096)))
        assert read(peer, [(0, 4096)])[0] in ([PROTOCOL], [CHECKSUM])


def test_garbage_is_no_frame() -> None:
    dice = random.Random(4)
    for _ in range(50):
        garbage = dice.randbytes(dice.randint(64, 5000))

        def babble(peer: Peer, _request: Request, garbage: bytes = garbage) -> None:
            peer.send(garbage)

        with Peer(babble, CHUNKS) as peer:
            assert read(peer, SHAPES["three"])[0] == [PROTOCOL] * 3


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 1 << 32), shape=st.sampled_from(sorted(SHAPES)))
def test_any_flipped_bit_is_caught(seed: int, shape: str) -> None:
    dice = random.Random(seed)

    def damage(peer: Peer, request: Request) -> None:
        reply = bytearray(peer.answer(request).encode())
        bit = dice.randrange(len(reply) * 8)
        reply[bit // 8] ^= 1 << bit % 8
        peer.send(bytes(reply))
        peer.socket.shutdown(socket.SHUT_WR)

    with Peer(damage, CHUNKS) as peer:
        statuses, out = read(peer, SHAPES[shape])
        assert any(statuses)
        dest = 0
        for status, (offset, length) in zip(statuses, SHAPES[shape], strict=True):
            assert status in (0, CHECKSUM, PROTOCOL, LOST)
            if status == 0:
                assert out[dest : dest + length] == CHUNK[offset : offset + length]
            dest += length


# -------------------------------------------------------------------------------- wrong bytes


@pytest.mark.parametrize("where", ["head edge", "first", "middle", "last", "tail edge"])
def test_a_wrong_block_costs_its_own_operation_alone(where: str) -> None:
    ranges = [(0, 4096), (4096 * 3 + 100, 90_000), (200_000, 4096), (4096, 4096)]
    length = 90_112  # the second range widened
    at = {"head edge": 0, "first": 100, "middle": 50_000, "last": 90_099, "tail edge": length - 1}

    def damage(peer: Peer, request: Request) -> None:
        if len(peer.requests) > 1:
            return honest(peer, request)
        frame = peer.answer(request)
        payload = bytearray(frame.payload)
        payload[4096 + at[where]] ^= 0x10
        frame.payload = bytes(payload)
        return peer.send(frame)

    with Peer(damage, CHUNKS) as peer:
        before = _reader.counters()
        statuses, out = read(peer, ranges)
        after = _reader.counters()
        assert statuses == [0, CHECKSUM, 0, 0]
        assert out[:4096] == CHUNK[:4096]
        assert out[94_096 : 94_096 + 8192] == CHUNK[200_000:204_096] + CHUNK[4096:8192]
        assert after["crc_failures"] - before["crc_failures"] == 1
        assert after["ranges"] - before["ranges"] == 3
        assert after["payload_bytes"] - before["payload_bytes"] == 3 * 4096
        assert peer.connection.alive
        assert read(peer, ranges)[0] == [0, 0, 0, 0]


def test_every_wrong_block_in_turn() -> None:
    ranges = [(0, 4096), (5000, 20_000), (40_960, 8192), (61_440, 4096)]

    def damage(peer: Peer, request: Request) -> None:
        frame = peer.answer(request)
        crcs = bytearray(frame.crcs)
        crcs[(len(peer.requests) - 1) * 4] ^= 1
        frame.crcs = bytes(crcs)
        peer.send(frame)

    expected = [0] + [1] * 6 + [2] * 2 + [3]
    with Peer(damage, CHUNKS) as peer:
        for wrong in expected:
            assert read(peer, ranges)[0] == [CHECKSUM if i == wrong else 0 for i in range(4)]


def test_right_bytes_of_another_place_are_wrong() -> None:
    chunks = {(5, 0): CHUNK, (5, 1): CHUNK, (6, 0): CHUNK}
    for blob, chunk, first in ((5, 1, 0), (6, 0, 0), (5, 0, 1)):
        place = (blob, chunk, first)

        def misplace(peer: Peer, request: Request, at: tuple[int, int, int] = place) -> None:
            frame = peer.answer(request)
            frame.crcs = _reader.block_crcs(frame.payload, *at)
            peer.send(frame)

        with Peer(misplace, chunks) as peer:
            assert read(peer, [(0, 8192)])[0] == [CHECKSUM]


def test_swapped_payloads_are_caught() -> None:
    def swap(peer: Peer, request: Request) -> None:
        frame = peer.answer(request)
        frame.payload = frame.payload[4096:] + frame.payload[:4096]
        peer.send(frame)

    with Peer(swap, CHUNKS) as peer:
        assert read(peer, [(0, 4096), (4096, 4096)])[0] == [CHECKSUM, CHECKSUM]


def test_without_verification_wrong_bytes_pass() -> None:
    def damage(peer: Peer, request: Request) -> None:
        frame = peer.answer(request)
        frame.payload = bytes(len(frame.payload))
        peer.send(frame)

    with Peer(damage, CHUNKS) as peer:
        statuses, out = read(peer, [(0, 100)], verify=False)
        assert statuses == [0]
        assert out[:100] == bytes(100)


# ---------------------------------------------------------------------------- lost connections


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kept", [0, 1, 63, 64, 65, 70, 100, 3000, -1])
def test_an_answer_cut_short_is_a_lost_connection(kept: int, shape: str) -> None:
    def cut(peer: Peer, request: Request) -> None:
        peer.send(peer.answer(request).encode()[:kept])
        peer.socket.shutdown(socket.SHUT_RDWR)

    with Peer(cut, CHUNKS) as peer:
        statuses, _out = read(peer, SHAPES[shape])
        assert statuses[-1] == LOST
        assert set(statuses) <= {0, LOST}
        assert not peer.connection.alive


def test_a_reset_is_a_lost_connection() -> None:
    def reset(peer: Peer, request: Request) -> None:
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.socket.close()
        raise ConnectionResetError

    with Peer(reset, CHUNKS, tcp=True) as peer:
        assert read(peer, SHAPES["three"])[0] == [LOST] * 3
        assert read(peer, SHAPES["three"])[0] == [LOST] * 3  # a dead one stays dead
        assert not peer.connection.alive


def test_what_was_answered_before_the_loss_counts() -> None:
    def partly(peer: Peer, request: Request) -> None:
        peer.send(peer.answer(request, [2, 0]))
        peer.socket.shutdown(socket.SHUT_RDWR)

    with Peer(partly, CHUNKS) as peer:
        statuses, out = read(peer, SHAPES["three"])
        assert statuses == [0, LOST, 0]
        assert out[:5000] == CHUNK[100:5100]


def test_a_lost_connection_costs_the_others_nothing() -> None:
    def vanish(peer: Peer, request: Request) -> None:
        peer.socket.shutdown(socket.SHUT_RDWR)

    with Peer(honest, CHUNKS) as good, Peer(vanish, CHUNKS) as bad:
        ops = read_ops((5, 0, 0, 100, 0)) + read_ops((5, 0, 0, 100, 100), conn=1)
        out = bytearray(200)
        pair = [good.connection, bad.connection]
        assert _reader.read_batch(pair, ops, out, deadline_ms=DEADLINE_MS) == 1
        assert read_statuses(ops) == [0, LOST]
        assert (good.connection.alive, bad.connection.alive) == (True, False)


# ------------------------------------------------------------------------------------- writes

WRITE_LIES: dict[str, dict[str, Any]] = {
    "unknown request id": {"request_id": 99},
    "reply to a read": {"op": wire.Op.READ | wire.REPLY_BIT},
    "count": {"count": 1},
    "body": {"crcs": b"\0\0\0\0"},
    "payload": {"payload": b"x"},
    "reserved status": {"status": 0xFFFF},
    "header crc": {"header_crc_xor": 1},
}


@pytest.mark.parametrize("lie", WRITE_LIES)
def test_a_lie_about_a_write_closes_the_connection(lie: str) -> None:
    def liar(peer: Peer, request: Request) -> None:
        fields = {"request_id": request.request_id, "op": wire.Op.WRITE | wire.REPLY_BIT}
        peer.send(Frame(**(fields | WRITE_LIES[lie])))

    with Peer(liar, {}) as peer:
        ops = write_ops((1, 0, 0, 5000), (1, 1, 0, 5000))
        sent = _reader.write_batch([peer.connection], ops, bytes(5000), deadline_ms=DEADLINE_MS)
        assert sent == 0
        assert statuses_of_writes(ops) == [PROTOCOL, PROTOCOL]
        assert not peer.connection.alive


def test_a_write_acknowledged_twice_closes_the_connection() -> None:
    def twice(peer: Peer, request: Request) -> None:
        reply = Frame(request.request_id, op=wire.Op.WRITE | wire.REPLY_BIT)
        peer.send(reply, reply)

    with Peer(twice, {}) as peer:
        ops = write_ops(*[(1, i, 0, 5000) for i in range(30)])
        sent = _reader.write_batch([peer.connection], ops, bytes(5000), deadline_ms=DEADLINE_MS)
        assert 1 <= sent < 30
        assert set(statuses_of_writes(ops)) == {0, PROTOCOL}
        assert not peer.connection.alive


def test_a_write_refused_before_it_is_sent_keeps_the_stream_in_step() -> None:
    data = os.urandom(4 << 20)
    with Peer(honest, {}, tcp=True) as peer:
        peer.send(Frame(1, op=wire.Op.WRITE | wire.REPLY_BIT, status=206))
        ops = write_ops((1, 0, 0, len(data)))
        # The honest answer to the same request comes once more, when nobody waits for it.
        sent = _reader.write_batch([peer.connection], ops, data, deadline_ms=DEADLINE_MS)
        assert sent == 0
        assert statuses_of_writes(ops) == [206]


def test_a_write_on_a_lost_connection() -> None:
    def vanish(peer: Peer, request: Request) -> None:
        peer.socket.shutdown(socket.SHUT_RDWR)

    with Peer(vanish, {}) as peer:
        ops = write_ops(*[(1, i, 0, 100_000) for i in range(20)])
        sent = _reader.write_batch([peer.connection], ops, bytes(100_000), deadline_ms=DEADLINE_MS)
        assert sent == 0
        assert statuses_of_writes(ops) == [LOST] * 20
