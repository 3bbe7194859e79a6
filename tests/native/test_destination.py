"""One reply owns a destination: after a call returns, nothing a peer does can write to the buffer.

The caller poisons its memory as soon as it has it back; the peer is late, answers twice, damages,
cuts short or reorders; the poison must be there rounds later, and what was called good must be so.
"""

from __future__ import annotations

import os
import random
import threading
from collections import deque

from ffs import _reader, errors
from tests.native.server import Peer, Request, honest, one_by_one, read_ops, read_statuses

ROUNDS = 10_000
CHUNK = os.urandom(40_000)
EXPECTED = {
    0,
    errors.ProtocolError.code,
    errors.DeadlineError.code,
    errors.ChecksumError.code,
    errors.ConnectionLostError.code,
}


class Mischief:
    """A behaviour that the test chooses anew for each round."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.kind = "honest"
        self.returned = -1
        """The last round whose call has returned and whose buffer is poisoned."""
        self.turn = threading.Condition()

    def __call__(self, peer: Peer, request: Request) -> None:
        """Answer as `kind` says."""
        getattr(self, "_" + self.kind.replace(" ", "_"))(peer, request)

    def wait(self, request: Request) -> None:
        """Until the caller has its buffer back; rounds are told apart by their trace id."""
        with self.turn:
            self.turn.wait_for(lambda: self.returned >= request.trace_id, 30)

    def poisoned(self, number: int) -> None:
        """Round `number` is over for the caller."""
        with self.turn:
            self.returned = number
            self.turn.notify_all()

    def _honest(self, peer: Peer, request: Request) -> None:
        honest(peer, request)

    def _reordered(self, peer: Peer, request: Request) -> None:
        one_by_one(peer, request)

    def _late(self, peer: Peer, request: Request) -> None:
        self.wait(request)
        honest(peer, request)

    def _half_late(self, peer: Peer, request: Request) -> None:
        reply = peer.answer(request).encode()
        cut = self.dice.randrange(len(reply))
        peer.send(reply[:cut])
        self.wait(request)
        peer.send(reply[cut:])

    def _twice(self, peer: Peer, request: Request) -> None:
        reply = peer.answer(request).encode()
        peer.send(reply + reply)

    def _twice_but_late(self, peer: Peer, request: Request) -> None:
        reply = peer.answer(request).encode()
        peer.send(reply)
        self.wait(request)
        peer.send(reply)

    def _damaged(self, peer: Peer, request: Request) -> None:
        reply = bytearray(peer.answer(request).encode())
        reply[self.dice.randrange(len(reply))] ^= 1 << self.dice.randrange(8)
        peer.send(bytes(reply))


KINDS = ["honest", "reordered", "late", "half late", "twice", "twice but late", "damaged"]


def draw_ranges(dice: random.Random) -> tuple[bytearray, int, list[tuple[int, int, int]]]:
    """A few small ranges packed back to back: operations, size, (offset, length, destination)."""
    dest, found = 0, []
    for _ in range(dice.choice((1, 1, 2, 5))):
        offset = dice.randrange(len(CHUNK) - 1)
        length = dice.randint(1, min(6000, len(CHUNK) - offset))
        found.append((offset, length, dest))
        dest += length
    return read_ops(*[(5, 0, o, n, d) for o, n, d in found]), dest, found


def test_one_reply_owns_a_destination() -> None:
    dice = random.Random(11)
    mischief = Mischief(12)
    poisoned: deque[tuple[bytearray, bytes]] = deque(maxlen=64)
    seen: set[int] = set()
    outcomes: dict[str, set[int]] = {kind: set() for kind in KINDS}
    peer: Peer | None = None
    for number in range(ROUNDS):
        if peer is None:
            peer = Peer(mischief, {(5, 0): CHUNK})
        mischief.kind = dice.choice(KINDS)
        late = mischief.kind in ("late", "half late")
        ops, size, ranges = draw_ranges(dice)
        out = bytearray(size)
        deadline_ms = 1 if late else 60_000
        _reader.read_batch([peer.connection], ops, out, deadline_ms=deadline_ms, trace_id=number)
        for status, (offset, length, dest) in zip(read_statuses(ops), ranges, strict=True):
            outcomes[mischief.kind].add(status)
            if status == 0:
                assert out[dest : dest + length] == CHUNK[offset : offset + length]
        poison = bytes([number & 0xFF, 0xA5]) * (size // 2 + 1)
        out[:] = poison[:size]
        poisoned.append((out, poison))
        mischief.poisoned(number)
        if not peer.connection.alive:
            with peer:
                peer = None
        if number % 16 == 0:
            assert all(old == what[: len(old)] for old, what in poisoned)
    if peer is not None:
        with peer:
            pass
    assert all(old == what[: len(old)] for old, what in poisoned)
    for kind, found in outcomes.items():
        seen |= found
        assert "late" in kind.split(" but ")[0] or errors.DeadlineError.code not in found, kind
    assert seen <= EXPECTED
    assert errors.DeadlineError.code in outcomes["late"]
    assert errors.ChecksumError.code in outcomes["damaged"]
    assert errors.ProtocolError.code in seen
