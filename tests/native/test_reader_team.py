"""One call in several threads: the same promises, whichever thread a connection is driven by."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ffs import _reader, errors
from tests.native.server import Behaviour, Peer, Request, honest, read_ops, read_statuses
from tests.native.test_destination import KINDS, Mischief

ROOT = Path(__file__).resolve().parents[2]
CHUNK = os.urandom(1 << 20)
CHUNKS = {(5, 0): CHUNK}
LENGTH = 10_000
HELPERS_MAX = 15
ROUNDS = 1_000
DEADLINE = errors.DeadlineError.code
STALLED = errors.StalledError.code
CANCELLED = errors.CancelledOperationError.code
LOST = errors.ConnectionLostError.code
CHECKSUM = errors.ChecksumError.code
MULTI_THREADED = "ignore:This process .* is multi-threaded:DeprecationWarning"


def silent(peer: Peer, request: Request) -> None:
    """Answer nothing."""


@contextmanager
def peers(*behaviours: Behaviour) -> Iterator[list[_reader.Connection]]:
    """One connection to a peer for each behaviour."""
    with ExitStack() as stack:
        yield [stack.enter_context(Peer(b, CHUNKS)).connection for b in behaviours]


def ranges(connections: int, each: int = 3) -> bytearray:
    """`each` ranges for every connection, back to back, each at an offset of its own."""
    return bytearray().join(
        read_ops((5, 0, at * 7, LENGTH, at * LENGTH), conn=at // each)
        for at in range(connections * each)
    )


def expected(count: int) -> bytes:
    """What the first `count` of these ranges hold."""
    return b"".join(CHUNK[at * 7 : at * 7 + LENGTH] for at in range(count))


def helpers() -> int:
    """How many helpers this process has."""
    tasks = Path("/proc/self/task").glob("*/comm")
    return sum(task.read_text() == "ffs-reader\n" for task in tasks)


def run_apart(script: str) -> str:
    """Run a script in a new process; its standard output."""
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=160,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


# ------------------------------------------------------------------------------------ ordinary


@pytest.mark.parametrize("connections", [1, 2, 3, HELPERS_MAX + 5])
@pytest.mark.parametrize("thread_bytes", [0, 1, 50_000])
def test_every_range_lands_where_it_belongs(connections: int, thread_bytes: int) -> None:
    ops, count = ranges(connections), 3 * connections
    out = bytearray(count * LENGTH)
    before = _reader.counters()
    with peers(*[honest] * connections) as conns:
        for _ in range(3):
            again = bytearray(ops)
            done = _reader.read_batch(
                conns, again, out, deadline_ms=20_000, thread_bytes=thread_bytes
            )
            assert (done, set(read_statuses(again))) == (count, {0})
            assert out == expected(count)
            out[:] = bytes(len(out))
    after = _reader.counters()
    assert after["ranges"] - before["ranges"] == 3 * count
    assert after["payload_bytes"] - before["payload_bytes"] == 3 * count * LENGTH
    assert helpers() <= HELPERS_MAX


def test_connections_without_operations_and_dead_ones_are_no_obstacle() -> None:
    with peers(honest, honest, honest, honest) as conns:
        conns[2].close()
        ops = ranges(4)
        ops[:120] = b""  # the first connection has nothing to do
        out = bytearray(12 * LENGTH)
        assert _reader.read_batch(conns, ops, out, deadline_ms=20_000, thread_bytes=1) == 6
        assert read_statuses(ops) == [0] * 3 + [LOST] * 3 + [0] * 3
        assert out[3 * LENGTH : 6 * LENGTH] == expected(12)[3 * LENGTH : 6 * LENGTH]


def test_helpers_start_with_the_first_call_that_is_large_enough() -> None:
    found = run_apart("""
        from ffs import _reader
        from tests.native.test_reader_team import *
        seen = [helpers()]
        with peers(honest, honest, honest) as conns:
            for thread_bytes in (0, 100_000, 30_000, 30_000, 30_000):
                ops, out = ranges(3), bytearray(9 * LENGTH)
                _reader.read_batch(
                    conns, ops, out, deadline_ms=20_000, thread_bytes=thread_bytes
                )
                seen.append(helpers())
        print(seen)
    """)
    assert found == "[0, 0, 0, 2, 2, 2]"


def test_without_another_thread_the_caller_does_it_all() -> None:
    found = run_apart("""
        import errno
        from ffs import _reader
        from tests.native.test_reader_team import *
        with peers(honest, honest, honest, honest) as conns:
            for nth in (1, 2, 1):
                _reader.fault_set("thread", nth, errno.EAGAIN)
                out = bytearray(12 * LENGTH)
                done = _reader.read_batch(conns, ranges(4), out, deadline_ms=20_000, thread_bytes=1)
                print(done, out == expected(12), helpers())
    """)
    assert found.split("\n") == ["12 True 0", "12 True 1", "12 True 1"]


def test_many_calls_at_once_share_the_helpers() -> None:
    callers, wrong = 8, list[str]()

    def call() -> None:
        with peers(*[honest] * 4) as conns:
            for _ in range(20):
                ops, out = ranges(4), bytearray(12 * LENGTH)
                done = _reader.read_batch(conns, ops, out, deadline_ms=60_000, thread_bytes=1)
                if (done, bytes(out)) != (12, expected(12)):
                    wrong.append(str(read_statuses(ops)))

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert helpers() <= HELPERS_MAX


# ------------------------------------------------------------------------------------- failures


def lost(peer: Peer, request: Request) -> None:
    """Answer half of it and close."""
    peer.send(peer.answer(request).encode()[:5_000])
    peer.socket.shutdown(2)


def damaged(peer: Peer, request: Request) -> None:
    """Answer with the last byte changed."""
    reply = bytearray(peer.answer(request).encode())
    reply[-1] ^= 1
    peer.send(bytes(reply))


@pytest.mark.parametrize("bad", [0, 1, 2], ids=["caller", "helper", "other helper"])
@pytest.mark.parametrize(
    ("behaviour", "statuses", "alive"),
    [
        (lost, [LOST] * 3, False),
        (damaged, [0, 0, CHECKSUM], True),
        (silent, [STALLED] * 3, False),
    ],
    ids=["lost", "damaged", "stalled"],
)
def test_a_fault_costs_the_operations_of_its_connection(
    behaviour: Behaviour, statuses: list[int], alive: bool, bad: int
) -> None:
    behaviours: list[Behaviour] = [honest, honest, honest]
    behaviours[bad] = behaviour
    with peers(*behaviours) as conns:
        ops, out = ranges(3), bytearray(9 * LENGTH)
        _reader.read_batch(conns, ops, out, deadline_ms=60_000, stall_ms=1_500, thread_bytes=1)
        wanted = [0] * 9
        wanted[3 * bad : 3 * bad + 3] = statuses
        assert read_statuses(ops) == wanted
        assert [c.alive for c in conns] == [alive or i != bad for i in range(3)]


def test_a_deadline_is_every_threads() -> None:
    with peers(silent, honest, silent) as conns:
        ops, out = ranges(3), bytearray(9 * LENGTH)
        done = _reader.read_batch(conns, ops, out, deadline_ms=1_500, thread_bytes=1)
        assert (done, read_statuses(ops)) == (3, [DEADLINE] * 3 + [0] * 3 + [DEADLINE] * 3)
        assert [c.alive for c in conns] == [False, True, False]


def test_the_hedge_budget_is_for_all_threads_together() -> None:
    with peers(silent, silent, silent) as conns:
        ops, out = ranges(3, each=1), bytearray(3 * LENGTH)
        _reader.read_batch(
            conns,
            ops,
            out,
            deadline_ms=2_000,
            stall_ms=10_000,
            hedge_ms=50,
            hedge_ranges=2,
            thread_bytes=1,
        )
        assert sorted(read_statuses(ops)) == sorted([CANCELLED, CANCELLED, DEADLINE])


@pytest.mark.parametrize("which", [0, 1], ids=["caller's", "helper's"])
def test_closing_a_connection_from_outside_ends_its_operations(which: int) -> None:
    asked = threading.Event()

    def wait(peer: Peer, _request: Request) -> None:
        asked.set()
        peer.released.wait(30)

    def close() -> None:
        asked.wait(30)
        conns[which].close()

    behaviours: list[Behaviour] = [honest, honest]
    behaviours[which] = wait
    with peers(*behaviours) as conns:
        ops, out = ranges(2), bytearray(6 * LENGTH)
        threading.Thread(target=close).start()
        done = _reader.read_batch(conns, ops, out, deadline_ms=60_000, thread_bytes=1)
        wanted = [0] * 6
        wanted[3 * which : 3 * which + 3] = [LOST] * 3
        assert (done, read_statuses(ops)) == (3, wanted)


def test_no_thread_touches_memory_that_the_caller_has_back() -> None:
    """As in test_destination.py, with one connection for the caller and one for a helper."""
    dice, mischief = random.Random(21), [Mischief(22), Mischief(23)]
    kept: list[bytearray] = []
    pair: list[Peer | None] = [None, None]
    seen: set[int] = set()
    for number in range(ROUNDS):
        for i in range(2):
            mischief[i].kind = dice.choice(KINDS)
            pair[i] = pair[i] or Peer(mischief[i], CHUNKS)
        late = any("late" in m.kind and m.kind != "twice but late" for m in mischief)
        ops, out = ranges(2, each=2), bytearray(4 * LENGTH)
        _reader.read_batch(
            [p.connection for p in pair if p],
            ops,
            out,
            deadline_ms=1 if late else 60_000,
            trace_id=number,
            thread_bytes=1,
        )
        seen.update(read_statuses(ops))
        for at, status in enumerate(read_statuses(ops)):
            place = slice(at * LENGTH, (at + 1) * LENGTH)
            assert status != 0 or out[place] == expected(4)[place]
        out[:] = b"\xa5" * len(out)
        kept = [*kept[-16:], out]
        for i in range(2):
            mischief[i].poisoned(number)
            peer = pair[i]
            if peer is not None and not peer.connection.alive:
                with peer:
                    pair[i] = None
        assert all(old.count(b"\xa5") == len(old) for old in kept)
    for peer in pair:
        if peer is not None:
            with peer:
                pass
    assert {0, DEADLINE, CHECKSUM} <= seen


# ------------------------------------------------------------------------------ signals and forks


@pytest.mark.parametrize(
    ("first", "second"),
    [("silent", "silent"), ("honest", "silent"), ("silent", "honest"), ("endless", "endless")],
)
def test_ctrl_c_ends_every_thread_within_200_ms(first: str, second: str) -> None:
    """One attempt in time is enough: where others use the CPU, nobody is in time always."""
    found = run_apart(f"""
        import os, signal, threading, time
        from ffs import _reader
        from tests.native.test_reader_team import *

        def endless(peer, request):
            for i in range(len(request.descriptors)):
                peer.send(peer.answer(request, [i]))

        def poke():
            time.sleep(0.3)
            poke.at = time.monotonic()
            os.kill(os.getpid(), signal.SIGINT)

        def attempt():
            with peers({first}, {second}) as conns:
                ops = bytearray().join(
                    read_ops(*[(5, 0, 0, 1 << 20, i % 2 << 20)] * 4000, conn=i) for i in range(2)
                )
                out = bytearray(2 << 20)
                try:
                    threading.Thread(target=poke).start()
                    _reader.read_batch(conns, ops, out, deadline_ms=60_000, thread_bytes=1)
                except KeyboardInterrupt:
                    late = time.monotonic() - poke.at
                    out[:] = b"P" * len(out)
                    time.sleep(0.05)
                    assert out.count(b"P") == len(out)
                    return late < 0.2

        print(any(attempt() for _ in range(5)), helpers())
    """)
    assert found == "True 1"


def test_a_signal_whose_handler_returns_changes_nothing() -> None:
    done = threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda *_: done.set())

    def poke(peer: Peer, request: Request) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert done.wait(30)
        honest(peer, request)

    try:
        with peers(honest, poke) as conns:
            ops, out = ranges(2), bytearray(6 * LENGTH)
            assert _reader.read_batch(conns, ops, out, deadline_ms=60_000, thread_bytes=1) == 6
            assert out == expected(6)
    finally:
        signal.signal(signal.SIGUSR1, before)


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked child; its exit status."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def read_two() -> None:
    """Read over two new connections, in two threads."""
    with peers(honest, honest) as conns:
        out = bytearray(6 * LENGTH)
        assert _reader.read_batch(conns, ranges(2), out, deadline_ms=60_000, thread_bytes=1) == 6
        assert out == expected(6)


@pytest.mark.filterwarnings(MULTI_THREADED)
def test_a_child_makes_its_own_helpers() -> None:
    read_two()

    def child() -> None:
        assert helpers() == 0
        read_two()
        read_two()
        assert helpers() == 1

    assert in_child(child) == 0
    read_two()


@pytest.mark.filterwarnings(MULTI_THREADED)
def test_a_fork_while_helpers_are_at_work_leaves_parent_and_child_whole() -> None:
    stop, wrong = threading.Event(), list[BaseException]()

    def work() -> None:
        try:
            while not stop.is_set():
                read_two()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        assert [in_child(read_two) for _ in range(20)] == [0] * 20
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.filterwarnings(MULTI_THREADED)
@pytest.mark.parametrize("which", [0, 1], ids=["caller is done", "caller waits too"])
def test_a_signal_handler_that_forks_takes_no_byte_from_the_parent(which: int) -> None:
    """The child goes on in the middle of the call, where the helper's connection is lost to it."""
    ends: list[int] = []
    released = threading.Event()
    child = False

    def slow(peer: Peer, request: Request) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert released.wait(30)
        honest(peer, request)

    def waits(peer: Peer, request: Request) -> None:
        assert released.wait(30)
        honest(peer, request)

    def fork(_number: int, _frame: object) -> None:
        nonlocal child
        pid = os.fork()
        child = pid == 0
        if not child:
            released.set()
            ends.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    before = signal.signal(signal.SIGUSR1, fork)
    try:
        with peers((honest, waits)[which], slow) as conns:
            ops, out = ranges(2), bytearray(6 * LENGTH)
            _reader.read_batch(conns, ops, out, deadline_ms=60_000, thread_bytes=1)
            if child:
                gone = set(read_statuses(ops)[3:]) == {LOST} and not conns[1].alive
                os._exit(0 if gone else 1)
            assert (ends, set(read_statuses(ops))) == ([0], {0})
            assert out == expected(6)
    finally:
        signal.signal(signal.SIGUSR1, before)
