"""Carries events of the data loop to the chain logic and its operations back.

Write path: ffs._storage (chunk received, CRCs hold) -> THIS -> server/storage/chain.py (decides) ->
THIS -> ffs._storage (persist, ack; forward by server/storage/peers.py). Only ids pass through here,
never a payload byte.

Failure behaviour: an exception in here means that the books of writes under way may be wrong, so it
is handed to `on_failure`, which ends the daemon; a writer without an answer repeats its write.
Reads pass by without Python; one that took too long is told here, and logged.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from itertools import chain
from typing import Final

from ffs._storage import (
    EVENT_CLOSED,
    EVENT_FORWARDED,
    EVENT_PEER_CLOSED,
    EVENT_PERSISTED,
    EVENT_REFUSED,
    EVENT_SLOW_READ,
    EVENT_SUSPECT,
    EVENT_TARGET_STOPPED,
    EVENT_WRITE,
    ChunkStore,
    DataLoop,
)
from ffs.errors import UnavailableError
from ffs.server.storage.chain import (
    Ack,
    ChainLogic,
    Forward,
    Operation,
    Persist,
    RefreshRouting,
    SetChainVersion,
    Write,
)
from ffs.server.storage.peers import Hop, Peers
from ffs.types import Routing

log = logging.getLogger("ffs.storage.read")

PATIENCE_MS: Final = 1_000
"""For a member that owes answers of a chain that has changed; it has them at once if it can."""


class WritePump:
    """Drives one data loop's writes through the chain logic.

    Args:    on_stopped: called with a target's id when its disk failed; on_refresh: called when a
             writer knows a newer routing than we; on_suspect: called with target, blob and chunk
             that a reader did not get as it should; on_failure: called with what must end the
             daemon; on_closed: called with each connection that has ended; on_refused: called with
             connection, request id, operation and blob of what was refused for want of a grant,
             and how many such were left out before; patience_ms: see PATIENCE_MS
    Threads: the event loop's alone; Fork: none
    """

    def __init__(
        self,
        data: DataLoop,
        logic: ChainLogic,
        peers: Peers,
        *,
        on_stopped: Callable[[int], None],
        on_refresh: Callable[[], None],
        on_suspect: Callable[[int, int, int], None],
        on_failure: Callable[[Exception], None],
        on_closed: Callable[[int], None] = lambda connection: None,
        on_refused: Callable[[int, int, int, int, int], None] = lambda *facts: None,
        patience_ms: int = PATIENCE_MS,
    ) -> None:
        self._data = data
        self._logic = logic
        self._peers = peers
        self._on_stopped = on_stopped
        self._on_refresh = on_refresh
        self._on_suspect = on_suspect
        self._on_failure = on_failure
        self._on_closed = on_closed
        self._on_refused = on_refused
        self._patience_s = patience_ms / 1e3
        self._fd = data.event_fd()
        self._running = False

    @property
    def routing_version(self) -> int:
        """The version of the routing that writes are judged by."""
        return self._logic.routing_version

    def start(self) -> None:
        """Take events from now on."""
        self._running = True
        self._peers.start(self._not_forwarded, self._break)
        asyncio.get_running_loop().add_reader(self._fd, self._drain)

    def stop(self) -> None:
        """Take no more events."""
        self._running = False
        asyncio.get_running_loop().remove_reader(self._fd)

    def routing_changed(self, routing: Routing) -> None:
        """Judge writes by this routing, unless ours is newer."""
        if routing.version < self._logic.routing_version:
            return
        operations = self._logic.routing_changed(routing)
        self._peers.routing_changed(routing, self._logic.successors)
        self._execute(operations)
        if outdated := self._logic.outdated_forwards:
            loop = asyncio.get_running_loop()
            loop.call_later(self._patience_s, self._end_outdated, outdated)

    def _end_outdated(self, outdated: dict[int, Hop]) -> None:
        """Wait no longer for answers that were out when the chain changed, and still are."""
        if self._running:
            out = self._logic.outdated_forwards.keys() & outdated.keys()
            for hop in {outdated[write_id] for write_id in out}:
                self._peers.disconnect(hop)

    def add_target(self, target: int) -> None:
        """Take writes for a target that was created, once it is in a chain."""
        self._execute(self._logic.add_target(target))

    def revive(self, target: int, store: ChunkStore) -> None:
        """Use a target again that had stopped, by its new store."""
        self._data.add_store(target, store)
        self._logic.target_revived(target)
        self.add_target(target)

    def _drain(self) -> None:
        self._do(lambda: [self._decide(event) for event in self._data.poll()])

    def _not_forwarded(self, write_ids: list[int]) -> None:
        status = UnavailableError.code
        if self._running:
            self._do(lambda: [self._logic.forwarded(write_id, status) for write_id in write_ids])

    def _do(self, decide: Callable[[], list[list[Operation]]]) -> None:
        """Execute together what was decided about several events."""
        try:
            self._execute(list(chain.from_iterable(decide())))
        except Exception as error:  # noqa: BLE001  it is handed on and ends the daemon
            self._break(error)

    def _break(self, error: Exception) -> None:
        self.stop()
        self._on_failure(error)

    def _decide(self, event: tuple[int, ...]) -> list[Operation]:
        kind, *facts = event
        if kind == EVENT_WRITE:
            return self._logic.received(Write(*facts))
        if kind == EVENT_PERSISTED:
            write_id, status = facts
            return self._logic.persisted(write_id, status)
        if kind == EVENT_FORWARDED:
            write_id, status = facts
            return self._logic.forwarded(write_id, status)
        if kind == EVENT_PEER_CLOSED:
            self._peers.closed(facts[0])
            return []
        if kind == EVENT_CLOSED:
            self._on_closed(facts[0])
            return self._logic.connection_closed(facts[0])
        if kind == EVENT_SUSPECT:
            self._on_suspect(*facts)
            return []
        if kind == EVENT_REFUSED:
            self._on_refused(*facts)
            return []
        if kind == EVENT_SLOW_READ:
            _log_slow_read(*facts)
            return []
        assert kind == EVENT_TARGET_STOPPED, event
        self._on_stopped(facts[0])
        return self._logic.target_stopped(facts[0])

    def _execute(self, operations: list[Operation]) -> None:
        """Hand operations to the data loop: all persists at once, they share a commit, and what
        goes to the same target, it shares a send."""
        persists: list[int] = []
        forwards: dict[tuple[Hop, int], list[int]] = {}
        refresh = False
        for operation in operations:
            match operation:
                case Persist(write_id):
                    persists.append(write_id)
                case Forward(write_id, node, target, hop):
                    forwards.setdefault(((node, hop), target), []).append(write_id)
                case Ack(write_id, status):
                    self._data.ack(write_id, status)
                case SetChainVersion(target, version):
                    self._data.set_chain_version(target, version)
                case RefreshRouting():
                    refresh = True
        for (successor, target), write_ids in forwards.items():
            self._peers.forward(write_ids, successor, target)
        if persists:
            self._data.persist(persists)
        if refresh:
            self._on_refresh()


def _log_slow_read(
    connection: int, trace_id: int, blob: int, ranges: int, size: int, took_ms: int, queued_ms: int
) -> None:
    facts = {"trace_id": f"{trace_id:016x}", "connection": connection, "blob": blob}
    facts |= {"ranges": ranges, "bytes": size, "took_ms": took_ms, "queued_ms": queued_ms}
    log.warning("read_slow", extra=facts)
