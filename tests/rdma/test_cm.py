"""Queue pairs that rdma_cm connects: offered to one client, over its own connection, taken once.

A data loop and the client's engine in this process, as in test_daemon.py, or one of them against
what comes by rdma_cm as it likes (stranger.c) or offers what it likes (`Offering`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ffs import _reader
from ffs.errors import OK
from ffs.wire import frame
from ffs.wire.frame import ConnectStep, FrameHeader, Op, RdmaFault
from tests.native.data_loop import MIB, fill
from tests.rdma.resources import held, settled
from tests.rdma.test_daemon import CLIENT, DAEMON, Wire, read, wired, write_all

STRANGER = Path(__file__).resolve().parents[2] / "build" / "rdma" / "stranger"
REJECTED = "RDMA_CM_EVENT_REJECTED\n"
LOST = 300
MAPPED = bytes(10) + b"\xff\xff"
"""What stands before an IPv4 address."""
END = frame.QP_END.pack(
    *(int.from_bytes(half, "little") for half in (bytes(8), b"\0\0\xff\xff\x0a\x4d\0\2")),
    *(17, 0, 0, 2, 5, 16, 0, 0),
)
"""A client's end, RoCE v2 of 10.77.0.2."""


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    """Of one loop: what a loop has once is there after the first connection."""
    with wired(tmp_path, loops=1) as made:
        yield made
    assert _reader.rdma_usage() == {"regions": 0, "bytes_asked": 0}


def packed(header: FrameHeader) -> bytes:
    return _reader.pack_header(**dataclasses.asdict(header))


def unpacked(header: bytes) -> FrameHeader:
    return FrameHeader(**_reader.unpack_header(header))


def ask(client: socket.socket, step: ConnectStep) -> tuple[FrameHeader, bytes]:
    """The daemon's answer to CONNECT_QP."""
    header = FrameHeader(
        op=Op.CONNECT_QP, request_id=9, flags=step, count=1, body_bytes=len(END), deadline_ms=9_000
    )
    client.sendall(packed(header) + END)
    answer = unpacked(client.recv(frame.HEADER.size, socket.MSG_WAITALL))
    assert answer.op == Op.CONNECT_QP | frame.REPLY_BIT
    return answer, client.recv(answer.payload_bytes, socket.MSG_WAITALL)


def offered(client: socket.socket) -> tuple[str, int, bytes]:
    """Where the daemon takes this client's queue pair, and the secret."""
    answer, payload = ask(client, ConnectStep.OFFER)
    assert answer.status == OK
    address, secret, port = frame.CM_OFFER.unpack(payload)
    assert address[:12] == MAPPED
    return socket.inet_ntoa(address[12:]), port, secret


@contextlib.contextmanager
def coming(address: str, port: int, secret: bytes) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [STRANGER, "come", address, str(port), secret.hex() or "-"],
        stdout=subprocess.PIPE,
        text=True,
    ) as stranger:
        try:
            yield stranger
        finally:
            stranger.kill()


def said(stranger: subprocess.Popen[str]) -> str:
    """Its next line."""
    assert stranger.stdout is not None
    return stranger.stdout.readline()


def becomes_of(address: str, port: int, secret: bytes) -> str:
    """What becomes of one who comes with that."""
    with coming(address, port, secret) as stranger:
        return said(stranger)


# --- what goes by it ------------------------------------------------------------------------------


@pytest.mark.parametrize("windows", [True, False], ids=["windows", "domain"])
def test_ranges_and_chunks_go_as_by_an_exchange(wire: Wire, windows: bool) -> None:
    data = fill(wire.server, 7, 0, 3 * MIB + 123)
    connection = wire.rdma(windows=windows, way="cm")
    ranges = [(7, 0, 0, 1), (7, 0, 4095, 2), (7, 0, 777, 2 * MIB)]
    ranges += [(7, 0, i * 4001, 4096) for i in range(300)]
    statuses, pieces = read(connection, ranges)
    assert statuses == [OK] * len(ranges)
    assert pieces == [data[offset : offset + length] for _, _, offset, length in ranges]
    assert wire.server.loop.stats()["rdma_connections_total"] == 1
    if not windows:  # they serve reads alone
        chunks = [bytes([n]) * n * 30_000 for n in range(1, 6)]
        assert write_all(wire.server, connection, chunks, 11) == [OK] * 5
        assert read(connection, [(11, 4, 0, 150_000)]) == ([OK], [chunks[4]])


