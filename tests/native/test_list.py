"""LIST and SUSPECT: what daemons and readers ask of a data loop beside reads and writes."""

from __future__ import annotations

import errno
import itertools
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ffs import _reader, _storage
from ffs.errors import (
    OK,
    BusyError,
    ConnectionLostError,
    DeadlineError,
    ProtocolError,
    StaleChainError,
    StaleLayoutError,
    TargetStoppedError,
)
from ffs.limits import CHUNK_BYTES_MAX, LIST_CHUNKS_MAX, SUSPECT_CHUNKS_MAX
from ffs.wire import frame as wire
from tests.native.data_loop import (
    MIB,
    REPLY,
    TARGET,
    Peer,
    Server,
    evict,
    fill,
    pack,
    read_frame,
    serving,
)
from tests.native.fail_nth import SHORT, faults, injected, uses_of

PENDING_SUSPECTS = 4096
"""As many wait for the daemon (native/storage/loop.h)."""


@pytest.fixture
def server(quick_path: Path) -> Iterator[Server]:
    with serving(quick_path) as made:
        yield made


def connect(server: Server) -> _reader.Connection:
    ours, theirs = socket.socketpair()
    server.loop.adopt(theirs.detach())
    return _reader.Connection(ours.detach())


def store_many(
    server: Server, names: list[tuple[int, int]]
) -> list[tuple[int, int, int, int, int]]:
    """Chunks of some bytes each; the entries of a LIST of all of them."""
    rng = random.Random(1)
    entries = []
    for start in range(0, len(names), 1000):
        rows, data, crcs = [], bytearray(), bytearray()
        for blob, chunk in names[start : start + 1000]:
            piece = rng.randbytes(1 + (blob + chunk) % 50)
            rows.append((blob, chunk, len(data), len(piece)))
            data += piece
            crc = _reader.block_crcs(piece, blob, chunk)
            crcs += crc
            entries.append((blob, chunk, len(piece), _reader.crc32c(crc), 0))
        assert set(server.store.put_many(rows, data, crcs)) == {OK}
    return sorted(entries)


def list_frame(
    blob: int = 0, chunk: int = 0, limit: int = 10, *, target: int = TARGET, **fields: int
) -> bytes:
    body = wire.LIST_DESCRIPTOR.pack(blob, chunk, target, limit, fields.pop("zero", 0))
    return pack(wire.Op.LIST, fields.pop("id", 1), count=1, body_bytes=len(body), **fields) + body


def page(peer: Peer, request_id: int = 1) -> list[tuple[int, ...]]:
    """The next answer, which is a page."""
    reply = peer.reply_of(wire.Op.LIST)
    assert (reply[0], reply[1]) == (request_id, OK)
    return list(wire.LIST_ENTRY.iter_unpack(reply[2]))


# --- LIST -----------------------------------------------------------------------------------------


def test_pages_are_in_order_and_complete(server: Server) -> None:
    rng = random.Random(2)
    names = [(rng.randrange(1, 1 << 64), rng.randrange(1 << 32)) for _ in range(3000)]
    names += [(77, chunk) for chunk in range(2000)] + [((1 << 64) - 1, (1 << 32) - 1)]
    entries = store_many(server, names)
    connection = connect(server)
    for limit in (1000, 4096, LIST_CHUNKS_MAX):
        found: list[tuple[int, ...]] = []
        last: list[tuple[int, ...]] = [(0, 0)]
        while last:
            after = last[-1]
            status, entry_bytes = _reader.list_chunks(
                connection, TARGET, after[0], after[1], limit, 0
            )
            assert status == OK
            last = list(wire.LIST_ENTRY.iter_unpack(entry_bytes))
            found += last
            if len(last) < limit:
                break
        assert found == entries
    assert server.loop.stats()["copied_bytes"] == 0


def test_an_empty_page_is_the_end(server: Server) -> None:
    connection = connect(server)
    assert _reader.list_chunks(connection, TARGET, 0, 0, 5, 0) == (OK, b"")
    fill(server, 7, 3, 100)
    assert len(_reader.list_chunks(connection, TARGET, 7, 2, 5, 0)[1]) == 24
    assert _reader.list_chunks(connection, TARGET, 7, 3, 5, 0) == (OK, b"")


