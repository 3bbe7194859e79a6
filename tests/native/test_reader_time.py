"""The engine when time runs out: deadlines, stalls, signals, closing from outside, forks."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from ffs import _reader, errors
from ffs.wire import frame as wire
from tests.native.server import (
    Frame,
    Peer,
    Request,
    honest,
    read_ops,
    read_statuses,
    write_ops,
    write_statuses,
)
from tests.promptly import Watch, promptly

ROOT = Path(__file__).resolve().parents[2]
CHUNK = os.urandom(1 << 20)
CHUNKS = {(5, 0): CHUNK}
DEADLINE = errors.DeadlineError.code
STALLED = errors.StalledError.code
CANCELLED = errors.CancelledOperationError.code
LOST = errors.ConnectionLostError.code
ANSWERED_MS = 1_500
"""Within this a thread of this process has answered, however busy the machine is."""


def silent(peer: Peer, request: Request) -> None:
    """Answer nothing."""


def ranges(count: int, length: int = 1000) -> bytearray:
    """`count` ranges of chunk (5, 0), packed back to back."""
    return read_ops(*[(5, 0, i * 10, length, i * length) for i in range(count)])


# ------------------------------------------------------------------------------------ deadlines


@pytest.mark.parametrize("count", [1, 5])
def test_a_deadline_ends_the_call_and_the_connection(count: int) -> None:
    for watch in promptly(0.5):
        with Peer(silent, CHUNKS) as peer:
            ops, out = ranges(count), bytearray(5000)
            with watch:
                assert _reader.read_batch([peer.connection], ops, out, deadline_ms=70) == 0
            assert watch.seconds > 0.065
            assert read_statuses(ops) == [DEADLINE] * count
            assert not peer.connection.alive


def test_what_was_answered_before_the_deadline_counts() -> None:
    def partly(peer: Peer, request: Request) -> None:
        peer.send(peer.answer(request, [1]), peer.answer(request, [0]).encode()[:-1])

    with Peer(partly, CHUNKS) as peer:
        ops, out = ranges(3), bytearray(3000)
        assert _reader.read_batch([peer.connection], ops, out, deadline_ms=ANSWERED_MS) == 1
        assert read_statuses(ops) == [DEADLINE, 0, DEADLINE]
        assert out[1000:2000] == CHUNK[10:1010]
        assert not peer.connection.alive


def test_a_deadline_spares_connections_that_owe_nothing() -> None:
    with Peer(silent, CHUNKS) as slow, Peer(honest, CHUNKS) as fast:
        ops = ranges(1) + read_ops((5, 0, 0, 10, 1000), conn=1)
        pair = [slow.connection, fast.connection]
        assert _reader.read_batch(pair, ops, bytearray(2000), deadline_ms=ANSWERED_MS) == 1
        assert read_statuses(ops) == [DEADLINE, 0]
        assert (slow.connection.alive, fast.connection.alive) == (False, True)


def test_a_peer_that_does_not_read_meets_the_deadline() -> None:
    """Sending never blocks: the socket's buffers fill, and the deadline comes all the same."""
    for watch in promptly(0.5):
        with Peer(lambda peer, _r: peer.released.wait(), CHUNKS) as peer:
            data = bytes(8 << 20)
            ops = write_ops(*[(1, i, 0, 8 << 20) for i in range(3)])
            with watch:
                assert _reader.write_batch([peer.connection], ops, data, deadline_ms=80) == 0
            assert write_statuses(ops) == [DEADLINE] * 3
            assert not peer.connection.alive


def test_sending_never_blocks_receiving() -> None:
    """Tiny buffers both ways: a client that does not read while it sends would lock up."""
    replies = 0

    def answer_first(peer: Peer, request: Request) -> None:
        nonlocal replies
        replies += 1
        peer.send(Frame(request.request_id, op=wire.Op.WRITE | wire.REPLY_BIT))

    with Peer(answer_first, {}) as peer:
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        ops = write_ops(*[(1, i, 0, 300_000) for i in range(50)])
        done = _reader.write_batch([peer.connection], ops, bytes(300_000), deadline_ms=20_000)
        assert done == replies == 50


# --------------------------------------------------------------------------------------- stalls


