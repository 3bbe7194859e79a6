"""The methods of the metadata server: what each request may do, and on which side of the store.

Previous hop: `ffs.rpc.aio.RpcServer`. Next hop: the operations in `ops/`, run by the store's
threads. Reads run on a snapshot; mutations pass the ledger first and are answered after their
commit. Housekeeping (reaping of sessions and records, drops of dead blobs) is what `manager` says
is due. Failure: typed errors travel to the caller; a failed chore is logged and runs again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar

import msgpack

import ffs
from ffs.auth.verifier import TokenVerifier
from ffs.config import MetaConfig
from ffs.errors import FFSError, InvalidError, NoSpaceError, UnavailableError
from ffs.limits import RPC_BATCH_MAX
from ffs.rpc.addresses import show_address
from ffs.rpc.aio import Handler, Peer
from ffs.rpc.codec import PackedReply, pack_reply
from ffs.rpc.schema import codec_of
from ffs.seams import Clock, Randomness
from ffs.server.meta import idempotency
from ffs.server.meta.cluster.role import ManagerRole
from ffs.server.meta.cluster.watch import RoutingWatch
from ffs.server.meta.copies import copies_of, load_state
from ffs.server.meta.idempotency import (
    MutationKey,
    SqlLedger,
    apply_once,
    refuse_once,
    reply_of,
)
from ffs.server.meta.manager import DROPS_PER_HEARTBEAT_MAX, Chore, Manager, NodeState
from ffs.server.meta.metrics import Facts
from ffs.server.meta.operators import Operators
from ffs.server.meta.ops import (
    charges,
    check,
    clone,
    close,
    copy,
    directories,
    layout,
    link,
    mkdir,
    orders,
    pin,
    quota,
    readlink,
    remove,
    rename,
    repair,
    rmdir,
    scans,
    servers,
    sessions,
    snapshot,
    stat,
    statfs,
    status,
    storage,
    symlink,
    trash,
    usage,
    users,
)
from ffs.server.meta.ops import list as listing
from ffs.server.meta.ops import setattr as attributes
from ffs.server.meta.ops.access import ROOT, Caller
from ffs.server.meta.ops.context import Context, Defaults
from ffs.server.meta.ops.routing import load_routing, set_min_replicas
from ffs.server.meta.peers import AgreedClock, Peers
from ffs.server.meta.store import Store, Transaction
from ffs.server.meta.tenants import Tenants, caller_of, principal_of
from ffs.types import Layout, Routing
from ffs.wire import auth, operators, snapshots
from ffs.wire import maintenance as upkeep
from ffs.wire import messages as wire
from ffs.wire.membership import (
    HEARTBEAT,
    REGISTER,
    UNKNOWN_BLOBS,
    WATCH_ROUTING,
    HeartbeatReply,
    HeartbeatRequest,
    RegisterReply,
    RegisterRequest,
    TargetReport,
    WatchRoutingReply,
    WatchRoutingRequest,
)
from ffs.wire.method import Empty, Method
from ffs.wire.status import STATUS, NodeStatus, StatusReply, StatusRequest

log = logging.getLogger("ffs.meta")

Req = TypeVar("Req")
Rep = TypeVar("Rep")

_DROPS_PER_TRANSACTION: Final = 10_000
_MS: Final = 1_000_000
_CHORE_PAUSE_S_MAX: Final = 1.0
_ROUTING_WAIT_S: Final = 2.0


def request_hash(method: Method[Req, Any], request: Req) -> bytes:
    """Return what tells two requests apart; equal requests give equal hashes in every process."""
    packed = msgpack.packb((method.name, codec_of(method.request).encode(request)))
    return hashlib.blake2b(packed, digest_size=16).digest()


class MetaService:
    """Everything that the metadata server does, behind `handlers`.

    Args:    store: an open database with the schema; retry_budget_ns: how long a client goes on
             sending one mutation again; tokens: says which tokens count
    Threads: the event loop's; operations run on the store's threads
    """

    def __init__(
        self,
        store: Store,
        config: MetaConfig,
        *,
        clock: Clock,
        randomness: Randomness,
        retry_budget_ns: int,
        tokens: TokenVerifier | None = None,
    ) -> None:
        self._store = store
        self._tenants = Tenants(store, tokens)
        self._config = config
        self._clock = AgreedClock(clock)
        self._randomness = randomness
        self._retention_ns = idempotency.retention_ns(retry_budget_ns)
        self._defaults = Defaults(
            config.chunk_size_bytes, config.stripe, config.session_ttl_ms * _MS
        )
        self._manager = Manager(
            node_lease_ns=config.node_lease_ms * _MS,
            session_ttl_ns=config.session_ttl_ms * _MS,
            now_ns=clock.monotonic_ns(),
        )
        self._peers = Peers(
            store,
            self._clock,
            heartbeat_ns=config.heartbeat_ms * _MS,
            lease_ns=config.node_lease_ms * _MS,
            on_routing=self._on_routing,
        )
        self._watch = RoutingWatch()
        self._packed_routing: tuple[int, PackedReply] | None = None
        self._role = ManagerRole(
            store,
            self._clock,
            config,
            heard=lambda: None if self._peers.shared else self._manager.heard_ns(),
            reports=lambda: [] if self._peers.shared else self._manager.reports(),
            on_routing=self._peers.take,
        )
        self._operators = Operators(
            self._clock,
            config.node_lease_ms * _MS,
            heard=lambda: None if self._peers.shared else self._manager.heard_ns(),
            reports=lambda: [] if self._peers.shared else self._manager.reports(),
        )
        self._cluster_id = b""
        self._address = ""
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Make a new database a cluster's, take up an old one's leases and nodes, begin chores."""
        await self._peers.join()
        now_ns = self._clock.wall_ns()
        cluster_id = self._randomness.token(status.CLUSTER_ID_BYTES)
        ttl_ns = self._defaults.session_ttl_ns

        def prepare(tx: Transaction) -> tuple[bytes, Routing]:
            found = status.initialise(tx, cluster_id, now_ns)
            set_min_replicas(tx, self._config.min_replicas_wanted)
            # Where other servers lived all the time, clients could renew their leases.
            if not (tx.shared and servers.heard_since(tx, now_ns - ttl_ns // 2)):
                sessions.extend_leases(tx, now_ns + ttl_ns)
            return found, load_routing(tx)

        self._cluster_id, routing = await self._store.write(prepare)
        self._peers.take(routing)
        if not self._peers.shared:
            self._role.serves_as("")
        self._tasks.append(asyncio.create_task(self._role.run(), name="meta cluster manager"))
        self._tasks.append(asyncio.create_task(self._keep_house(), name="meta chores"))
        await self._tenants.refresh()
        self._tasks.append(asyncio.create_task(self._tenants.watch(), name="meta revocations"))
        copies = copies_of(self._store, self._clock, self._config)
        if copies is not None:
            self._tasks.append(asyncio.create_task(copies.run(), name="meta copies"))

    async def serves_at(self, host: str, port: int) -> None:
        """Know our own address, for `status`, and tell it to the other servers."""
        self._address = show_address(self._config.advertise_host or host, port)
        await self._peers.live(self._address)
        if self._peers.shared:
            self._role.serves_as(self._address)

    async def stop(self) -> None:
        """End the chores and leave the others; the store is the caller's to close."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self._peers.leave()

    def handlers(self) -> Mapping[str, Handler]:
        """Return the coroutine function for each method."""
        return self._tenants.guarded(self._handlers())

    def _handlers(self) -> dict[str, Handler]:
        return {
            wire.ROUTING.name: self._cluster,
            wire.STAT_MANY.name: self._looking(stat.stat_many),
            wire.OPEN_MANY.name: self._looking(self._tenants.open_many),
            wire.LIST.name: self._looking(listing.list_page),
            wire.CREATE_MANY.name: self._mutating(wire.CREATE_MANY, self._tenants.create_many),
            wire.CLOSE_MANY.name: self._mutating(wire.CLOSE_MANY, close.close_many),
            wire.ABORT_MANY.name: self._mutating(wire.ABORT_MANY, sessions.abort_many),
            wire.RENEW.name: self._renew,
            wire.MKDIR.name: self._mutating(wire.MKDIR, mkdir.mkdir),
            wire.RENAME.name: self._mutating(wire.RENAME, rename.rename),
            wire.REMOVE_MANY.name: self._mutating(wire.REMOVE_MANY, remove.remove_many),
            wire.RMDIR.name: self._mutating(wire.RMDIR, rmdir.rmdir),
            wire.SYMLINK.name: self._mutating(wire.SYMLINK, symlink.symlink),
            wire.READLINK.name: self._looking(readlink.readlink),
            wire.LINK.name: self._mutating(wire.LINK, link.link),
            wire.LAYOUT.name: self._looking(
                lambda tx, caller, request: layout.layout(tx, caller, self._defaults, request)
            ),
            wire.SET_LAYOUT.name: self._mutating(wire.SET_LAYOUT, layout.set_layout),
            wire.QUOTA.name: self._looking(quota.quota),
            wire.SET_QUOTA.name: self._mutating(wire.SET_QUOTA, quota.set_quota),
            wire.PIN.name: self._mutating(wire.PIN, pin.pin),
            wire.UNPIN.name: self._mutating(wire.UNPIN, pin.unpin),
            wire.PINS.name: self._reading(pin.pins),
            wire.USAGE_MANY.name: self._looking(usage.usage_many),
            wire.STATFS.name: self._statfs,
            wire.SETATTR.name: self._mutating(wire.SETATTR, attributes.setattr_path),
            wire.COPY.name: self._mutating(wire.COPY, copy.copy),
            snapshots.CLONE.name: self._mutating(snapshots.CLONE, clone.clone),
            snapshots.SNAPSHOT.name: self._mutating(snapshots.SNAPSHOT, snapshot.snapshot),
            snapshots.REMOVE_SNAPSHOT.name: (
                self._mutating(snapshots.REMOVE_SNAPSHOT, snapshot.remove_snapshot)
            ),
            snapshots.TRASH.name: self._mutating(snapshots.TRASH, trash.trash),
            snapshots.TRASHED.name: self._looking(trash.trashed),
            REGISTER.name: self._register,
            HEARTBEAT.name: self._heartbeat,
            WATCH_ROUTING.name: self._watch_routing,
            UNKNOWN_BLOBS.name: self._reading(storage.unknown_blobs),
            STATUS.name: self._status,
            operators.CLUSTER_TASKS.name: self._reading(self._operators.tasks),
            operators.CLUSTER_PLAN.name: self._reading(self._operators.plan),
            operators.CLUSTER_BEGIN.name: self._told(
                self._mutating(operators.CLUSTER_BEGIN, self._operators.begin)
            ),
            operators.CLUSTER_CANCEL.name: self._told(
                self._mutating(operators.CLUSTER_CANCEL, self._operators.cancel)
            ),
            operators.REMOVE_NODE.name: self._told(
                self._mutating(operators.REMOVE_NODE, self._operators.remove_node)
            ),
            auth.ADD_USER.name: self._mutating(auth.ADD_USER, users.add_user),
            auth.USERS.name: self._reading(users.users),
            auth.REMOVE_USER.name: self._revoking(
                self._mutating(auth.REMOVE_USER, users.remove_user)
            ),
            auth.REVOKE.name: self._revoking(self._mutating(auth.REVOKE, users.revoke)),
            auth.RENEW_GRANTS.name: self._tenants.renew_grants,
            upkeep.CHECK.name: self._reading(check.check),
            upkeep.REPAIR.name: self._mutating(upkeep.REPAIR, repair.repair),
            upkeep.LIVE_BLOBS.name: self._reading(scans.live_blobs),
            upkeep.BLOB_PATHS.name: self._reading(scans.blob_paths),
            upkeep.START_SCAN.name: self._mutating(upkeep.START_SCAN, scans.start),
            upkeep.SCAN_STATUS.name: self._reading(scans.status),
            upkeep.JUDGE.name: self._reading(scans.judge),
            upkeep.SCAN_DONE.name: self._scan_done,
        }

    # --- the two kinds of operation -----------------------------------------------------------

    def _context(self, caller: Caller = ROOT) -> Context:
        return Context(self._clock.wall_ns(), self._randomness, self._defaults, caller)

    def _reading(self, operation: Callable[[Transaction, Any], Any]) -> Handler:
        async def handle(request: Any, peer: Peer) -> Any:
            _check_batch(request)
            return await self._store.read(lambda tx: operation(tx, request))

        return handle

    def _looking(self, operation: Callable[[Transaction, Caller, Any], Any]) -> Handler:
        """Return the handler of what reads the namespace, as the caller may."""

        async def handle(request: Any, peer: Peer) -> Any:
            _check_batch(request)
            caller = caller_of(peer)
            return await self._store.read(lambda tx: operation(tx, caller, request))

        return handle

    def _mutating(
        self,
        method: Method[Req, Rep],
        operation: Callable[[Transaction, Context, Req], Rep],
    ) -> Handler:
        def apply(tx: Transaction, request: Any, key: MutationKey, caller: Caller) -> bytes:
            context = self._context(caller)
            return apply_once(
                SqlLedger(tx),
                key,
                context.now_ns,
                lambda: pack_reply(method, operation(tx, context, request)).fields,
            )

        async def handle(request: Any, peer: Peer) -> PackedReply:
            _check_batch(request)
            caller, hashed = caller_of(peer), request_hash(method, request)
            key = MutationKey(principal_of(peer), request.mutation, hashed)
            try:
                reply = await self._store.write(lambda tx: apply(tx, request, key, caller))
            except FFSError as error:
                if error.retryable or isinstance(error, NoSpaceError):
                    raise
                reply = reply_of(await self._store.write(partial(self._refuse, key, error)))
            return PackedReply(reply)

        return handle

    def _told(self, handler: Handler) -> Handler:
        """Return the handler of what gives the cluster manager something to do."""

        async def handle(request: Any, peer: Peer) -> Any:
            reply = await handler(request, peer)
            self._peers.take(await self._store.read(load_routing))
            self._role.news()
            return reply

        return handle

    def _revoking(self, handler: Handler) -> Handler:
        """Return the handler of what takes tokens their worth: here at once, elsewhere soon."""

        async def handle(request: Any, peer: Peer) -> Any:
            reply = await handler(request, peer)
            await self._tenants.refresh()
            return reply

        return handle

    def _refuse(self, key: MutationKey, error: FFSError, tx: Transaction) -> bytes:
        return refuse_once(SqlLedger(tx), key, self._clock.wall_ns(), error)

    # --- clients ----------------------------------------------------------------------------------

    async def _cluster(self, request: wire.RoutingRequest, peer: Peer) -> wire.ClusterReply:
        routing = await self._newest_routing()
        tables = routing.tables
        chains = len(tables[-1].chains) if tables else 0
        wanted = self._defaults.stripe
        return wire.ClusterReply(
            cluster_id=self._cluster_id,
            routing=routing,
            session_ttl_ms=self._config.session_ttl_ms,
            attr_ttl_ms=self._config.attr_ttl_ms,
            default_layout=Layout(
                chunk_size_bytes=self._defaults.chunk_size_bytes,
                stripe=min(wanted, chains) if wanted else chains,
                table=tables[-1].table if tables else 0,
                seed=0,
            ),
            servers=self._peers.addresses,
        )

    async def _newest_routing(self) -> Routing:
        """The routing as the database has it; without the database, as last known.

        Why: clients that know their files go on reading without metadata.
        """
        if self._peers.shared:
            with contextlib.suppress(UnavailableError, TimeoutError):
                async with asyncio.timeout(_ROUTING_WAIT_S):
                    await self._peers.refresh()
        return self._peers.routing

    async def _renew(self, request: wire.RenewRequest, peer: Peer) -> wire.RenewReply:
        return await self._store.write(lambda tx: sessions.renew(tx, self._context(), request))

    # --- storage daemons --------------------------------------------------------------------------

    async def _register(self, request: RegisterRequest, peer: Peer) -> RegisterReply:
        _check_batch(request)
        reply = await self._store.write(
            lambda tx: storage.register(
                tx,
                request,
                cluster_id=self._cluster_id,
                heartbeat_ms=self._config.heartbeat_ms,
                now_ns=self._clock.wall_ns(),
                replicas=self._config.replicas,
            )
        )
        self._peers.take(reply.routing)
        named = [
            replace(report, target=target)
            for target, report in zip(reply.targets, request.targets, strict=True)
        ]
        self._manager.registered(reply.node, named, self._clock.monotonic_ns(), request.pid)
        self._role.news()
        log.info(
            "node_registered",
            extra={
                "node": reply.node,
                "address": f"{request.host}:{request.port}",
                "targets": ",".join(map(str, reply.targets)),
                "routing_version": reply.routing.version,
            },
        )
        return replace(reply, servers=self._peers.addresses)

    async def _heartbeat(self, request: HeartbeatRequest, peer: Peer) -> HeartbeatReply:
        _check_batch(request)
        if request.routing_version > self._peers.routing.version:  # it was told by another server
            await self._peers.refresh()
        beat = self._manager.heard(request, self._clock.monotonic_ns())
        if request.dropped or self._peers.shared:
            now_ns = self._clock.wall_ns()
            await self._store.write(lambda tx: storage.hear(tx, request, now_ns=now_ns))
        if beat.news:
            self._role.news()
        now_ns = self._clock.wall_ns()
        drops, (scan, scan_drop), ordered = await self._store.read(
            lambda tx: (
                storage.pending_drops(tx, beat.working, DROPS_PER_HEARTBEAT_MAX),
                scans.wanted(tx, beat.working, now_ns),
                orders.orders(tx, request.node),
            )
        )
        finished = orders.done(ordered, request.targets)
        if finished.create or finished.retire:
            await self._store.write(lambda tx: orders.note_done(tx, finished, request.targets))
        routing = self._peers.routing
        return HeartbeatReply(
            drops=sorted({blob for _, blob in drops}),
            routing=routing if request.routing_version != routing.version else None,
            servers=self._peers.addresses,
            scan=scan,
            scan_drop=scan_drop,
            create=[order for order in ordered.create if order not in finished.create],
            retire=[target for target in ordered.retire if target not in finished.retire],
            compare=ordered.compare,
            revocations=self._tenants.newer_than(request.revocations_version),
            wall_ns=self._clock.wall_ns(),
        )

    async def _watch_routing(
        self, request: WatchRoutingRequest, peer: Peer
    ) -> WatchRoutingReply | PackedReply:
        if self._peers.routing.version <= request.version:
            await self._watch.wait(request.wait_ms)
        routing = self._peers.routing
        if routing.version <= request.version:
            return WatchRoutingReply(None)
        if self._packed_routing is None or self._packed_routing[0] != routing.version:
            packed = pack_reply(WATCH_ROUTING, WatchRoutingReply(routing))
            self._packed_routing = (routing.version, packed)  # once for all who wait
        return self._packed_routing[1]

    async def _scan_done(self, request: upkeep.ScanDoneRequest, peer: Peer) -> Empty:
        _check_batch(request)
        return await self._store.write(lambda tx: scans.done(tx, request))

    def _on_routing(self, routing: Routing) -> None:
        for node in routing.nodes:
            self._manager.expect(node.node)
        self._manager.forget_all_but({node.node for node in routing.nodes})
        self._watch.wake()

    # --- operators --------------------------------------------------------------------------------

    async def _status(self, request: StatusRequest, peer: Peer) -> StatusReply:
        counts, nodes, others, copied = await self._store.read(
            lambda tx: (status.counts(tx), status.nodes(tx), servers.known(tx), load_state(tx))
        )
        me = servers.ServerRow(self._address, os.getpid(), self._clock.wall_ns())
        metas = [
            NodeStatus(0, "meta", row.pid, self._state_of(row.heard_ns).value, row.address)
            for row in others or [me]
        ]
        daemons = [self._daemon_status(row) for row in nodes]
        return StatusReply(
            cluster_id=self._cluster_id,
            nodes=metas + daemons,
            routing=await self._newest_routing(),
            reports=await self._reports(),
            inodes=counts.inodes,
            blobs=counts.blobs,
            sessions=counts.sessions,
            dead_blobs=counts.dead_blobs,
            backup_ns=copied.made_ns,
            backup_error=copied.error,
            version=ffs.__version__,
            wall_ns=self._clock.wall_ns(),
        )

    def _daemon_status(self, row: status.NodeRow) -> NodeStatus:
        counters = row.counters if self._peers.shared else self._manager.counters(row.node)
        return NodeStatus(
            row.node,
            "storage",
            row.pid,
            self._node_state(row).value,
            show_address(row.host, row.port),
            counters,
            self._manager.returns(row.node, self._clock.monotonic_ns()),
        )

    def facts(self, connections: int) -> Facts:
        """Return what metrics tell of the cluster, from memory alone."""
        now_ns = self._clock.monotonic_ns()
        nodes = [self._manager.state(node, now_ns) for node in self._manager.heard_ns()]
        return Facts(self._peers.routing, nodes, self._manager.reports(), connections)

    def _node_state(self, row: status.NodeRow) -> NodeState:
        if not self._peers.shared:
            return self._manager.state(row.node, self._clock.monotonic_ns())
        return self._state_of(row.heard_ns) if row.heard_ns else NodeState.UNKNOWN

    def _state_of(self, heard_ns: int) -> NodeState:
        """Whether what was heard at a time, of the clock that servers agree on, lives."""
        silent_ns = self._clock.wall_ns() - heard_ns
        return NodeState.UP if silent_ns <= self._config.node_lease_ms * _MS else NodeState.DOWN

    async def _reports(self) -> list[TargetReport]:
        """What every target last reported, to whichever server."""
        if self._peers.shared:
            return await self._store.read(status.target_reports)
        return self._manager.reports()

    async def _statfs(self, request: wire.StatfsRequest, peer: Peer) -> wire.StatfsReply:
        reports = await self._reports()
        return await self._store.read(lambda tx: statfs.statfs(tx, reports))

    # --- housekeeping -----------------------------------------------------------------------------

    async def _keep_house(self) -> None:
        while True:
            wait_s = self._manager.wait_ns(self._clock.monotonic_ns()) / 1e9
            await asyncio.sleep(min(wait_s, _CHORE_PAUSE_S_MAX))
            for chore in self._manager.due(self._clock.monotonic_ns()):
                try:
                    if await self._store.write(self._alone(chore)):
                        self._manager.again(chore, self._clock.monotonic_ns())
                    if chore is Chore.REAP_SESSIONS:
                        self._manager.leases_seen(self._clock.wall_ns())
                except FFSError as error:
                    log.warning("chore_failed", extra={"chore": chore.value, "reason": str(error)})
                except Exception:  # a bug in one chore must not end all of them
                    log.exception("chore_broken", extra={"chore": chore.value})

    def _alone(self, chore: Chore) -> Callable[[Transaction], bool]:
        """Return a chore that does nothing while another server is at it."""
        operation = self._chore(chore)
        return lambda tx: tx.try_lock(chore.value) and operation(tx)

    def _chore(self, chore: Chore) -> Callable[[Transaction], bool]:
        """Return the operation of a chore; its value says whether work is left."""
        now_ns = self._clock.wall_ns()

        def extend_leases(tx: Transaction) -> bool:
            sessions.extend_leases(tx, now_ns + self._defaults.session_ttl_ns)
            log.warning("leases_extended", extra={"reason": "the clock was set, or we stood still"})
            return False

        def reap_sessions(tx: Transaction) -> bool:
            ended = sessions.reap(tx, now_ns)
            if ended:
                log.info("sessions_reaped", extra={"sessions": ended})
            return False

        def schedule_drops(tx: Transaction) -> bool:
            dead_before_ns = now_ns - self._config.gc_delay_s * 1_000 * _MS
            dated = storage.die_now(tx, now_ns, _DROPS_PER_TRANSACTION)
            scheduled = storage.schedule_drops(tx, dead_before_ns, _DROPS_PER_TRANSACTION)
            return _DROPS_PER_TRANSACTION in (dated, scheduled)

        def reap_pins(tx: Transaction) -> bool:
            ended = pin.reap_pin(tx, now_ns)
            if ended:
                log.info("pin_expired", extra={"pin": ended})
            return ended > 0

        def reap_records(tx: Transaction) -> bool:
            idempotency.reap_records(tx, now_ns - self._retention_ns)
            users.reap_revocations(tx, now_ns)
            return False

        def fold_changes(tx: Transaction) -> bool:
            directories.fold_changes(tx)
            charges.fold_charges(tx)
            return False

        def reap_trash(tx: Transaction) -> bool:
            ended = trash.reap_trash(tx, now_ns, now_ns - self._config.trash_ttl_s * 1_000 * _MS)
            if ended:
                log.info("trash_expired", extra={"entry": ended.decode(errors="replace")})
            return bool(ended)

        if chore is Chore.REAP_SESSIONS and not self._manager.leases_may_end(now_ns):
            return extend_leases
        return {
            Chore.REAP_SESSIONS: reap_sessions,
            Chore.SCHEDULE_DROPS: schedule_drops,
            Chore.REAP_PINS: reap_pins,
            Chore.REAP_RECORDS: reap_records,
            Chore.FOLD_CHANGES: fold_changes,
            Chore.REAP_TRASH: reap_trash,
        }[chore]


def _check_batch(request: Any) -> None:
    """Hold the lists of a request against the bound for batches."""
    for name in ("paths", "entries", "sessions", "blobs", "dropped", "targets", "results"):
        count = len(getattr(request, name, ()))
        if count > RPC_BATCH_MAX:
            raise InvalidError(
                f"{count} {name} in one request, the limit is {RPC_BATCH_MAX}",
                hint="send several requests",
            )