def test_who_joined_later_is_told_to_come_again(server: Server) -> None:
    fill(server, 1, 0, 100)
    connection = connect(server)
    assert _reader.list_chunks(connection, TARGET, 0, 0, 5, 3) == (StaleChainError.code, b"")
    server.loop.set_chain_version(TARGET, 3)
    assert _reader.list_chunks(connection, TARGET, 0, 0, 5, 4) == (StaleChainError.code, b"")
    for version in (0, 2, 3):
        assert len(_reader.list_chunks(connection, TARGET, 0, 0, 5, version)[1]) == 24
    with pytest.raises(ValueError, match="target 4 is not served"):
        server.loop.set_chain_version(4, 1)


def test_whose_target_is_not_here_or_stopped(server: Server) -> None:
    connection = connect(server)
    answer = _reader.list_chunks(connection, TARGET + 1, 0, 0, 5, 0)
    assert answer == (StaleLayoutError.code, b"")
    server.store.close()
    answer = _reader.list_chunks(connection, TARGET, 0, 0, 5, 0)
    assert answer == (TargetStoppedError.code, b"")


def test_an_old_request_is_not_served(server: Server) -> None:
    data = fill(server, 1, 0, 32 * MIB)
    peer = server.peer()
    peer.send(read_frame((1, 0, 0, 32 * MIB)) + list_frame(deadline_ms=1, id=2))
    time.sleep(0.05)
    assert peer.reply().payload == data
    assert peer.reply_of(wire.Op.LIST) == (2, DeadlineError.code, b"")


def test_reads_from_memory_and_disk_go_on_between_pages(server: Server) -> None:
    """What has to be read from the disk may be overtaken; nothing else changes its place."""
    data = fill(server, 1, 0, 100_000)
    fill(server, 1, 1, 5)
    peer = server.peer()
    for turn in range(20):
        if turn % 2:
            evict(server)
        peer.send(
            list_frame(id=1)
            + read_frame((1, 0, 5, 70_000), request_id=2)
            + list_frame(1, 0, id=3)
            + pack(wire.Op.PING, 4)
            + list_frame(2, 0, id=5)
        )
        answers = [answer(peer) for _ in range(5)]
        assert dict(answers) == {
            1: wire.LIST_ENTRY.pack(1, 0, 100_000, digest(server, 0), 0)
            + wire.LIST_ENTRY.pack(1, 1, 5, digest(server, 1), 0),
            2: data[:73_728],
            3: wire.LIST_ENTRY.pack(1, 1, 5, digest(server, 1), 0),
            4: b"",
            5: b"",
        }
        assert [number for number, _ in answers if number != 2] == [1, 3, 4, 5]


def digest(server: Server, chunk: int) -> int:
    found = server.store.lookup(1, chunk)
    assert found is not None
    return found[1]


def answer(peer: Peer) -> tuple[int, bytes]:
    """Request id and payload of the next frame, whatever it answers."""
    header = _reader.unpack_header(peer.receive(64))
    assert header["status"] == OK
    peer.receive(header["body_bytes"])
    return header["request_id"], peer.receive(header["payload_bytes"])


def test_many_stand_in_line_and_some_leave_it(quick_path: Path) -> None:
    with serving(quick_path, loops=1) as server:
        entries = store_many(server, [(blob, 0) for blob in range(1, 20_001)])
        peers = [server.peer() for _ in range(30)]
        for peer in peers:
            peer.send(list_frame(0, 0, 5000) * 3)
        for peer in peers[::3]:
            peer.socket.close()
        for i in itertools.chain(range(1, 30, 3), range(2, 30, 3)):
            for _ in range(3):
                assert page(peers[i]) == entries[:5000]
        server.wait_until(lambda: server.loop.stats()["connections"] == 20)


def test_one_who_takes_nothing_keeps_nobody_from_listing(quick_path: Path) -> None:
    with serving(quick_path, loops=1) as server:
        entries = store_many(server, [(blob, 0) for blob in range(1, 20_001)])
        stuck = [server.peer() for _ in range(3)]
        for peer in stuck:
            peer.send(list_frame(0, 0, LIST_CHUNKS_MAX) * 20)
        quick = connect(server)
        for _ in range(5):
            status, got = _reader.list_chunks(quick, TARGET, 0, 0, 100, 0)
            assert (status, list(wire.LIST_ENTRY.iter_unpack(got))) == (OK, entries[:100])
        for peer in stuck:
            assert page(peer) == entries[:LIST_CHUNKS_MAX]


def test_listing_while_chunks_come_and_go(server: Server) -> None:
    stays = store_many(server, [(blob, 1) for blob in range(1, 5001)])
    stop = threading.Event()

    def churn() -> None:
        blob = 10_000
        while not stop.is_set():
            fill(server, blob, 0, 10)
            server.store.drop([blob])
            blob += 1

    thread = threading.Thread(target=churn)
    thread.start()
    connection = connect(server)
    for _ in range(20):
        status, got = _reader.list_chunks(connection, TARGET, 0, 0, LIST_CHUNKS_MAX, 0)
        assert status == OK
        entries = list(wire.LIST_ENTRY.iter_unpack(got))
        assert entries[:5000] == stays
        assert len(entries) <= 5002
    stop.set()
    thread.join()


