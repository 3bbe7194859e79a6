"""Connections of one call that share operations: a connection that none names helps another."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from ffs import _reader, errors
from tests.native.server import Behaviour, Peer, Request, honest, one_by_one, read_ops
from tests.native.server import read_statuses as statuses
from tests.native.test_reader_team import MULTI_THREADED, silent

RANGE = 256 << 10
COUNT = 64
PIECE_RANGES = 4
"""The least that one connection takes at a time, 1 MiB."""
CHUNKS = {(blob, 0): os.urandom(RANGE + 7 * COUNT) for blob in (5, 6)}
DEADLINE = errors.DeadlineError.code
STALLED = errors.StalledError.code
CANCELLED = errors.CancelledOperationError.code
LOST = errors.ConnectionLostError.code


def ranges(*, conn: int = 0, blob: int = 5, at: int = 0) -> bytearray:
    """COUNT ranges for one connection, back to back from the `at`-th place on."""
    return read_ops(
        *[(blob, 0, 7 * i, RANGE, (at + i) * RANGE) for i in range(COUNT)],
        conn=conn,
    )


def expected(blob: int = 5) -> bytes:
    """What these ranges hold."""
    return b"".join(CHUNKS[blob, 0][7 * i : 7 * i + RANGE] for i in range(COUNT))


@contextmanager
def peers(*behaviours: Behaviour, blob: int = 5) -> Iterator[list[Peer]]:
    """A peer for each behaviour, which has one blob."""
    with ExitStack() as stack:
        yield [stack.enter_context(Peer(b, {(blob, 0): CHUNKS[blob, 0]})) for b in behaviours]


def asked_of(peer: Peer) -> int:
    """How many ranges a peer was asked for."""
    return sum(len(request.descriptors) for request in peer.requests)


def read(found: list[Peer], ops: bytearray, out: bytearray, **options: Any) -> int:
    """One call over the peers' connections; how many ranges it read."""
    options = {"deadline_ms": 60_000, **options}
    return _reader.read_batch([peer.connection for peer in found], ops, out, **options)


@pytest.mark.parametrize("thread_bytes", [0, 1])
@pytest.mark.parametrize("connections", [2, 3, 7])
def test_every_range_is_read_once_by_one_of_them(connections: int, thread_bytes: int) -> None:
    behaviours: list[Behaviour] = [honest, one_by_one, *[honest] * 5]
    with peers(*behaviours[:connections]) as found:
        for number in range(1, 4):
            ops, out = ranges(), bytearray(COUNT * RANGE)
            assert read(found, ops, out, thread_bytes=thread_bytes) == COUNT
            assert (set(statuses(ops)), out == expected()) == ({0}, True)
            assert sum(map(asked_of, found)) == number * COUNT
        assert all(peer.requests and peer.connection.alive for peer in found)


@pytest.mark.parametrize("slow", [0, 1], ids=["named", "helping"])
@pytest.mark.parametrize("thread_bytes", [0, 1])
def test_a_slow_connection_is_left_with_little(slow: int, thread_bytes: int) -> None:
    lock, kept = threading.Lock(), list[Request]()

    def answer_when_all_is_asked_for() -> None:
        with lock:
            if asked_of(found[0]) + asked_of(found[1]) == COUNT:
                while kept:
                    honest(found[slow], kept.pop())

    def late(_peer: Peer, request: Request) -> None:
        with lock:
            kept.append(request)
        answer_when_all_is_asked_for()

    def quick(peer: Peer, request: Request) -> None:
        honest(peer, request)
        answer_when_all_is_asked_for()

    behaviours = (late, quick) if slow == 0 else (quick, late)
    with peers(*behaviours) as found:
        ops, out = ranges(), bytearray(COUNT * RANGE)
        assert read(found, ops, out, thread_bytes=thread_bytes) == COUNT
        assert out == expected()
        assert asked_of(found[slow]) < COUNT // 2


def test_helpers_help_the_nearest_one_before_them_and_no_other() -> None:
    """A peer of the wrong two could not answer, as it lacks the blob."""
    with peers(honest, honest) as first, peers(honest, honest, blob=6) as second:
        ops = ranges() + ranges(conn=2, blob=6, at=COUNT)
        out = bytearray(2 * COUNT * RANGE)
        assert read(first + second, ops, out, thread_bytes=1) == 2 * COUNT
        assert out == expected() + expected(6)
        assert all(peer.requests for peer in first + second)


def test_a_small_batch_stays_with_one_connection() -> None:
    with peers(honest, honest) as found:
        ops, out = ranges()[: 40 * PIECE_RANGES], bytearray(PIECE_RANGES * RANGE)
        assert read(found, ops, out) == PIECE_RANGES
        assert [asked_of(peer) for peer in found] == [PIECE_RANGES, 0]


# ------------------------------------------------------------------------------------- failures


def vanish(peer: Peer, _request: Request) -> None:
    peer.socket.shutdown(2)


