"""The TCP side of a connection by RDMA: what must not come on it, and its end, which always counts.

A daemon's loop on one device of the guest, and clients on the other: raw sockets, which say what no
client would, and the client's engine.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from ffs import _reader, _storage
from ffs.errors import OK, DeadlineError
from ffs.wire import frame as wire
from tests.native.data_loop import KIB, MIB, TARGET, evict, fill, pack, read_frame, write_frame
from tests.native.server import PENDING, READ_OP, read_statuses
from tests.rdma.test_daemon import CLIENT, DAEMON, Wire, read, wired, write

GID = int(IPv6Address(f"::ffff:{CLIENT}")).to_bytes(16, "big")


def connect_qp(reads: int = 16) -> bytes:
    """A CONNECT_QP of a queue pair that is not there."""
    first, last = int.from_bytes(GID[:8], "little"), int.from_bytes(GID[8:], "little")
    end = wire.QP_END.pack(first, last, 77, 99, 0, 2, 5, reads, 0, 0)
    return pack(wire.Op.CONNECT_QP, 9, count=1, body_bytes=len(end)) + end


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Wire]:
    with wired(tmp_path) as made:
        yield made


def raw(daemon: Wire) -> socket.socket:
    """A client that is a socket."""
    with socket.create_server((DAEMON, 0)) as listener:
        address = listener.getsockname()[:2]
        client = socket.create_connection(address, timeout=10, source_address=(CLIENT, 0))
        end, _ = listener.accept()
    daemon.server.loop.adopt(end.fileno())
    end.detach()
    return client


def test_nothing_may_follow_a_wish_to_go_over(daemon: Wire) -> None:
    fill(daemon.server, 7, 0, 64 * KIB)
    listing = wire.READ_DESCRIPTOR.pack(0, 0, 3, 0, 9)
    behind = {
        "read": read_frame(*((7, 0, i, 5000) for i in range(40))),
        "ping": pack(wire.Op.PING, 2),
        "write": write_frame(8, 0, bytes(100)),
        "list": pack(wire.Op.LIST, 3, count=1, body_bytes=len(listing)) + listing,
        "again": connect_qp(),
    }
    for what in behind.values():
        with raw(daemon) as client:
            client.sendall(connect_qp() + what)
            assert client.recv(1) == b""
    assert read(daemon.rdma(), [(7, 0, 0, KIB)])[0] == [OK]


def test_an_end_that_serves_no_reads_is_refused(daemon: Wire) -> None:
    with raw(daemon) as client:
        client.sendall(connect_qp(reads=0))
        header = _reader.unpack_header(client.recv(64))
        assert header["status"] != OK
        assert header["payload_bytes"] == 0
    with raw(daemon) as client:
        client.sendall(connect_qp())
        assert _reader.unpack_header(client.recv(64))["status"] == OK


def test_a_client_that_goes_while_it_waits_for_a_buffer_is_let_go(tmp_path: Path) -> None:
    with wired(tmp_path, loops=1, write_buffer_bytes=4 * MIB) as daemon:
        server, connection = daemon.server, daemon.rdma(windows=False)
        writer = threading.Thread(target=write, args=(connection, [bytes(MIB)] * 4, 11))
        writer.start()
        server.kind(_storage.EVENT_WRITE, 2)
        assert server.loop.stats()["buffer_bytes"] == 2 * MIB
        connection.close()
        writer.join(20)
        server.wait_until(lambda: server.loop.stats()["connections"] == 0)


def test_a_client_that_goes_in_the_middle_of_a_long_range_leaves_nothing(daemon: Wire) -> None:
    server = daemon.server
    data = fill(server, 7, 0, 24 * MIB)
    for deadline_ms in (1, 10, 20, 40, 80, 160):
        evict(server)
        connection, out = daemon.rdma(), bytearray(len(data))
        ops = bytearray(READ_OP.pack(7, 0, 0, TARGET, 0, len(data), 0, PENDING, 0))
        _reader.read_batch([connection], ops, out, deadline_ms=deadline_ms)
        assert read_statuses(ops)[0] in (OK, DeadlineError.code)
        connection.close()
    server.wait_until(lambda: server.loop.stats()["connections"] == 0)
    server.wait_until(lambda: server.loop.stats()["read_buffer_bytes"] == 0)
    assert read(daemon.rdma(), [(7, 0, 1, 20 * MIB)]) == ([OK], [data[1 : 1 + 20 * MIB]])
