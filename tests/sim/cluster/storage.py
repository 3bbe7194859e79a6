"""A simulated storage daemon: real policy over simulated disks and connections.

Real are `ChainLogic` (what becomes of a write), `Membership` (registration, heartbeats, drops), the
scan for unknown blobs, `ResyncPlan`, `ScrubPass`, and `Revival` (which gives up disks that hang and
takes stopped targets back). THIS does for them what pump.py, peers.py, recovery.py, scrubber.py and
the C data loop do in a daemon: frames come in, events go to the logic, its operations are carried
out; a group commit takes its time; a forward that gets no answer ends as its connection does.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Final

from ffs.errors import (
    OK,
    ChunkMissingError,
    ConnectionLostError,
    FFSError,
    StaleChainError,
    StorageIOError,
    TargetStoppedError,
    UnavailableError,
)
from ffs.server.storage import chain as logic
from ffs.server.storage import scan
from ffs.server.storage.membership import Membership
from ffs.server.storage.neighbours import View
from ffs.server.storage.orders import TargetOrders
from ffs.server.storage.resync import Entry, Outcome, ResyncPlan, Wanted
from ffs.server.storage.revival import Revival
from ffs.server.storage.scan import UnknownBlobScan
from ffs.server.storage.scrub import ScrubPass, ScrubState
from ffs.types import Routing, TargetState
from ffs.wire.membership import HeartbeatReply
from tests.sim.chain_of_one import Violation
from tests.sim.cluster.disks import Disk, Key, Store, verifies
from tests.sim.cluster.fabric import Answer, Fabric, Host, SimRpc
from tests.sim.cluster.frames import Goodbye, ListFrame, ReadFrame, SuspectFrame, WriteFrame
from tests.sim.cluster.ledger import Ledger
from tests.sim.cluster.targets import SimTargets
from tests.sim.world import MS, SECOND, World

PORT: Final = 9_000
FORWARD_NS: Final = 400 * MS
"""How long a successor may say nothing before its connection is given up."""
PULL_NS: Final = 300 * MS
REPAIR_NS: Final = 500 * MS
HUNG_MS: Final = 1_000
"""`storage.hung_disk_ms`."""
SCRUB_NS: Final = 1_500 * MS
"""`storage.scrub_interval_s`."""
PAGE_ENTRIES: Final = 8
"""Of a listing: few, so that resyncs take several."""
DISK_THREAD: Final = "disk"


class StorageNode(Host):
    """One storage daemon and its disks, which outlive it.

    `logic_class` and `plan_class` are what decides; planted bugs put others in their place.
    """

    logic_class: type[logic.ChainLogic] = logic.ChainLogic
    plan_class: type[ResyncPlan] = ResyncPlan

    def __init__(
        self,
        world: World,
        fabric: Fabric,
        name: str,
        ledger: Ledger,
        servers: list[str],
        disks: list[Disk],
    ) -> None:
        super().__init__(world, fabric, name)
        self.disks = disks
        self.ledger = ledger
        self.targets = SimTargets([], self._keep)
        self.ready = False
        self.scrubs = True
        """Whether it scrubs all the time: what one member has dropped it may get from another."""
        self._servers = servers
        self._node = 0

    # --- a life -----------------------------------------------------------------------------------

    async def main(self) -> None:
        """Register, then serve until the end of this life."""
        self.ready = False
        late = await self._hung_disks()
        opened = [disk for disk in self.disks if disk not in late]
        self.targets = SimTargets(opened, self._keep, self._target_stopped, late)
        self._routing = Routing(-1, [], [], [], [])
        self._buffers: dict[int, tuple[WriteFrame, Answer]] = {}
        self._next_write = 0
        self._syncing: dict[int, int] = {}
        self._listed: dict[int, int] = {}
        self._comparing: set[int] = set()
        rpc: Any = SimRpc(self, self._servers)
        self._rpc = rpc
        targets: Any = self.targets
        disk_thread: Any = DISK_THREAD
        self.membership = Membership(
            rpc,
            targets,
            (self.name, PORT + self.incarnation),
            disk_thread,
            on_routing=self._take_routing,
            routing_version=lambda: self._routing.version,
            on_scan=lambda node, scan, drop: None,
            on_orders=lambda reply: self._take_orders(orders, reply),
            counters=lambda: None,
            randomness=self.world.randomness,
        )
        orders = TargetOrders(
            targets,
            disk_thread,
            in_chain=self._in_chain,
            on_created=lambda target, store: self._run(self.logic.add_target(target)),
            on_done=self.membership.beat_soon,
        )
        reply = await self.membership.register_first()
        self.targets.create_new(reply.cluster_id, reply.targets)
        self.logic = self.logic_class(self.targets.stores)
        self.ready = True
        self._take_routing(reply.routing)
        for disk in late:
            self.loop.create_task(self._take_late(disk))
        self._scan = UnknownBlobScan(rpc, self.membership, targets, disk_thread)
        self.loop.create_task(self._scan.run())
        self.loop.create_task(orders.run())
        self.loop.create_task(self.membership.watch())
        self.loop.create_task(self._revival().run())
        self.loop.create_task(self._scrub_on())
        await self.membership.run()

    # --- disks that stop and hang -----------------------------------------------------------------

    def _revival(self) -> Revival:
        targets: Any = self.targets
        revived: Any = self._revived

        def aside(target: int, work: Callable[[], None]) -> None:
            loop, disk = self.loop, self.targets.stores[target].disk
            disk.when_answers(lambda: loop.enter(work))

        return Revival(
            targets,
            HUNG_MS,
            goes_on_without=self.logic.goes_on_without,
            on_revived=revived,
            aside=aside,
        )

    def _revived(self, target: int, store: Store) -> None:
        """See `StorageDaemon._build_revival`."""
        self.world.log("target_back", target)
        self.logic.target_revived(target)
        self._run(self.logic.add_target(target))
        self._syncing.pop(target, None)
        self._resync_as_told()
        self.membership.target_revived()

    def _target_stopped(self, target: int) -> None:
        """See `WritePump` and `StorageDaemon`."""
        self.world.log("target_stopped", target)
        self._run(self.logic.target_stopped(target))
        self.membership.beat_soon()

    async def _hung_disks(self) -> list[Disk]:
        """See `Opening`: wait for disks as long as they may take, and for one at least; return
        those that do not answer then."""
        if any(disk.hangs for disk in self.disks):
            await asyncio.sleep(HUNG_MS * MS / SECOND)
        if all(disk.hangs for disk in self.disks):
            waiting = [self.loop.create_task(self._answers(disk)) for disk in self.disks]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        return [disk for disk in self.disks if disk.hangs]

    async def _take_late(self, disk: Disk) -> None:
        """See `StorageDaemon`."""
        await self._answers(disk)
        self._revived(disk.target, self.targets.take_late(disk))
        self.membership.targets_joined()

    async def _answers(self, disk: Disk) -> None:
        """Wait until a disk does what it is told."""
        if disk.hangs:
            loop, answered = self.loop, asyncio.Event()
            disk.when_answers(lambda: loop.enter(answered.set))
            await answered.wait()

    def _keep(self, disk: Disk) -> None:
        """A target's directory was made."""
        self.disks.append(disk)
        self.ledger.disks.append(disk)

    def _in_chain(self, target: int) -> bool:
        return any(target in chain.targets for chain in self._routing.chains)

    def on_crash(self) -> None:
        """Buffers are gone; the disks keep what they keep."""
        super().on_crash()
        for store in self.targets.stores.values():
            store.crash()
        self.ready = False

    async def scan_now(self) -> None:
        """Look for unknown blobs once, as every hour."""
        for target, store in self.targets.working.items():
            held: Any = store
            await self._scan._scan(target, held)

    # --- frames -----------------------------------------------------------------------------------

    def serve(self, source: str, request: Any, answer: Answer) -> None:
        """Take a frame, once there is a data port."""
        if not self.ready:
            return
        if isinstance(request, WriteFrame):
            self._receive(source, request, answer)
        elif isinstance(request, ReadFrame):
            self._answer_read(request, answer)
        elif isinstance(request, ListFrame):
            answer(self._list(request))
        elif isinstance(request, SuspectFrame):
            self._suspect(request)
        elif isinstance(request, Goodbye):
            self._run(self.logic.connection_closed(connection_id(source, request.connection)))

    def _answer_read(self, frame: ReadFrame, answer: Answer) -> None:
        store = self.targets.stores.get(frame.target)
        if store is None or store.stopped or not store.disk.hangs:
            answer(self._read(frame))
            return
        loop = self.loop
        store.disk.when_answers(lambda: loop.enter(lambda: answer(self._read(frame))))

    def _read(self, frame: ReadFrame) -> tuple[int, bytes]:
        store = self.targets.stores.get(frame.target)
        if store is None:
            return UnavailableError.code, b""
        key = (frame.blob, frame.chunk)
        status, data = store.serve(key)
        if status == OK and key not in store.disk.chunks:
            raise Violation(f"chunk {key} read from target {frame.target} before it was durable")
        return status, data

    def _list(self, frame: ListFrame) -> tuple[int, list[Entry]]:
        store = self.targets.stores.get(frame.target)
        if store is None or store.stopped or self._version_of(frame.target) < frame.since:
            return StaleChainError.code, []
        return OK, [Entry(*entry) for entry in store.listing(frame.after, frame.limit)]

    def _version_of(self, target: int) -> int:
        return self._listed.get(target, 0)

    # --- writes -----------------------------------------------------------------------------------

    def _receive(self, source: str, frame: WriteFrame, answer: Answer) -> None:
        self._next_write += 1
        write_id = self._next_write
        self._buffers[write_id] = (frame, answer)
        write = logic.Write(
            write_id,
            connection_id(source, frame.connection),
            frame.blob,
            frame.chunk,
            frame.target,
            frame.chain,
            frame.chain_version,
            len(frame.data),
            frame.hop,
        )
        self._run(self.logic.received(write))

    def _run(self, operations: list[logic.Operation]) -> None:
        for operation in operations:
            match operation:
                case logic.Persist(write_id):
                    self._persist(write_id)
                case logic.Forward(write_id, node, target):
                    frame, _ = self._buffers[write_id]
                    self.loop.create_task(self._forward(write_id, frame, node, target))
                case logic.Ack(write_id, status):
                    self._ack(write_id, status)
                case logic.RefreshRouting():
                    self.membership.beat_soon()
                case logic.SetChainVersion(target, version):
                    self._listed[target] = version

    def _persist(self, write_id: int) -> None:
        frame, _ = self._buffers[write_id]
        store = self.targets.stores[frame.target]
        store.begin(write_id, (frame.blob, frame.chunk), frame.data)
        if store.overlapping:
            raise Violation(f"two persists of chunk {frame.blob, frame.chunk} at once")
        if not store.committing:
            store.committing = True
            chance = self.world.random
            slow = store.disk.slow or chance.random() < 0.02
            delay_ns = chance.randint(MS // 2, (150 if slow else 5) * MS)
            self.loop.call_later(delay_ns / SECOND, self._sync, store)

    def _sync(self, store: Store) -> None:
        loop = self.loop
        store.disk.when_answers(lambda: loop.enter(self._commit, store))

    def _commit(self, store: Store) -> None:
        store.committing = False
        for write_id, status in store.commit():
            self._run(self.logic.persisted(write_id, status))

    async def _forward(self, write_id: int, frame: WriteFrame, node: int, target: int) -> None:
        onward = WriteFrame(
            self.incarnation,
            frame.blob,
            frame.chunk,
            target,
            frame.chain,
            frame.chain_version,
            frame.data,
            frame.hop + 1,
        )
        status = await self._ask(node, onward, FORWARD_NS)
        self._run(
            self.logic.forwarded(write_id, ConnectionLostError.code if status is None else status)
        )

    async def _ask(self, node: int, frame: Any, patience_ns: int) -> Any:
        """Send a frame to another daemon; None if it did not answer."""
        names = {info.node: info.host for info in self._routing.nodes}
        if node not in names:
            return None
        future = self.fabric.request(self, names[node], frame)
        try:
            async with asyncio.timeout(patience_ns / SECOND):
                return await future
        except (TimeoutError, FFSError):
            return None

    def _ack(self, write_id: int, status: int) -> None:
        if write_id not in self._buffers:
            raise Violation(f"write {write_id} answered twice")
        frame, answer = self._buffers.pop(write_id)
        if status == OK:
            key = (frame.blob, frame.chunk)
            self._check_durable(frame, key)
            if frame.hop == 0:
                self.world.log("ack", key, frame.chain, frame.chain_version)
                self.ledger.on_ack(key, frame.data, frame.chain)
        answer(status)

    def _check_durable(self, frame: WriteFrame, key: Key) -> None:
        if (frame.target, key) in self.ledger.taken:
            return
        held = self.targets.stores[frame.target].disk.chunks.get(key)
        if held != frame.data and self.ledger.lives(frame.blob):
            raise Violation(
                f"chunk {key} acknowledged by target {frame.target}, which holds {held!r}"
            )

    # --- routing, resync, repair ------------------------------------------------------------------

    def _take_routing(self, routing: Routing) -> None:
        if not self.ready:
            return
        before = self.logic.routing_version
        self._run(self.logic.routing_changed(routing))
        if self.logic.routing_version < before:
            raise Violation(f"{self.name} went back from routing {before} to {routing.version}")
        if routing.version <= self._routing.version:
            return
        self._routing = routing
        self._resync_as_told()

    def _resync_as_told(self) -> None:
        for info in self._routing.targets:
            if info.target in self.targets.working and info.state == TargetState.SYNCING:
                self._begin_resync(info.target, info.since)

    def _begin_resync(self, target: int, since: int) -> None:
        if self._syncing.get(target) != since and self.targets.synced.get(target) != since:
            self._syncing[target] = since
            self.loop.create_task(self._resync(target, since))

    def _serving(self, target: int) -> dict[int, int]:
        """Return the members that serve beside a target of ours, and their nodes."""
        infos = {info.target: info for info in self._routing.targets}
        for chain in self._routing.chains:
            if target in chain.targets:
                members = [infos[one] for one in chain.targets if one != target]
                return {m.target: m.node for m in members if m.state == TargetState.SERVING}
        return {}

    async def _resync(self, target: int, since: int) -> None:
        """Make a target hold what the members that serve hold, then say so."""
        store = self.targets.stores[target]
        while (
            self._syncing.get(target) == since
            and self._is_syncing(target, since)
            and not store.stopped
        ):
            sources = self._serving(target)
            plan = self.plan_class(since, sources, store.lookup, page_entries=PAGE_ENTRIES)
            if not plan.finished:
                await self._pull(plan, store, target)
            if self._syncing.get(target) != since:
                return  # a newer resync of this target is under way
            if plan.finished and not store.stopped:
                self.world.log("synced", target, since, plan.progress.chunks_copied)
                self._note_lost(target, plan.progress.lost_chunks)
                self.targets.synced[target] = since
                if (place := View(self._routing).place(target)) is not None:
                    self.targets.remember_synced(target, place.chain)
                self.targets.damaged.discard(target)
                store.disk.shows_damage = False
                self.membership.beat_soon()
                return
            await asyncio.sleep(0.05)

    def _note_lost(self, target: int, keys: list[Key]) -> None:
        """No member that serves could give these whole: get them once another one does."""
        for key in keys:
            self.ledger.taken.add((target, key))
            self.loop.create_task(self._repair_later(target, key))

    async def _repair_later(self, target: int, key: Key) -> None:
        while self.targets.stores[target].verify(*key) != OK:
            await self._answers(self.targets.stores[target].disk)
            await asyncio.sleep(REPAIR_NS / SECOND)
            await self._repair(target, key)

    def _is_syncing(self, target: int, since: int) -> bool:
        return any(
            (info.target, info.state, info.since) == (target, TargetState.SYNCING, since)
            for info in self._routing.targets
        )

    async def _pull(self, plan: ResyncPlan, store: Store, target: int) -> None:
        """Do what a plan says until it is finished, or nobody is left to do it with."""
        while not (plan.finished or plan.stuck or store.stopped):
            for source in plan.sources - self._serving(target).keys():
                plan.lose(source)
            steps: list[Awaitable[bool]] = [self._list_page(plan, page) for page in plan.lists()]
            for source in sorted(plan.sources):
                taken = plan.take(source, 1 << 20, 4)
                steps += [self._fetch(plan, store, source, wanted) for wanted in taken]
            if not steps or not all(await asyncio.gather(*steps)):
                await asyncio.sleep(0.02)
            if not self._serving(target):
                return

    async def _list_page(self, plan: ResyncPlan, page: Any) -> bool:
        node = self._node_of(page.source)
        frame = ListFrame(page.source, (page.after_blob, page.after_chunk), page.limit, plan.since)
        reply = await self._ask(node, frame, PULL_NS)
        if reply is None or reply[0] != OK:
            plan.not_listed(page.source)
            return False
        plan.listed(page.source, reply[1])
        return True

    async def _fetch(self, plan: ResyncPlan, store: Store, source: int, wanted: Wanted) -> bool:
        entry = wanted.entry
        reply = await self._ask(
            self._node_of(source), ReadFrame(entry.blob, entry.chunk, source), PULL_NS
        )
        outcome = Outcome.LATER
        if reply is not None:
            status, data = reply
            if status == StorageIOError.code or (status == OK and not verifies(entry.key, data)):
                outcome = Outcome.BAD
            elif status == OK:
                await self._answers(store.disk)
                stored = store.put(entry.blob, entry.chunk, data)
                outcome = Outcome.STORED if stored == OK else Outcome.LATER
            else:
                outcome = Outcome.GONE
        plan.ended(source, wanted, outcome)
        return outcome is Outcome.STORED

    def _node_of(self, target: int) -> int:
        return next((i.node for i in self._routing.targets if i.target == target), 0)

    # --- doubt ------------------------------------------------------------------------------------

    def _take_orders(self, orders: TargetOrders, reply: HeartbeatReply) -> None:
        if reply.create or reply.retire:
            orders.take(reply)
        self._begin_comparing(reply)

    def _begin_comparing(self, reply: HeartbeatReply) -> None:
        for target in set(reply.compare) - self._comparing:
            self._comparing.add(target)
            self.loop.create_task(self._compare(target))

    async def _compare(self, target: int) -> None:
        """Get all that the other members have, once all of them serve; see compare.py."""
        try:
            place = View(self._routing).place(target)
            full = place is not None and len(place.peers) == place.members - 1
            if place is None or place.state != TargetState.SERVING or not full:
                return
            store = self.targets.stores[target]
            if self.targets.compared.get(target) != place.chain_version and all(
                [
                    await self._has_all_of(store, target, source, place.chain_version)
                    for source in place.peers
                ]
            ):
                self.targets.compared[target] = place.chain_version
                self.membership.beat_soon()
        finally:
            self._comparing.discard(target)

    async def _has_all_of(self, store: Store, target: int, source: int, version: int) -> bool:
        """Tell whether a target lacks nothing that another one has, but for what is gone; fetch
        what it lacks."""
        keys = await self._missing_beside(store, source, version)
        if keys is None:
            return False
        try:
            gone = await self._gone_among(blob for blob, _ in keys)
        except FFSError:
            return False
        missing = [key for key in keys if key[0] not in gone]
        for key in missing:
            await self._repair(target, key)
        return not missing

    async def _missing_beside(self, store: Store, source: int, version: int) -> list[Key] | None:
        """Return what another one has and we do not; None: it does not answer."""
        plan = ResyncPlan(version, [source], store.lookup, page_entries=PAGE_ENTRIES)
        while not plan.progress.counted:
            if not all([await self._list_page(plan, page) for page in plan.lists()]):
                return None
        return [wanted.entry.key for wanted in plan.take(source, 1 << 62, 1 << 30)]

    def _suspect(self, frame: SuspectFrame) -> None:
        store = self.targets.stores.get(frame.target)
        if store is not None and store.verify(frame.blob, frame.chunk) != OK:
            self.loop.create_task(self._repair(frame.target, (frame.blob, frame.chunk)))

    async def _repair(self, target: int, key: Key) -> None:
        """Get a chunk that is bad here from a member that serves; see repair.py."""
        store = self.targets.stores[target]
        with self.targets.restores.of(key[0]) as restore:
            missing = store.lookup(*key) is None  # also where reads fail
            if missing and await self.is_gone(key[0]):
                return
            for source, node in self._serving(target).items():
                reply = await self._ask(node, ReadFrame(*key, source), PULL_NS)
                if reply is None or reply[0] != OK or not verifies(key, reply[1]):
                    continue
                await self._answers(store.disk)
                if store.verify(*key) not in (OK, TargetStoppedError.code):
                    restore.store(partial(self._replace, store, target, key, reply[1]))
                return

    async def is_gone(self, blob: int) -> bool:
        """Ask a metadata server whether a blob is dropped; while none answers all stays away."""
        try:
            return blob in await self._gone_among([blob])
        except FFSError:
            return True

    async def _gone_among(self, blobs: Iterable[int]) -> set[int]:
        return await scan.gone_among(self._rpc, self.membership.node, blobs)

    def _replace(self, store: Store, target: int, key: Key, data: bytes) -> int:
        self.world.log("repaired", target, key)
        if key not in store.disk.chunks:
            self.ledger.on_restored(target, key, dropped=key[0] in self.membership._dropped)
        return store.replace(*key, data)

    # --- scrubbing --------------------------------------------------------------------------------

    async def scrub(self) -> None:
        """Verify all chunks and repair those that are bad."""
        for target, store in self.targets.working.items():
            for key in sorted(store.disk.chunks):
                while key in store.disk.chunks and store.verify(*key) != OK:
                    await self._repair(target, key)
                    await asyncio.sleep(0.05)

    async def _scrub_on(self) -> None:
        """See `Scrubber`: pass after pass over every target, a page at a time."""
        passes: dict[int, ScrubPass] = {}
        while self.scrubs:
            await asyncio.sleep(0.15)
            for target, store in self.targets.working.items():
                scrub = passes.setdefault(target, ScrubPass(ScrubState(), SCRUB_NS))
                await self._scrub_step(target, store, scrub)

    async def _scrub_step(self, target: int, store: Store, scrub: ScrubPass) -> None:
        wall_ns = self.clock.wall_ns()
        if not scrub.under_way:
            if scrub.begin_in_ns(wall_ns):
                return
            scrub.begin(wall_ns)
        after = scrub.page_after
        assert after is not None
        scrub.listed([Entry(*entry) for entry in store.listing(after, PAGE_ENTRIES)], wall_ns)
        while scrub.page_after is None:
            key = scrub.next().key
            await self._answers(store.disk)
            if store.verify(*key) not in (OK, ChunkMissingError.code):
                await self._repair(target, key)
        if not scrub.under_way:
            await self._end_pass(target, store)

    async def _end_pass(self, target: int, store: Store) -> None:
        """Get what another member has and we do not, as nothing that is read can tell."""
        place = View(self._routing).place(target)
        if place is not None and place.state == TargetState.SERVING and place.peers:
            self.world.log("scrubbed", target)
            source = min(place.peers)
            for key in await self._missing_beside(store, source, place.chain_version) or ():
                await self._repair(target, key)


def connection_id(source: str, connection: int) -> int:
    """Return the id of a client's connection: the same in every process that replays a seed."""
    return zlib.crc32(f"{source}/{connection}".encode())
