"""Trace ids: one number for a call, in the header of each frame that it sends.

Previous hop: client/reader.py and client/writer.py take one for each call; next: the frame header,
from which a daemon names it in what it logs. Errors carry it as the fact `trace_id`, in hex, so
that what a program saw and what a daemon logged can be put together.

Fork: the child begins a sequence of its own, so that no two processes use one id.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Final

from ffs.client import _fork
from ffs.errors import InvalidError
from ffs.seams import Randomness, SystemRandomness

_MASK: Final = (1 << 64) - 1
_STEP: Final = 0x9E37_79B9_7F4A_7C15
"""Odd, so that a sequence comes back to an id after all others."""

_given: ContextVar[int] = ContextVar("ffs_trace_id", default=0)


class TraceIds:
    """A sequence of ids from a random start: asking the kernel for each would cost a microsecond.

    Threads: any; Fork: starts anew in the child
    """

    def __init__(self, randomness: Randomness) -> None:
        self._randomness = randomness
        self._values: Iterator[int] | None = None
        _fork.register(self)

    def after_fork_in_child(self) -> None:
        """Leave the parent's sequence to the parent."""
        self._values = None

    def take(self) -> int:
        """Return an id that is not 0: the one given by `tracing`, or the next."""
        given = _given.get()
        if given:
            return given
        values = self._values
        if values is None:
            values = self._values = itertools.count(self._randomness.u64(), _STEP)
        return next(values) & _MASK or 1


_ids: Final = TraceIds(SystemRandomness())


def take() -> int:
    """Return the id for a call that begins."""
    return _ids.take()


def as_fact(trace_id: int) -> str:
    """Return an id as errors and logs write it."""
    return f"{trace_id:016x}"


@contextlib.contextmanager
def tracing(trace_id: int) -> Iterator[None]:
    """Use one id of the caller's for everything that is read and written inside, by this context.

    Raises:  InvalidError for 0 and for what is not a number of 64 bits
    """
    if not 0 < trace_id <= _MASK:
        raise InvalidError(f"trace id {trace_id} is not between 1 and 2**64 - 1")
    token = _given.set(trace_id)
    try:
        yield
    finally:
        _given.reset(token)
