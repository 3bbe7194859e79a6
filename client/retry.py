"""What to do when an operation failed: a pure decision, driven by the reader and by the simulator.

Role: client/reader.py and client/writer.py ask `RetryPolicy.decide` for every operation that the
engine reported as not done; client/meta.py asks `decide_call` for a failed RPC. Nothing here reads
a clock, sleeps, or draws from the system's randomness: time comes in as what remains, jitter from
the injected `Randomness`, so tests/sim drives the same object under virtual time.

The rules, in order:
1. a final status (bad argument, no space, ...) ends the operation;
2. another serving replica that this operation has not tried yet is tried at once;
3. bytes that do not match (the integrity family) are read once more over a fresh connection when
   every replica has answered, and then reported: damage does not heal by waiting. A chunk that is
   missing is asked for once more with the routing refreshed: it may lie elsewhere by now;
4. a target's own trouble (disk error, stopped) ends the operation unless the chain has other
   members that may take over;
5. everything else waits for a jittered back-off, within the deadline, with the routing refreshed.

Failure behaviour: when the next wait would pass the deadline the *cause* is reported, not the
deadline, since that is what the user can act on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Protocol

from ffs import errors

_MS: Final = 1_000_000

INTEGRITY: Final = frozenset(
    e.code
    for e in (
        errors.ChecksumError,
        errors.ChunkMissingError,
        errors.ChunkLengthError,
        errors.ProtocolError,
    )
)
"""The bytes that came, or did not come, are wrong; waiting does not help, another copy may."""

TARGET_TROUBLE: Final = frozenset(
    e.code for e in (errors.TargetStoppedError, errors.StorageIOError, errors.NativeError)
)
"""The target cannot, and will not until someone repairs it or its chain changes."""

REFRESH: Final = frozenset(
    e.code
    for e in (
        errors.UnavailableError,
        errors.ConnectionLostError,
        errors.StalledError,
        errors.StaleLayoutError,
        errors.StaleChainError,
        errors.TooFewReplicasError,
        errors.TargetStoppedError,
        errors.StorageIOError,
        errors.NotFoundError,
        errors.ChunkMissingError,
    )
)
"""The routing may have changed: ask for it before the next round."""

TRANSIENT: Final = frozenset(
    e.code
    for e in (
        errors.UnavailableError,
        errors.ConnectionLostError,
        errors.StalledError,
        errors.BusyError,
        errors.CancelledOperationError,
        errors.StaleLayoutError,
        errors.StaleChainError,
        errors.TooFewReplicasError,
        errors.NotFoundError,
    )
)
"""Trying again may help. NotFound from a daemon means "no such target here": a stale address."""


STALL_DOUBLINGS_MAX: Final = 10


class Randomness(Protocol):
    """The part of ffs.seams.Randomness that the jitter needs."""

    def below(self, n: int) -> int:
        """Return a number in 0 .. n - 1."""


class Action(Enum):
    """What the caller does with the operation next."""

    RETRY = "retry"
    WAIT = "wait"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict. `target` for RETRY; `delay_ns` and `refresh` for WAIT; `status` for FAIL."""

    action: Action
    target: int = 0
    delay_ns: int = 0
    refresh: bool = False
    fresh_connection: bool = False
    status: int = 0


@dataclass(slots=True)
class History:
    """What happened to one operation so far; the policy's only memory, owned by the caller."""

    tried: list[int] = field(default_factory=list)
    rounds: int = 0
    lost: bool = False
    damaged: int = 0
    unsure: bool = False
    reread: bool = False
    stalls: int = 0


