"""Reads that end when their answers come: all bytes in time or an error, and no byte after that.

Each race reads into a place of its own between two guard pages, all of a pattern. What the call
left there is checked and wiped at once; whether a byte came afterwards, or outside, is looked at
when the place's turn comes again, many races later, and once more when everybody has gone. Against
a peer whose answers come when a race wants it (peer.c), and against a real daemon. 200 races,
10,000 in the long form (FFS_RDMA_RACES). That no call hangs is the bound of the test.
"""

from __future__ import annotations

import mmap
import os
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from ffs import _reader
from tests.native.data_loop import KIB, TARGET, fill
from tests.rdma.resources import held, settled
from tests.rdma.test_client import (
    DEADLINE,
    LATE,
    OK,
    READ_OP,
    Bytes,
    Client,
    Range,
    content,
    serving_peer,
)
from tests.rdma.test_daemon import wired

RACES: Final = int(os.environ.get("FFS_RDMA_RACES", "200"))
EACH: Final = RACES // 4
"""Of two kinds of registration and two who answer."""
PATTERN: Final = 0x5A
PAGE: Final = mmap.PAGESIZE

pytestmark = pytest.mark.timeout(240 + 3 * EACH)

Draw = Callable[[random.Random], tuple[Range, int]]
"""Chooses a race: what to read, and the deadline in milliseconds."""


class Places:
    """Where races read to, in turn: each between two guard pages."""

    def __init__(self, length: int, count: int = 16) -> None:
        stride = 2 * PAGE + -(-length // PAGE) * PAGE
        memory = np.frombuffer(mmap.mmap(-1, stride * count), np.uint8)
        memory[:] = PATTERN
        self._places = [memory[at : at + stride] for at in range(0, len(memory), stride)]
        self._length = length
        self._next = 0

    def take(self) -> Bytes:
        """The place whose turn it is, which must be as its last race's end left it."""
        place = self._places[self._next]
        self._next = (self._next + 1) % len(self._places)
        assert (place == PATTERN).all(), "a byte came late, or outside"
        return place[PAGE : PAGE + self._length]

    def check(self) -> None:
        """Look at all of them."""
        for _ in self._places:
            self.take()


def read(connection: _reader.Connection, wanted: Range, out: Bytes, deadline_ms: int) -> int:
    """The status of one range."""
    blob, chunk, offset, length = wanted
    op = READ_OP.pack(blob, 0, chunk, TARGET, offset, length, 0, _reader.STATUS_PENDING, 0)
    ops = bytearray(op)
    _reader.read_batch([connection], ops, out, deadline_ms=deadline_ms)
    (found,) = READ_OP.iter_unpack(ops)
    return int(found[7])


def race(
    connect: Callable[[], _reader.Connection],
    draw: Draw,
    want: Callable[[Range], Bytes],
    length: int,
) -> tuple[int, int, Places]:
    """Run the races of one kind; return how many answers came in time, how many did not, and where
    all of them were to go."""
    rng, places, ends = random.Random(11), Places(length), {OK: 0, DEADLINE: 0}
    started, connection = time.monotonic(), connect()
    for _ in range(EACH):
        if not connection.alive:
            connection.close()
            connection = connect()
        wanted, deadline_ms = draw(rng)
        out = places.take()
        status = read(connection, wanted, out, deadline_ms)
        ends[status] += 1
        assert status != OK or np.array_equal(out, want(wanted))
        out[:] = PATTERN
    connection.close()
    print(f"{EACH / (time.monotonic() - started):.1f} races/s, {ends[OK]} in time")
    assert _reader.rdma_usage() == {"regions": 0, "bytes_asked": 0}
    return ends[OK], ends[DEADLINE], places


@pytest.mark.parametrize("windows", [True, False], ids=["windows", "domains"])
def test_a_peer_that_answers_about_when_the_deadline_is_over(windows: bool) -> None:
    def draw(rng: random.Random) -> tuple[Range, int]:
        return (LATE, rng.randrange(25), 1, 10_000), rng.randrange(5, 35)

    client = Client(windows)
    with serving_peer():
        client.connect().close()  # what is opened once for all is there
        before = held()
        in_time, late, places = race(client.connect, draw, lambda r: content(*r), 10_000)
        assert settled(before) == before
        places.check()
    assert in_time and late


@pytest.mark.parametrize("windows", [True, False], ids=["windows", "domains"])
def test_a_daemon_that_is_given_up_at_any_moment(tmp_path: Path, windows: bool) -> None:
    length = 200 * KIB

    def draw(rng: random.Random) -> tuple[Range, int]:
        return (7, 0, rng.randrange(10_000), length), rng.randrange(1, 30)

    with wired(tmp_path, loops=1) as wire:
        data = np.frombuffer(fill(wire.server, 7, 0, length + 10_000), np.uint8)
        connect = partial(wire.rdma, windows=windows)
        connect().close()
        wire.server.wait_until(lambda: wire.server.loop.stats()["connections"] == 0)
        before = held()
        in_time, late, places = race(connect, draw, lambda r: data[r[2] : r[2] + length], length)
        wire.server.wait_until(lambda: wire.server.loop.stats()["connections"] == 0)
        assert settled(before) == before
        places.check()
        assert wire.server.loop.stats()["buffer_bytes"] == 0
    assert in_time and late
