"""The data loop over socket pairs: frames made here from ffs/wire/frame.py, and ffs._reader."""

from __future__ import annotations

import errno
import os
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ffs import _reader, _storage
from ffs.errors import (
    OK,
    BusyError,
    ChecksumError,
    ChunkConflictError,
    ChunkLengthError,
    ChunkMissingError,
    DeadlineError,
    StaleLayoutError,
    StorageIOError,
    TargetStoppedError,
)
from ffs.limits import HOPS_MAX
from ffs.wire import frame as wire
from tests.native.data_loop import (
    CLUSTER,
    MIB,
    REPLY,
    TARGET,
    Peer,
    Server,
    check,
    fill,
    pack,
    read_frame,
    serving,
    write_frame,
)

READ_OP = struct.Struct("<QQIIIIHHI")
WRITE_OP = struct.Struct("<QQIIIIIHH")
PENDING = _reader.STATUS_PENDING


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as made:
        yield made


@pytest.fixture
def peer(server: Server) -> Peer:
    return server.peer()


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 4096, 65_535, 65_536, 65_537, 300_000, 3 * MIB + 5])
def test_a_range_comes_with_its_crcs(server: Server, peer: Peer, length: int) -> None:
    data = fill(server, 1, 0, length)
    peer.send(read_frame((1, 0, 0, length), request_id=77, trace_id=5))
    reply = peer.reply()
    assert (reply.op, reply.request_id, reply.status) == (wire.Op.READ | REPLY, 77, OK)
    assert reply.entries == [(0, OK, length)]
    assert reply.crcs == _reader.block_crcs(data, 1, 0)
    assert reply.payload == data


def test_ranges_are_widened_unless_without_crcs(server: Server, peer: Peer) -> None:
    data = fill(server, 1, 0, 200_000)
    ranges = [(1, 0, 5000, 1), (1, 0, 4095, 2), (1, 0, 199_999, 1), (1, 0, 10, 150_000)]
    peer.send(read_frame(*ranges))
    answers = peer.answers(4)
    for index, (_, _, offset, length) in enumerate(ranges):
        check(answers[index], data, offset, length)
    peer.send(read_frame(*ranges, flags=wire.FLAG_NO_CRC))
    answers = peer.answers(4)
    for index, (_, _, offset, length) in enumerate(ranges):
        assert answers[index] == (OK, data[offset : offset + length])


def test_small_ranges_share_frames_and_large_ones_do_not(server: Server, peer: Peer) -> None:
    fill(server, 1, 0, MIB)
    peer.send(read_frame(*[(1, 0, i % 256 * 4096, 4096) for i in range(520)]))
    assert [len(peer.reply().entries) for _ in range(3)] == [256, 256, 8]
    peer.send(read_frame(*[(1, 0, i % 16 * 65_536, 65_536) for i in range(70)]))
    assert [len(peer.reply().entries) for _ in range(2)] == [64, 6]
    peer.send(read_frame((1, 0, 0, 10), (1, 0, 0, 131_072), (1, 0, 0, 10), (9, 9, 0, 1)))
    assert [[e[1] for e in peer.reply().entries] for _ in range(3)] == [
        [OK],
        [OK],
        [OK, ChunkMissingError.code],
    ]


def test_each_range_has_its_own_status(server: Server, peer: Peer) -> None:
    data = fill(server, 1, 0, 10_000)
    peer.send(
        read_frame(
            (1, 0, 0, 10_000),
            (1, 1, 0, 1),
            (1, 0, 9_999, 2),
            (1, 0, 0xFFFF_FFFF, 0xFFFF_FFFF),
            (1, 0, 0, 5, TARGET + 1),
            (1, 0, 3, 0),
            (1, 0, 8_192, 1_808),
        )
    )
    answers = peer.answers(7)
    assert [answers[i][0] for i in range(7)] == [
        OK,
        ChunkMissingError.code,
        ChunkLengthError.code,
        ChunkLengthError.code,
        StaleLayoutError.code,
        OK,
        OK,
    ]
    assert answers[0][1] == data
    assert answers[5][1] == b""
    assert answers[6][1] == data[8192:]


