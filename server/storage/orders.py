"""Carries out what a metadata server orders about targets: create one, or empty one.

Previous hop: membership.py, with each heartbeat's answer. Next hop: targets.py in the thread for
slow disk work; `on_created` gives a new store to the data loop and the chain logic. Orders come
again until they are reported as done, so each is carried out once at a time and may be done twice.

Invariant: a target that is in a chain is never emptied, whoever says so, and what is dropped is
only what was there before that was looked at: an order that was overtaken loses no chunk.
Failure behaviour: what cannot be done is logged, and tried again with the next order.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor

from ffs._storage import ChunkStore
from ffs.errors import FFSError
from ffs.server.storage.scan import stored_blobs
from ffs.server.storage.targets import Targets, drop_from
from ffs.wire.membership import HeartbeatReply, NewTarget

log = logging.getLogger("ffs.storage.orders")


class TargetOrders:
    """Creates and empties targets of one daemon.

    Args:    disk: the thread that it happens in; in_chain: tells whether a target belongs to a
             chain, as far as we know; on_created: called with each new target's id and store;
             on_done: called when there is something new to report
    Threads: the event loop's alone; Fork: none
    """

    def __init__(
        self,
        targets: Targets,
        disk: Executor,
        *,
        in_chain: Callable[[int], bool],
        on_created: Callable[[int, ChunkStore], None],
        on_done: Callable[[], None],
    ) -> None:
        self._targets = targets
        self._disk = disk
        self._in_chain = in_chain
        self._on_created = on_created
        self._on_done = on_done
        self._newest: HeartbeatReply | None = None
        self._came = asyncio.Event()

    def take(self, reply: HeartbeatReply) -> None:
        """Carry out what an answer orders, after what is under way."""
        self._newest = reply
        self._came.set()

    async def run(self) -> None:
        """Carry out orders until cancelled; what is cut short is ordered again."""
        while True:
            await self._came.wait()
            self._came.clear()
            reply, self._newest = self._newest, None
            if reply is not None:
                await self._carry_out(reply.create, reply.retire)

    async def _carry_out(self, create: Sequence[NewTarget], retire: Sequence[int]) -> None:
        for order in create:
            if order.target not in self._targets.stores:
                await self._logged(order.target, "create", self._create(order))
        for target in retire:
            await self._logged(target, "empty", self._empty(target))
        self._on_done()

    async def _logged(self, target: int, what: str, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except FFSError as error:
            extra = {"target": target, "order": what, "reason": str(error)}
            log.error("order_failed", extra=extra)

    async def _create(self, order: NewTarget) -> None:
        loop = asyncio.get_running_loop()
        store = await loop.run_in_executor(
            self._disk, self._targets.create_ordered, order.target, order.beside
        )
        self._on_created(order.target, store)
        log.info("target_created", extra={"target": order.target, "beside": order.beside})

    async def _empty(self, target: int) -> None:
        store = self._targets.working.get(target)
        if store is None:
            return  # it can drop nothing; it is emptied when it works again
        loop = asyncio.get_running_loop()
        blobs = await loop.run_in_executor(self._disk, stored_blobs, store)
        if self._in_chain(target):
            log.warning("order_refused", extra={"target": target, "reason": "it is in a chain"})
            return
        await loop.run_in_executor(self._disk, self._targets.remember_emptied, target)
        await loop.run_in_executor(self._disk, drop_from, store, blobs)
        log.info("target_emptied", extra={"target": target, "blobs": len(blobs)})
