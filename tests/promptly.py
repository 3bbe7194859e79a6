"""Bounds of time on a machine that does other things too.

A bound is for something that is not held up. Whatever else runs may hold up any one attempt, for
as long as it likes, but hardly each of several; what is slow by itself is slow each time. So what
is bounded is done until it was in time once, and a test that never sees that fails.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final, Self

from tests.harness import SLOW

ATTEMPTS: Final = 8


class Watch:
    """How long a `with` block took, unless `seconds` is set by who knows better."""

    def __init__(self) -> None:
        self.seconds = -1.0
        self._began = 0.0

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._began


def promptly(limit_s: float) -> Iterator[Watch]:
    """Yield a watch for each attempt until one has taken no longer than it may.

    Args:    limit_s: on a machine that is not an emulated one (tests/harness.py, SLOW)
    """
    limit_s *= SLOW
    took: list[float] = []
    while len(took) < ATTEMPTS:
        watch = Watch()
        yield watch
        assert watch.seconds >= 0, "nothing was timed"
        took.append(watch.seconds)
        if watch.seconds <= limit_s:
            return
    raise AssertionError(f"{limit_s} s would be in time, attempts took {took} s")