def test_pipelined_requests_are_answered_in_order(server: Server, peer: Peer) -> None:
    data = fill(server, 1, 0, 100_000)
    frames = [read_frame((1, 0, i, 100), request_id=i) for i in range(200)]
    peer.send(b"".join(frames))
    for i in range(200):
        reply = peer.reply()
        assert reply.request_id == i
        check((reply.entries[0][1], reply.payload), data, i, 100)


def test_frames_may_arrive_byte_by_byte(server: Server, peer: Peer) -> None:
    data = fill(server, 1, 0, 5000)
    for byte in read_frame((1, 0, 0, 5000)) + pack(wire.Op.PING, 9):
        peer.send(bytes([byte]))
    assert peer.reply().payload == data
    assert peer.reply().op == wire.Op.PING | REPLY


def test_the_largest_request(server: Server, peer: Peer) -> None:
    data = fill(server, 1, 0, MIB)
    rng = random.Random(4)
    ranges = [(1, 0, rng.randrange(MIB - 5000), rng.randrange(5000)) for _ in range(4096)]
    receiver: dict[int, tuple[int, bytes]] = {}
    thread = threading.Thread(target=lambda: receiver.update(peer.answers(4096)))
    thread.start()
    peer.send(read_frame(*ranges))
    thread.join()
    for index, (_, _, offset, length) in enumerate(ranges):
        if length:
            check(receiver[index], data, offset, length)


def test_an_old_request_is_not_served(server: Server, peer: Peer) -> None:
    fill(server, 1, 0, 32 * MIB)
    peer.send(read_frame((1, 0, 0, 32 * MIB)) + read_frame((1, 0, 0, 10), deadline_ms=1))
    time.sleep(0.05)
    assert len(peer.reply().payload) == 32 * MIB
    assert peer.reply().entries == [(0, DeadlineError.code, 0)]


def test_a_disk_error_fails_one_range(server: Server, peer: Peer) -> None:
    fill(server, 1, 0, 4096)
    data = fill(server, 2, 0, 5000)
    os.truncate(server.path / "4096.data", 0)
    peer.send(read_frame((1, 0, 0, 4096), (2, 0, 0, 100)))
    answers = peer.answers(2)
    assert answers[0] == (StorageIOError.code, b"")
    check(answers[1], data, 0, 100)


def test_a_file_that_fails_after_the_header_cuts_the_connection(server: Server) -> None:
    for blob, error in ((1, errno.EIO), (2, errno.EPIPE)):
        fill(server, blob, 0, MIB)
        peer = server.peer()
        _storage.fault_set("sendfile", 1, error)
        peer.send(read_frame((blob, 0, 0, MIB)))
        assert len(peer.receive(64 + 8 + 1024)) == 64 + 8 + 1024
        with pytest.raises(ConnectionResetError):
            peer.receive(1)


