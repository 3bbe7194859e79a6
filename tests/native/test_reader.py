"""The engine against an honest peer: right bytes and counts, whatever the alignment and order."""

from __future__ import annotations

import os
import random
import struct
import threading
import time
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffs import _reader
from ffs.wire import frame as wire
from tests.native.server import (
    READ_OP,
    Frame,
    Peer,
    Request,
    honest,
    one_by_one,
    read_ops,
    read_statuses,
    write_ops,
    write_statuses,
)

CHUNK = os.urandom(1_000_003)  # ends inside a block
CHUNKS = {(5, 0): CHUNK}
DEADLINE_MS = 60_000
Range = tuple[int, int, int, int, int]


def packed(*ranges: tuple[int, int]) -> list[Range]:
    """Ranges of chunk (5, 0) as (offset, length), packed back to back into the destination."""
    dest, found = 0, []
    for offset, length in ranges:
        found.append((5, 0, offset, length, dest))
        dest += length
    return found


def check(peer: Peer, ranges: list[Range], *, verify: bool = True) -> None:
    """Read ranges and hold the whole destination against what must and must not have changed."""
    size = max(dest + length for *_, length, dest in ranges) + 64
    expected, out = bytearray(b"\xee" * size), bytearray(b"\xee" * size)
    for blob, chunk, offset, length, dest in ranges:
        expected[dest : dest + length] = peer.chunks[blob, chunk][offset : offset + length]
    ops = read_ops(*ranges)
    done = _reader.read_batch([peer.connection], ops, out, deadline_ms=DEADLINE_MS, verify=verify)
    assert read_statuses(ops) == [0] * len(ranges)
    assert done == len(ranges)
    assert out == expected
    assert peer.connection.alive
    assert peer.connection.bytes_in_flight == 0


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("behaviour", [honest, one_by_one])
@pytest.mark.parametrize(
    "ranges",
    [
        [(0, 1)],
        [(0, 4096)],
        [(4095, 2)],
        [(100, 5000)],
        [(8192, 262_144)],
        [(1, 262_144)],
        [(0, len(CHUNK))],
        [(len(CHUNK) - 1, 1)],
        [(len(CHUNK) - 5000, 5000), (0, 4096), (4096, 4096), (12_345, 54_321)],
        [(i * 4096, 4096) for i in range(200)],
        [(i * 3001 + 7, 1500) for i in range(300)],
    ],
    ids=lambda r: f"{len(r)}x{r[0][1]}",
)
def test_ranges_land_where_they_belong(
    ranges: list[tuple[int, int]], behaviour: object, verify: bool
) -> None:
    with Peer(behaviour, CHUNKS) as peer:  # type: ignore[arg-type]
        check(peer, packed(*ranges), verify=verify)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32), data=st.data())
def test_any_alignment_split_and_order(seed: int, data: st.DataObject) -> None:
    dice = random.Random(seed)
    size = data.draw(st.integers(1, 40_000), "chunk size")
    count = data.draw(st.integers(1, 40), "ranges")
    verify = data.draw(st.booleans(), "verify")
    ranges = []
    for _ in range(count):
        offset = dice.randrange(size)
        ranges.append((offset, dice.randint(1, min(size - offset, 9000))))

    def shuffled(peer: Peer, request: Request) -> None:
        indexes = list(range(len(request.descriptors)))
        dice.shuffle(indexes)
        while indexes:
            cut = dice.randint(1, len(indexes))
            piece = peer.answer(request, indexes[:cut]).encode()
            del indexes[:cut]
            edge = dice.randrange(len(piece))
            peer.send(piece[:edge])
            peer.send(piece[edge:])

    with Peer(shuffled, {(5, 0): dice.randbytes(size)}) as peer:
        check(peer, packed(*ranges), verify=verify)


def test_many_operations_are_split_and_pipelined() -> None:
    with Peer(honest, CHUNKS, tcp=True) as peer:
        check(peer, packed(*[((i * 7919) % 900_000, 512) for i in range(9_000)]))
        counts = [len(r.descriptors) for r in peer.requests]
        assert sum(counts) == 9_000
        assert max(counts) <= 4_096
        del peer.requests[:]
        check(peer, packed(*[(0, len(CHUNK))] * 30))
        assert len(peer.requests) == 4
        sizes = [sum(d.length for d in r.descriptors) for r in peer.requests]
        assert max(sizes) <= 8 << 20
        assert len({r.request_id for r in peer.requests}) == 4