def test_nothing_is_left_of_connections_that_end(wire: Wire) -> None:
    """Whichever side ends them; another one shows that both sides have done so."""
    fill(wire.server, 7, 0, MIB)
    wire.rdma(way="cm").close()
    wire.server.wait_until(lambda: wire.server.loop.stats()["connections"] == 0)
    before = held()
    made = [wire.rdma(way="cm") for _ in range(8)]
    assert held()["cm_id"] > before["cm_id"]
    for connection in made:
        assert read(connection, [(7, 0, 5, 70_000)])[0] == [OK]
        connection.close()
    wire.server.wait_until(lambda: wire.server.loop.stats()["connections"] == 0)
    assert settled(before) == before
    other = wire.rdma(way="cm")
    wire.server.loop.close()
    assert read(other, [(7, 0, 0, MIB)])[0] != [OK]
    assert not other.alive


def test_a_forked_child_has_connections_of_its_own(wire: Wire) -> None:
    data = fill(wire.server, 7, 0, MIB)
    parents, spare = wire.rdma(way="cm"), wire.dial()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            assert not parents.alive
            parents.close()
            spare.settimeout(None)
            own = _reader.Connection(spare.detach())
            found = _reader.connect_qp(own, way="cm", deadline_ms=20_000)
            assert found == (OK, RdmaFault.FINE, "")
            assert read(own, [(7, 0, 3, 5000)]) == ([OK], [data[3:5003]])
            own.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert read(parents, [(7, 0, 3, 5000)]) == ([OK], [data[3:5003]])
    spare.close()


# --- who may come ---------------------------------------------------------------------------------


def test_only_the_secret_is_taken_and_only_once(wire: Wire) -> None:
    client, other = wire.dial(), wire.dial()
    address, port, secret = offered(client)
    assert (address, port) == offered(other)[:2]
    assert address == DAEMON
    wrong = bytes([*secret[:-1], secret[-1] ^ 1])
    for lie in (b"", secret[:-1], wrong, bytes(16)):
        assert becomes_of(address, port, lie) == REJECTED
    with coming(address, port, secret + b"and more") as first:
        assert said(first) == "taken\n"
        assert becomes_of(address, port, secret) == REJECTED
        answer, _ = ask(other, ConnectStep.CONFIRM)
        assert (answer.status, answer.flags) == (4, RdmaFault.NOT_REACHED)
        answer, end = ask(client, ConnectStep.CONFIRM)
        assert (answer.status, len(end)) == (OK, frame.QP_END.size)
        assert wire.server.loop.stats()["rdma_connections_total"] == 1
        client.close()
        assert said(first) == "left\n"
    assert becomes_of(address, port, secret) == REJECTED
    other.close()
    wire.server.wait_until(lambda: wire.server.loop.stats()["connections"] == 0)


def test_an_offer_ends_with_its_connection(wire: Wire) -> None:
    data = fill(wire.server, 7, 0, MIB)
    before = held()["qp"]
    clients = [wire.dial() for _ in range(3)]
    offers = [offered(client) for client in clients]
    assert offered(clients[0])[2] != offers[0][2]
    assert becomes_of(*offers[0]) == REJECTED  # another one has taken its place
    with coming(*offers[1]) as taken:
        assert said(taken) == "taken\n"
        for client in clients:
            client.close()
        assert said(taken) == "left\n"
    wire.server.wait_until(lambda: wire.server.loop.stats()["connections"] == 0)
    assert becomes_of(*offers[2]) == REJECTED
    wire.server.wait_until(lambda: held()["qp"] == before)
    assert read(wire.rdma(way="cm"), [(7, 0, 0, MIB)]) == ([OK], [data])


@pytest.mark.parametrize("confirmed", [True, False], ids=["confirmed", "not yet"])
def test_who_leaves_by_rdma_cm_has_left(wire: Wire, confirmed: bool) -> None:
    """With the connection, if that goes by the queue pair already."""
    before = held()["qp"]
    client = wire.dial()
    with coming(*offered(client)) as taken:
        assert said(taken) == "taken\n"
        if confirmed:
            assert ask(client, ConnectStep.CONFIRM)[0].status == OK
    wire.server.wait_until(lambda: held()["qp"] == before)
    if confirmed:
        assert client.recv(1) == b""
    else:
        assert ask(client, ConnectStep.CONFIRM)[0].flags == RdmaFault.NOT_REACHED
    client.close()


# --- which way ------------------------------------------------------------------------------------


