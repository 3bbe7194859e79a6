"""The client's RDMA against a daemon of few words (peer.c), which misbehaves on demand.

Whatever the peer does: right bytes or a status, no byte after the call, nothing left registered.
Each test runs with memory windows and, as on a device without them, with a domain for each
connection.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ffs import _reader
from ffs.wire.frame import RdmaFault

PEER = Path(__file__).resolve().parents[2] / "build" / "rdma" / "peer"
ADDRESS = ("10.77.0.1", 7471)
READ_OP = struct.Struct("<QQIIIIHHI")
WRITE_OP = struct.Struct("<QQIIIIIHH")
BLOB, TARGET = 5, 3
DAMAGED, ONE_BY_ONE, SILENT, LATE, WRONG_KEY, BROKEN, GONE, TWICE, MISSING, OUTSIDE, STILL = (
    n << 32 | BLOB for n in range(1, 12)
)
SLOW, KILLED = 12 << 32 | BLOB, 13 << 32 | BLOB
OK, DEADLINE, TRANSPORT, CHECKSUM, ABSENT, LOST, STALLED = 0, 5, 9, 201, 202, 300, 301
libc: Any = ctypes.CDLL(None, use_errno=True)
MASK = (1 << 64) - 1
Range = tuple[int, int, int, int]
"""blob, chunk, offset, length."""
Bytes = npt.NDArray[np.uint8]


def mix64(x: int) -> int:
    """As docs/wire.md has it."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def content(blob: int, chunk: int, offset: int, length: int) -> Bytes:
    """What the peer serves."""
    at = np.arange(offset, offset + length, dtype=np.uint32)
    first = mix64((blob * 1_000_003 + chunk) & MASK) & 255
    return (first + at * 7 + (at >> 12) * 13).astype(np.uint8)


