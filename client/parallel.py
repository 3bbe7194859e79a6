"""Runs many independent pieces of work in a few threads, with a bounded number under way.

Role: client/trees.py copies trees with THIS. The threads exist for one call only.

Failure behaviour: the first error ends the call: what has not begun never does, what is under way
ends first, then the error is raised. Ctrl-C waits for nothing but what looks at `stopped`.
Fork: the threads are the parent's alone; a child that was forked meanwhile has none of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Final

AHEAD: Final = 2
"""Pieces of work taken from the source for each thread: one it does, one that waits."""


class Stop:
    """Tells the work under way that nobody wants its result any more."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Tell it."""
        self._event.set()

    def __bool__(self) -> bool:
        return self._event.is_set()


def run_all(work: Iterable[Callable[[], None]], threads: int, stop: Stop) -> None:
    """Run every piece of work; `work` is drawn from as threads come free."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ffs-tree")
    pending: set[Future[None]] = set()
    try:
        for piece in work:
            pending.add(pool.submit(piece))
            if len(pending) >= AHEAD * threads:
                pending = _some_done(pending)
        while pending:
            pending = _some_done(pending)
    except BaseException as error:
        stop.set()
        # After Ctrl-C the user waits for the prompt, and not for a daemon that hangs.
        pool.shutdown(wait=isinstance(error, Exception), cancel_futures=True)
        raise
    pool.shutdown()


def _some_done(pending: set[Future[None]]) -> set[Future[None]]:
    """Wait until some work is done; raise its error, if it has one."""
    done, left = wait(pending, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
    return left
