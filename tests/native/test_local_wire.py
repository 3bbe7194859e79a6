"""LOCATE and RELEASE, said by a client and by a daemon that keep to them, or do not."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ffs import _reader, _storage, limits
from ffs.errors import (
    OK,
    BusyError,
    ChunkMissingError,
    ConnectionLostError,
    DeadlineError,
    ProtocolError,
    StaleLayoutError,
)
from ffs.wire import frame as wire
from tests.native.data_loop import CLUSTER, TARGET, Peer, Server, fill, pack, read_frame, serving
from tests.native.local import (
    PENDING,
    READ_OP,
    Daemon,
    Location,
    connect,
    locate_frame,
    locations,
    open_files,
    read,
    release_frame,
    wait_until,
)

NEVER: Location = (0, 0, 0, 4_096, 0, 0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as made:
        yield made


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "file").write_bytes(bytes(8_192))
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    yield fd
    os.close(fd)


def close(descriptors: list[int]) -> None:
    for fd in descriptors:
        os.close(fd)


# --- the daemon's part --------------------------------------------------------------------------


def test_a_location_leads_to_the_bytes_and_their_crcs(server: Server) -> None:
    small, large = fill(server, 1, 0, 5_000), fill(server, 1, 1, 100_000)
    peer = server.peer(local=True)
    peer.send(locate_frame((1, 0), (1, 1), (1, 2), (1, 0)))
    rows, descriptors = locations(peer)
    assert [row[0] for row in rows] == [OK, OK, ChunkMissingError.code, OK]
    assert [row[1] for row in rows] == [0, 1, 0, 0], "files are numbered as they come"
    assert len({rows[i][2] for i in (0, 1, 3)}) == 3, "each has its own pin"
    assert len(descriptors) == 4
    for number, data in ((0, small), (1, large)):
        _, file, _, length, data_offset, crc_offset = rows[number]
        assert length == len(data)
        assert os.pread(descriptors[2 * file], length, data_offset) == data
        crcs = _reader.block_crcs(data, 1, number)
        assert os.pread(descriptors[2 * file + 1], len(crcs), crc_offset) == crcs
    for fd in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(fd, b"x", 0)
    close(descriptors)
    peer.send(locate_frame((1, 1), request_id=2) + locate_frame((1, 1), target=99, request_id=3))
    again, none = locations(peer, 2)
    assert (again[0][0], again[0][1], again[0][4:], none) == (OK, 1, rows[1][4:], [])
    assert locations(peer, 3)[0][0][0] == StaleLayoutError.code
    assert server.loop.stats()["located"] == 4


@pytest.mark.parametrize(
    "frame",
    [
        pack(wire.Op.LOCATE, 1),
        pack(wire.Op.LOCATE, 1, count=1, body_bytes=16) + bytes(16),
        pack(wire.Op.LOCATE, 1, count=1, body_bytes=24, payload_bytes=1) + bytes(25),
        pack(wire.Op.LOCATE, 1, count=1, body_bytes=24, flags=1) + bytes(24),
        pack(wire.Op.RELEASE, 1),
        pack(wire.Op.RELEASE, 1, count=2, body_bytes=4) + bytes(4),
        pack(wire.Op.RELEASE, 1, count=1, body_bytes=4, payload_bytes=1) + bytes(5),
        release_frame(0),
        release_frame(2**32 - 1),
        pack(6, 1),
    ],
)
def test_nonsense_ends_the_connection(server: Server, frame: bytes) -> None:
    peer = server.peer(local=True)
    peer.send(frame)
    assert peer.is_closed()


@pytest.mark.parametrize("frame", [locate_frame((1, 0)), release_frame(0)])
def test_only_local_connections_may_ask(server: Server, frame: bytes) -> None:
    fill(server, 1, 0, 10)
    peer = server.peer()
    peer.send(frame)
    assert peer.is_closed()
    assert server.loop.stats()["located"] == 0


def test_a_pin_is_given_back_once(server: Server) -> None:
    fill(server, 1, 0, 10)
    peer = server.peer(local=True)
    peer.send(locate_frame((1, 0), (1, 0), (1, 0)))
    rows, descriptors = locations(peer)
    close(descriptors)
    peer.send(release_frame(rows[1][2], rows[0][2]) + pack(wire.Op.PING))
    peer.receive(64)
    assert server.loop.stats()["located"] == 1
    peer.send(locate_frame((1, 0)))
    assert locations(peer)[0][0][2] == min(rows[0][2], rows[1][2]), "numbers are used again"
    peer.send(release_frame(rows[1][2]))
    assert peer.is_closed()
    wait_until(lambda: server.loop.stats()["located"] == 0)


def test_a_local_connection_reads_as_any_other(server: Server) -> None:
    data = fill(server, 1, 0, 100_000)
    peer = server.peer(local=True)
    peer.send(read_frame((1, 0, 0, 100_000), flags=wire.FLAG_NO_CRC))
    assert peer.reply().payload == data


def test_who_holds_pins_is_not_idle(server: Server) -> None:
    fill(server, 1, 0, 10)
    holder, other = server.peer(local=True), server.peer()
    holder.send(locate_frame((1, 0)))
    close(locations(holder)[1])

    def only_one_is_left() -> bool:
        server.loop.close_idle(2)
        return server.loop.stats()["connections"] == 1

    wait_until(only_one_is_left)
    assert other.is_closed()
    holder.send(pack(wire.Op.PING))
    assert holder.receive(64)


# --- bounds -------------------------------------------------------------------------------------


def test_locate_chunks_max(server: Server) -> None:
    fill(server, 1, 0, 10)
    peer = server.peer(local=True)
    peer.send(locate_frame(*[(1, 0)] * limits.LOCATE_CHUNKS_MAX))
    rows, descriptors = locations(peer)
    close(descriptors)
    assert {row[0] for row in rows} == {OK}
    peer.send(locate_frame(*[(1, 0)] * (limits.LOCATE_CHUNKS_MAX + 1))[:64])
    assert peer.is_closed()


def hold(peer: Peer, count: int) -> list[int]:
    """Locate chunk (1, 0) so many times; the statuses."""
    found: list[int] = []
    while len(found) < count:
        step = min(count - len(found), limits.LOCATE_CHUNKS_MAX)
        peer.send(locate_frame(*[(1, 0)] * step))
        rows, descriptors = locations(peer)
        close(descriptors)
        found += [row[0] for row in rows]
    return found


def test_located_per_connection_max(server: Server) -> None:
    fill(server, 1, 0, 10)
    peer = server.peer(local=True)
    assert set(hold(peer, limits.LOCATED_PER_CONNECTION_MAX)) == {OK}
    assert hold(peer, 1) == [BusyError.code]
    peer.send(release_frame(77))
    assert hold(peer, 2) == [OK, BusyError.code]
    assert set(hold(server.peer(local=True), 1)) == {OK}


def test_located_per_daemon_max(server: Server) -> None:
    fill(server, 1, 0, 10)
    holders = limits.LOCATED_PER_DAEMON_MAX // limits.LOCATED_PER_CONNECTION_MAX
    first = server.peer(local=True)
    assert set(hold(first, limits.LOCATED_PER_CONNECTION_MAX)) == {OK}
    for _ in range(holders - 1):
        hold(server.peer(local=True), limits.LOCATED_PER_CONNECTION_MAX)
    assert server.loop.stats()["located"] == limits.LOCATED_PER_DAEMON_MAX
    late = server.peer(local=True)
    assert hold(late, 3) == [BusyError.code] * 3
    first.socket.close()
    wait_until(lambda: server.loop.stats()["located"] < limits.LOCATED_PER_DAEMON_MAX)
    assert hold(late, 3) == [OK] * 3


def test_locate_files_max(tmp_path: Path) -> None:
    """Three targets of 22 size classes each have more files than one connection is sent."""
    stores = {
        target: _storage.ChunkStore(
            str(tmp_path / f"t{target}"), cluster_id=CLUSTER, target_id=target, create=True
        )
        for target in (1, 2, 3)
    }
    sizes = [4096 * n for n in range(1, 9)] + [1024 * n for n in (40, 48, 56, 64, 80, 96, 112, 128)]
    sizes += [1024 * n for n in (160, 192, 224, 256, 320, 384)]
    data = random.Random(1).randbytes(max(sizes))
    for store in stores.values():
        for chunk, size in enumerate(sizes):
            part = data[:size]
            assert store.put(1, chunk, part, _reader.block_crcs(part, 1, chunk)) == OK
    loop = _storage.DataLoop(stores)
    connection = connect(loop)
    statuses = []
    for target in stores:
        got = read(connection, [(1, c, 0, s) for c, s in enumerate(sizes)], target=target)
        assert all(body == data[: len(body)] for status, body in got if status == OK)
        statuses += [status for status, _ in got]
    assert len(statuses) == 66
    assert statuses == [OK] * limits.LOCATE_FILES_MAX + [BusyError.code] * 2
    connection.close()
    loop.close()
    for store in stores.values():
        store.close()


def test_a_client_gives_back(file: int) -> None:
    """What was not used for long, before it would hold more than it may, and only once."""
    total = limits.LOCATED_PER_CONNECTION_MAX + 3_000
    daemon = Daemon()
    held: set[int] = set()
    most = 0

    def serve() -> None:
        nonlocal most
        served = 0
        while served < total:
            header, body = daemon.whole_request()
            if header["op"] == wire.Op.RELEASE:
                pins = {pin for (pin,) in wire.PIN.iter_unpack(body)}
                assert len(pins) == header["count"] and pins <= held
                held.difference_update(pins)
                continue
            pins = set(range(served, served + header["count"]))
            rows = [(0, 0, pin, 4_096, 0, 0) for pin in sorted(pins)]
            daemon.answer(header["request_id"], rows, [] if served else [file, file])
            held.update(pins)
            most = max(most, len(held))
            served += header["count"]

    thread = threading.Thread(target=serve)
    thread.start()
    for start in range(0, total, 5_000):  # the first hundred stay in use
        ranges = [(1, chunk, 0, 1) for chunk in range(start, min(start + 5_000, total))]
        again = [(1, chunk, 0, 1) for chunk in range(100)]
        got = read(daemon.connection, ranges + again, verify=False)
        assert {status for status, _ in got} == {OK}
    thread.join()
    assert most == len(held) == limits.LOCATED_PER_CONNECTION_MAX
    assert held >= set(range(100)) | set(range(total - 1_000, total))
    daemon.close()


# --- the client's part --------------------------------------------------------------------------


Say = Callable[[Daemon, int, int], None]

LIES: dict[str, Say] = {
    "another request": lambda d, i, f: d.answer(i + 1, [NEVER], [f, f]),
    "another op": lambda d, i, f: d.socket.sendall(pack(wire.Op.READ | 0x80, i)),
    "no descriptors": lambda d, i, f: d.answer(i, [NEVER], []),
    "one descriptor": lambda d, i, f: d.answer(i, [NEVER], [f]),
    "too many descriptors": lambda d, i, f: d.answer(i, [NEVER], [f] * 4),
    "descriptors for nothing": lambda d, i, f: d.answer(i, [(202, 0, 0, 0, 0, 0)], [f, f]),
    "more than it may": lambda d, i, f: d.answer(i, [NEVER], [f] * 130),
    "a file too far": lambda d, i, f: d.answer(i, [(0, 1, 0, 4_096, 0, 0)], [f, f]),
    "too few locations": lambda d, i, f: d.answer(i, [], [], count=0),
    "too many locations": lambda d, i, f: d.answer(i, [NEVER, NEVER], [f, f]),
    "a status that is none": lambda d, i, f: d.answer(i, [(PENDING, 0, 0, 0, 0, 0)], []),
    "a length that is none": lambda d, i, f: d.answer(i, [(0, 0, 0, 2**31, 0, 0)], [f, f]),
    "an offset that is none": lambda d, i, f: d.answer(i, [(0, 0, 0, 4_096, 2**63, 0)], [f, f]),
    "a CRC offset that is none": lambda d, i, f: d.answer(i, [(0, 0, 0, 4_096, 0, 2**63)], [f, f]),
    "a refusal with a body": lambda d, i, f: d.answer(i, [NEVER], [], status=6),
    "a payload": lambda d, i, f: d.answer(i, [NEVER], [f, f], payload_bytes=1),
    "no frame at all": lambda d, i, f: d.socket.sendall(bytes(96)),
    "something after it": lambda d, i, f: d.answer(i, [NEVER], [f, f], b"x"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_not_believed(lie: str, file: int) -> None:
    before = open_files()
    daemon = Daemon()

    def answer() -> None:
        header = daemon.request()
        LIES[lie](daemon, header["request_id"], file)

    thread = threading.Thread(target=answer)
    thread.start()
    status, _ = read(daemon.connection, [(1, 0, 0, 100)], verify=False)[0]
    thread.join()
    assert status in {ProtocolError.code, BusyError.code, ConnectionLostError.code}
    assert not daemon.connection.alive
    daemon.close()
    assert open_files() == before


def test_a_refusal_is_the_status_of_all(file: int) -> None:
    daemon = Daemon()
    thread = threading.Thread(
        target=lambda: daemon.answer(daemon.request()["request_id"], [], [], status=6)
    )
    thread.start()
    got = read(daemon.connection, [(1, 0, 0, 1), (1, 1, 0, 1)])
    thread.join()
    assert {status for status, _ in got} == {BusyError.code}
    assert daemon.connection.alive
    daemon.close()


def test_a_location_past_the_files_end_fails(file: int) -> None:
    daemon = Daemon()
    thread = threading.Thread(
        target=lambda: daemon.answer(
            daemon.request()["request_id"], [(0, 0, 9, 4_096, 6_000, 0)], [file, file]
        )
    )
    thread.start()
    got = read(daemon.connection, [(1, 0, 0, 2_000), (1, 0, 0, 4_096)], verify=False)
    thread.join()
    assert [status for status, _ in got] == [OK, 207]
    daemon.close()


def test_a_silent_daemon_costs_the_deadline_and_the_connection() -> None:
    daemon = Daemon()
    assert read(daemon.connection, [(1, 0, 0, 1)], deadline_ms=50)[0][0] == DeadlineError.code
    assert not daemon.connection.alive, "its answer could still come"
    daemon.close()


def test_no_descriptor_is_left_when_connections_come_and_go(server: Server) -> None:
    data = fill(server, 1, 0, 5_000)
    before = open_files()
    for _ in range(1_000):
        connection = connect(server.loop)
        assert read(connection, [(1, 0, 0, 5_000)]) == [(OK, data)]
        connection.close()
    wait_until(lambda: server.loop.stats()["connections"] == 0)
    assert open_files() == before


def test_two_nodes_in_one_call(server: Server, tmp_path: Path) -> None:
    """One connection reads files, the other receives: neither waits for the other."""
    data = fill(server, 1, 0, 300_000)
    near = connect(server.loop)
    far_peer = server.peer()
    far = _reader.Connection(os.dup(far_peer.socket.fileno()))
    ops = bytearray()
    for index in range(40):
        ops += READ_OP.pack(
            1, index * 7_000, 0, TARGET, index * 5_000, 7_000, index % 2, PENDING, 0
        )
    out = bytearray(40 * 7_000)
    assert _reader.read_batch([near, far], ops, out, deadline_ms=20_000) == 40
    for index in range(40):
        start = index * 5_000
        assert out[index * 7_000 : (index + 1) * 7_000] == data[start : start + 7_000]
    near.close()
    far.close()
