"""A data loop and the client's engine over RDMA: reads and writes of every shape, and their ends.

Both ends are of this process, on two devices with a wire between them. That the bytes came by RDMA
is seen by the client's receives, which have room for headers alone, and counted by the daemon.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ffs import _reader, _storage
from ffs.errors import OK, ChunkLengthError, ChunkMissingError, StorageIOError
from ffs.wire.frame import RdmaFault
from tests.native.data_loop import KIB, MIB, TARGET, Server, evict, fill, serving
from tests.native.server import PENDING, READ_OP, WRITE_OP, read_statuses, write_statuses

DAEMON, CLIENT = "10.77.0.1", "10.77.0.2"
LIAR = Path(__file__).resolve().parents[2] / "build" / "rdma" / "liar"
Range = tuple[int, int, int, int]
"""blob, chunk, offset, length."""


class Wire:
    """A server, and connections to it that have gone over to RDMA."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.connections: list[_reader.Connection] = []
        self._listener = socket.create_server((DAEMON, 0))

    def dial(self, token_id: bytes | None = None) -> socket.socket:
        """A client's socket, whose other end the daemon has; that of a token's holder."""
        client = socket.create_connection(
            self._listener.getsockname()[:2], timeout=60, source_address=(CLIENT, 0)
        )
        daemon, _ = self._listener.accept()
        self.server.loop.adopt(daemon.fileno(), token_id=token_id)
        daemon.detach()
        return client

    @contextlib.contextmanager
    def adopting(self, count: int) -> Iterator[int]:
        """The port at which so many clients are taken in, one after the other."""

        def adopt() -> None:
            for _ in range(count):
                daemon, _ = self._listener.accept()
                self.server.loop.adopt(daemon.detach())

        thread = threading.Thread(target=adopt)
        thread.start()
        yield self._listener.getsockname()[1]
        thread.join(20)

    def tcp(self, *, token_id: bytes | None = None) -> _reader.Connection:
        """A connection that is TCP still."""
        client = self.dial(token_id)
        client.settimeout(None)
        made = _reader.Connection(client.detach())
        self.connections.append(made)
        return made

    def lie(self, what: str) -> str:
        """What becomes of a connection whose client lies like that (liar.c)."""
        port = self._listener.getsockname()[1]
        with subprocess.Popen(
            [LIAR, DAEMON, str(port), what], stdout=subprocess.PIPE, text=True
        ) as liar:
            daemon, _ = self._listener.accept()
            self.server.loop.adopt(daemon.fileno())
            daemon.detach()
            return liar.communicate(timeout=60)[0]

    def rdma(
        self, *, windows: bool = True, way: str = "exchange", token_id: bytes | None = None
    ) -> _reader.Connection:
        """A connection that has gone over."""
        made = self.tcp(token_id=token_id)
        found = _reader.connect_qp(made, windows=windows, way=way, deadline_ms=20_000)
        assert found == (OK, RdmaFault.FINE, "")
        return made

    def close(self) -> None:
        """End all connections."""
        for connection in self.connections:
            connection.close()
        self._listener.close()


@contextlib.contextmanager
def wired(path: Path, **options: Any) -> Iterator[Wire]:
    with serving(path, **options) as server:
        wire = Wire(server)
        try:
            yield wire
        finally:
            wire.close()


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    with wired(tmp_path) as made:
        yield made
    assert _reader.rdma_usage() == {"regions": 0, "bytes_asked": 0}


def read(
    connection: _reader.Connection, ranges: Sequence[Range], *, verify: bool = True
) -> tuple[list[int], list[bytes]]:
    """Statuses and bytes of the ranges, read by one call between two guards."""
    total = sum(length for *_, length in ranges)
    memory = np.full(total + 2 * KIB, 0xA5, np.uint8)
    out = memory[KIB : KIB + total]
    ops, pieces, at = bytearray(), [], 0
    for blob, chunk, offset, length in ranges:
        ops += READ_OP.pack(blob, at, chunk, TARGET, offset, length, 0, PENDING, 0)
        pieces.append(out[at : at + length])
        at += length
    _reader.read_batch([connection], ops, out, deadline_ms=20_000, verify=verify)
    assert (memory[:KIB] == 0xA5).all()
    assert (memory[KIB + total :] == 0xA5).all()
    return read_statuses(ops), [piece.tobytes() for piece in pieces]


