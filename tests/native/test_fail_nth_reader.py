"""The client's engine with every use of every system call and every allocation failing in turn.

Promised: each operation ends with its bytes, whole and right, or with a typed status; what only
interrupts or delays a call is not seen at all; afterwards a new connection works, and nothing is
leaked.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from ffs import _reader
from ffs.errors import OK, ConnectionLostError, NativeError
from tests.native.fail_nth import (
    SHORT,
    WAYS,
    Fault,
    Ledger,
    faults,
    injected,
    uses_of,
)
from tests.native.server import (
    Peer,
    honest,
    one_by_one,
    read_ops,
    read_statuses,
    write_ops,
    write_statuses,
)

CHUNK = os.urandom(320_000)
RANGES = [(0, 4096), (100, 9_000), (5, 300_000), (20_000, 4096)]
WRITES = 3
WRITE_BYTES = 100_000
HARMLESS = {SHORT, errno.EINTR, errno.EAGAIN}
UNSEEN = {"close", "shutdown"}
"""Calls whose failure changes nothing, whatever it is."""
CALLS = tuple(call for call in WAYS if call in _reader.fault_counts())


@pytest.fixture(autouse=True)
def _no_fault_left() -> Iterator[None]:
    yield
    _reader.fault_set("*", 0, 0)


@dataclass
class Outcome:
    """Statuses of all operations that got one, and exceptions of calls and connections."""

    statuses: list[int] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)


def read_some(outcome: Outcome, *, thread_bytes: int = 0) -> None:
    """One call over two connections, answered range by range."""
    with Peer(one_by_one, {(5, 0): CHUNK}) as one, Peer(honest, {(5, 0): CHUNK}) as two:
        places = [sum(length for _, length in RANGES[:i]) for i in range(len(RANGES))]
        ranges = [
            (5, 0, offset, length, place)
            for (offset, length), place in zip(RANGES, places, strict=True)
        ]
        out = bytearray(sum(length for _, length in RANGES))
        ops = read_ops(*ranges[:2]) + read_ops(*ranges[2:], conn=1)
        pair = [one.connection, two.connection]
        _reader.read_batch(pair, ops, out, deadline_ms=60_000, thread_bytes=thread_bytes)
        for status, (_, _, offset, length, place) in zip(read_statuses(ops), ranges, strict=True):
            wanted = CHUNK[offset : offset + length]
            assert status != OK or out[place : place + length] == wanted
        outcome.statuses += read_statuses(ops)


def read_in_threads(outcome: Outcome) -> None:
    """The same with a thread for each connection."""
    read_some(outcome, thread_bytes=1)


def write_some(outcome: Outcome) -> None:
    with Peer(honest, {}) as peer:
        ops = write_ops(*[(1, i, i, WRITE_BYTES) for i in range(WRITES)])
        _reader.write_batch([peer.connection], ops, CHUNK, deadline_ms=60_000)
        for i, status in enumerate(write_statuses(ops)):
            assert status != OK or peer.chunks[1, i] == CHUNK[i : i + WRITE_BYTES]
        outcome.statuses += write_statuses(ops)


def work(outcome: Outcome) -> None:
    """Two calls of reads and one of writes, on new connections; what fails is told by its type."""
    for step in (read_some, read_in_threads, write_some):
        try:
            step(outcome)
        except (OSError, MemoryError) as error:
            outcome.errors.append(error)


@pytest.mark.parametrize("call", CALLS)
def test_a_call_survives_the_nth_failure(call: str) -> None:
    uses = uses_of(_reader, lambda: work(Outcome()))[call]
    ledger = Ledger()
    for fault in faults(call, uses):
        outcome = Outcome()
        with injected(_reader, fault):
            work(outcome)
        judge(fault, outcome)
        again = Outcome()
        write_some(again)
        assert set(again.statuses) == {OK}, fault
        ledger.settle(fault)


def judge(fault: Fault, outcome: Outcome) -> None:
    """An error is told once, and as what it was."""
    if fault.error in HARMLESS or fault.call in UNSEEN:
        assert (set(outcome.statuses), outcome.errors) == ({OK}, []), fault
        return
    assert set(outcome.statuses) <= {OK, ConnectionLostError.code, NativeError.code}, fault
    for error in outcome.errors:
        expected = MemoryError if fault.call == "alloc" else OSError
        assert isinstance(error, expected), fault