def test_a_file_that_ends_after_the_header_cuts_the_connection(server: Server) -> None:
    """What was in the page cache a moment ago is sent without asking again. On a machine so slow
    that it was longer ago, what is gone is missed before the header goes out: then once more."""
    for blob in range(1, 100):
        fill(server, blob, 0, MIB)
        peer = server.peer()
        peer.send(read_frame((blob, 0, 0, MIB)))
        assert len(peer.reply().payload) == MIB
        os.truncate(server.path / f"{MIB}.data", blob * MIB - MIB // 2)
        peer.send(read_frame((blob, 0, 0, MIB)))
        try:
            entries = peer.reply().entries
        except ConnectionResetError:
            return
        assert entries == [(0, StorageIOError.code, 0)]
    pytest.fail("every range was looked at before its header went out")


def test_a_file_that_ended_before_is_an_answer(server: Server, peer: Peer) -> None:
    fill(server, 1, 0, MIB)
    os.truncate(server.path / f"{MIB}.data", MIB // 2)
    peer.send(read_frame((1, 0, 0, MIB)))
    assert peer.reply().entries == [(0, StorageIOError.code, 0)]


def test_a_stopped_target_answers_so(server: Server, peer: Peer) -> None:
    fill(server, 1, 0, 4096)
    _storage.fault_set("fdatasync", 1, errno.EIO)
    assert server.store.put(2, 0, b"x", bytes(4)) == TargetStoppedError.code
    _storage.fault_set("*", 0, 0)
    assert server.kind(_storage.EVENT_TARGET_STOPPED) == [(_storage.EVENT_TARGET_STOPPED, TARGET)]
    peer.send(read_frame((1, 0, 0, 4096)))
    assert peer.reply().entries == [(0, TargetStoppedError.code, 0)]


def test_a_dropped_chunk_is_read_to_its_end(server: Server, peer: Peer) -> None:
    data = fill(server, 1, 0, 8 * MIB)
    peer.send(read_frame((1, 0, 0, 8 * MIB)))
    head = peer.receive(64)
    assert server.store.drop([1]) == 1
    fill(server, 2, 0, 8 * MIB)
    header = _reader.unpack_header(head)
    peer.receive(header["body_bytes"])
    assert peer.receive(header["payload_bytes"]) == data
    peer.send(read_frame((1, 0, 0, 1)))
    assert peer.reply().entries == [(0, ChunkMissingError.code, 0)]
    deadline = time.monotonic() + 30
    while server.store.stats()["allocated_bytes"] > 8 * MIB:
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- peers that misbehave -------------------------------------------------------------------------


def broken(**fields: int) -> bytes:
    return pack(fields.pop("op", wire.Op.READ), **fields) + bytes(1000)


@pytest.mark.parametrize(
    "garbage",
    [
        os.urandom(200),
        bytes(64),
        pack(wire.Op.READ, count=1, body_bytes=24)[:-1] + b"\xee" + bytes(24),
        broken(count=0),
        broken(count=1, body_bytes=23),
        broken(count=2, body_bytes=24),
        broken(count=4097, body_bytes=4097 * 24),
        broken(count=1, body_bytes=24, payload_bytes=1),
        broken(count=1, body_bytes=24, flags=2),
        broken(op=wire.Op.READ | REPLY, count=1, body_bytes=8),
        broken(op=9),
        broken(op=wire.Op.PING, count=1),
        broken(op=wire.Op.PING, body_bytes=8),
        broken(op=wire.Op.WRITE, count=1, body_bytes=20, payload_bytes=0),
        broken(op=wire.Op.WRITE, count=1, body_bytes=20, payload_bytes=4097),
        broken(op=wire.Op.WRITE, count=2, body_bytes=20, payload_bytes=10),
        broken(op=wire.Op.WRITE, count=1, body_bytes=20, payload_bytes=(64 << 20) + 1),
        broken(op=wire.Op.WRITE, count=1, body_bytes=20, payload_bytes=10),
        broken(op=wire.Op.WRITE, count=1, body_bytes=20, payload_bytes=16, flags=HOPS_MAX),
    ],
)
def test_a_broken_frame_closes_its_connection_alone(
    server: Server, peer: Peer, garbage: bytes
) -> None:
    data = fill(server, 1, 0, 100)
    bad = server.peer()
    bad.send(garbage)
    assert bad.is_closed()
    assert server.kind(_storage.EVENT_CLOSED) == [(_storage.EVENT_CLOSED, bad.id)]
    peer.send(read_frame((1, 0, 0, 100)))
    assert peer.reply().payload == data


def test_random_bytes_after_good_frames_never_get_wrong_answers(server: Server) -> None:
    data = fill(server, 1, 0, 9000)
    rng = random.Random(6)
    good = read_frame((1, 0, 0, 9000))
    for _ in range(100):
        bent = bytearray(good)
        bent[rng.randrange(64)] ^= 1 << rng.randrange(8)
        peer = server.peer()
        peer.send(good + bent)
        try:
            assert peer.reply().payload == data
        except ConnectionResetError:
            pass
        assert peer.is_closed()
        peer.socket.close()


def test_a_slow_receiver_holds_up_nobody(server: Server) -> None:
    data = fill(server, 1, 0, 4 * MIB)
    slow = [server.peer() for _ in range(4)]
    requests = read_frame(*[(1, 0, 0, 4 * MIB)] * 3, (1, 0, 0, 100)) * 10_000
    for peer in slow:
        peer.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            peer.send(requests)
        peer.socket.settimeout(20)
    for _ in range(2):
        quick = server.peer()
        quick.send(read_frame((1, 0, 5, 100)))
        check(quick.answers(1)[0], data, 5, 100)
    reply = slow[0].reply()
    assert reply.payload == data
    assert slow[0].reply().payload == data


def test_connections_that_vanish_leave_nothing(server: Server) -> None:
    fill(server, 1, 0, 4 * MIB)
    descriptors = len(os.listdir("/proc/self/fd"))
    for i in range(50):
        peer = server.peer()
        frame = read_frame((1, 0, 0, 4 * MIB)) + write_frame(9, 9, bytes(100_000))
        peer.send(frame[: (i * 977) % len(frame)])
        peer.socket.close()
    server.kind(_storage.EVENT_CLOSED, 50)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    for event in server.events:
        if event[0] == _storage.EVENT_WRITE:
            server.loop.ack(event[1], OK)
    stats = server.loop.stats()
    assert (stats["connections"], stats["buffer_bytes"]) == (0, 0)
    assert server.store.drop([1]) == 1
    deadline = time.monotonic() + 30
    while server.store.stats()["allocated_bytes"] > 0:
        assert time.monotonic() < deadline, "a closed connection holds a chunk"
        time.sleep(0.02)


# --- writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 4096, 100_000, 5 * MIB + 3])
def test_a_write_is_announced_persisted_and_answered(
    server: Server, peer: Peer, length: int
) -> None:
    data = random.Random(length).randbytes(length)
    peer.send(write_frame(11, 2, data, request_id=42) + pack(wire.Op.PING, 43))
    assert peer.reply().request_id == 43
    [event] = server.kind(_storage.EVENT_WRITE)
    write_id = event[1]
    assert event == (_storage.EVENT_WRITE, write_id, peer.id, 11, 2, TARGET, 5, 6, length, 0)
    assert server.store.lookup(11, 2) is None
    assert server.loop.stats()["buffer_bytes"] >= length
    server.loop.persist([write_id])
    assert server.kind(_storage.EVENT_PERSISTED) == [(_storage.EVENT_PERSISTED, write_id, OK)]
    server.loop.ack(write_id, OK)
    reply = peer.reply()
    assert (reply.op, reply.request_id, reply.status) == (wire.Op.WRITE | REPLY, 42, OK)
    assert server.loop.stats()["buffer_bytes"] == 0
    assert server.store.read(11, 2, 0, length)[1] == data


def test_a_bad_block_is_refused_before_python_hears_of_it(server: Server, peer: Peer) -> None:
    data = random.Random(8).randbytes(600_000)
    for bad_byte in (0, 299_999, 599_999):
        frame = bytearray(write_frame(1, 0, data))
        frame[len(frame) - len(data) + bad_byte] ^= 1
        peer.send(bytes(frame))
        assert peer.reply().status == ChecksumError.code
    misplaced = write_frame(1, 0, data)
    header = pack(wire.Op.WRITE, blob=2, count=1, body_bytes=604, payload_bytes=600_000)
    peer.send(header + misplaced[64:])
    assert peer.reply().status == ChecksumError.code
    assert server.loop.poll() == []
    assert server.loop.stats()["buffer_bytes"] == 0


def test_python_may_refuse_a_write(server: Server, peer: Peer) -> None:
    peer.send(write_frame(1, 0, b"data"))
    [event] = server.kind(_storage.EVENT_WRITE)
    server.loop.ack(event[1], StaleLayoutError.code)
    assert peer.reply().status == StaleLayoutError.code
    assert server.store.lookup(1, 0) is None


def test_statuses_of_persisting(server: Server, peer: Peer) -> None:
    fill(server, 1, 0, 1000)
    same = random.Random(1 << 16).randbytes(1000)
    peer.send(write_frame(1, 0, same) + write_frame(1, 0, bytes(1000)))
    peer.send(write_frame(1, 1, b"x", target=TARGET + 1))
    writes = server.kind(_storage.EVENT_WRITE, 3)
    server.loop.persist([event[1] for event in writes])
    done = {e[1]: e[2] for e in server.kind(_storage.EVENT_PERSISTED, 3)}
    expected = [OK, ChunkConflictError.code, StaleLayoutError.code]
    assert [done[event[1]] for event in writes] == expected


def test_ids_are_for_one_use(server: Server, peer: Peer) -> None:
    peer.send(write_frame(1, 0, b"x") + write_frame(1, 1, b"y"))
    first, second = (event[1] for event in server.kind(_storage.EVENT_WRITE, 2))
    with pytest.raises(ValueError, match="unknown or already"):
        server.loop.persist([first, 12345])
    server.loop.persist([first, first])
    with pytest.raises(ValueError, match="unknown or already"):
        server.loop.persist([first])
    server.kind(_storage.EVENT_PERSISTED)
    server.loop.ack(first, OK)
    with pytest.raises(ValueError, match="unknown"):
        server.loop.ack(first, OK)
    server.loop.ack(second, OK)
    assert server.store.lookup(1, 0) is not None
    assert server.store.lookup(1, 1) is None


def test_an_ack_while_persisting_is_refused(server: Server, peer: Peer) -> None:
    peer.send(write_frame(1, 0, b"x"))
    [event] = server.kind(_storage.EVENT_WRITE)
    server.loop.persist([event[1]])
    with pytest.raises(ValueError, match="being persisted"):
        server.loop.ack(event[1], OK)
    server.kind(_storage.EVENT_PERSISTED)
    server.loop.ack(event[1], OK)
    assert peer.reply().status == OK


def test_a_connection_may_die_while_its_write_is_persisted(server: Server) -> None:
    for blob in range(20):
        peer = server.peer()
        peer.send(write_frame(blob, 0, bytes(50_000)))
        event = server.kind(_storage.EVENT_WRITE, blob + 1)[-1]
        peer.socket.close()
        server.loop.persist([event[1]])
        server.kind(_storage.EVENT_PERSISTED, blob + 1)
        server.kind(_storage.EVENT_CLOSED, blob + 1)
        server.loop.ack(event[1], OK)
    assert server.store.stats()["chunks"] == 20
    assert server.loop.stats()["buffer_bytes"] == 0


def test_closing_with_writes_under_way(server: Server, peer: Peer) -> None:
    for chunk in range(10):
        peer.send(write_frame(1, chunk, bytes(100_000)))
    writes = [event[1] for event in server.kind(_storage.EVENT_WRITE, 10)]
    server.loop.persist(writes[:5])
    server.loop.close()
    server.loop.close()
    assert len(server.store.chunks(1)) == 5
    server.loop.ack(writes[0], OK)
    assert peer.is_closed()


def test_receive_buffers_are_bounded(server: Server) -> None:
    loop = _storage.DataLoop({}, loops=2, write_buffer_bytes=MIB)
    bounded = Server(server.path, server.store, loop, server.peers)
    peers = [bounded.peer() for _ in range(6)]
    senders = [
        threading.Thread(target=peer.send, args=(write_frame(1, i, bytes(MIB // 2)),))
        for i, peer in enumerate(peers)
    ]
    for sender in senders:
        sender.start()
    served = 0
    while served < 6:
        writes = bounded.kind(_storage.EVENT_WRITE, served + 1)
        assert loop.stats()["buffer_bytes"] <= MIB
        for event in writes[served:]:
            loop.ack(event[1], OK)
        served = len(writes)
    for sender in senders:
        sender.join()
    assert [peer.reply().status for peer in peers] == [OK] * 6
    peers[0].send(write_frame(1, 9, bytes(MIB + 1)) + pack(wire.Op.PING, 2))
    assert peers[0].reply().status == BusyError.code
    assert peers[0].reply().op == wire.Op.PING | REPLY
    loop.close()


def test_a_waiting_connection_may_die(server: Server) -> None:
    loop = _storage.DataLoop({}, loops=1, write_buffer_bytes=MIB)
    bounded = Server(server.path, server.store, loop, server.peers)
    first, waiting, last = (bounded.peer() for _ in range(3))
    first.send(write_frame(1, 0, bytes(MIB)))
    [event] = bounded.kind(_storage.EVENT_WRITE)
    waiting.send(write_frame(1, 1, bytes(MIB))[:100])
    last.send(write_frame(1, 2, b"small"))
    waiting.socket.close()
    loop.ack(event[1], OK)
    assert first.reply().status == OK
    assert bounded.kind(_storage.EVENT_WRITE, 2)[1][4] == 2
    loop.close()


def test_what_follows_a_waiting_write_is_kept_until_its_turn(server: Server) -> None:
    data = fill(server, 1, 0, MIB)
    store = _storage.ChunkStore(
        str(server.path.parent / "u"), cluster_id=CLUSTER, target_id=9, create=True
    )
    loop = _storage.DataLoop({9: store}, loops=1, write_buffer_bytes=MIB)
    bounded = Server(server.path, store, loop, server.peers)
    assert store.put(1, 0, data, _reader.block_crcs(data, 1, 0)) == OK
    first, other = bounded.peer(), bounded.peer()
    for size in (1, 100, 5000, 12_000):  # within what is received ahead, and beyond
        first.send(write_frame(1, 0, bytes(MIB)))
        held = bounded.kind(_storage.EVENT_WRITE)[-1]
        large = write_frame(1, 2, bytes(MIB // 2), request_id=3)
        head = len(large) - MIB // 2 + size
        other.send(
            write_frame(1, 1, bytes(size), request_id=1)
            + read_frame((1, 0, 5, 70_000, 9), request_id=2)
            + large[:head]
        )
        first.send(pack(wire.Op.PING, 7))
        assert first.reply().request_id == 7  # the others have had their turn
        assert loop.stats()["buffer_bytes"] == MIB
        bounded.events.clear()
        loop.ack(held[1], OK)
        assert first.reply().status == OK
        [event] = bounded.kind(_storage.EVENT_WRITE)
        assert (event[4], event[8]) == (1, size)
        reply = other.reply()
        assert reply.request_id == 2
        check((reply.entries[0][1], reply.payload), data, 5, 70_000)
        loop.ack(event[1], OK)
        assert other.reply().request_id == 1
        other.send(large[head:])
        event = bounded.kind(_storage.EVENT_WRITE, 2)[-1]
        assert (event[4], event[8]) == (2, MIB // 2)
        loop.ack(event[1], OK)
        assert other.reply().request_id == 3
        bounded.events.clear()
    loop.close()
    store.close()


def test_a_sender_that_stalls_does_not_keep_the_buffers(server: Server) -> None:
    loop = _storage.DataLoop({}, loops=2, write_buffer_bytes=MIB)
    bounded = Server(server.path, server.store, loop, server.peers)
    stalled, other = bounded.peer(), bounded.peer()
    stalled.send(write_frame(1, 0, bytes(MIB))[:5000])
    bounded.wait_until(lambda: loop.stats()["buffer_bytes"] > 0)
    other.send(write_frame(1, 1, b"small"))
    assert bounded.kind(_storage.EVENT_WRITE)[0][4] == 1
    assert bounded.kind(_storage.EVENT_CLOSED) == [(_storage.EVENT_CLOSED, stalled.id)]
    loop.close()


# --- many -----------------------------------------------------------------------------------------


def test_sixty_four_connections_of_readers_and_writers(server: Server) -> None:
    chunks = {chunk: fill(server, 1, chunk, 200_000) for chunk in range(4)}
    stop = threading.Event()

    def decide() -> None:
        while not stop.is_set():
            select.select([server.loop.event_fd()], [], [], 0.05)
            for event in server.loop.poll():
                if event[0] == _storage.EVENT_WRITE:
                    server.loop.persist([event[1]])
                elif event[0] == _storage.EVENT_PERSISTED:
                    server.loop.ack(event[1], event[2])

    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            converse(server, number, chunks)
        except BaseException as error:
            failures.append(error)
            raise

    decider = threading.Thread(target=decide)
    workers = [threading.Thread(target=work, args=(number,)) for number in range(64)]
    for thread in (decider, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    stop.set()
    decider.join()
    assert not failures
    assert server.loop.stats()["errors_total"] == 0
    assert server.loop.stats()["copied_bytes"] == 0


def converse(server: Server, number: int, chunks: dict[int, bytes]) -> None:
    """Write a chunk of one's own and read ranges of everybody's by the native engine."""
    ours, theirs = socket.socketpair()
    server.loop.adopt(theirs.detach())
    connection = _reader.Connection(ours.detach())
    rng = random.Random(number)
    blob, data = 100 + number, rng.randbytes(50_000 + number * 1000)
    ops = bytearray(WRITE_OP.pack(blob, 0, 0, TARGET, 5, len(data), 6, 0, PENDING))
    assert _reader.write_batch([connection], ops, data, deadline_ms=60_000) == 1
    for _ in range(4):
        wanted = [(1, c, rng.randrange(100_000), rng.randrange(1, 100_000)) for c in range(4)]
        wanted.append((blob, 0, 7, len(data) - 7))
        packed, at = bytearray(), 0
        for b, c, offset, length in wanted:
            packed += READ_OP.pack(b, at, c, TARGET, offset, length, 0, PENDING, 0)
            at += length
        out = bytearray(at)
        assert _reader.read_batch([connection], packed, out, deadline_ms=60_000) == 5
        parts = [(chunks[c] if b == 1 else data)[o : o + n] for b, c, o, n in wanted]
        assert out == b"".join(parts)
    connection.close()


def test_stores_may_be_added_later_and_only_once(server: Server, tmp_path: Path) -> None:
    other = _storage.ChunkStore(
        str(tmp_path / "other"), cluster_id=CLUSTER, target_id=TARGET + 1, create=True
    )
    with pytest.raises(ValueError, match="holds target 4, not target 9"):
        server.loop.add_store(9, other)
    server.loop.add_store(TARGET + 1, other)
    with pytest.raises(ValueError, match="another data loop serves target 4"):
        _storage.DataLoop({TARGET + 1: other})
    other.put(1, 0, b"here", _reader.block_crcs(b"here", 1, 0))
    peer = server.peer()
    peer.send(read_frame((1, 0, 0, 4, TARGET + 1)))
    assert peer.reply().payload == b"here"
    other.close()
    peer.send(read_frame((1, 0, 0, 4, TARGET + 1)))
    assert peer.reply().entries == [(0, TargetStoppedError.code, 0)]


def test_wrong_arguments(server: Server) -> None:
    with pytest.raises(ValueError, match="1 to 64 loops"):
        _storage.DataLoop({}, loops=0)
    with pytest.raises(TypeError):
        _storage.DataLoop({TARGET: "store"})  # type: ignore[dict-item]
    with pytest.raises(OSError, match="Bad file"):
        server.loop.adopt(-1)
    with pytest.raises(ValueError, match="unknown"):
        server.loop.ack(99, OK)
    server.loop.close()
    with pytest.raises(ValueError, match="closed"):
        server.loop.poll()
