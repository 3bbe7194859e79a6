"""Sending received chunks on to the next daemon: loops joined by socket pairs, and lying peers."""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ffs import _reader, _storage
from ffs.errors import (
    OK,
    BusyError,
    ConnectionLostError,
    StaleChainError,
)
from ffs.limits import HOPS_MAX
from ffs.wire import frame as wire
from tests.native.data_loop import (
    KIB,
    MIB,
    REPLY,
    Peer,
    Server,
    pack,
    serving,
    write_frame,
)

NEXT = 9
"""The target behind ours in the chain."""
LOST = ConnectionLostError.code


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "head") as made:
        yield made


@pytest.fixture
def tail(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "tail", target=NEXT) as made:
        yield made


def connect(source: Server, target: Server) -> int:
    """A connection by which one daemon forwards to another; its peer id."""
    ours, theirs = socket.socketpair()
    target.loop.adopt(theirs.detach())
    return source.loop.add_peer(ours.detach())


class Successor(Peer):
    """The other end of a peer, played by the test."""

    def __init__(self, server: Server) -> None:
        self.socket, other = socket.socketpair()
        self.socket.settimeout(20)
        self.id = server.loop.add_peer(other.detach())
        server.peers.append(self)

    def request(self) -> tuple[dict[str, int], bytes, bytes]:
        """Header, body and payload of the next frame."""
        header = _reader.unpack_header(self.receive(64))
        return header, self.receive(header["body_bytes"]), self.receive(header["payload_bytes"])

    def answer(self, request_id: int, status: int = OK) -> None:
        self.send(pack(wire.Op.WRITE | REPLY, request_id, status=status))


@pytest.fixture
def successor(head: Server) -> Successor:
    return Successor(head)


