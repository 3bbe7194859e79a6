"""Where time and chance enter: the only two doors, so that a simulator can stand in them.

Everything that decides (retry policy, leases, back-off, ids) takes a `Clock` and a `Randomness`;
the System forms are made where a process starts. tests/sim/ passes virtual ones.
"""

from __future__ import annotations

import os
import secrets
import time
from typing import Protocol


class Clock(Protocol):
    """What time it is, in integer nanoseconds."""

    def monotonic_ns(self) -> int:
        """Return a time that never goes back; only differences mean something."""
        ...

    def wall_ns(self) -> int:
        """Return the time since the Unix epoch; it may jump."""
        ...


class Randomness(Protocol):
    """Bytes and numbers that nobody can guess (or, in a simulation, that repeat)."""

    def token(self, n: int) -> bytes:
        """Return `n` random bytes."""
        ...

    def below(self, n: int) -> int:
        """Return a uniform integer in 0 .. n - 1; n >= 1."""
        ...

    def u64(self) -> int:
        """Return a uniform 64-bit integer."""
        ...


class SystemClock:
    """The kernel's clocks."""

    def monotonic_ns(self) -> int:
        """Return CLOCK_MONOTONIC."""
        return time.monotonic_ns()

    def wall_ns(self) -> int:
        """Return CLOCK_REALTIME."""
        return time.time_ns()


class SystemRandomness:
    """The kernel's generator. Fork: no state here, so parent and child never repeat one another."""

    def token(self, n: int) -> bytes:
        """Return `n` bytes of os.urandom."""
        return os.urandom(n)

    def below(self, n: int) -> int:
        """Return a uniform integer in 0 .. n - 1."""
        return secrets.randbelow(n)

    def u64(self) -> int:
        """Return a uniform 64-bit integer."""
        return int.from_bytes(os.urandom(8), "little")