@pytest.mark.parametrize("windows", [True, False], ids=["windows", "domain"])
@pytest.mark.parametrize("verify", [True, False], ids=["crc", "bare"])
def test_ranges_of_every_shape(wire: Wire, windows: bool, verify: bool) -> None:
    data = fill(wire.server, 7, 0, 3 * MIB + 123)
    connection = wire.rdma(windows=windows)
    ranges = [(7, 0, 0, 1), (7, 0, 4095, 2), (7, 0, 0, 4096), (7, 0, 100, 4096), (7, 0, 0, MIB)]
    ranges += [(7, 0, len(data) - 5, 5), (7, 0, 777, 2 * MIB)]
    ranges += [(7, 0, i * 4001, 4 * KIB) for i in range(300)]
    for _ in range(2):
        statuses, pieces = read(connection, ranges, verify=verify)
        assert statuses == [OK] * len(ranges)
        for (_, _, offset, length), piece in zip(ranges, pieces, strict=True):
            assert piece == data[offset : offset + length]
    stats = wire.server.loop.stats()
    assert stats["rdma_connections_total"] == 1
    assert stats["rdma_bytes_total"] >= 2 * sum(length for *_, length in ranges)
    assert stats["mapped_ranges_total"] == stats["sendfile_ranges_total"] == 0


@pytest.mark.parametrize("io", ["auto", "buffered", "direct"])
def test_cold_ranges_and_one_that_is_longer_than_the_memory_for_it(tmp_path: Path, io: str) -> None:
    with wired(tmp_path, io=io) as wire:
        data = fill(wire.server, 7, 0, 13 * MIB + 5)
        small = [fill(wire.server, 8, chunk, 64 * KIB) for chunk in range(40)]
        evict(wire.server)
        connection = wire.rdma()
        ranges = [(7, 0, 4099, len(data) - 5000), *((8, chunk, 0, 64 * KIB) for chunk in range(40))]
        statuses, pieces = read(connection, ranges)
        assert statuses == [OK] * 41
        assert pieces == [data[4099 : len(data) - 901], *small]
        wire.server.wait_until(lambda: wire.server.loop.stats()["read_buffer_bytes"] == 0)


def test_long_answers_say_that_they_are_coming(wire: Wire) -> None:
    """The client counts headers: one for each answer, and one for each MiB but the first."""
    data = fill(wire.server, 7, 0, 12 * MIB)
    connection = wire.rdma()
    for length, least, most in ((MIB, 1, 1), (3 * MIB, 3, 3), (12 * MIB, 2, 13)):  # in pieces
        before = _reader.counters()["frames"]
        assert read(connection, [(7, 0, 0, length)]) == ([OK], [data[:length]])
        assert least <= _reader.counters()["frames"] - before <= most


def test_what_is_missing_is_said_of_its_range_alone(wire: Wire) -> None:
    data = fill(wire.server, 7, 0, MIB)
    ranges = [(7, 0, 0, KIB), (7, 1, 0, KIB), (9, 0, 0, KIB), (7, 0, 5000, KIB), (7, 0, MIB - 1, 2)]
    connection = wire.rdma()
    statuses, pieces = read(connection, ranges)
    missing = ChunkMissingError.code
    assert statuses == [OK, missing, missing, OK, ChunkLengthError.code]
    assert pieces[0] + pieces[3] == data[:KIB] + data[5000 : 5000 + KIB]
    assert connection.alive


def test_a_range_that_cannot_be_read_is_an_error_of_its_own(tmp_path: Path) -> None:
    with wired(tmp_path, io="direct", reads="threads") as wire:
        fill(wire.server, 7, 0, 9 * MIB)
        fill(wire.server, 8, 0, MIB)
        evict(wire.server)
        connection = wire.rdma()
        for ranges in ([(7, 0, 0, 9 * MIB)], [(8, 0, 0, MIB)]):
            _storage.fault_set("pread", 1, errno.EIO)
            statuses, _ = read(connection, ranges)
            _storage.fault_set("*", 0, 0)
            assert statuses == [StorageIOError.code]
        assert read(connection, [(8, 0, 0, MIB)])[0] == [OK]