def content(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def receive(server: Server, peer: Peer, *lengths: int, hop: int = 0) -> list[int]:
    """Have a client write chunks of a blob; the ids of its writes."""
    before = sum(event[0] == _storage.EVENT_WRITE for event in server.events)
    frames = [
        write_frame(1, i, content(i, n), request_id=70 + i, hop=hop) for i, n in enumerate(lengths)
    ]
    sender = threading.Thread(target=peer.send, args=(b"".join(frames),))
    sender.start()
    writes = server.kind(_storage.EVENT_WRITE, before + len(lengths))[before:]
    sender.join()
    return [event[1] for event in writes]


def forwarded(server: Server, count: int = 1) -> dict[int, int]:
    """Write id -> status, once so many have ended."""
    return {e[1]: e[2] for e in server.kind(_storage.EVENT_FORWARDED, count)}


# --- the way of a chunk ---------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 4096, 100_000, 5 * MIB + 3])
def test_a_chunk_is_persisted_here_and_there(head: Server, tail: Server, length: int) -> None:
    client = head.peer()
    peer_id = connect(head, tail)
    [write_id] = receive(head, client, length)
    head.loop.persist([write_id])
    head.loop.forward([write_id], peer_id, NEXT)
    [event] = tail.kind(_storage.EVENT_WRITE)
    assert event[3:] == (1, 0, NEXT, 5, 6, length, 1)
    tail.loop.persist([event[1]])
    assert tail.kind(_storage.EVENT_PERSISTED) == [(_storage.EVENT_PERSISTED, event[1], OK)]
    tail.loop.ack(event[1], OK)
    assert forwarded(head) == {write_id: OK}
    assert head.kind(_storage.EVENT_PERSISTED) == [(_storage.EVENT_PERSISTED, write_id, OK)]
    head.loop.ack(write_id, OK)
    assert client.reply().status == OK
    for server in (head, tail):
        assert server.store.read(1, 0, 0, length)[1] == content(0, length)
        assert server.loop.stats()["buffer_bytes"] == 0
        assert server.loop.stats()["copied_bytes"] == 0
    assert head.loop.stats()["forwards_total"] == 1
    assert head.loop.stats()["forward_bytes_total"] == length


def test_what_is_sent_on_is_what_came(head: Server, successor: Successor) -> None:
    data = content(3, 10_000)
    frame = write_frame(8, 3, data, request_id=42, hop=2)
    client = head.peer()
    client.send(frame)
    [event] = head.kind(_storage.EVENT_WRITE)
    assert event[9] == 2
    head.loop.forward([event[1]], successor.id, NEXT)
    header, body, payload = successor.request()
    came = _reader.unpack_header(frame[:64])
    assert header == came | {"request_id": event[1], "flags": 3}
    assert wire.WRITE_DESCRIPTOR.unpack(body[:16]) == (3, NEXT, 5, 10_000)
    assert body[16:] == _reader.block_crcs(data, 8, 3)
    assert payload == data
    successor.answer(event[1], BusyError.code)
    assert forwarded(head) == {event[1]: BusyError.code}
    head.loop.ack(event[1], BusyError.code)
    assert client.reply().status == BusyError.code


def test_several_are_under_way_and_answered_in_any_order(
    head: Server, successor: Successor
) -> None:
    lengths = [100, 70_000, 4096, 300_000, 1, 50_000]
    write_ids = receive(head, head.peer(), *lengths)
    head.loop.forward(write_ids[:4], successor.id, NEXT)
    head.loop.forward(write_ids[4:], successor.id, NEXT)
    for i, length in enumerate(lengths):
        header, _, payload = successor.request()
        assert (header["request_id"], payload) == (write_ids[i], content(i, length))
    order = [3, 0, 5, 1, 4, 2]
    for place in order:
        successor.answer(write_ids[place], place)
    ended = [e[1:] for e in head.kind(_storage.EVENT_FORWARDED, 6)]
    assert ended == [(write_ids[place], place) for place in order]


def test_answers_may_come_byte_by_byte(head: Server, successor: Successor) -> None:
    write_ids = receive(head, head.peer(), 5, 6)
    head.loop.forward(write_ids, successor.id, NEXT)
    successor.request()
    successor.request()
    answers = [pack(wire.Op.WRITE | REPLY, write_id) for write_id in write_ids]
    for byte in b"".join(answers):
        successor.send(bytes([byte]))
    assert forwarded(head, 2) == dict.fromkeys(write_ids, OK)


def test_a_refusal_may_overtake_the_rest_of_its_chunk(head: Server, successor: Successor) -> None:
    write_ids = receive(head, head.peer(), 4 * MIB, 10)
    head.loop.forward(write_ids, successor.id, NEXT)
    successor.receive(64)
    successor.answer(write_ids[0], StaleChainError.code)
    successor.receive(wire.WRITE_DESCRIPTOR.size + 4 * 1024 + 4 * MIB)
    assert successor.request()[2] == content(1, 10)
    successor.answer(write_ids[1])
    assert forwarded(head, 2) == {write_ids[0]: StaleChainError.code, write_ids[1]: OK}


def test_a_write_may_be_forwarded_again(head: Server, successor: Successor) -> None:
    other = Successor(head)
    [write_id] = receive(head, head.peer(), 50_000)
    head.loop.forward([write_id], successor.id, NEXT)
    successor.request()
    successor.socket.close()
    assert forwarded(head) == {write_id: LOST}
    head.loop.forward([write_id], other.id, NEXT + 1)
    _, body, payload = other.request()
    assert wire.WRITE_DESCRIPTOR.unpack(body[:16])[1] == NEXT + 1
    assert payload == content(0, 50_000)
    other.answer(write_id)
    assert head.kind(_storage.EVENT_FORWARDED, 2)[1][1:] == (write_id, OK)


# --- who may do what when -------------------------------------------------------------------------


def test_the_buffer_stays_until_both_ends_are_told(head: Server, successor: Successor) -> None:
    client = head.peer()
    [write_id] = receive(head, client, 100_000)
    head.loop.forward([write_id], successor.id, NEXT)
    head.loop.persist([write_id])
    successor.request()
    with pytest.raises(ValueError, match="being persisted or forwarded"):
        head.loop.ack(write_id, OK)
    with pytest.raises(ValueError, match="unknown or already being forwarded"):
        head.loop.forward([write_id], successor.id, NEXT)
    head.kind(_storage.EVENT_PERSISTED)
    with pytest.raises(ValueError, match="being persisted or forwarded"):
        head.loop.ack(write_id, OK)
    assert head.loop.stats()["buffer_bytes"] > 0
    successor.answer(write_id)
    forwarded(head)
    head.loop.ack(write_id, OK)
    assert client.reply().status == OK
    with pytest.raises(ValueError, match="unknown or already being forwarded"):
        head.loop.forward([write_id], successor.id, NEXT)


def test_all_are_forwarded_or_none(head: Server, successor: Successor) -> None:
    first, second = receive(head, head.peer(), 5, 6)
    with pytest.raises(ValueError, match="unknown or already"):
        head.loop.forward([first, 12345], successor.id, NEXT)
    head.loop.forward([], successor.id, NEXT)
    head.loop.forward([second, second], successor.id, NEXT)
    assert successor.request()[0]["request_id"] == second
    head.loop.forward([first], successor.id, NEXT)
    assert successor.request()[0]["request_id"] == first


def test_a_peer_has_writes_of_one_hop(head: Server, successor: Successor) -> None:
    first, third = receive(head, head.peer(), 5, 6)
    [second] = receive(head, head.peer(), 5, hop=1)
    head.loop.forward([first], successor.id, NEXT)
    with pytest.raises(ValueError, match="writes of another hop"):
        head.loop.forward([second], successor.id, NEXT)
    with pytest.raises(ValueError, match="writes of another hop"):
        head.loop.forward([third, second], Successor(head).id, NEXT)
    head.loop.forward([second], Successor(head).id, NEXT)


def test_a_connection_has_writes_of_one_hop(head: Server) -> None:
    peer = head.peer()
    peer.send(write_frame(1, 0, b"x", hop=1) + write_frame(1, 1, b"x", hop=2))
    assert peer.is_closed()
    assert len(head.kind(_storage.EVENT_WRITE)) == 1


def test_hops_max(head: Server, successor: Successor) -> None:
    """The last hop is taken in and not sent on; what lies beyond it breaks the protocol."""
    [last] = receive(head, head.peer(), 5, hop=HOPS_MAX - 1)
    with pytest.raises(ValueError, match=f"longer than {HOPS_MAX}"):
        head.loop.forward([last], successor.id, NEXT)
    head.loop.ack(last, OK)
    peer = head.peer()
    peer.send(write_frame(1, 0, b"x", hop=HOPS_MAX))
    assert peer.is_closed()


# --- peers that stop, vanish or lie ---------------------------------------------------------------


def closed(server: Server, peer_id: int) -> None:
    """Wait for a peer's end; nothing may come after it."""
    assert server.kind(_storage.EVENT_PEER_CLOSED) == [(_storage.EVENT_PEER_CLOSED, peer_id)]
    assert server.events[-1][0] == _storage.EVENT_PEER_CLOSED


def test_closing_a_peer_ends_what_is_on_it(head: Server, successor: Successor) -> None:
    write_ids = receive(head, head.peer(), 10, 4 * MIB, 20)  # sent, being sent, to be sent
    head.loop.forward(write_ids, successor.id, NEXT)
    successor.request()
    head.loop.close_peer(successor.id)
    assert forwarded(head, 3) == dict.fromkeys(write_ids, LOST)
    closed(head, successor.id)
    head.loop.close_peer(successor.id)
    head.loop.forward(write_ids[:1], successor.id, NEXT)
    head.events.clear()
    assert forwarded(head) == {write_ids[0]: LOST}
    for write_id in write_ids:
        head.loop.ack(write_id, LOST)
    assert head.loop.stats()["buffer_bytes"] == 0


def test_a_peer_that_takes_nothing_holds_up_nobody(head: Server, tail: Server) -> None:
    stopped = Successor(head)
    client = head.peer()
    held = receive(head, client, *[2 * MIB] * 8)
    head.loop.forward(held, stopped.id, NEXT)
    quick = connect(head, tail)
    for chunk in range(20):
        [write_id] = receive(head, head.peer(), 50_000 + chunk)
        head.loop.forward([write_id], quick, NEXT)
        event = tail.kind(_storage.EVENT_WRITE, chunk + 1)[-1]
        tail.loop.ack(event[1], OK)
        assert forwarded(head, chunk + 1)[write_id] == OK
    calls = head.loop.stats()["forward_send_calls_total"]
    assert calls < 200, "a full socket is tried again and again"
    head.loop.close_peer(stopped.id)
    ended = forwarded(head, 28)
    assert [ended[write_id] for write_id in held] == [LOST] * 8


@pytest.mark.parametrize(
    "lie",
    [
        content(0, 64),
        pack(wire.Op.WRITE | REPLY, 12345),
        pack(wire.Op.READ | REPLY, 0),
        pack(wire.Op.WRITE, 0),
        pack(wire.Op.WRITE | REPLY, 0, count=1, body_bytes=8),
        pack(wire.Op.WRITE | REPLY, 0, body_bytes=8),
        pack(wire.Op.WRITE | REPLY, 0, payload_bytes=8),
        pack(wire.Op.WRITE | REPLY, 0, status=0xFFFF),
        pack(wire.Op.PING | REPLY, 0),
    ],
)
def test_a_lying_peer_is_closed_alone(head: Server, successor: Successor, lie: bytes) -> None:
    write_ids = receive(head, head.peer(), 10, 20)
    other = Successor(head)
    head.loop.forward(write_ids[:1], successor.id, NEXT)
    head.loop.forward(write_ids[1:], other.id, NEXT)
    successor.request()
    if lie[8:16] == bytes(8):  # about the write that it has
        fields = _reader.unpack_header(lie)
        fields["request_id"] = write_ids[0]
        lie = _reader.pack_header(**fields)
    successor.send(lie)
    assert forwarded(head) == {write_ids[0]: LOST}
    assert successor.is_closed()
    closed(head, successor.id)
    assert head.loop.stats()["errors_total"] == 1
    other.request()
    other.answer(write_ids[1])
    assert forwarded(head, 2)[write_ids[1]] == OK


def test_nobody_answers_what_was_not_sent_to_him(head: Server, successor: Successor) -> None:
    """Neither another peer's write, nor one that was answered, nor one that is not sent yet."""
    other = Successor(head)
    write_ids = receive(head, head.peer(), 10, 4 * MIB, 20)
    head.loop.forward(write_ids, other.id, NEXT)
    other.request()
    successor.answer(write_ids[0])
    assert successor.is_closed()
    third = Successor(head)
    [again] = receive(head, head.peer(), 10)
    head.loop.forward([again], third.id, NEXT)
    third.request()
    third.answer(again)
    assert forwarded(head) == {again: OK}
    third.answer(again)
    assert third.is_closed()
    other.answer(write_ids[2])  # which waits behind the large one
    assert other.is_closed()
    assert forwarded(head, 4) == dict.fromkeys(write_ids, LOST) | {again: OK}


def test_done_before_all_was_sent_is_a_lie(head: Server, successor: Successor) -> None:
    [write_id] = receive(head, head.peer(), 4 * MIB)
    head.loop.forward([write_id], successor.id, NEXT)
    successor.receive(64)
    successor.answer(write_id, OK)
    assert forwarded(head) == {write_id: LOST}
    assert successor.is_closed()


def test_peers_that_vanish_leave_nothing(head: Server) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    client = head.peer()
    for i in range(30):
        successor = Successor(head)
        [write_id] = receive(head, client, 2 * MIB)
        head.loop.forward([write_id], successor.id, NEXT)
        successor.receive(1 + i * 70_000)
        successor.socket.close()
        assert head.kind(_storage.EVENT_FORWARDED, i + 1)[-1] == (
            _storage.EVENT_FORWARDED,
            write_id,
            LOST,
        )
        head.loop.ack(write_id, LOST)
        assert client.reply().status == LOST
    head.kind(_storage.EVENT_PEER_CLOSED, 30)
    assert len(os.listdir("/proc/self/fd")) == descriptors + 2  # the client's
    assert head.loop.stats()["buffer_bytes"] == 0


def test_the_client_may_vanish_while_its_write_is_forwarded(
    head: Server, successor: Successor
) -> None:
    client = head.peer()
    [write_id] = receive(head, client, 100_000)
    client.socket.close()
    head.kind(_storage.EVENT_CLOSED)
    head.loop.forward([write_id], successor.id, NEXT)
    assert successor.request()[2] == content(0, 100_000)
    successor.answer(write_id)
    assert forwarded(head) == {write_id: OK}
    head.loop.ack(write_id, OK)
    assert head.loop.stats()["buffer_bytes"] == 0


def test_closing_the_loop_with_forwards_under_way(head: Server, successor: Successor) -> None:
    client = head.peer()
    write_ids = receive(head, client, 10, 4 * MIB, 20)
    head.loop.forward(write_ids, successor.id, NEXT)
    head.loop.persist(write_ids)
    successor.receive(64)
    head.loop.close()
    assert successor.is_closed()
    assert client.is_closed()
    assert len(head.store.chunks(1)) == 3
    with pytest.raises(ValueError, match="closed"):
        head.loop.add_peer(0)


def test_closing_the_loop_while_others_forward(tmp_path: Path) -> None:
    """Forwards and the end from different threads at once, in all orders that come about."""
    for round_number in range(30):
        with serving(tmp_path / str(round_number)) as server:
            successor = Successor(server)
            write_ids = receive(server, server.peer(), *[9 * KIB] * 20)

            def forward(server: Server, peer_id: int, write_ids: list[int]) -> None:
                for write_id in write_ids:
                    try:
                        server.loop.forward([write_id], peer_id, NEXT)
                    except ValueError:
                        return

            thread = threading.Thread(target=forward, args=(server, successor.id, write_ids))
            thread.start()
            server.loop.close_peer(successor.id)
            server.loop.close()
            thread.join()


def test_wrong_arguments(head: Server) -> None:
    with pytest.raises(OSError, match="Bad file"):
        head.loop.add_peer(-1)
    with pytest.raises(ValueError, match="unknown or already"):
        head.loop.forward([1], 5, NEXT)
    with pytest.raises(TypeError):
        head.loop.forward(5, 5, NEXT)  # type: ignore[arg-type]
    head.loop.close_peer(77)