def test_a_range_larger_than_a_request_goes_alone() -> None:
    big = os.urandom((9 << 20) + 5)
    with Peer(honest, {(5, 0): big}, tcp=True) as peer:
        check(peer, packed((3, len(big) - 3), (0, 4096), (1, len(big) - 1)))
        assert [len(r.descriptors) for r in peer.requests] == [1, 1, 1]


def test_window_holds_back_what_does_not_fit() -> None:
    """No reply: no more than about two requests are outstanding; the rest waits."""
    with Peer(lambda peer, _r: None, CHUNKS) as peer:
        ops = read_ops(*packed(*[(0, len(CHUNK))] * 60))
        out = bytearray(60 * len(CHUNK))
        assert _reader.read_batch([peer.connection], ops, out, deadline_ms=1_500) == 0
        asked = sum(d.length for r in peer.requests for d in r.descriptors)
        assert 8 << 19 < asked <= 16 << 20


def test_header_fields_arrive() -> None:
    with Peer(honest, CHUNKS, priority=7) as peer:
        out = bytearray(10)
        _reader.read_batch(
            [peer.connection],
            read_ops((5, 0, 20, 10, 0)),
            out,
            deadline_ms=90_000,
            trace_id=(1 << 64) - 5,
            verify=False,
        )
        request = peer.requests[0]
        assert request.trace_id == (1 << 64) - 5
        assert request.priority == 7
        assert request.flags == wire.FLAG_NO_CRC
        assert 80_000 <= request.deadline_ms <= 90_000
        assert request.descriptors[0].target == 1


def test_several_connections_in_one_call() -> None:
    chunks = {(blob, 0): os.urandom(300_000) for blob in range(4)}
    peers = [Peer(honest if i % 2 else one_by_one, chunks) for i in range(4)]
    out, ops, expected = bytearray(400_000), bytearray(), bytearray(400_000)
    for i in range(100):
        conn, offset = i % 4, (i * 2999) % 290_000
        ops += READ_OP.pack(conn, i * 4000, 0, 1, offset, 4000, conn, 0xFFFF, i)
        expected[i * 4000 : (i + 1) * 4000] = chunks[conn, 0][offset : offset + 4000]
    connections = [p.connection for p in peers]
    assert _reader.read_batch(connections, ops, out, deadline_ms=DEADLINE_MS) == 100
    assert out == expected
    assert [len(p.requests) for p in peers] == [1, 1, 1, 1]
    for peer in peers:
        with peer:
            pass


def test_only_pending_operations_are_run() -> None:
    with Peer(honest, CHUNKS) as peer:
        ops = read_ops(*packed((0, 100), (100, 100), (200, 100)))
        struct.pack_into("<H", ops, 34, 0)
        struct.pack_into("<H", ops, 40 + 34, 201)
        out = bytearray(300)
        assert _reader.read_batch([peer.connection], ops, out, deadline_ms=DEADLINE_MS) == 2
        assert read_statuses(ops) == [0, 201, 0]
        assert out == bytes(200) + CHUNK[200:300]
        assert len(peer.requests[0].descriptors) == 1
        assert _reader.read_batch([], bytearray(), bytearray(), deadline_ms=1) == 0
        assert _reader.read_batch([peer.connection], ops, out, deadline_ms=1) == 2


def test_statuses_of_the_server_are_passed_through() -> None:
    def partly(peer: Peer, request: Request) -> None:
        good = peer.answer(request, [3, 1])
        good.entries[1:1] = [(0, 202, 0), (4, 6, 0)]
        peer.send(good, Frame(request.request_id, entries=[(2, 205, 0)]))

    with Peer(partly, CHUNKS) as peer:
        ops = read_ops(*packed(*[(i * 1000, 900) for i in range(5)]))
        out = bytearray(4500)
        assert _reader.read_batch([peer.connection], ops, out, deadline_ms=DEADLINE_MS) == 2
        assert read_statuses(ops) == [202, 0, 205, 0, 6]
        assert out[900:1800] == CHUNK[1000:1900]
        assert out[:900] == bytes(900)
        assert peer.connection.alive


