"""Every bound of the data port, met from both sides (docs/limits.md names these tests).

The peers hold the cluster key: their connections have been handed to the loops already.
"""

from __future__ import annotations

import errno
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ffs import _reader, _storage
from ffs.errors import OK
from ffs.limits import (
    CONNECTIONS_PER_DAEMON_MAX,
    CROWDED_RATE_MIN,
    FRAME_BODY_BYTES_MAX,
    FRAME_DESCRIPTORS_MAX,
    FRAME_HEADER_BYTES,
    FRAME_PAYLOAD_BYTES_MAX,
    FRAME_RATE_MIN,
    IDLE_MS_MIN,
    SEND_BUFFERS_MAX,
)
from ffs.types import BLOCK_BYTES
from ffs.wire import frame as wire
from tests.native.data_loop import (
    KIB,
    MIB,
    Peer,
    Server,
    check,
    fill,
    pack,
    read_frame,
    serving,
    write_frame,
)
from tests.promptly import promptly

PING = pack(wire.Op.PING, 7)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A store and two loops; descriptors for as many connections as a daemon has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= 2 * CONNECTIONS_PER_DAEMON_MAX + 256, "both ends of all connections are here"
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with serving(tmp_path) as made:
        yield made
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def close_idle(server: Server, count: int) -> set[int]:
    """Ask for places, as the data port does, until so many connections were closed: which ones."""
    while (left := count - len(closed := closed_ones(server))) > 0:
        server.loop.close_idle(left)
        time.sleep(0.01)
    return closed


def closed_ones(server: Server) -> set[int]:
    """The connections that were closed so far."""
    server.events += server.loop.poll()
    return {event[1] for event in server.events if event[0] == _storage.EVENT_CLOSED}


@contextmanager
def small_buffers(server: Server, limit_bytes: int) -> Iterator[Server]:
    """Another loop, with little room for chunks on their way in."""
    loop = _storage.DataLoop({}, loops=1, write_buffer_bytes=limit_bytes)
    try:
        yield Server(server.path, server.store, loop, server.peers)
    finally:
        loop.close()


