"""What several metadata servers over one database agree on: the time, who lives, and the routing.

Previous hop: `service`. Next hop: `ops/servers` and `ops/routing`. Servers never talk to each
other: each says in the database that it lives, every heartbeat, and reads there what the others
changed. A server that owns its database alone (SQLite) is the only one that changes anything, keeps
its own time, and does none of this.

Invariants: the routing only gets newer; times that are compared come from one clock, that of the
database, which each server follows by its own monotonic clock from beat to beat (it is off by half
a round trip at most). Failure: while the database cannot be reached everything stays as last known,
and is told so; the next beat that succeeds makes it right.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from typing import Final

from ffs.errors import FFSError
from ffs.seams import Clock
from ffs.server.meta.ops import servers
from ffs.server.meta.ops.routing import load_routing, routing_version
from ffs.server.meta.ops.servers import Census, ServerRow
from ffs.server.meta.store import Store, Transaction
from ffs.types import Routing

log = logging.getLogger("ffs.meta")

FORGET_LEASES: Final = 12
"""A server silent for so many leases is removed from the database."""
_LEAVE_S_MAX: Final = 2.0


class AgreedClock:
    """Our own clock, until `agree` says what the database's is."""

    def __init__(self, own: Clock) -> None:
        self._own = own
        self._ahead_ns: int | None = None

    def monotonic_ns(self) -> int:
        """Return a time that never goes back."""
        return self._own.monotonic_ns()

    def wall_ns(self) -> int:
        """Return the time that all servers of the database have."""
        if self._ahead_ns is None:
            return self._own.wall_ns()
        return self._own.monotonic_ns() + self._ahead_ns

    def agree(self, wall_ns: int, at_ns: int) -> None:
        """Know that it was `wall_ns` at a monotonic time."""
        self._ahead_ns = wall_ns - at_ns


class Peers:
    """This server among those of its database.

    Args:    heartbeat_ns, lease_ns: how often a server says that it lives, and for how long it is
             believed; on_routing: called with each newer routing
    Threads: the event loop's
    """

    def __init__(
        self,
        store: Store,
        clock: AgreedClock,
        *,
        heartbeat_ns: int,
        lease_ns: int,
        on_routing: Callable[[Routing], None],
    ) -> None:
        self.shared = False
        self.routing = Routing(0, [], [], [], [])
        self.addresses: list[str] = []
        """Where servers live that clients may go to; empty where there is only this one."""
        self._store = store
        self._clock = clock
        self._heartbeat_ns = heartbeat_ns
        self._lease_ns = lease_ns
        self._on_routing = on_routing
        self._address = ""
        self._beating: asyncio.Task[None] | None = None
        self._leaving = asyncio.Event()

    def take(self, routing: Routing) -> None:
        """Know a routing, unless we know a newer one."""
        if routing.version > self.routing.version:
            self.routing = routing
            self._on_routing(routing)

    async def join(self) -> None:
        """Learn whether the database is shared and, if so, its time. Comes before all else."""
        self.shared = await self._store.read(lambda tx: tx.shared)
        if self.shared:
            await self._store.read(self._agree)

    async def live(self, address: str) -> None:
        """Say from now on that we serve at an address, and learn of the others."""
        if not self.shared:
            return
        self._address = address
        self.addresses = [address]
        await self.beat()
        self._beating = asyncio.create_task(self._beat_for_ever(), name="meta heartbeat")

    async def leave(self) -> None:
        """Say that we are gone; without the database others will notice."""
        if self._beating is None:
            return
        # Not cancelled in the middle of a beat: that one would say after us that we live.
        self._leaving.set()
        await asyncio.wait({self._beating}, timeout=_LEAVE_S_MAX)
        self._beating.cancel()
        await asyncio.gather(self._beating, return_exceptions=True)
        self._beating = None
        with contextlib.suppress(FFSError):
            await self._store.write(lambda tx: servers.leave(tx, self._address))

    async def refresh(self) -> None:
        """Load who lives, and the routing if the database has a newer one. Raises FFSError."""
        known, since_ns = self.routing.version, self._clock.wall_ns() - self._lease_ns

        def load(tx: Transaction) -> tuple[list[str], Routing | None]:
            newer = load_routing(tx) if routing_version(tx) > known else None
            return servers.living(tx, since_ns), newer

        self.addresses, newer = await self._store.read(load)
        if newer is not None:
            self.take(newer)

    async def beat(self) -> None:
        """Say that we live; learn who else does, what time it is, and the routing."""
        census = await self._store.write(self._say_alive)
        self.addresses = census.servers
        if census.routing_version > self.routing.version:
            await self.refresh()

    def _say_alive(self, tx: Transaction) -> Census:
        me = ServerRow(self._address, os.getpid(), self._agree(tx))
        return servers.beat(tx, me, self._lease_ns, FORGET_LEASES * self._lease_ns)

    def _agree(self, tx: Transaction) -> int:
        """Set our clock by the database's; running it again does no harm."""
        before_ns = self._clock.monotonic_ns()
        now_ns = servers.database_ns(tx)
        self._clock.agree(now_ns, (before_ns + self._clock.monotonic_ns()) // 2)
        return now_ns

    async def _beat_for_ever(self) -> None:
        reached = True
        while not self._leaving.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), self._heartbeat_ns / 1e9)
                return
            try:
                await self.beat()
            except FFSError as error:
                if reached:
                    log.warning("database_not_reached", extra={"reason": str(error)})
                reached = False
            except Exception:  # a bug here must not end the heartbeats for good
                log.exception("heartbeat_broken")
            else:
                if not reached:
                    log.info("database_reached_again")
                reached = True
