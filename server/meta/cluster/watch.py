"""Wakes whoever waits for a newer routing, at once.

Previous hop: `service`, for `watch_routing` calls and whenever this server learns of a routing.
Next hop: nothing. Who waits holds no more than a future. At most `WATCHERS_MAX` wait on a server;
others are refused and hear of routings by their heartbeats. A client that is gone has its call
cancelled by its connection.
"""

from __future__ import annotations

import asyncio
import contextlib

from ffs.errors import BusyError
from ffs.limits import WATCH_MS_MAX, WATCHERS_MAX


class RoutingWatch:
    """Who waits for a newer routing. Threads: the event loop's"""

    def __init__(self) -> None:
        # In the order in which they came: woken in that order, and the same in every replayed run.
        self._waiting: dict[asyncio.Future[None], None] = {}

    def wake(self) -> None:
        """There is a newer routing: all who wait look at it."""
        waiting, self._waiting = self._waiting, {}
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def wait(self, wait_ms: int) -> None:
        """Wait for the next routing, at most for a time.

        Raises:  BusyError: too many wait already
        """
        if len(self._waiting) >= WATCHERS_MAX:
            raise BusyError("too many wait for a newer routing", hint="ask for it now and then")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = None
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(max(wait_ms, 0), WATCH_MS_MAX) / 1e3):
                    await future
        finally:
            self._waiting.pop(future, None)