def test_a_stall_is_noticed_long_before_the_deadline() -> None:
    for watch in promptly(1):
        with Peer(silent, CHUNKS) as peer:
            ops, out = ranges(2), bytearray(2000)
            with watch:
                done = _reader.read_batch(
                    [peer.connection], ops, out, deadline_ms=20_000, stall_ms=80
                )
            assert watch.seconds > 0.075
            assert done == 0
            assert read_statuses(ops) == [STALLED, STALLED]
            assert not peer.connection.alive


def test_a_write_that_is_neither_taken_nor_answered_stalls() -> None:
    with Peer(lambda peer, _r: peer.released.wait(), CHUNKS) as peer:
        ops = write_ops((1, 0, 0, 8 << 20), (1, 1, 0, 100))
        _reader.write_batch([peer.connection], ops, bytes(8 << 20), deadline_ms=20_000, stall_ms=80)
        assert write_statuses(ops) == [STALLED] * 2
        assert not peer.connection.alive


def test_a_write_that_is_taken_slowly_is_no_stall() -> None:
    """The whole takes longer than the stall time, each piece a small part of it."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with theirs, contextlib.closing(_reader.Connection(ours.detach())) as connection:

        def take() -> None:
            left, asked = 64 + 16 + 4 * 256 + (1 << 20), b""
            while left and (piece := theirs.recv(min(left, 32 << 10), socket.MSG_WAITALL)):
                asked, left = asked or piece, left - len(piece)
                time.sleep(0.04)
            if left:
                return
            request_id = _reader.unpack_header(asked[:64])["request_id"]
            theirs.sendall(Frame(request_id, op=wire.Op.WRITE | wire.REPLY_BIT).encode())

        peer = threading.Thread(target=take)
        peer.start()
        ops = write_ops((1, 0, 0, 1 << 20))
        done = _reader.write_batch(
            [connection], ops, bytes(1 << 20), deadline_ms=60_000, stall_ms=1_000
        )
        theirs.shutdown(socket.SHUT_RDWR)
        peer.join()
        assert (done, write_statuses(ops)) == (1, [0])


def test_a_trickle_is_no_stall() -> None:
    """The whole takes longer than the stall time, each pause a small part of it."""

    def trickle(peer: Peer, request: Request) -> None:
        reply = peer.answer(request).encode()
        for at in range(0, len(reply), 100):
            peer.send(reply[at : at + 100])
            time.sleep(0.1)

    with Peer(trickle, CHUNKS) as peer:
        ops, out = ranges(2), bytearray(2000)
        done = _reader.read_batch([peer.connection], ops, out, deadline_ms=60_000, stall_ms=1_500)
        assert done == 2


def test_a_stall_in_the_middle_of_a_payload() -> None:
    def half(peer: Peer, request: Request) -> None:
        reply = peer.answer(request).encode()
        peer.send(reply[: len(reply) // 2])

    with Peer(half, CHUNKS) as peer:
        ops, out = ranges(1, 500_000), bytearray(500_000)
        done = _reader.read_batch([peer.connection], ops, out, deadline_ms=20_000, stall_ms=60)
        assert done == 0
        assert read_statuses(ops) == [STALLED]


def test_one_stalled_connection_does_not_hold_up_another() -> None:
    with Peer(silent, CHUNKS) as slow, Peer(honest, CHUNKS) as fast:
        ops = ranges(1) + read_ops((5, 0, 0, 10, 1000), conn=1)
        done = _reader.read_batch(
            [slow.connection, fast.connection],
            ops,
            bytearray(2000),
            deadline_ms=60_000,
            stall_ms=ANSWERED_MS,
        )
        assert done == 1
        assert read_statuses(ops) == [STALLED, 0]
        assert fast.connection.alive


def test_each_connection_has_its_own_stall_time() -> None:
    def late(peer: Peer, request: Request) -> None:
        time.sleep(0.3)
        honest(peer, request)

    with Peer(silent, CHUNKS) as dead, Peer(late, CHUNKS) as slow:
        ops = ranges(1) + read_ops((5, 0, 0, 10, 1000), conn=1)
        pair = [dead.connection, slow.connection]
        done = _reader.read_batch(pair, ops, bytearray(2000), deadline_ms=20_000, stall_ms=(60, 0))
        assert done == 1
        assert read_statuses(ops) == [STALLED, 0]
        assert dead.connection.served_ns < slow.connection.served_ns
        assert slow.connection.served_ns >= 300_000_000


@pytest.mark.parametrize("bad", [(60,), (60, -1), (60, 1 << 40), ("a", 1), None])
def test_stall_times_are_checked(bad: object) -> None:
    with Peer(honest, CHUNKS) as one, Peer(honest, CHUNKS) as two:
        pair, ops = [one.connection, two.connection], ranges(1)
        with pytest.raises((ValueError, TypeError)):
            _reader.read_batch(pair, ops, bytearray(1000), deadline_ms=99, stall_ms=bad)  # type: ignore[arg-type]  # on purpose
        assert _reader.read_batch(pair, ops, bytearray(1000), deadline_ms=20_000) == 1


# --------------------------------------------------------------------------------------- hedges


def trickle(peer: Peer, request: Request) -> None:
    """Answer a byte now and then, for ever: never stalled, never done."""
    reply = peer.answer(request).encode()
    for at in range(len(reply)):
        peer.send(reply[at : at + 1])
        if peer.released.wait(0.01):
            return


def test_the_last_ranges_of_a_slow_connection_are_given_up_at_the_hedge_time() -> None:
    with Peer(trickle, CHUNKS) as slow, Peer(honest, CHUNKS) as fast:
        ops = ranges(2) + read_ops((5, 0, 0, 10, 2000), conn=1)
        pair, begin = [slow.connection, fast.connection], time.monotonic()
        done = _reader.read_batch(
            pair,
            ops,
            bytearray(3000),
            deadline_ms=20_000,
            stall_ms=15_000,
            hedge_ms=ANSWERED_MS,
            hedge_ranges=2,
        )
        assert done == 1 and ANSWERED_MS / 1e3 - 0.005 < time.monotonic() - begin < 10
        assert read_statuses(ops) == [CANCELLED, CANCELLED, 0]
        assert not slow.connection.alive and fast.connection.alive


def test_more_ranges_than_the_budget_are_not_hedged() -> None:
    def late(peer: Peer, request: Request) -> None:
        time.sleep(0.3)
        honest(peer, request)

    with Peer(late, CHUNKS) as peer:
        done = _reader.read_batch(
            [peer.connection],
            ranges(2),
            bytearray(2000),
            deadline_ms=20_000,
            stall_ms=10_000,
            hedge_ms=20,
            hedge_ranges=1,
        )
        assert done == 2 and peer.connection.alive


def test_only_connections_with_a_stall_time_are_hedged() -> None:
    def late(peer: Peer, request: Request) -> None:
        time.sleep(0.2)
        honest(peer, request)

    with Peer(late, CHUNKS) as peer:
        done = _reader.read_batch(
            [peer.connection],
            ranges(1),
            bytearray(1000),
            deadline_ms=20_000,
            hedge_ms=20,
            hedge_ranges=9,
        )
        assert done == 1


def test_the_budget_is_for_all_connections_together() -> None:
    with Peer(trickle, CHUNKS) as one, Peer(trickle, CHUNKS) as two:
        ops = ranges(1) + read_ops((5, 0, 0, 10, 1000), conn=1)
        pair = [one.connection, two.connection]
        done = _reader.read_batch(
            pair,
            ops,
            bytearray(2000),
            deadline_ms=2_000,
            stall_ms=10_000,
            hedge_ms=50,
            hedge_ranges=1,
        )
        assert done == 0
        assert sorted(read_statuses(ops)) == sorted([CANCELLED, DEADLINE])


# -------------------------------------------------------------------------------------- signals

INTERRUPTED = """
    import os, signal, sys, threading, time
    from ffs import _reader
    from tests.native.server import Peer, honest, read_ops, read_statuses

    def behave(peer, request):
        {behaviour}

    chunk = os.urandom(1 << 20)
    with Peer(behave, {{(5, 0): chunk}}) as peer:
        count = {count}
        ops = read_ops(*[(5, 0, 0, 1 << 20, i % 4 << 20) for i in range(count)])
        out = bytearray(4 << 20)
        def poke():
            time.sleep(0.3)
            poke.at = time.monotonic()
            os.kill(os.getpid(), signal.SIGINT)
        try:
            threading.Thread(target=poke).start()
            _reader.read_batch([peer.connection], ops, out, deadline_ms=60_000)
            print("no interrupt")
        except KeyboardInterrupt:
            late = time.monotonic() - poke.at
            print(late)
            statuses = set(read_statuses(ops))
            out[:] = b"P" * len(out)
            time.sleep(0.05)
            intact = out.count(b"P") == len(out)
            print(peer.connection.alive, sorted(statuses - {{0}}), intact)