def test_each_side_says_which_way_it_takes(tmp_path: Path) -> None:
    outcomes = {}
    for daemon in ("auto", "exchange", "cm"):
        with wired(tmp_path / daemon, loops=1, rdma_connect=daemon) as wire:
            data = fill(wire.server, 7, 0, MIB)
            for client in ("auto", "exchange", "cm"):
                connection = wire.tcp()
                found = _reader.connect_qp(connection, way=client, deadline_ms=20_000)
                outcomes[daemon, client] = RdmaFault(found[1])
                assert found[::2] == (OK, "")
                assert read(connection, [(7, 0, 0, MIB)]) == ([OK], [data])
    refused = {pair for pair, fault in outcomes.items() if fault == RdmaFault.OTHER_WAY}
    assert refused == {("exchange", "cm"), ("cm", "exchange")}
    assert set(outcomes.values()) == {RdmaFault.FINE, RdmaFault.OTHER_WAY}


WITHOUT = """
import socket, sys
from ffs import _reader
for way in ("cm", "exchange"):
    sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
    connection = _reader.Connection(sock.detach())
    print(*_reader.connect_qp(connection, way=way, deadline_ms=20_000), connection.alive)
"""


def test_without_librdmacm_there_are_exchanges(wire: Wire, tmp_path: Path) -> None:
    (tmp_path / "librdmacm.so.1").write_bytes(b"no library")
    with wire.adopting(2) as port:
        told = subprocess.run(
            [sys.executable, "-c", WITHOUT, DAEMON, str(port)],
            env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
    assert told[0] == f"0 {RdmaFault.NO_CM:d} librdmacm.so.1 is not here (Debian: librdmacm1) True"
    assert told[1] == f"0 {RdmaFault.FINE:d}  True"


# --- what stands in the way -----------------------------------------------------------------------


class Offering:
    """A daemon that offers to take queue pairs where it likes, and refuses what comes after."""

    def __init__(self, address: str, port: int, *, leaves: bool = False) -> None:
        self._offer = frame.CM_OFFER.pack(MAPPED + socket.inet_aton(address), bytes(16), port)
        self._leaves = leaves
        self._listener = socket.create_server((DAEMON, 0))
        self.asked: list[int] = []
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        with client:
            while asked := client.recv(frame.HEADER.size, socket.MSG_WAITALL):
                header = unpacked(asked)
                client.recv(header.body_bytes, socket.MSG_WAITALL)
                self.asked.append(header.flags)
                answer = FrameHeader(
                    op=header.op | frame.REPLY_BIT,
                    request_id=header.request_id,
                    payload_bytes=len(self._offer),
                )
                client.sendall(packed(answer) + self._offer)
                if self._leaves:
                    return

    def connect(self, deadline_ms: int) -> tuple[_reader.Connection, int, int, str]:
        """What comes of going over to it."""
        self._thread.start()
        sock = socket.create_connection(
            self._listener.getsockname()[:2], source_address=(CLIENT, 0)
        )
        connection = _reader.Connection(sock.detach())
        found = _reader.connect_qp(connection, way="cm", deadline_ms=deadline_ms)
        return connection, *found

    def close(self, connection: _reader.Connection) -> None:
        """End both."""
        connection.close()
        self._thread.join(20)
        self._listener.close()


@contextlib.contextmanager
def deaf() -> Iterator[int]:
    """The port of somebody who listens and never answers."""
    with subprocess.Popen(
        [STRANGER, "deaf", DAEMON], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as listener:
        yield int(said(listener))
        listener.kill()


@pytest.mark.parametrize("case", ["nobody", "nowhere", "silence"])
def test_what_is_not_reached_stays_tcp(case: str) -> None:
    before = held()
    with contextlib.ExitStack() as stack:
        address, port, wanted = {
            "nobody": (DAEMON, 1, "rdma_cm: RDMA_CM_EVENT_REJECTED (8)"),
            "nowhere": ("10.77.0.99", 1, "rdma_cm: "),
            "silence": (DAEMON, 0, "rdma_cm: the daemon did not answer in time"),
        }[case]
        daemon = Offering(address, port or stack.enter_context(deaf()))
        connection, status, fault, reason = daemon.connect(3_000)
        assert (status, fault) == (OK, RdmaFault.NOT_REACHED)
        assert reason.startswith(wanted)
        assert connection.alive
        assert daemon.asked == [ConnectStep.OFFER]
        daemon.close(connection)
    assert settled(before) == before


def test_a_daemon_that_dies_meanwhile_is_noticed_at_once() -> None:
    with deaf() as port:
        daemon = Offering(DAEMON, port, leaves=True)
        connection, status, _, _ = daemon.connect(60_000)
        assert status == LOST
        assert not connection.alive
        daemon.close(connection)