@pytest.mark.parametrize("count", [1, 3])
def test_one_refused_operation_alone(count: int) -> None:
    def refuse(peer: Peer, request: Request) -> None:
        for index in range(len(request.descriptors)):
            peer.send(Frame(request.request_id, entries=[(index, 202, 0)]))

    with Peer(refuse, CHUNKS) as peer:
        for _ in range(2):
            ops = read_ops(*packed(*[(7, 50)] * count))
            out = bytearray(50 * count)
            assert _reader.read_batch([peer.connection], ops, out, deadline_ms=DEADLINE_MS) == 0
            assert read_statuses(ops) == [202] * count
            assert peer.connection.alive


def test_header_status_answers_what_is_left_of_its_request() -> None:
    def give_up(peer: Peer, request: Request) -> None:
        if len(peer.requests) == 1:
            peer.send(peer.answer(request, [1]))
        peer.send(Frame(request.request_id, status=5 + len(peer.requests)))

    with Peer(give_up, CHUNKS) as peer:
        ops = read_ops(*packed(*[(i * 100, 100) for i in range(4096 + 10)]))
        out = bytearray(100 * 5000)
        assert _reader.read_batch([peer.connection], ops, out, deadline_ms=DEADLINE_MS) == 1
        expected: list[int] = []
        for number, request in enumerate(peer.requests):
            expected += [6 + number] * len(request.descriptors)
        expected[1] = 0
        assert read_statuses(ops) == expected
        assert peer.connection.alive
        peer.requests.clear()
        ops = read_ops((5, 0, 0, 10, 0), (5, 0, 0, 10, 0))
        assert _reader.read_batch([peer.connection], ops, out, deadline_ms=DEADLINE_MS) == 1
        assert read_statuses(ops) == [6, 0]


def test_header_status_answers_a_lone_operation() -> None:
    def refuse(peer: Peer, request: Request) -> None:
        peer.send(Frame(request.request_id, status=205))

    with Peer(refuse, CHUNKS) as peer:
        for _ in range(3):
            ops = read_ops((5, 0, 0, 10, 0))
            assert _reader.read_batch([peer.connection], ops, bytearray(10), deadline_ms=9_000) == 0
            assert read_statuses(ops) == [205]
            assert peer.connection.alive


def test_frames_of_every_kind_cut_at_every_byte() -> None:
    """Single, failed, mixed and whole frames in a row: each byte once the last of a send."""
    ranges = packed((100, 50), (4096, 4096), (9000, 10), (20_000, 5000), (0, 1), (50, 60), (7, 8))
    cut = 0
    size = 1

    def kinds(peer: Peer, request: Request) -> None:
        nonlocal size
        mixed = peer.answer(request, [3])
        mixed.entries.insert(0, (6, 202, 0))
        frames = [
            peer.answer(request, [1]),
            Frame(request.request_id, entries=[(2, 6, 0)]),
            peer.answer(request, [5]),
            mixed,
            peer.answer(request, [0]),
            Frame(request.request_id, status=205),
        ]
        stream = b"".join(frame.encode() for frame in frames)
        size = len(stream)
        peer.send(stream[:cut])
        time.sleep(0.0005)  # the engine takes the first part by itself
        peer.send(stream[cut:])

    with Peer(kinds, CHUNKS) as peer:
        while cut < size:
            ops, out = read_ops(*ranges), bytearray(9225)
            assert _reader.read_batch([peer.connection], ops, out, deadline_ms=DEADLINE_MS) == 4
            assert read_statuses(ops) == [0, 0, 6, 0, 205, 0, 202]
            for blob, chunk, offset, length, dest in ranges[:2] + ranges[3:4] + ranges[5:6]:
                assert out[dest : dest + length] == CHUNKS[blob, chunk][offset : offset + length]
            cut += 1 if cut % 4096 < 300 else 61


