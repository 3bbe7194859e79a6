"""The daemon's place in the cluster: registers with a metadata server, then beats.

A heartbeat carries what the targets hold, which blobs were dropped and what the data loop counts;
its answer brings blobs to drop, a newer routing, the other metadata servers, orders about targets,
and an operator's wish for a scan. They never connect to us, so this is their only way to us; beside
the heart there is always one call open that is answered as soon as there is a newer routing. Any of
them may be asked at any time: each beat says all there is to know.

Failure behaviour: while no metadata server can be reached we go on serving, keep every blob, and
try again with growing pauses; after any failure we register anew, with the next server if there is
one, since a server that came up after us may not know that we are here. A drop is confirmed once
every target that works has done it. When a stopped target works again what was not confirmed yet is
forgotten, so what is confirmed is true of every target that the same beat reports as working.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final

from ffs.auth.verifier import TokenVerifier
from ffs.errors import FFSError, StorageIOError
from ffs.rpc.aio import AsyncRpcClient
from ffs.seams import Clock, Randomness, SystemClock, SystemRandomness
from ffs.server.storage.targets import Targets
from ffs.types import Routing
from ffs.wire.membership import (
    HEARTBEAT,
    REGISTER,
    WATCH_ROUTING,
    DataLoopCounters,
    HeartbeatReply,
    HeartbeatRequest,
    RegisterReply,
    RegisterRequest,
    TargetReport,
    WatchRoutingRequest,
)

log = logging.getLogger("ffs.storage.membership")

CALL_DEADLINE_MS: Final = 5_000
BEATS_OF_SILENCE: Final = 2
"""A server that has not answered a beat for so long is given up for another one: several of them
fit into the lease of a node."""
BEAT_DEADLINE_MS_MIN: Final = 1_000
BACKOFF_MS_MIN: Final = 50
BACKOFF_MS_MAX: Final = 2_000
WATCH_MS: Final = 20_000
"""How long one call waits for a newer routing."""
DROPPED_MAX: Final = 16_384
"""Confirmations in one heartbeat; the rest goes with the next."""


class Membership:
    """Keeps one daemon registered and its heart beating.

    Args:    rpc: reaches the metadata servers; address: where clients reach our data port;
             disk: the thread that drops run in; on_routing: called with each newer routing;
             routing_version: tells which one we have; on_scan: called with (our node, scan,
             whether it may drop) while an operator waits for that scan; on_orders: called with
             each answer that tells to create or to empty targets, until that is reported; counters:
             tells what the data loop has done until now; on_clock: called with our clock when we
             asked, the server's as it told, and ours when its answer was here; amend: adds to a
             target's report how whole it is
    Threads: the event loop's alone (drops run in `disk`); Fork: none
    """

    def __init__(
        self,
        rpc: AsyncRpcClient,
        targets: Targets,
        address: tuple[str, int],
        disk: Executor,
        *,
        on_routing: Callable[[Routing], None],
        routing_version: Callable[[], int],
        on_scan: Callable[[int, int, bool], None],
        on_orders: Callable[[HeartbeatReply], None],
        counters: Callable[[], DataLoopCounters | None],
        on_clock: Callable[[int, int, int], None] = lambda asked_ns, told_ns, now_ns: None,
        amend: Callable[[TargetReport], TargetReport] = lambda report: report,
        tokens: TokenVerifier | None = None,
        randomness: Randomness | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.node = 0
        self._rpc = rpc
        self._targets = targets
        self._address = address
        self._disk = disk
        self._on_routing = on_routing
        self._routing_version = routing_version
        self._on_scan = on_scan
        self._on_orders = on_orders
        self._counters = counters
        self._on_clock = on_clock
        self._clock = clock or SystemClock()
        self._amend = amend
        self._tokens = tokens
        self._randomness = randomness or SystemRandomness()
        self._heartbeat_s = 1.0
        self._registered = True
        self._wake = asyncio.Event()
        self._dropping: set[int] = set()
        self._dropped: set[int] = set()
        self._drop_tasks: set[asyncio.Task[None]] = set()
        self._revivals = 0

    async def register_first(self) -> RegisterReply:
        """Register, waiting for the metadata server to come up if it has to.

        Raises: FFSError that waiting will not cure (another cluster, a wrong key, ...).
        """
        backoff_ms = BACKOFF_MS_MIN
        while True:
            try:
                return await self._register()
            except FFSError as error:
                if not (error.retryable or isinstance(error, TimeoutError)):
                    raise
                log.info("metadata_not_reached", extra={"reason": str(error)})
            backoff_ms = await self._pause(backoff_ms)

    async def run(self) -> None:
        """Beat until cancelled. Needs `register_first` before."""
        backoff_ms = BACKOFF_MS_MIN
        failing = False
        try:
            while True:
                try:
                    if not self._registered:
                        self._registered = True  # first: who joins meanwhile is for the next time
                        self._adopt(await self._register())
                    await self._beat()
                    backoff_ms, failing = BACKOFF_MS_MIN, False
                except FFSError as error:
                    if not failing:
                        log.warning("heartbeat_failed", extra={"reason": str(error)})
                    self._registered, failing = False, True
                    backoff_ms = await self._pause(backoff_ms)
                else:
                    await self._until_next_beat()
        finally:
            for task in self._drop_tasks:
                task.cancel()
            await asyncio.gather(*self._drop_tasks, return_exceptions=True)

    async def watch(self) -> None:
        """Take each newer routing as soon as there is one, until cancelled."""
        backoff_ms = BACKOFF_MS_MIN
        while True:
            request = WatchRoutingRequest(self._routing_version(), WATCH_MS)
            try:
                reply = await self._rpc.call(
                    WATCH_ROUTING, request, deadline_ms=WATCH_MS + CALL_DEADLINE_MS
                )
            except FFSError as error:  # the heartbeats say so too, and bring routings meanwhile
                log.debug("watch_ended", extra={"reason": str(error)})
                backoff_ms = await self._pause(backoff_ms)
                continue
            backoff_ms = BACKOFF_MS_MIN
            if reply.routing is not None:
                self._on_routing(reply.routing)

    def beat_soon(self) -> None:
        """Beat now instead of at the next turn: there is news, or a newer routing is needed."""
        self._wake.set()

    def target_revived(self) -> None:
        """Confirm no drop that a target has not done which works again; it will be asked again."""
        self._revivals += 1
        self._dropped.clear()
        self.beat_soon()

    def targets_joined(self) -> None:
        """Register again: there are targets that the last registration did not name."""
        self._registered = False
        self.target_revived()

    async def _register(self) -> RegisterReply:
        host, port = self._address
        request = RegisterRequest(
            node=self.node,
            cluster_id=self._targets.cluster_id,
            pid=os.getpid(),
            host=host,
            port=port,
            targets=self._reports(),
            unanswered=self._targets.unanswered,
        )
        reply = await self._rpc.call(REGISTER, request, deadline_ms=CALL_DEADLINE_MS)
        self.node = reply.node
        self._heartbeat_s = reply.heartbeat_ms / 1e3
        self._rpc.addresses.learn(reply.servers)
        return reply

    def _reports(self) -> list[TargetReport]:
        return [self._amend(report) for report in self._targets.reports()]

    def _adopt(self, reply: RegisterReply) -> None:
        """Take what a later registration says: targets have their ids by now."""
        self._targets.check_ids(reply.targets)
        self._on_routing(reply.routing)

    async def _beat(self) -> None:
        confirmed = sorted(self._dropped)[:DROPPED_MAX]
        request = HeartbeatRequest(
            node=self.node,
            targets=self._reports(),
            dropped=confirmed,
            routing_version=self._routing_version(),
            pid=os.getpid(),
            port=self._address[1],
            counters=self._counters(),
            revocations_version=-2 if self._tokens is None else self._tokens.version,
        )
        silence_ms = round(BEATS_OF_SILENCE * self._heartbeat_s * 1e3)
        deadline_ms = min(max(silence_ms, BEAT_DEADLINE_MS_MIN), CALL_DEADLINE_MS)
        asked_ns = self._clock.wall_ns()
        reply = await self._rpc.call(HEARTBEAT, request, deadline_ms=deadline_ms)
        self._on_clock(asked_ns, reply.wall_ns, self._clock.wall_ns())
        self._rpc.addresses.learn(reply.servers)
        self._dropped.difference_update(confirmed)
        if reply.routing is not None:
            self._on_routing(reply.routing)
        if reply.revocations is not None and self._tokens is not None:
            self._tokens.take(reply.revocations)
        self._drop([blob for blob in reply.drops if blob not in self._dropping])
        if reply.scan:
            self._on_scan(self.node, reply.scan, reply.scan_drop)
        if reply.create or reply.retire or reply.compare:
            self._on_orders(reply)

    def _drop(self, blobs: list[int]) -> None:
        """Begin to drop blobs in a worker thread; the next heartbeats confirm what is done."""
        if not blobs:
            return
        self._dropping.update(blobs)
        task = asyncio.create_task(self._drop_all(blobs))
        self._drop_tasks.add(task)
        task.add_done_callback(self._drop_tasks.discard)

    async def _drop_all(self, blobs: list[int]) -> None:
        revivals = self._revivals
        try:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._disk, self._targets.drop, blobs)
            if revivals == self._revivals:
                self._dropped.update(blobs)
            self.beat_soon()
        except StorageIOError as error:
            # Not confirmed, so the metadata server will ask again.
            log.error("drop_failed", extra={"reason": str(error), "blobs": len(blobs)})
        finally:
            self._dropping.difference_update(blobs)

    async def _until_next_beat(self) -> None:
        try:
            async with asyncio.timeout(self._heartbeat_s):
                await self._wake.wait()
        except TimeoutError:
            return
        finally:
            self._wake.clear()

    async def _pause(self, backoff_ms: int) -> int:
        """Wait about `backoff_ms`, spread so that daemons do not come back all at once."""
        spread_ms = backoff_ms // 2 + self._randomness.below(backoff_ms)
        await asyncio.sleep(spread_ms / 1e3)
        return min(2 * backoff_ms, BACKOFF_MS_MAX)