def write(connection: _reader.Connection, chunks: Sequence[bytes], blob: int) -> list[int]:
    """Statuses of writing a blob's chunks by one call, while somebody else decides about them."""
    ops, at = bytearray(), 0
    for index, chunk in enumerate(chunks):
        ops += WRITE_OP.pack(blob, at, index, TARGET, 5, len(chunk), 6, 0, PENDING)
        at += len(chunk)
    _reader.write_batch([connection], ops, b"".join(chunks), deadline_ms=20_000)
    return write_statuses(ops)


def write_all(
    server: Server, connection: _reader.Connection, chunks: Sequence[bytes], blob: int
) -> list[int]:
    """Statuses of writing them, while the daemon's part is done here: all are made durable."""
    found: list[list[int]] = []
    writer = threading.Thread(target=lambda: found.append(write(connection, chunks, blob)))
    writer.start()
    done = 0
    while done < len(chunks):
        events = server.kind(_storage.EVENT_WRITE)
        server.events.clear()
        ids = [event[1] for event in events]
        server.loop.persist(ids)
        server.kind(_storage.EVENT_PERSISTED, len(ids))
        server.events = [e for e in server.events if e[0] != _storage.EVENT_PERSISTED]
        for write_id in ids:
            server.loop.ack(write_id, OK)
        done += len(ids)
    writer.join(20)
    return found[0]


def test_chunks_are_fetched_checked_and_kept(wire: Wire) -> None:
    server, connection = wire.server, wire.rdma(windows=False)
    sizes = [1, 4096, 100_000, MIB, 5 * MIB + 17] + [64 * KIB] * 40
    chunks = [random.Random(size).randbytes(size) for size in sizes]
    assert write_all(server, connection, chunks, 11) == [OK] * len(chunks)
    statuses, pieces = read(connection, [(11, i, 0, len(c)) for i, c in enumerate(chunks)])
    assert statuses == [OK] * len(chunks)
    assert pieces == chunks
    assert server.loop.stats()["buffer_bytes"] == 0


def test_long_writes_say_that_they_are_fetched(wire: Wire) -> None:
    """A header after each MiB, one after a body that no SEND has room for, and the answer."""
    server, connection = wire.server, wire.rdma(windows=False)
    for blob, size, frames in ((20, MIB, 1), (21, 3 * MIB, 3), (22, 5 * MIB + 5, 6)):
        before = _reader.counters()["frames"]
        assert write_all(server, connection, [random.Random(size).randbytes(size)], blob) == [OK]
        assert _reader.counters()["frames"] - before == frames


def not_inherited() -> dict[tuple[int, int], set[str]]:
    """Mappings of this process that a child does not get (MADV_DONTFORK), and their flags."""
    found, place = {}, (0, 0)
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if "-" in first:
            start, end = (int(number, 16) for number in first.split("-"))
            place = (start, end)
        elif first == "VmFlags:" and "dc" in rest.split():
            found[place] = set(rest.split())
    return found


def test_what_cards_read_and_write_is_not_inherited_and_may_be_huge(wire: Wire) -> None:
    """The client's scratch; the daemon's arena, receives and answers."""
    before = not_inherited()
    fill(wire.server, 7, 0, MIB)
    assert read(wire.rdma(), [(7, 0, 0, MIB)])[0] == [OK]
    ours = {place: flags for place, flags in not_inherited().items() if place not in before}
    huge = [end - start for (start, end), flags in ours.items() if "hg" in flags]
    assert sum(huge) >= (2 + 64 + 4 + 2) * MIB
    pid = os.fork()
    if pid == 0:
        lines = Path("/proc/self/maps").read_text().splitlines()
        mapped = [[int(n, 16) for n in line.split(" ")[0].split("-")] for line in lines]
        clash = any(s < end and start < e for s, e in mapped for (start, end) in ours)
        os._exit(int(clash))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


LITTLE_MEMORY = """
import sys
from pathlib import Path
from tests.native.data_loop import fill
from tests.rdma.little import lock_no_more_than
from tests.rdma.test_daemon import wired, read
from ffs import _reader
lock_no_more_than(8 << 20)  # enough for a client, and not for a daemon
with wired(Path(sys.argv[1])) as wire:
    data = fill(wire.server, 7, 0, 5000)
    connection = wire.tcp()
    found = _reader.connect_qp(connection)
    print(*found, read(connection, [(7, 0, 1, 4000)]) == ([0], [data[1:4001]]))
"""


