"""How many readings are under way, for the writing thread when it folds its log.

Used by `sqlite` (each reading counts itself) and `commit` (holds them all off). Invariant: inside
`held_off` no reading begins, and none is under way but one that takes longer than `WAIT_S_MAX`, as
a check of whole tables may: mutations wait meanwhile. SQLite's own waiting for readers is not used:
those that overlap all the time can keep it waiting until its timeout, with all mutations.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

WAIT_S_MAX: Final = 1.0


class Readings:
    """Many at once, or none while somebody holds them off.

    Threads: any; `held_off` by one at a time
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._under_way = 0
        self._held_off = False

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count a reading; begins once none are held off."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held_off)
            self._under_way += 1
        try:
            yield
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    @contextmanager
    def held_off(self) -> Iterator[None]:
        """Let none begin, and wait for the end of those under way, but not for long ones."""
        with self._changed:
            self._held_off = True
            self._changed.wait_for(lambda: self._under_way == 0, timeout=WAIT_S_MAX)
        try:
            yield
        finally:
            with self._changed:
                self._held_off = False
                self._changed.notify_all()