@contextlib.contextmanager
def serving_peer() -> Iterator[None]:
    """The peer, listening."""
    with subprocess.Popen([PEER, str(ADDRESS[1])], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield
        finally:
            process.kill()


@pytest.fixture(scope="module")
def peer() -> Iterator[None]:
    with serving_peer():
        yield


class Client:
    """Connections to the peer, made anew when one has gone."""

    def __init__(self, windows: bool) -> None:
        self.windows = windows
        self._connection: _reader.Connection | None = None

    def connect(self) -> _reader.Connection:
        """A connection that has gone over."""
        sock = socket.create_connection(ADDRESS)
        connection = _reader.Connection(sock.detach())
        found = _reader.connect_qp(connection, windows=self.windows, deadline_ms=20_000)
        assert found == (OK, RdmaFault.FINE, "")
        assert connection.rdma in ("rxe0", "rxe1")
        return connection

    @property
    def connection(self) -> _reader.Connection:
        """The one in use."""
        if self._connection is None or not self._connection.alive:
            self._connection = self.connect()
        return self._connection

    def read(
        self,
        ranges: Sequence[Range],
        out: Bytes,
        *,
        deadline_ms: int = 20_000,
        stall_ms: int = 0,
        verify: bool = True,
    ) -> list[int]:
        """Read ranges back to back; their statuses."""
        ops, at = bytearray(), 0
        for blob, chunk, offset, length in ranges:
            ops += READ_OP.pack(
                blob, at, chunk, TARGET, offset, length, 0, _reader.STATUS_PENDING, 0
            )
            at += length
        _reader.read_batch(
            [self.connection],
            ops,
            out,
            deadline_ms=deadline_ms,
            stall_ms=stall_ms,
            verify=verify,
        )
        return [op[7] for op in READ_OP.iter_unpack(ops)]

    def check(self, ranges: Sequence[Range], *, verify: bool = True) -> None:
        """Read ranges that must come."""
        out = np.zeros(sum(r[3] for r in ranges), np.uint8)
        assert set(self.read(ranges, out, verify=verify)) == {OK}
        assert np.array_equal(out, np.concatenate([content(*r) for r in ranges]))


@pytest.fixture(params=[True, False], ids=["windows", "domains"])
def client(peer: None, request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client that leaves nothing behind."""
    client = Client(request.param)
    yield client
    assert _reader.rdma_usage() == {"regions": 0, "bytes_asked": 0}
    client.connection.close()


# --- what is read and written ---------------------------------------------------------------------


def test_ranges_of_many_sizes_land_where_they_belong(client: Client) -> None:
    before = _reader.counters()
    for length in (1, 4095, 4096, 4097, 65_536, 1_000_003):
        for offset in (0, 1, 4095, 8192):
            client.check([(BLOB, 1, offset, length)])
    client.check([(BLOB, 2, 777, 3 << 20)], verify=False)
    after = _reader.counters()
    landed = after["payload_bytes"] - before["payload_bytes"]
    assert after["rdma_bytes"] - before["rdma_bytes"] >= landed > 3 << 20
    assert after["copied_bytes"] == before["copied_bytes"]


@pytest.mark.parametrize("blob", [BLOB, ONE_BY_ONE])
def test_many_ranges_take_several_requests_and_answers(client: Client, blob: int) -> None:
    """600 descriptors are three requests, none of which fits into one send."""
    client.check([(blob, 3, i * 3001, 100) for i in range(600)])


@pytest.fixture
def writer(peer: None) -> Iterator[Client]:
    """A client that may write, and leaves nothing behind."""
    client = Client(windows=False)
    yield client
    assert _reader.rdma_usage() == {"regions": 0, "bytes_asked": 0}
    client.connection.close()


def test_chunks_are_fetched_by_the_daemon(writer: Client) -> None:
    client = writer
    lengths = (1, 4096, 70_000, 1 << 20, 12_345)
    data = np.concatenate([content(BLOB, i, 0, n) for i, n in enumerate(lengths)])
    ops, at = bytearray(), 0
    for chunk, length in enumerate(lengths):
        ops += WRITE_OP.pack(BLOB, at, chunk, TARGET, 5, length, 6, 0, _reader.STATUS_PENDING)
        at += length
    assert _reader.write_batch([client.connection], ops, data, deadline_ms=20_000) == len(lengths)
    data[70_000] ^= 1  # of the third: the peer knows what it should be
    again = b"".join(
        WRITE_OP.pack(*op[:8], _reader.STATUS_PENDING) for op in WRITE_OP.iter_unpack(ops)
    )
    ops = bytearray(again)
    assert (
        _reader.write_batch([client.connection], ops, data, deadline_ms=20_000) == len(lengths) - 1
    )
    assert [op[8] for op in WRITE_OP.iter_unpack(ops)] == [0, 0, 207, 0, 0]


def write(client: Client, data: Any, places: Sequence[int], length: int) -> list[int]:
    """Write chunks of one length from these places, each with what the peer expects of it."""
    ops = bytearray()
    for place in places:
        ops += WRITE_OP.pack(BLOB, place, 1, TARGET, 5, length, 6, 0, _reader.STATUS_PENDING)
    _reader.write_batch([client.connection], ops, data, deadline_ms=20_000)
    return [op[8] for op in WRITE_OP.iter_unpack(ops)]


@pytest.mark.parametrize("kind", ["bytes", "anonymous", "private", "shared"])
def test_memory_that_nobody_may_write_to_is_written_from(
    writer: Client, tmp_path: Path, kind: str
) -> None:
    """Older kernels cannot register shared mappings of files: then TCP is asked to."""
    length, path = 100_000, tmp_path / "chunk"
    path.write_bytes(content(BLOB, 1, 0, length).tobytes())
    data: Any = path.read_bytes()
    if kind == "anonymous":
        memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory[:] = data
        data = np.frombuffer(memory, np.uint8)
        assert mprotect(data, mmap.PROT_READ) == 0
    elif kind != "bytes":
        flags = mmap.MAP_SHARED if kind == "shared" else mmap.MAP_PRIVATE
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), length, flags=flags, prot=mmap.PROT_READ)
    before = writer.connection
    statuses = write(writer, data, [0] * 20, length)
    assert set(statuses) == {OK} or (kind == "shared" and set(statuses) == {TRANSPORT})
    assert writer.connection is before
    good = content(BLOB, 1, 0, length)
    assert write(writer, good, [0, 0], length) == [OK, OK]


def test_what_lies_between_chunks_need_not_be_there(writer: Client) -> None:
    length, page = 8192, mmap.PAGESIZE
    memory = mmap.mmap(-1, 8 * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    data = np.frombuffer(memory, np.uint8)
    places = (0, 6 * page)
    for place in places:
        data[place : place + length] = content(BLOB, 1, 0, length)
    assert mprotect(data[3 * page : 5 * page], 0) == 0
    assert write(writer, data, places, length) == [OK, OK]
    assert mprotect(data[6 * page :], 0) == 0
    assert write(writer, data, places[:1], length) == [OK]


def test_windows_are_for_reads(peer: None) -> None:
    client = Client(windows=True)
    assert write(client, bytes(4096), [0, 0, 0], 4096) == [TRANSPORT] * 3
    assert not client.connection.own_domain
    client.check([(BLOB, 0, 0, 5000)])
    client.connection.close()


def test_memory_that_cannot_be_read_into_is_no_fault_of_the_connection(client: Client) -> None:
    memory = mmap.mmap(-1, 1 << 16, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    out = np.frombuffer(memory, np.uint8)
    assert mprotect(out, mmap.PROT_READ) == 0
    before = client.connection
    assert client.read([(BLOB, 0, 0, 5000)], out) == [TRANSPORT]
    assert client.connection is before
    client.check([(BLOB, 0, 0, 5000)])


def mprotect(memory: Bytes, rights: int) -> int:
    """Take rights from whole pages of ours."""
    length = -(-memory.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    address = ctypes.c_void_p(memory.ctypes.data)
    return int(libc.mprotect(address, ctypes.c_size_t(length), rights))


def test_declared_memory_is_registered_once(peer: None) -> None:
    """What a region covers stays registered between calls; without windows nothing does."""
    client, out = Client(windows=True), np.zeros(1 << 20, np.uint8)
    region = _reader.Region(out)
    for chunk in range(3):
        assert client.read([(BLOB, chunk, 0, 5000)], out[4096:]) == [OK]
        assert np.array_equal(out[4096:9096], content(BLOB, chunk, 0, 5000))
        assert _reader.rdma_usage()["regions"] == 1
    region.release()
    assert _reader.rdma_usage()["regions"] == 0
    client.connection.close()


# --- a daemon that misbehaves ---------------------------------------------------------------------


def test_what_is_wrong_with_a_range_is_its_status(client: Client) -> None:
    out = np.zeros(20_000, np.uint8)
    assert client.read([(DAMAGED, 0, 0, 5000)], out) == [CHECKSUM]
    statuses = client.read([(MISSING, 0, i, 5000) for i in range(4)], out)
    assert statuses == [OK, ABSENT, OK, ABSENT]
    assert client.connection.alive
    client.check([(BLOB, 0, 0, 5000)])


@pytest.mark.parametrize(
    "blob",
    [WRONG_KEY, BROKEN, GONE, OUTSIDE, KILLED],
    ids=["key", "broken", "gone", "outside", "killed"],
)
def test_what_breaks_a_queue_pair_ends_the_connection(client: Client, blob: int) -> None:
    out = np.full(5000, 0x5A, np.uint8)
    before = client.connection
    assert client.read([(blob, 0, 0, 5000)], out) == [LOST]
    assert not before.alive
    client.check([(BLOB, 0, 0, 5000)])


def test_an_answer_to_nothing_ends_the_connection(client: Client) -> None:
    out = np.zeros(5000, np.uint8)
    before = client.connection
    assert client.read([(TWICE, 0, 0, 5000)], out) == [OK]
    deadline = time.monotonic() + 20
    while before.alive and time.monotonic() < deadline:
        client.read([(BLOB, 0, 0, 5000)], out)
    assert not before.alive


def test_silence_is_a_stall(client: Client) -> None:
    out = np.zeros(5000, np.uint8)
    assert client.read([(SILENT, 0, 0, 5000)], out, stall_ms=300) == [STALLED]
    client.check([(BLOB, 0, 0, 5000)])


def test_bytes_that_come_slowly_are_no_silence(peer: None) -> None:
    """Three times a header says that bytes are on their way: the answer takes longer than silence
    may last."""
    client, pause_ms = Client(windows=True), 1500
    out = np.zeros(3 << 20, np.uint8)
    client.check([(BLOB, 0, 0, 1)])
    before = _reader.counters()["frames"]
    assert client.read([(SLOW, pause_ms, 0, len(out))], out, stall_ms=4000) == [OK]
    assert _reader.counters()["frames"] - before == 4
    assert np.array_equal(out, content(SLOW, pause_ms, 0, len(out)))
    client.connection.close()


# --- no byte after the call -----------------------------------------------------------------------


def test_a_daemon_that_writes_on_reaches_nothing(client: Client) -> None:
    out = np.zeros(10_000, np.uint8)
    before = client.connection
    assert client.read([(STILL, 0, 0, 10_000)], out) == [OK]
    out[:] = 0x5A
    time.sleep(0.3)
    assert (out == 0x5A).all()
    assert client.read([(BLOB, 0, 0, 100)], out[:100]) == [LOST]
    assert not before.alive


# --- processes ------------------------------------------------------------------------------------


def test_a_forked_child_has_connections_of_its_own(client: Client) -> None:
    """It can use neither its parent's, nor end them; what it makes itself works."""
    parents = client.connection
    client.check([(BLOB, 0, 0, 5000)])
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            assert not parents.alive
            assert _reader.rdma_usage() == {"regions": 0, "bytes_asked": 0}
            parents.close()
            client.check([(BLOB, 1, 0, 5000)])
            client.connection.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert parents.alive
    client.check([(BLOB, 2, 0, 5000)])


LITTLE_MEMORY = """
import socket, struct, sys
from ffs import _reader
from tests.rdma.little import lock_no_more_than
lock_bytes, length = int(sys.argv[1]), int(sys.argv[2])
lock_no_more_than(lock_bytes)
sock = socket.create_connection((sys.argv[3], int(sys.argv[4])))
connection = _reader.Connection(sock.detach())
status, fault, reason = _reader.connect_qp(connection, deadline_ms=20_000)
if fault == 0:  # there is enough for a connection; is there for what is read into?
    op = struct.pack("<QQIIIIHHI", 5, 0, 0, 3, 0, length, 0, _reader.STATUS_PENDING, 0)
    _reader.read_batch([connection], bytearray(op), bytearray(length), deadline_ms=20_000)
    fault, reason = connection.rdma_fault
print(fault, reason)
"""


@pytest.mark.parametrize(("lock_bytes", "length"), [(64 << 10, 1), (4 << 20, 16 << 20)])
def test_too_little_lockable_memory_is_said(peer: None, lock_bytes: int, length: int) -> None:
    arguments = (lock_bytes, length, *ADDRESS)
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{RdmaFault.MEMLOCK:d} ")
    assert f"RLIMIT_MEMLOCK is {lock_bytes} bytes" in done.stdout