"""


@pytest.mark.parametrize(
    ("behaviour", "count"),
    [
        ("pass", 3),
        ("[peer.send(peer.answer(request, [i])) for i in range(len(request.descriptors))]", 4000),
    ],
    ids=["nothing arrives", "bytes never cease"],
)
def test_ctrl_c_ends_the_call_within_200_ms(behaviour: str, count: int) -> None:
    code = textwrap.dedent(INTERRUPTED).format(behaviour=behaviour, count=count)
    command = [sys.executable, "-c", code]
    for watch in promptly(0.2):
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        late, _, found = done.stdout.partition("\n")
        assert found == "False [302] True\n", done.stderr
        watch.seconds = float(late)


def test_a_signal_whose_handler_returns_changes_nothing() -> None:
    seen: list[int] = []

    def slow(peer: Peer, request: Request) -> None:
        for _ in range(5):
            time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGUSR1)
        honest(peer, request)

    before = signal.signal(signal.SIGUSR1, lambda number, _frame: seen.append(number))
    try:
        with Peer(slow, CHUNKS) as peer:
            ops, out = ranges(3), bytearray(3000)
            assert _reader.read_batch([peer.connection], ops, out, deadline_ms=9_000) == 3
            assert peer.connection.alive
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen


# ---------------------------------------------------------------------------- use by one call


def test_a_connection_in_use_is_refused_and_can_be_closed_from_outside() -> None:
    for watch in promptly(0.2):
        close_in_use(watch)


def close_in_use(watch: Watch) -> None:
    """Close a connection from outside while a call waits for it."""
    asked = threading.Event()
    with Peer(lambda peer, _r: asked.set(), CHUNKS) as peer:
        ops, out = ranges(2), bytearray(2000)
        result: list[int] = []
        user = threading.Thread(
            target=lambda: result.append(
                _reader.read_batch([peer.connection], ops, out, deadline_ms=20_000)
            )
        )
        user.start()
        assert asked.wait(30)
        assert peer.connection.bytes_in_flight == 2 * 4096
        with pytest.raises(BlockingIOError, match="connection 0 is in use"):
            _reader.read_batch([peer.connection], ranges(1), bytearray(1000), deadline_ms=100)
        with watch:
            peer.connection.close()
            assert not peer.connection.alive
            user.join(20)
        assert result == [0]
        assert read_statuses(ops) == [LOST, LOST]
        assert peer.connection.fileno() == -1


def test_the_same_connection_twice_in_a_call_is_refused() -> None:
    with Peer(honest, CHUNKS) as peer:
        with pytest.raises(BlockingIOError) as caught:
            _reader.read_batch(
                [peer.connection, peer.connection], ranges(1), bytearray(1000), deadline_ms=100
            )
        assert caught.value.errno is not None
        out = bytearray(1000)
        assert _reader.read_batch([peer.connection], ranges(1), out, deadline_ms=9_000) == 1


def test_a_closed_connection_gives_its_status_and_no_exception() -> None:
    with Peer(honest, CHUNKS) as peer:
        peer.connection.close()
        peer.connection.close()
        ops = ranges(2)
        assert _reader.read_batch([peer.connection], ops, bytearray(2000), deadline_ms=100) == 0
        assert read_statuses(ops) == [LOST, LOST]
        assert "dead" in repr(peer.connection)


def receive_timeout_s(connection: _reader.Connection) -> float:
    """How long a receive of the engine's waits before it looks at the clock."""
    with socket.socket(fileno=os.dup(connection.fileno())) as same:
        packed = same.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16)
    seconds, microseconds = struct.unpack("@ll", packed)
    return float(seconds + microseconds / 1e6)