def test_closing_the_loop_in_the_middle(quick_path: Path) -> None:
    for number in range(5):
        with serving(quick_path / str(number), loops=1) as server:
            store_many(server, [(blob, 0) for blob in range(1, 3001)])
            peers = [server.peer() for _ in range(5)]
            for peer in peers:
                peer.send(list_frame(0, 0, LIST_CHUNKS_MAX))
            peers[0].receive(1)
            server.loop.close()
            assert all(peer.is_closed() for peer in peers)


def test_list_chunks_max(server: Server) -> None:
    """More than a page, none at all, or a descriptor with anything else in it, end a connection."""
    for bad in (
        list_frame(limit=LIST_CHUNKS_MAX + 1),
        list_frame(limit=0),
        list_frame(zero=1),
        list_frame(flags=1),
        pack(wire.Op.LIST, count=2, body_bytes=48) + bytes(48),
        pack(wire.Op.LIST, count=1, body_bytes=24, payload_bytes=1) + bytes(25),
    ):
        peer = server.peer()
        peer.send(bad)
        assert peer.is_closed()
    connection = connect(server)
    for limit in (0, LIST_CHUNKS_MAX + 1):
        with pytest.raises(ValueError, match="limit must be"):
            _reader.list_chunks(connection, TARGET, 0, 0, limit, 0)
    assert connection.alive


# --- daemons that lie -----------------------------------------------------------------------------