def test_a_refused_request_is_followed_by_frames_of_another() -> None:
    """A refusal is a header alone: what was read ahead of it is the next frame's beginning."""
    for pause in (0, 63, 64, 65, 70, 71, 72, 73, 130, 136):
        held: list[Request] = []

        def both(
            peer: Peer, request: Request, held: list[Request] = held, pause: int = pause
        ) -> None:
            held.append(request)
            if sum(len(r.descriptors) for r in held) == 4000:
                refusals = [Frame(r.request_id, status=6) for r in held[:-1]]
                stream = b"".join(f.encode() for f in [*refusals, peer.answer(held[-1])])
                peer.send(stream[:pause])
                time.sleep(0.005)
                peer.send(stream[pause:])

        with Peer(both, CHUNKS) as peer:
            ops, out = read_ops(*packed(*[(i, 10) for i in range(4000)])), bytearray(40_000)
            done = _reader.read_batch([peer.connection], ops, out, deadline_ms=DEADLINE_MS)
            first = 4000 - len(held[-1].descriptors)
            assert len(held) == 2
            assert done == 4000 - first
            assert read_statuses(ops) == [6] * first + [0] * done
            assert out[10 * first : 10 * first + 10] == CHUNK[first : first + 10]
            assert peer.connection.alive


def test_counters_tell_what_moved() -> None:
    before = _reader.counters()
    with Peer(honest, CHUNKS) as peer:
        check(peer, packed((100, 5000), (8192, 4096)))
    after = _reader.counters()
    moved = {name: after[name] - before[name] for name in after}
    assert moved["payload_bytes"] == 9096
    assert moved["ranges"] == 2
    assert moved["frames"] == 1
    assert moved["edge_bytes"] == 8192 - 5000
    assert moved["copied_bytes"] == 0
    assert moved["wire_bytes_received"] == 64 + 16 + 12 + 8192 + 4096
    assert moved["wire_bytes_sent"] == 64 + 48
    assert moved["crc_failures"] == 0
    assert moved["connections_closed"] == 0


def test_one_small_read_is_one_send_and_one_receive() -> None:
    with Peer(honest, CHUNKS) as peer:
        check(peer, packed((4096, 4096)))
        before = _reader.counters()
        for i in range(20):
            check(peer, packed((i * 4096 + 17, 4096)))
        after = _reader.counters()
    assert after["syscalls_send"] - before["syscalls_send"] == 20
    assert after["syscalls_recv"] - before["syscalls_recv"] == 20


def test_one_connection_alone_is_waited_for_in_the_receive() -> None:
    with Peer(honest, CHUNKS) as peer:
        _reader.fault_set("*", 1 << 62, 1)
        try:
            check(peer, packed(*[(i * 2000 + 7, 1500) for i in range(256)]))
            counts = _reader.fault_counts()
        finally:
            _reader.fault_set("*", 0, 0)
    assert counts["poll"] == 0 and counts["sendmsg"] == 1