class RetryPolicy:
    """Decides for one operation at a time; has no state of its own but its settings.

    Args:    backoff_ms, backoff_max_ms: the first and the longest wait; each wait is drawn
             uniformly from the upper half of its bound, which doubles every round
    Threads: any; Fork: nothing to re-make
    """

    def __init__(self, backoff_ms: int, backoff_max_ms: int, randomness: Randomness) -> None:
        assert 0 < backoff_ms <= backoff_max_ms
        self._backoff_ns = backoff_ms * _MS
        self._backoff_ns_max = backoff_max_ms * _MS
        self._randomness = randomness

    def decide(
        self,
        history: History,
        status: int,
        target: int,
        serving: Sequence[int],
        *,
        members: int,
        remaining_ns: int,
    ) -> Decision:
        """Decide what follows `status` of an operation that was sent to `target`.

        Args:    serving: the chain's targets that may answer now, best first;
                 members: how many the chain has, serving or not
        Returns: the verdict; `history` is brought up to date
        """
        if status in INTEGRITY:
            history.damaged = _graver(history.damaged, status)
        elif status in TRANSIENT:
            history.unsure = True
        elif status not in TARGET_TROUBLE:
            return Decision(Action.FAIL, status=status)
        if status == errors.StalledError.code:
            history.stalls += 1
        if target and target not in history.tried:
            history.tried.append(target)
        if remaining_ns <= 0:
            return Decision(Action.FAIL, status=history.damaged or status)
        for other in serving:
            if other not in history.tried:
                return Decision(Action.RETRY, target=other)
        if status == errors.ConnectionLostError.code and not history.lost and serving:
            # An idle connection that the server closed long ago: one more try costs nothing.
            history.lost = True
            return Decision(Action.RETRY, target=serving[0], fresh_connection=True)
        if history.damaged and not history.unsure:
            return self._integrity(history, serving, remaining_ns)
        if status in TARGET_TROUBLE and members <= 1:
            return Decision(Action.FAIL, status=status)
        return self._wait(history, status, remaining_ns)

    def patience_ms(self, history: History | None, stall_ms: int) -> int:
        """Return how long a target may say nothing to an operation that could go elsewhere.

        Why: it doubles each time, so that replicas that are all slow get their time in the end, and
        one that comes back is asked again long before the deadline.
        """
        return stall_ms << min(history.stalls, STALL_DOUBLINGS_MAX) if history else stall_ms

    def decide_call(self, status: int, rounds: int, remaining_ns: int) -> Decision:
        """Decide what follows a failed RPC attempt, `rounds` of which have failed before."""
        if not errors.error_class(status).retryable:
            return Decision(Action.FAIL, status=status)
        return self._wait(History(rounds=rounds), status, remaining_ns)

    def backoff_ns(self, rounds: int) -> int:
        """Return the wait before round `rounds` + 1: jittered, doubling up to the maximum."""
        bound = min(self._backoff_ns << min(rounds, 30), self._backoff_ns_max)
        half = bound // 2
        return bound - half + self._randomness.below(half + 1)

    def _integrity(self, history: History, serving: Sequence[int], remaining_ns: int) -> Decision:
        if history.reread or not serving:
            return Decision(Action.FAIL, status=history.damaged)
        history.reread = True
        if history.damaged == errors.ChunkMissingError.code:
            return self._wait(history, history.damaged, remaining_ns)
        return Decision(Action.RETRY, target=serving[0], fresh_connection=True)

    def _wait(self, history: History, status: int, remaining_ns: int) -> Decision:
        delay = self.backoff_ns(history.rounds)
        if delay >= remaining_ns:
            return Decision(Action.FAIL, status=history.damaged or status)
        history.rounds += 1
        history.tried.clear()
        history.lost = history.unsure = False
        return Decision(Action.WAIT, delay_ns=delay, refresh=status in REFRESH)


def _graver(first: int, second: int) -> int:
    """Of two integrity statuses keep the one that says more: wrong bytes beat absent ones."""
    order = (
        errors.ChecksumError.code,
        errors.ChunkLengthError.code,
        errors.ChunkMissingError.code,
        errors.ProtocolError.code,
        0,
    )
    return min(first, second, key=order.index)