def resident_bytes() -> int:
    """How much memory this process, with the loops in it, has touched."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def answers_ping(peer: Peer) -> bool:
    """Whether a connection still lives; false if it was closed."""
    try:
        peer.send(PING)
        return peer.reply().request_id == 7
    except (ConnectionResetError, BrokenPipeError):
        return False


# --- what one frame may be ------------------------------------------------------------------------


def test_frame_header_bytes(server: Server) -> None:
    peer = server.peer()
    peer.send(PING[: FRAME_HEADER_BYTES - 1])
    peer.socket.settimeout(0.2)
    with pytest.raises(TimeoutError):
        peer.socket.recv(1)
    peer.socket.settimeout(20)
    peer.send(PING[FRAME_HEADER_BYTES - 1 :])
    assert peer.reply().request_id == 7


def test_frame_descriptors_max(server: Server) -> None:
    data = fill(server, 1, 0, 100)
    peer = server.peer()
    peer.send(read_frame(*[(1, 0, 0, 100)] * FRAME_DESCRIPTORS_MAX))
    assert set(peer.answers(FRAME_DESCRIPTORS_MAX).values()) == {(OK, data)}
    peer.send(read_frame(*[(1, 0, 0, 100)] * (FRAME_DESCRIPTORS_MAX + 1)))
    assert peer.is_closed()


def test_frame_body_bytes_max() -> None:
    header = pack(wire.Op.READ | wire.REPLY_BIT, body_bytes=FRAME_BODY_BYTES_MAX)
    assert _reader.unpack_header(header)["body_bytes"] == FRAME_BODY_BYTES_MAX
    with pytest.raises(ValueError):
        _reader.unpack_header(
            pack(wire.Op.READ | wire.REPLY_BIT, body_bytes=FRAME_BODY_BYTES_MAX + 1)
        )


def test_frame_payload_bytes_max(server: Server) -> None:
    peer, liar = server.peer(), server.peer()
    peer.send(write_frame(1, 0, bytes(FRAME_PAYLOAD_BYTES_MAX)))
    [event] = server.kind(_storage.EVENT_WRITE)
    assert event[8] == FRAME_PAYLOAD_BYTES_MAX
    server.loop.ack(event[1], OK)
    assert peer.reply().status == OK
    before = resident_bytes()
    blocks = FRAME_PAYLOAD_BYTES_MAX // BLOCK_BYTES + 1
    sizes = {"body_bytes": 16 + 4 * blocks, "payload_bytes": FRAME_PAYLOAD_BYTES_MAX + 1}
    liar.send(pack(wire.Op.WRITE, blob=1, count=1, **sizes))
    assert liar.is_closed()
    assert resident_bytes() - before < MIB


def test_a_header_alone_costs_no_memory(server: Server) -> None:
    """Thousands announce the largest request: what they do not send is not touched."""
    announced = read_frame(*[(1, 0, 0, 100)] * FRAME_DESCRIPTORS_MAX)[:64]
    before = resident_bytes()
    for _ in range(2_000):
        server.peer().send(announced)
    assert answers_ping(server.peer())
    grown = resident_bytes() - before
    assert grown < 2_000 * 16 * KIB < 2_000 * FRAME_DESCRIPTORS_MAX * 24


# --- places ---------------------------------------------------------------------------------------


def test_connections_per_daemon_max(server: Server) -> None:
    fill(server, 1, 0, 100)
    peers = [server.peer() for _ in range(CONNECTIONS_PER_DAEMON_MAX)]
    with pytest.raises(OSError) as refused:
        server.peer()
    assert refused.value.errno == errno.EMFILE
    assert all(answers_ping(peer) for peer in (peers[0], peers[-1]))
    assert len(close_idle(server, 1)) == 1
    assert answers_ping(server.peer())


def test_the_longest_idle_connection_makes_place(server: Server) -> None:
    with small_buffers(server, MIB) as one_loop:
        busy, idle, lively = (one_loop.peer() for _ in range(3))
        busy.send(write_frame(1, 0, b"waits for a decision"))
        one_loop.kind(_storage.EVENT_WRITE)
        assert answers_ping(idle)
        assert answers_ping(lively)
        assert close_idle(one_loop, 1) == {idle.id}
        assert answers_ping(lively)


def test_idle_ms_min(server: Server) -> None:
    """Nobody is idle who has just come or said something; who said nothing for a while is."""
    for watch in promptly(IDLE_MS_MIN / 1e3 / 2):  # or the lively one is idle, too
        watch.seconds = idle_one_goes(server)


def idle_one_goes(server: Server) -> float:
    """Have one of two connections closed for being idle; return for how long, at most, the other
    one had said nothing by then."""
    quiet, lively = server.peer(), server.peer()
    assert answers_ping(quiet)
    start, silent_s = time.monotonic(), 0.0
    before = closed_ones(server)
    while closed_ones(server) == before:
        asked = time.monotonic()
        answers_ping(lively)
        server.loop.close_idle(2)
        silent_s = max(silent_s, time.monotonic() - asked)
    if silent_s < IDLE_MS_MIN / 1e3 / 2:
        assert closed_ones(server) - before == {quiet.id}
        assert time.monotonic() - start > 0.9 * IDLE_MS_MIN / 1e3
    return silent_s


# --- memory ---------------------------------------------------------------------------------------


def park(peer: Peer) -> None:
    """Ask for more than sockets hold, and take nothing."""
    peer.send(read_frame((1, 0, 0, 4 * MIB)))


def test_send_buffers_max(server: Server) -> None:
    """Below the bound nobody is hurt; at it, who takes nothing goes and the others are served."""
    data = fill(server, 1, 0, 4 * MIB)
    stalled = [server.peer() for _ in range(SEND_BUFFERS_MAX - 2)]
    for peer in stalled:
        park(peer)
    one, other = server.peer(), server.peer()  # one in each of the two loops
    for peer in (one, other):
        peer.send(read_frame((1, 0, 5, 100)))
        check(peer.answers(1)[0], data, 5, 100)
    assert server.loop.stats()["send_buffers"] <= SEND_BUFFERS_MAX
    assert server.loop.stats()["connections"] == SEND_BUFFERS_MAX
    for _ in range(2):
        park(server.peer())
    while server.loop.stats()["ranges_total"] < SEND_BUFFERS_MAX + 2:
        time.sleep(0.01)
    for peer in (one, other):
        peer.send(read_frame((1, 0, 5, 100)))
        check(peer.answers(1)[0], data, 5, 100)
    assert server.loop.stats()["send_buffers"] <= SEND_BUFFERS_MAX
    assert server.loop.stats()["connections"] < SEND_BUFFERS_MAX


# --- pace -----------------------------------------------------------------------------------------


def feed(peer: Peer, data: bytes, rate: int, seconds: float) -> int:
    """Send at a rate for a while; return how much the connection took before it was closed."""
    sent, passed, start = 0, 0.0, time.monotonic()
    while passed < seconds and sent < len(data):
        time.sleep(0.05)
        passed = time.monotonic() - start
        due = min(len(data), int(passed * rate) + 1)
        try:
            peer.send(data[sent:due])
        except (BrokenPipeError, ConnectionResetError):
            return sent
        sent = due
    return sent


def test_frame_pace(server: Server) -> None:
    """Half a frame, of any kind, is not kept for ever; one that comes in slowly but surely is."""
    halves = {
        "header": PING[:10],
        "read body": read_frame(*[(1, 0, 0, 1)] * 100)[:200],
        "write body": write_frame(1, 0, bytes(MIB))[:100],
        "payload": write_frame(1, 0, bytes(MIB))[: 2 * KIB],
    }
    slow = {name: server.peer() for name in halves}
    for name, peer in slow.items():
        peer.send(halves[name])
    idle, steady, halting = (server.peer() for _ in range(3))
    for part in (PING[:10], PING[10:]):
        halting.send(part)
        time.sleep(0.1)
    chunk = write_frame(1, 1, bytes(MIB))
    # Six seconds at twice the rate that the grace is followed by, the rest at once.
    sent = feed(steady, chunk, 2 * FRAME_RATE_MIN, 7)
    assert sent > 5 * 2 * FRAME_RATE_MIN
    halting.send(PING[:10])
    time.sleep(1.5)  # the pace is looked at once a second: each frame has its own time
    halting.send(PING[10:])
    assert [halting.reply().request_id for _ in range(2)] == [7, 7]
    steady.send(chunk[sent:])
    [event] = server.kind(_storage.EVENT_WRITE)
    server.loop.ack(event[1], OK)
    assert steady.reply().status == OK
    closed = {event[1] for event in server.kind(_storage.EVENT_CLOSED, len(slow))}
    assert closed == {peer.id for peer in slow.values()}
    assert answers_ping(idle)


def test_crowded_pace(server: Server) -> None:
    """Who holds the memory that others wait for has to hurry: one does, the other goes."""
    with small_buffers(server, MIB) as crowded:
        brisk, waiting = crowded.peer(), crowded.peer()
        chunk = write_frame(1, 0, bytes(MIB))
        brisk.send(chunk[: 64 * KIB])
        waiting.send(write_frame(1, 1, bytes(MIB))[: 64 * KIB])
        rest = chunk[64 * KIB :]
        assert feed(brisk, rest, 2 * CROWDED_RATE_MIN, 10) == len(rest)
        [event] = crowded.kind(_storage.EVENT_WRITE)
        crowded.loop.ack(event[1], OK)
        assert brisk.reply().status == OK
        # Now the second one has the buffer, a third waits, and a few bytes a second are too few.
        third = crowded.peer()
        third.send(write_frame(1, 2, bytes(MIB)))
        assert feed(waiting, bytes(MIB), 100, 10) < 1_000
        closed = crowded.kind(_storage.EVENT_CLOSED)
        assert closed == [(_storage.EVENT_CLOSED, waiting.id)]
        assert crowded.kind(_storage.EVENT_WRITE, 2)[1][4] == 2