def test_dropping_a_connection_closes_its_descriptor() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    connection = _reader.Connection(ours.detach())
    assert connection.alive
    assert os.get_blocking(connection.fileno())
    assert 0 < receive_timeout_s(connection) < 0.05
    del connection
    assert theirs.recv(1) == b""
    theirs.close()


# ----------------------------------------------------------------------------------------- fork


def in_child(work: object) -> int:
    """Run `work` in a forked child; its exit status."""
    pid = os.fork()
    if pid == 0:
        try:
            work()  # type: ignore[operator]
            os._exit(0)
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_can_not_use_its_parents_connection() -> None:
    with Peer(honest, CHUNKS) as peer:
        out = bytearray(1000)
        assert _reader.read_batch([peer.connection], ranges(1), out, deadline_ms=9_000) == 1
        descriptor = peer.connection.fileno()

        def child() -> None:
            assert not peer.connection.alive
            assert set(_reader.counters().values()) == {0}
            ops = ranges(1)
            assert _reader.read_batch([peer.connection], ops, out, deadline_ms=9_000) == 0
            assert read_statuses(ops) == [LOST]
            peer.connection.close()
            assert peer.connection.fileno() == -1
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(descriptor)

        assert in_child(child) == 0
        # The child's close was no shutdown: the parent's connection works on.
        assert _reader.read_batch([peer.connection], ranges(1), out, deadline_ms=9_000) == 1


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_during_a_call_leaves_parent_and_child_whole() -> None:
    asked = threading.Event()

    def slow(peer: Peer, request: Request) -> None:
        asked.set()
        assert peer.released.wait(30)
        honest(peer, request)

    with Peer(slow, CHUNKS) as peer:
        result: list[int] = []
        out = bytearray(1000)
        user = threading.Thread(
            target=lambda: result.append(
                _reader.read_batch([peer.connection], ranges(1), out, deadline_ms=20_000)
            )
        )
        user.start()
        assert asked.wait(30)

        def child() -> None:
            assert not peer.connection.alive  # busy for ever in the child, yet it does not hang
            assert (
                _reader.read_batch([peer.connection], ranges(1), bytearray(1000), deadline_ms=9)
                == 0
            )
            peer.connection.close()
            with Peer(honest, CHUNKS) as own:
                assert (
                    _reader.read_batch(
                        [own.connection], ranges(1), bytearray(1000), deadline_ms=9000
                    )
                    == 1
                )

        assert in_child(child) == 0
        peer.released.set()
        user.join(30)
        assert result == [1]
        assert out == CHUNK[:1000]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_signal_handler_that_forks_takes_no_byte_from_the_parent() -> None:
    """The child goes on in the middle of its parent's call, and may not receive its reply."""
    ends: list[int] = []
    child = False

    def slow(peer: Peer, request: Request) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert peer.released.wait(30)
        honest(peer, request)

    def fork(_number: int, _frame: object) -> None:
        nonlocal child
        pid = os.fork()
        child = pid == 0
        if not child:
            peer.released.set()  # from here on there is something that could be taken
            ends.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    before = signal.signal(signal.SIGUSR1, fork)
    try:
        with Peer(slow, CHUNKS) as peer:
            ops, out = ranges(1), bytearray(1000)
            done = _reader.read_batch([peer.connection], ops, out, deadline_ms=20_000)
            if child:
                os._exit(0 if (done, read_statuses(ops)) == (0, [LOST]) else 1)
            assert (ends, done) == ([0], 1)
            assert out == CHUNK[:1000]
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_revoked_connection_ends_for_the_peer_though_a_child_has_a_copy() -> None:
    with Peer(silent, CHUNKS) as peer:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        assert (
            _reader.read_batch([peer.connection], ranges(1), bytearray(1000), deadline_ms=50) == 0
        )
        peer.socket.settimeout(30)
        peer._thread.join(30)
        assert not peer._thread.is_alive()
        os.close(writer)
        os.close(reader)
        os.waitpid(pid, 0)
