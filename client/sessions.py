"""Keeps this process's write sessions alive: one thread while files are open for writing.

Role: client/writer.py reports each session it opens and ends; THIS sends a RENEW every third of
the session lifetime, and aborts the sessions of writers that were dropped without a word.

Invariants: no thread before the first file is opened for writing, none for long after the last is
closed; the thread holds no reference that would keep the file system object alive.

Failure behaviour: a renewal that fails is logged and tried again at the next tick; sessions
outlive two missed ones. A writer whose session was reaped gets LeaseExpiredError at close.
Fork: the child has no thread and no sessions; the parent's are neither renewed nor aborted from
there.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from types import NoneType
from typing import Final

from ffs.client import _fork
from ffs.client.meta import MetaClient
from ffs.errors import DeadlineError, FFSError, UnavailableError

log = logging.getLogger("ffs.client.sessions")

RENEWALS_PER_LIFETIME: Final = 3
UNREACHABLE: Final = (UnavailableError, DeadlineError)
"""After these, who asks the server once more waits for nothing."""


class SessionKeeper:
    """Counts open sessions and renews them; one per file system object."""

    def __init__(self, meta: MetaClient) -> None:
        self._meta = meta
        self._reset()
        _fork.register(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._open = 0
        self._dropped: deque[int] = deque()

    def after_fork_in_child(self) -> None:
        """Forget the parent's thread and sessions."""
        self._reset()

    def opened(self, count: int = 1) -> None:
        """Count sessions in, and make sure that somebody renews them."""
        interval_s = self._meta.cluster().session_ttl_ms / 1e3 / RENEWALS_PER_LIFETIME
        with self._lock:
            self._open += count
            if self._thread is None:
                self._thread = threading.Thread(
                    target=_run,
                    args=(weakref.ref(self), self._stop, interval_s),
                    name="ffs-sessions",
                    daemon=True,
                )
                self._thread.start()

    def ended(self, count: int = 1) -> None:
        """Count sessions out."""
        with self._lock:
            self._open -= count

    def give_up(self, sessions: Sequence[int], cause: BaseException | None) -> None:
        """Abort sessions now, or at the next tick if `cause` says that nobody should wait for it.

        Why: after KeyboardInterrupt the user waits for the prompt; and a server that could not be
        reached until the deadline would be asked until another.
        """
        if isinstance(cause, (Exception, NoneType)) and not isinstance(cause, UNREACHABLE):
            self.abort(sessions)
        else:
            self.drop(sessions)

    def drop(self, sessions: Sequence[int]) -> None:
        """Have sessions aborted at the next tick.

        Never blocks and takes no lock: a destructor may call it in the middle of anything.
        """
        self._dropped.extend(sessions)

    def abort(self, sessions: Sequence[int]) -> None:
        """Abort sessions now; failing to is fine, the server reaps what is not renewed."""
        self.ended(len(sessions))
        try:
            self._meta.abort_many(sessions)
        except FFSError as error:
            log.warning("abort_failed", extra={"sessions": len(sessions), "reason": str(error)})

    def close(self) -> None:
        """Let the thread go."""
        self._stop.set()
        self._abort_dropped()

    def tick(self) -> bool:
        """Renew and clean up once; return whether the thread has anything left to do."""
        self._abort_dropped()
        with self._lock:
            if self._open <= 0:
                self._thread = None
                return False
        try:
            self._meta.renew()
        except FFSError as error:
            log.warning("renew_failed", extra={"sessions": self._open, "reason": str(error)})
        return True

    def _abort_dropped(self) -> None:
        dropped: list[int] = []
        # One by one: what is dropped meanwhile is neither lost nor taken twice.
        with contextlib.suppress(IndexError):
            while True:
                dropped.append(self._dropped.popleft())
        if dropped:
            self.abort(dropped)


def _run(keeper: weakref.ref[SessionKeeper], stop: threading.Event, interval_s: float) -> None:
    while not stop.wait(interval_s):
        alive = keeper()
        if alive is None or not alive.tick():
            return
        del alive
