"""RDMA with every use of every verb failing in turn, on the client's side and on the daemon's.

Promised: a connection goes over, or stays TCP with a reason, or breaks; each range ends with its
bytes, whole and right, or with a typed status; afterwards a new connection works, and the kernel
keeps nothing that it did not keep before. A slice of the uses; all of them in the long form.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ffs import _reader, _storage
from ffs.wire.frame import RdmaFault
from tests.native.data_loop import KIB, fill
from tests.native.fail_nth import VERBS, Fault, injected, uses_of
from tests.rdma.resources import held, settled
from tests.rdma.test_client import ADDRESS, BLOB, LOST, OK, TRANSPORT, Client, content, write
from tests.rdma.test_client import peer as peer  # a fixture
from tests.rdma.test_daemon import read, wired

FULL = os.environ.get("FFS_RDMA") == "full"
pytestmark = pytest.mark.timeout(7_200 if FULL else 300)
RANGES = [(BLOB, 1, i * 3001, 100) for i in range(130)]
"""More than one SEND has room for: the daemon fetches the rest."""
FEW = RANGES[:8]


def faults(module: ModuleType, scenario: Callable[[], object]) -> Iterator[Fault]:
    """Each use of each verb in each way; in short the first, one in the middle and the last."""
    counts = uses_of(module, scenario)
    for call, ways in VERBS.items():
        uses = counts[call]
        for nth in range(1, uses + 1) if FULL else sorted({1, (uses + 1) // 2, uses} - {0}):
            for error in ways if FULL or nth == 1 else ways[:1]:
                yield Fault(call, nth, error)


class Talker:
    """A client of the peer, whose verbs fail."""

    def __init__(self, windows: bool) -> None:
        self.windows = windows
        self.ended: set[str] = set()

    def talk(self) -> None:
        """Connect, read, write, close."""
        client = Client(self.windows)
        connection = _reader.Connection(socket.create_connection(ADDRESS).detach())
        status, fault, reason = _reader.connect_qp(
            connection, windows=self.windows, deadline_ms=20_000
        )
        if (status, fault) != (OK, RdmaFault.FINE):
            assert reason, (status, fault)
            assert status in (OK, LOST)
            self.ended.add("broken" if status else "stays tcp")
        else:
            client._connection = connection
            self.move(client, connection)
        connection.close()

    def move(self, client: Client, connection: _reader.Connection) -> None:
        """Read and write; whatever broke the connection has ended it."""
        out = np.zeros(sum(length for *_, length in FEW), np.uint8)
        statuses = client.read(FEW, out)
        for at, status in enumerate(statuses):
            assert status in (OK, LOST, TRANSPORT)
            assert status or np.array_equal(out[at * 100 : at * 100 + 100], content(*FEW[at]))
        self.ended.add("read" if not any(statuses) else "not read")
        if connection.alive and not self.windows:
            data = content(BLOB, 1, 0, 5000)
            assert set(write(client, data, [0, 0], len(data))) <= {OK, LOST, TRANSPORT}


@pytest.mark.parametrize("windows", [True, False], ids=["windows", "domains"])
def test_each_verb_of_the_client_may_fail(peer: None, windows: bool) -> None:
    talker = Talker(windows)
    talker.talk()
    before = held()
    for fault in faults(_reader, talker.talk):
        with injected(_reader, fault):
            talker.talk()
        assert _reader.rdma_usage() == {"regions": 0, "bytes_asked": 0}, fault
    assert talker.ended == {"broken", "stays tcp", "read", "not read"}
    talker.talk()
    assert settled(before) == before


def test_each_verb_of_a_daemon_may_fail(tmp_path: Path) -> None:
    ended, number = set(), 0

    def serve(fault: Fault | None = None) -> None:
        """Serve one client while a verb fails, and another one afterwards."""
        nonlocal number
        number += 1
        with wired(tmp_path / str(number), loops=1) as wire:
            data = fill(wire.server, BLOB, 1, 400 * KIB)
            wanted = [data[offset : offset + length] for _, _, offset, length in RANGES]
            connection = wire.tcp()
            if fault is not None:
                _storage.fault_set(fault.call, fault.nth, fault.error)
            status, refused, _ = _reader.connect_qp(connection, deadline_ms=20_000)
            statuses, pieces = read(connection, RANGES)
            if fault is not None:
                _storage.fault_set("*", 0, 0)
            assert status in (OK, LOST), fault
            for status, piece, want in zip(statuses, pieces, wanted, strict=True):
                assert status in (OK, LOST), fault
                assert status or piece == want, fault
            ended.add(("refused" if refused else "rdma", "read" if not any(statuses) else "lost"))
            if fault is not None:
                assert read(wire.rdma(), RANGES) == ([OK] * len(RANGES), wanted), fault

    serve()
    serve(Fault("ibv_modify_qp", 2, errno.EINVAL))  # has the client try rdma_cm
    before = held()
    for fault in faults(_storage, serve):
        serve(fault)
    assert ended >= {("refused", "read"), ("rdma", "read"), ("rdma", "lost")}
    # Contexts are a process's own, not a connection's: librdmacm opens some once, when it is tried.
    assert {**settled(before), "ctx": 0} == {**before, "ctx": 0}