def test_reads_from_many_threads_on_their_own_connections() -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with Peer(one_by_one, CHUNKS) as peer:
                for i in range(20):
                    check(peer, packed((i * 31, 9000), (i * 77, 100), (i, 4096)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


# ----------------------------------------------------------------------------------------- writes


def test_writes_arrive_with_their_checksums() -> None:
    data = os.urandom(3_000_000)
    chunks = [(7, i, i * 1001, 70_000 + i) for i in range(30)] + [(8, 0, 0, 3_000_000)]
    with Peer(honest, {}, tcp=True) as peer:
        ops = write_ops(*chunks)
        sent = _reader.write_batch([peer.connection], ops, data, deadline_ms=DEADLINE_MS)
        assert sent == 31
        assert write_statuses(ops) == [0] * 31
        for blob, chunk, source, length in chunks:
            assert peer.chunks[blob, chunk] == data[source : source + length]
        assert {(r.chain, r.target, r.chain_version) for r in peer.requests} == {(9, 1, 3)}
        check(peer, [(8, 0, 5, 100_000, 0)])


def test_writes_keep_a_window_in_flight() -> None:
    waiting: list[Request] = []
    full = threading.Event()

    def hold(peer: Peer, request: Request) -> None:
        waiting.append(request)
        if len(waiting) == 16:
            full.set()
        if len(peer.requests) >= 16:
            for one in reversed(waiting):
                peer.send(Frame(one.request_id, op=wire.Op.WRITE | wire.REPLY_BIT))
            waiting.clear()

    with Peer(hold, {}, tcp=True) as peer:
        ops = write_ops(*[(1, i, 0, 5000) for i in range(40)])
        sent = _reader.write_batch([peer.connection], ops, bytes(5000), deadline_ms=DEADLINE_MS)
        assert sent == 40
        assert full.is_set()


def test_write_refusals_are_passed_through() -> None:
    def moody(peer: Peer, request: Request) -> None:
        status = {1: 200, 2: 206}.get(request.chunk, 0)
        peer.send(Frame(request.request_id, op=wire.Op.WRITE | wire.REPLY_BIT, status=status))

    with Peer(moody, {}) as peer:
        ops = write_ops(*[(1, i, 0, 5000) for i in range(4)])
        sent = _reader.write_batch([peer.connection], ops, bytes(5000), deadline_ms=DEADLINE_MS)
        assert sent == 2
        assert write_statuses(ops) == [0, 200, 206, 0]
        assert peer.connection.alive


def test_the_largest_chunk_goes_and_comes() -> None:
    data = os.urandom(1 << 20) * 64
    with Peer(honest, {}, tcp=True) as peer:
        ops = write_ops((3, 0, 0, len(data)))
        assert _reader.write_batch([peer.connection], ops, data, deadline_ms=60_000) == 1
        out = bytearray(len(data))
        ops = read_ops((3, 0, 0, len(data), 0))
        assert _reader.read_batch([peer.connection], ops, out, deadline_ms=60_000) == 1
        assert out == data


# ------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((5, 0, 0, 0, 0), "length"),
        ((5, 0, 0, (64 << 20) + 1, 0), "length"),
        ((5, 0, 64 << 20, 1, 0), "past the largest chunk"),
        ((5, 0, (1 << 32) - 1, 1, 0), "past the largest chunk"),
        ((5, 0, 0, 100, 901), "does not fit"),
        ((5, 0, 0, 100, (1 << 64) - 50), "does not fit"),
        ((5, 0, 0, 1001, 0), "does not fit"),
    ],
)
def test_bad_ranges_are_refused_before_anything_is_sent(change: Range, message: str) -> None:
    with Peer(honest, CHUNKS) as peer:
        ops = read_ops((5, 0, 0, 10, 0), change)
        with pytest.raises(ValueError, match=f"operation 1: .*{message}"):
            _reader.read_batch([peer.connection], ops, bytearray(1000), deadline_ms=100)
        writes = write_ops((5, 0, change[4], change[3]))
        if change[2] == 0:
            with pytest.raises(ValueError, match=f"operation 0: .*{message}"):
                _reader.write_batch([peer.connection], writes, bytearray(1000), deadline_ms=100)
        assert peer.requests == []
        check(peer, packed((0, 10)))


def test_bad_arguments_are_refused() -> None:
    with Peer(honest, CHUNKS) as peer:
        one, out = read_ops((5, 0, 0, 10, 0)), bytearray(10)
        with pytest.raises(ValueError, match="connection index"):
            _reader.read_batch([], one, out, deadline_ms=100)
        with pytest.raises(ValueError, match="connection index"):
            _reader.read_batch(
                [peer.connection], read_ops((5, 0, 0, 1, 0), conn=1), out, deadline_ms=1
            )
        with pytest.raises(ValueError, match="whole operations"):
            _reader.read_batch([peer.connection], one[:-1], out, deadline_ms=100)
        for deadline in (0, -1, 1 << 31):
            with pytest.raises(ValueError, match="deadline_ms"):
                _reader.read_batch([peer.connection], one, out, deadline_ms=deadline)
        with pytest.raises(ValueError, match="deadline_ms"):
            _reader.read_batch([peer.connection], one, out)  # type: ignore[call-arg]
        with pytest.raises(ValueError, match="stall_ms"):
            _reader.read_batch([peer.connection], one, out, deadline_ms=9, stall_ms=-1)
        for impostor in (object(), mock.Mock(spec=_reader.Connection)):
            with pytest.raises(TypeError, match="Connection"):
                _reader.read_batch([impostor], one, out, deadline_ms=9)  # type: ignore[list-item]
        with pytest.raises((TypeError, BufferError)):
            _reader.read_batch([peer.connection], one, bytes(10), deadline_ms=9)
        with pytest.raises((TypeError, BufferError)):
            _reader.read_batch([peer.connection], bytes(one), out, deadline_ms=9)
        with pytest.raises(OSError, match="Bad file descriptor"):
            _reader.Connection(-1)
        check(peer, packed((0, 10)))
