"""The cluster manager as a part of one metadata server: has the lease, turns facts into chains.

Previous hop: `service` starts it and tells it of news. Next hop: `lease`, `liveness`, `evaluate`,
which decide; `ops.chains`, which reads and writes; `on_routing` gets what came of it. Every server
runs one; those that do not get the lease only look whether they can have it.

A turn comes with news, and each half heartbeat besides. It reads all that is known of nodes and
targets; only when something has to change does it write, in one transaction that holds the routing,
then the lease: a server that is the manager no more changes nothing.

Failure behaviour: without the database everything stays as it is and the next turn tries again;
what was silent meanwhile is judged anew only after a whole lease of listening.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from ffs.config import MetaConfig
from ffs.errors import FFSError
from ffs.seams import Clock
from ffs.server.meta.cluster.evaluate import Decision, decide
from ffs.server.meta.cluster.lease import LeaseRow, ManagerLease
from ffs.server.meta.cluster.liveness import Liveness
from ffs.server.meta.cluster.replace import Absence, Absences
from ffs.server.meta.cluster.view import View, unused_targets
from ffs.server.meta.ops import chains
from ffs.server.meta.ops.routing import hold_routing, load_routing
from ffs.server.meta.store import Store, Transaction
from ffs.types import Routing, TargetState
from ffs.wire.membership import TargetReport

log = logging.getLogger("ffs.meta.cluster")

_MS: Final = 1_000_000
TURNS_PER_HEARTBEAT: Final = 2
_LOST_HINT: Final = "no member holds what it should; see ffs cluster accept-loss --help"


class ManagerRole:
    """Runs the cluster manager while this server has its lease.

    Args:    heard: tells when each node was heard, in monotonic time, where the database does not
             (one server that owns it); None where it does; reports: what daemons told this server;
             on_routing: called with each routing that came of a change
    Threads: the event loop's; transactions run on the store's
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        config: MetaConfig,
        *,
        heard: Callable[[], Mapping[int, int] | None],
        reports: Callable[[], Sequence[TargetReport]],
        on_routing: Callable[[Routing], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._replicas = config.replicas
        self._lease_ns = config.node_lease_ms * _MS
        self._turn_ns = config.heartbeat_ms * _MS // TURNS_PER_HEARTBEAT
        self._absences = Absences(config.rereplicate_after_s * 1_000 * _MS)
        self._heard = heard
        self._reports = reports
        self._on_routing = on_routing
        self._lease: ManagerLease | None = None
        self._liveness = Liveness(self._lease_ns, self._turn_ns)
        self._free: dict[int, list[int]] = {}
        self._free_since_ns = 0
        self._turning = asyncio.Lock()
        self._news = asyncio.Event()
        self._troubled = False

    def serves_as(self, me: str) -> None:
        """Know what this server is called among those of its database, and begin to bid."""
        self._lease = ManagerLease(me, self._lease_ns, alone=self._heard() is not None)
        self.news()

    def news(self) -> None:
        """Take a turn soon: a daemon said something new."""
        self._news.set()

    async def run(self) -> None:
        """Take turns until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._turn_ns / 1e9):
                    await self._news.wait()
            self._news.clear()
            try:
                await self.turn()
                self._troubled = False
            except FFSError as error:
                if not self._troubled:
                    log.warning("manager_turn_failed", extra={"reason": str(error)})
                self._troubled = True
            except Exception:  # a bug here must not end the manager for good
                log.exception("manager_turn_broken")

    async def turn(self) -> None:
        """Judge everything once, if this server is the manager or can become it. Raises FFSError"""
        if self._lease is None:
            return
        async with self._turning:
            if not await self._is_manager(self._lease):
                return
            heard, reports = self._heard(), self._reports()
            monotonic_ns = self._clock.monotonic_ns()
            now_ns = self._clock.wall_ns() if heard is None else monotonic_ns
            self._liveness.turn(monotonic_ns, now_ns)

            def load(tx: Transaction) -> View:
                return chains.load_view(tx, self._liveness.judge, heard, reports)

            view = await self._store.read(load)
            form = self._may_form(view, monotonic_ns)
            away_ms = {target.target: target.away_ms for target in view.targets.values()}
            overdue = self._absences.turn(view.chains, away_ms, monotonic_ns)
            if news := self._absences.news(away_ms, monotonic_ns):
                await self._store.write(lambda tx: self._note(tx, news))
            if decide(view, replicas=self._replicas, form=form, overdue=overdue).nothing:
                return
            routing = await self._store.write(
                lambda tx: self._change(tx, load, form=form, overdue=overdue)
            )
        if routing is not None:
            self._on_routing(routing)

    # --- the lease ----------------------------------------------------------------------------

    async def _is_manager(self, lease: ManagerLease) -> bool:
        """Take or renew the lease if it takes that; return whether it is ours."""
        row = await self._store.read(chains.lease)
        if lease.bid(row, self._clock.wall_ns()) is not row:
            taken = await self._store.write(self._bid)
            if taken is None:
                return False
            if lease.took(taken):
                self._liveness.begin()
                self._absences.begin()
                log.info("manager_term_began", extra={"term": taken.term})
        return True

    def _bid(self, tx: Transaction) -> LeaseRow | None:
        assert self._lease is not None
        row = chains.held_lease(tx)
        wanted = self._lease.bid(row, self._clock.wall_ns())
        if wanted is not None and wanted is not row:
            chains.set_lease(tx, wanted)
        return wanted

    # --- chains -------------------------------------------------------------------------------

    def _note(self, tx: Transaction, news: Sequence[tuple[int, int, int]]) -> None:
        """Write down for how long targets have been away, for the manager after us."""
        assert self._lease is not None
        if self._lease.holds(chains.held_lease(tx)):
            chains.note_absences(tx, news)

    def _may_form(self, view: View, now_ns: int) -> bool:
        """Tell whether free targets were the same for a heartbeat: daemons come up one by one."""
        free = unused_targets(view)
        if free != self._free:
            self._free, self._free_since_ns = free, now_ns
        return bool(free) and now_ns - self._free_since_ns >= TURNS_PER_HEARTBEAT * self._turn_ns

    def _change(
        self,
        tx: Transaction,
        load: Callable[[Transaction], View],
        *,
        form: bool,
        overdue: frozenset[Absence],
    ) -> Routing | None:
        """Decide again by what the database has now, and write it down; None: not the manager."""
        assert self._lease is not None
        hold_routing(tx)
        if not self._lease.holds(chains.held_lease(tx)):
            return None
        decision = decide(load(tx), replicas=self._replicas, form=form, overdue=overdue)
        chains.apply(tx, decision)
        _tell(decision)
        return load_routing(tx)


def _tell(decision: Decision) -> None:
    for chain in decision.chains:
        states = [f"{m.target} {TargetState(m.state).name.lower()}" for m in chain.members]
        facts = {"chain": chain.chain, "version": chain.version, "targets": ", ".join(states)}
        log.info("chain_changed", extra=facts)
        if not {TargetState.SERVING, TargetState.LASTSRV} & {m.state for m in chain.members}:
            log.error("chain_lost", extra={"chain": chain.chain, "hint": _LOST_HINT})
    if decision.formed:
        log.info("chains_formed", extra={"chains": len(decision.formed)})
    if decision.orders:
        log.info("targets_ordered", extra={"nodes": sorted(node for node, _ in decision.orders)})
    if decision.retired:
        log.info("targets_retired", extra={"targets": sorted(decision.retired)})
    for task in decision.ended:
        log.info("task_ended", extra={"task": task.kind.name.lower(), "subject": task.subject})
    if decision.doubtful is not None:
        log.error("chains_doubtful", extra={"chains": sorted(decision.doubtful)})
    if decision.crowded is not None:
        log.warning("chains_crowded", extra={"chains": sorted(decision.crowded)})