def test_a_daemon_that_may_lock_little_memory_says_so_and_serves_by_tcp(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{OK} {RdmaFault.MEMLOCK:d}  True\n"


def test_a_connection_that_does_nothing_makes_room_and_one_that_is_asked_stays(wire: Wire) -> None:
    data = fill(wire.server, 7, 0, 64 * KIB)
    idle, busy = wire.rdma(), wire.rdma()
    loop = wire.server.loop
    give_up = time.monotonic() + 60
    while loop.stats()["connections"] == 2 and time.monotonic() < give_up:
        assert read(busy, [(7, 0, 3, 5000)]) == ([OK], [data[3:5003]])
        loop.close_idle(1)
    assert loop.stats()["connections"] == 1
    assert read(busy, [(7, 0, 0, KIB)])[0] == [OK]
    assert read(idle, [(7, 0, 0, KIB)])[0] != [OK]


def test_the_end_of_either_side_ends_both(wire: Wire) -> None:
    fill(wire.server, 7, 0, MIB)
    ours = wire.rdma()
    ours.close()
    wire.server.wait_until(lambda: wire.server.loop.stats()["connections"] == 0)
    other = wire.rdma()
    assert read(other, [(7, 0, 0, MIB)])[0] == [OK]
    wire.server.loop.close()
    assert read(other, [(7, 0, 0, MIB)])[0] != [OK]
    assert not other.alive


def test_many_connections_get_less_credit_and_then_none(wire: Wire) -> None:
    data = fill(wire.server, 7, 0, 8 * KIB)
    outcomes = []
    for _ in range(140):
        connection = wire.tcp()
        outcomes.append(_reader.connect_qp(connection)[1])
        assert read(connection, [(7, 0, 1, 5000)]) == ([OK], [data[1:5001]])
    assert set(outcomes) <= {RdmaFault.FINE, RdmaFault.NO_ROOM}
    assert outcomes.count(RdmaFault.FINE) == wire.server.loop.stats()["rdma_connections_total"]


def test_a_daemon_that_is_told_not_to_stays_with_tcp(tmp_path: Path) -> None:
    for options, fault in (
        ({"rdma": False}, RdmaFault.OFF),
        ({"rdma_device": "mlx5_7"}, RdmaFault.NO_DEVICE),
        ({"rdma_gid_index": 200}, RdmaFault.NO_PORT),
    ):
        with wired(tmp_path / fault.name, **options) as wire:
            data = fill(wire.server, 7, 0, MIB)
            connection = wire.tcp()
            assert _reader.connect_qp(connection) == (OK, fault, "")
            assert read(connection, [(7, 0, 0, MIB)]) == ([OK], [data])


def test_lists_of_one_piece_will_do(tmp_path: Path) -> None:
    with wired(tmp_path, rdma_max_sge=1) as wire:
        data = fill(wire.server, 7, 0, MIB)
        ranges = [(7, 0, i * 1000 + 3, 5000) for i in range(500)]
        statuses, pieces = read(wire.rdma(), ranges)
        assert statuses == [OK] * 500
        assert pieces == [data[o : o + n] for _, _, o, n in ranges]


HONEST = ("honest", "long body")
LIES = ("magic", "short", "count", "operation", "no receives", "little room", "credit", "hop")
WRONG = ("key", "address", "reply key", "body key", "chunk key", "chunk address")
"""What only the client's own card notices: its refusal is what the daemon hears."""


@pytest.mark.parametrize("lie", [*HONEST, *LIES, *WRONG, "tcp", "again"])
def test_a_client_that_lies_ends_its_own_connection(wire: Wire, lie: str) -> None:
    data = fill(wire.server, 7, 0, 64 * KIB)
    other = wire.rdma()
    assert wire.lie(lie) == ("answered 0\n" if lie in HONEST else "ended\n")
    wire.server.wait_until(lambda: wire.server.loop.stats()["connections"] == 1)
    assert read(other, [(7, 0, 5, 60_000)]) == ([OK], [data[5:60_005]])
    stats = wire.server.loop.stats()
    assert stats["buffer_bytes"] == 0
    wire.server.wait_until(lambda: wire.server.loop.stats()["read_buffer_bytes"] == 0)