@pytest.mark.parametrize("bad", [0, 1, 2])
@pytest.mark.parametrize(("behaviour", "status"), [(vanish, LOST), (silent, STALLED)])
@pytest.mark.parametrize("thread_bytes", [0, 1], ids=["one thread", "threads"])
def test_a_fault_costs_what_its_connection_had_taken(
    behaviour: Behaviour, status: int, thread_bytes: int, bad: int
) -> None:
    behaviours: list[Behaviour] = [honest, honest, honest]
    behaviours[bad] = behaviour
    with peers(*behaviours) as found:
        ops, out = ranges(), bytearray(COUNT * RANGE)
        stall_ms = [200 if i == bad and status == STALLED else 0 for i in range(3)]
        read(found, ops, out, stall_ms=stall_ms, thread_bytes=thread_bytes)
        seen = statuses(ops)
        assert set(seen) == {0, status}
        taken = asked_of(found[bad])
        if behaviour is vanish:  # it has not seen what else was asked of it
            assert taken <= seen.count(status) < COUNT // 2
        else:
            assert seen.count(status) == taken
        assert [peer.connection.alive for peer in found] == [i != bad for i in range(3)]
        for i in range(COUNT):
            place = slice(i * RANGE, (i + 1) * RANGE)
            assert seen[i] != 0 or out[place] == expected()[place]


@pytest.mark.parametrize("thread_bytes", [0, 1])
@pytest.mark.parametrize(
    ("behaviour", "status"), [(vanish, LOST), (silent, STALLED), (silent, DEADLINE)]
)
def test_the_last_to_fail_takes_the_rest_along(
    behaviour: Behaviour, status: int, thread_bytes: int
) -> None:
    with peers(behaviour, behaviour, behaviour) as found:
        ops, out = ranges(), bytearray(COUNT * RANGE)
        stall_ms, deadline_ms = (0, 200) if status == DEADLINE else (200, 60_000)
        done = read(
            found,
            ops,
            out,
            stall_ms=stall_ms,
            deadline_ms=deadline_ms,
            thread_bytes=thread_bytes,
        )
        assert (done, set(statuses(ops))) == (0, {status})
        assert not any(peer.connection.alive for peer in found)


@pytest.mark.parametrize("dead", [{0}, {1}, {0, 2}, {0, 1, 2}])
def test_dead_connections_leave_all_to_the_others(dead: set[int]) -> None:
    with peers(honest, honest, honest) as found:
        for i in dead:
            found[i].connection.close()
        ops, out = ranges(), bytearray(COUNT * RANGE)
        done = read(found, ops, out, thread_bytes=1)
        if len(dead) == 3:
            assert (done, set(statuses(ops))) == (0, {LOST})
        else:
            assert (done, out == expected()) == (COUNT, True)


def test_what_nobody_has_taken_keeps_a_connection_from_being_hedged() -> None:
    with peers(silent, silent) as found:
        ops, out = ranges(), bytearray(COUNT * RANGE)
        options = {"stall_ms": 20_000, "hedge_ms": 20, "hedge_ranges": COUNT}
        assert read(found, ops, out, deadline_ms=300, **options) == 0
        assert set(statuses(ops)) == {DEADLINE}


def test_a_signal_that_raises_ends_all_of_them() -> None:
    def poke(peer: Peer, request: Request) -> None:
        if request is peer.requests[0]:  # another signal might come after the call
            os.kill(os.getpid(), signal.SIGUSR1)

    def refuse(_number: int, _frame: object) -> None:
        raise InterruptedError

    before = signal.signal(signal.SIGUSR1, refuse)
    try:
        with peers(silent, poke) as found:
            ops, out = ranges(), bytearray(COUNT * RANGE)
            with pytest.raises(InterruptedError):
                read(found, ops, out, thread_bytes=1)
            out[:] = b"\xa5" * len(out)
            assert not any(peer.connection.alive for peer in found)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert out.count(b"\xa5") == len(out)


@pytest.mark.filterwarnings(MULTI_THREADED)
def test_a_child_forked_in_the_middle_reads_nothing_of_the_parents() -> None:
    """A signal handler forks: the child cannot tell which ranges the others had taken."""
    ends: list[int] = []
    released = threading.Event()
    child = False

    def slow(peer: Peer, request: Request) -> None:
        if not released.is_set():
            os.kill(os.getpid(), signal.SIGUSR1)
            assert released.wait(30)
        honest(peer, request)

    def fork(_number: int, _frame: object) -> None:
        nonlocal child
        pid = os.fork()
        child = pid == 0
        if not child:
            ends.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            released.set()

    before = signal.signal(signal.SIGUSR1, fork)
    try:
        with peers(honest, slow) as found:
            ops, out = ranges(), bytearray(COUNT * RANGE)
            done = read(found, ops, out, thread_bytes=1)
            if child:
                os._exit(0 if (done, set(statuses(ops))) == (0, {LOST}) else 1)
            assert set(ends) == {0}
            assert (done, out == expected()) == (COUNT, True)
    finally:
        signal.signal(signal.SIGUSR1, before)