@contextmanager
def liar(answer: Callable[[int], bytes]) -> Iterator[_reader.Connection]:
    """A connection to a peer that answers each request, of a header and 24 bytes, as it likes."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs, suppress(ConnectionError):
            while len(request := theirs.recv(88, socket.MSG_WAITALL)) == 88:
                theirs.sendall(answer(_reader.unpack_header(request[:64])["request_id"]))

    thread = threading.Thread(target=serve)
    thread.start()
    connection = _reader.Connection(ours.detach())
    try:
        yield connection
    finally:
        connection.close()
        thread.join()


def listing(*entries: tuple[int, ...]) -> Callable[[int], bytes]:
    """An answer with these entries, right in its form."""
    payload = b"".join(wire.LIST_ENTRY.pack(*entry, 1, 0) for entry in entries)
    return lambda request_id: (
        pack(wire.Op.LIST | REPLY, request_id, payload_bytes=len(payload)) + payload
    )


@pytest.mark.parametrize(
    "answer",
    [
        listing((5, 5, 10)),  # not behind where it should begin
        listing((6, 0, 10), (6, 0, 10)),
        listing((6, 1, 10), (6, 0, 10)),
        listing((7, 1, 10), (6, 2, 10)),
        listing((6, 1, 0)),
        listing((6, 1, CHUNK_BYTES_MAX + 1)),
        listing((6, 1, 1), (6, 2, 1), (6, 3, 1), (6, 4, 1)),  # more than asked for
        lambda i: pack(wire.Op.LIST | REPLY, i, payload_bytes=23) + bytes(23),
        lambda i: pack(wire.Op.LIST | REPLY, i, payload_bytes=24, status=6) + bytes(24),
        lambda i: pack(wire.Op.LIST | REPLY, i, count=1, body_bytes=24) + bytes(24),
        lambda i: pack(wire.Op.LIST | REPLY, i, status=0xFFFF),
        lambda i: pack(wire.Op.LIST | REPLY, i + 1),
        lambda i: pack(wire.Op.READ | REPLY, i),
        lambda i: bytes(64),
    ],
)
def test_a_lying_daemon_is_given_up(answer: Callable[[int], bytes]) -> None:
    with liar(answer) as connection:
        found = _reader.list_chunks(connection, TARGET, 5, 5, 3, 0)
        assert found == (ProtocolError.code, b"")
        assert not connection.alive
        found = _reader.list_chunks(connection, TARGET, 5, 5, 3, 0)
        assert found == (ConnectionLostError.code, b"")


@pytest.mark.parametrize("call", ["alloc", "recvmsg", "sendmsg", "poll", "setsockopt"])
def test_asking_survives_the_nth_failure(server: Server, call: str) -> None:
    """An answer is whole and right, or there is none and the connection is closed.

    How many pieces it comes in is chance: the last use may not come, and nothing fails then.
    """
    entries = store_many(server, [(blob, 0) for blob in range(1, 101)])
    whole = b"".join(wire.LIST_ENTRY.pack(*entry) for entry in entries)
    harmless = {SHORT, errno.EINTR, errno.EAGAIN}

    def ask() -> tuple[int, bytes] | None:
        try:
            connection = connect(server)
        except OSError:
            return None
        try:
            found = _reader.list_chunks(connection, TARGET, 0, 0, 200, 0)
            told = _reader.suspect(connection, named((1, 0))) if found[0] == OK else OK
        except MemoryError:
            return None
        assert connection.alive == (found[0] == told == OK)
        return max(found[0], told), found[1]

    uses = uses_of(_reader, ask)[call]
    for fault in faults(call, uses):
        with injected(_reader, fault):
            found = ask()
            struck = _reader.fault_counts()[call] >= fault.nth
        if fault.error in harmless or not struck:
            assert found == (OK, whole), fault
        elif found is not None:
            assert found in ((ConnectionLostError.code, b""), (ConnectionLostError.code, whole))
    assert ask() == (OK, whole)


def test_a_daemon_that_says_nothing(server: Server) -> None:
    ours, theirs = socket.socketpair()
    connection = _reader.Connection(ours.detach())
    found = _reader.list_chunks(connection, TARGET, 0, 0, 3, 0, deadline_ms=60)
    assert found == (DeadlineError.code, b"")
    assert not connection.alive
    theirs.close()
    ours, theirs = socket.socketpair()
    connection = _reader.Connection(ours.detach())
    theirs.close()
    assert _reader.suspect(connection, bytes(24)) == ConnectionLostError.code


def test_a_call_ends_when_its_connection_is_closed(server: Server) -> None:
    ours, theirs = socket.socketpair()
    connection = _reader.Connection(ours.detach())
    found: list[tuple[int, bytes]] = []
    thread = threading.Thread(
        target=lambda: found.append(_reader.list_chunks(connection, TARGET, 0, 0, 3, 0))
    )
    thread.start()
    theirs.recv(88, socket.MSG_WAITALL)
    with pytest.raises(BlockingIOError, match="in use"):
        _reader.suspect(connection, bytes(24))
    connection.close()
    thread.join()
    assert found == [(ConnectionLostError.code, b"")]
    theirs.close()


# --- SUSPECT --------------------------------------------------------------------------------------


def named(*chunks: tuple[int, int], target: int = TARGET) -> bytes:
    return b"".join(wire.READ_DESCRIPTOR.pack(blob, chunk, target, 0, 0) for blob, chunk in chunks)


def test_suspects_are_told(server: Server) -> None:
    connection = connect(server)
    assert _reader.suspect(connection, named((5, 6), ((1 << 64) - 1, 8))) == OK
    assert server.kind(_storage.EVENT_SUSPECT, 2) == [
        (_storage.EVENT_SUSPECT, TARGET, 5, 6),
        (_storage.EVENT_SUSPECT, TARGET, (1 << 64) - 1, 8),
    ]
    assert _reader.suspect(connection, named((5, 6), target=TARGET + 1)) == OK
    assert _reader.suspect(connection, named((7, 7))) == OK
    assert server.kind(_storage.EVENT_SUSPECT, 3)[2][2:] == (7, 7)
    assert connection.alive


def test_suspect_chunks_max(server: Server) -> None:
    """A frame names so many; as many as the daemon keeps are told, and others when it took them."""
    connection = connect(server)
    full = named(*[(1, chunk) for chunk in range(SUSPECT_CHUNKS_MAX)])
    for _ in range(PENDING_SUSPECTS // SUSPECT_CHUNKS_MAX):
        assert _reader.suspect(connection, full) == OK
    assert _reader.suspect(connection, named((2, 0))) == BusyError.code
    assert len(server.kind(_storage.EVENT_SUSPECT)) == PENDING_SUSPECTS
    assert _reader.suspect(connection, named((2, 0))) == OK
    for wrong in (b"", bytes(23), bytes(24 * (SUSPECT_CHUNKS_MAX + 1))):
        with pytest.raises(ValueError, match="descriptors must be"):
            _reader.suspect(connection, wrong)
    for count, size in ((SUSPECT_CHUNKS_MAX + 1, 24 * (SUSPECT_CHUNKS_MAX + 1)), (0, 0), (2, 24)):
        peer = server.peer()
        peer.send(pack(wire.Op.SUSPECT, count=count, body_bytes=size) + bytes(size))
        assert peer.is_closed()
