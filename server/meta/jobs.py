"""Operations that wait for a store's threads, and their outcomes on the way back.

Previous hop: `sqlite` and `postgres`, on event loops. Next hop: `commit` and the stores' threads,
which run the operations and `deliver` what came of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from ffs.server.meta.store import Transaction

log = logging.getLogger("ffs.meta.store")


class Job:
    """An operation, and the future of the loop that waits for its outcome."""

    __slots__ = ("future", "loop", "operation")

    def __init__(
        self, operation: Callable[[Transaction], Any], loop: asyncio.AbstractEventLoop
    ) -> None:
        self.operation = operation
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()


Outcome = tuple[Job, Any, BaseException | None]


def deliver(outcomes: list[Outcome]) -> None:
    """Hand outcomes to their loops, waking each loop once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Outcome]] = {}
    for outcome in outcomes:
        by_loop.setdefault(outcome[0].loop, []).append(outcome)
    for loop, mine in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, mine)
        except RuntimeError:
            # The loop was closed while its callers still waited: nobody is left to tell.
            log.debug("outcome_without_loop", extra={"outcomes": len(mine)})


def _resolve(outcomes: list[Outcome]) -> None:
    for job, value, error in outcomes:
        if job.future.done():
            continue
        if error is not None:
            job.future.set_exception(error)
        else:
            job.future.set_result(value)
