"""Reading on the same host with every use of every system call failing in turn, on either side.

Promised: each operation ends with its bytes, whole and right, or with a typed status that sends the
client to TCP; what only interrupts or delays is not seen at all; afterwards a new connection works;
nothing is leaked, neither descriptors nor pins.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest

from ffs import _reader, _storage
from ffs.errors import (
    OK,
    BusyError,
    ChunkMissingError,
    ConnectionLostError,
    NativeError,
    ProtocolError,
    StorageIOError,
)
from tests.native.data_loop import Server, fill, serving
from tests.native.fail_nth import WAYS, Fault, Ledger, faults, injected, uses_of
from tests.native.local import connect, read, wait_until
from tests.native.test_fail_nth_reader import HARMLESS, UNSEEN

CHUNKS = {0: 5_000, 1: 300_000}
RANGES = [(1, 0, 0, 5_000), (1, 1, 10, 290_000), (1, 0, 4_097, 3), (1, 9, 0, 1)]
WANTED = [OK, OK, OK, ChunkMissingError.code]
TYPED = {OK, ChunkMissingError.code, BusyError.code, ConnectionLostError.code, NativeError.code}
CALLS = [(_reader, call) for call in WAYS] + [(_storage, call) for call in WAYS]


@dataclass
class Outcome:
    """What one life of a connection came to."""

    statuses: list[int] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as made:
        yield made
    for module in (_reader, _storage):
        module.fault_set("*", 0, 0)


def forget_pages(server: Server) -> None:
    """Have the kernel drop the files from its cache, so that reading waits for the disk."""
    for path in server.path.iterdir():
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def talk(server: Server, data: dict[int, bytes], *, cold: bool = True) -> Outcome:
    """Connect, read twice (if `cold`, from the disk first), and leave."""
    outcome = Outcome()
    if cold:
        forget_pages(server)
    try:
        connection = connect(server.loop)
    except (OSError, MemoryError) as error:
        return Outcome(errors=[error])
    try:
        for _ in range(2):
            got = read(connection, RANGES)
            outcome.statuses += [status for status, _ in got]
            for (_, chunk, offset, length), (status, body) in zip(RANGES, got, strict=True):
                assert status != OK or body == data[chunk][offset : offset + length]
    except (OSError, MemoryError) as error:
        outcome.errors.append(error)
    finally:
        connection.close()
    wait_until(lambda: server.loop.stats()["connections"] == 0)
    assert server.loop.stats()["located"] == 0
    return outcome


@pytest.mark.parametrize(
    ("module", "call"), CALLS, ids=lambda part: getattr(part, "__name__", part)
)
def test_the_nth_failure_is_no_wrong_byte(server: Server, module: ModuleType, call: str) -> None:
    data = {chunk: fill(server, 1, chunk, length) for chunk, length in CHUNKS.items()}
    cold = call in {"preadv2", "fadvise"}  # which are not used in all their ways otherwise
    uses = uses_of(module, lambda: talk(server, data, cold=cold))[call]
    ledger = Ledger()
    for fault in faults(call, uses):
        with injected(module, fault):
            outcome = talk(server, data, cold=cold)
        judge(fault, outcome)
        assert talk(server, data, cold=False) == Outcome(WANTED * 2), fault
        ledger.settle(fault)


def judge(fault: Fault, outcome: Outcome) -> None:
    if fault.error in HARMLESS or fault.call in UNSEEN:
        assert outcome == Outcome(WANTED * 2), fault
        return
    assert set(outcome.statuses) <= TYPED | {ProtocolError.code, StorageIOError.code}, fault
    for error in outcome.errors:
        assert isinstance(error, (MemoryError, OSError)), fault
