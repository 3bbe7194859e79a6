"""The storage daemon: puts its parts together, runs them, and takes them apart in order.

    data port (data_port.py) --fd--> DataLoop (ffs._storage) <--> chunk stores (targets.py)
                                         | events, operations   |
                                      pump.py <--> chain.py      peers.py --> other daemons
    metadata server <--register, heartbeat, unknown blobs--> membership.py, scan.py, audit.py,
                                                             orders.py

Start: open the targets that exist and whose disks answer (opening.py), bind the port, register
(waiting for the metadata server if it must), create new targets with the ids it chose, then serve.
From then on reads and writes need no metadata server; without one the daemon goes on serving and
keeps every blob.

Failure behaviour: a part that ends with an exception ends the daemon, whose supervisor starts it
again; a target whose disk fails, or hangs, stops alone, and the next heartbeat says so; it is taken
back once it works (revival.py). The end waits for everything but a disk that hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from ffs import _storage
from ffs.auth.verifier import TokenVerifier
from ffs.config import Config
from ffs.errors import ConfigError
from ffs.key import ClusterKey
from ffs.rpc.addresses import Address
from ffs.rpc.aio import AsyncRpcClient
from ffs.rpc.door import listen
from ffs.same_host import listen_local
from ffs.seams import SystemClock
from ffs.server.storage.audit import Audit
from ffs.server.storage.chain import ChainLogic
from ffs.server.storage.data_port import DataPort
from ffs.server.storage.membership import Membership
from ffs.server.storage.metrics import DaemonMetrics
from ffs.server.storage.opening import Opening
from ffs.server.storage.orders import TargetOrders
from ffs.server.storage.peers import Peers
from ffs.server.storage.pump import WritePump
from ffs.server.storage.reporter import Reporter
from ffs.server.storage.revival import Revival
from ffs.server.storage.scan import UnknownBlobScan, gone_among
from ffs.server.storage.targets import Targets
from ffs.server.storage.upkeep import Upkeep
from ffs.tls import Tls
from ffs.tls_relay import TlsRelay
from ffs.types import Routing
from ffs.wire.membership import DataLoopCounters, HeartbeatReply, RegisterReply, TargetReport

log = logging.getLogger("ffs.storage")

COUNTER_NAMES: Final = tuple(
    field.name for field in fields(DataLoopCounters) if field.name not in ("age_ns", "daemon")
)


LEAVE_S: Final = 2.0
"""How long the end of a daemon waits for a disk that hangs, for each of its parts."""


@dataclass(frozen=True, slots=True)
class InjectedFault:
    """Make the `nth` use of a system call after the start fail with `error`, or hang for ever for a
    negative one (tests only)."""

    call: str
    nth: int
    error: int


def parse_fault(text: str) -> InjectedFault:
    """Read CALL:NTH:ERRNO, such as fdatasync:3:EIO, or CALL:NTH:HANG; raises ConfigError."""
    call, nth, name = [*text.split(":"), "", ""][:3]
    number = -1 if name == "HANG" else getattr(errno, name, 0)
    if not call or not nth.isdigit() or not isinstance(number, int) or not number:
        raise ConfigError(f"{text!r} is not CALL:NTH:ERRNO", hint="for example fdatasync:3:EIO")
    return InjectedFault(call, int(nth), number)


class StorageDaemon:
    """One storage daemon from start to stop.

    Args:    meta: where metadata servers take RPC connections, one at least;
             paths: target directories; fault: for tests
    Threads: the event loop's, one for slow disk work, and those of the data loop; Fork: none
    """

    def __init__(
        self,
        config: Config,
        key: ClusterKey,
        *,
        meta: Sequence[Address],
        host: str,
        port: int,
        paths: Sequence[str | os.PathLike[str]],
        fault: InjectedFault | None = None,
    ) -> None:
        self._config = config.storage
        self._key = key
        self._host = host
        self._port = port
        self._fault = fault
        self._targets = Targets(paths)
        self._tokens = TokenVerifier(key, SystemClock())
        tls = Tls.configured(config.tls)
        self._rpc = AsyncRpcClient(meta, key, tls=tls)
        self._relay = TlsRelay.configured(config.tls, tls)
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="ffs-disk")
        self._pump: WritePump | None = None
        self._data_port: DataPort | None = None
        self._peers: Peers | None = None
        self._upkeep: Upkeep | None = None
        self._revival: Revival | None = None
        self._metrics: DaemonMetrics | None = None
        self._data: _storage.DataLoop | None = None
        self._data_since_ns = 0
        self._in_chains: set[int] = set()
        self._clock = SystemClock()
        self._reporter = Reporter(self._targets, config.storage.congestion)
        self._failure: Exception | None = None
        self._failed = asyncio.Event()
        self.left_behind = False
        """Whether threads wait for a disk for ever: this process can only end by `os._exit`."""

    async def run(self, ready: asyncio.Future[tuple[str, int]], stop: asyncio.Event) -> None:
        """Serve until `stop`; `ready` gets the data port's address once it does.

        Raises: FFSError when the start is refused; whatever ended a part later on.
        """
        opening = Opening(self._targets.given, self._config.hung_disk_ms)
        if not await self._open(opening, stop):
            return
        listener = listen(self._host, self._port, congestion=self._config.congestion)
        local: socket.socket | None = None
        try:
            port = listener.getsockname()[1]
            address = (self._config.advertise_host or self._host, port)
            local = self._listen_local(address)
            audit = Audit(self._rpc, self._targets, self._disk)
            orders = TargetOrders(
                self._targets,
                self._disk,
                in_chain=lambda target: target in self._in_chains,
                on_created=self._on_created,
                on_done=lambda: membership.beat_soon(),  # noqa: PLW0108  it is made below
            )
            membership = Membership(
                self._rpc,
                self._targets,
                address,
                self._disk,
                on_routing=self._on_routing,
                routing_version=self._routing_version,
                on_scan=audit.ask,
                on_orders=lambda reply: self._on_orders(orders, reply),
                counters=self._counters,
                on_clock=self._reporter.answered,
                amend=self._amend,
                tokens=self._tokens,
            )
            registration = asyncio.ensure_future(membership.register_first())
            if await _first_of(registration, stop):
                return
            self._build(registration.result(), membership)
            assert self._data is not None and self._revival is not None
            self._serve_metrics(membership)
            self._data_port = DataPort(
                listener, self._key, self._data, local, tokens=self._tokens, relay=self._relay
            )
            parts = [
                self._data_port.serve(),
                membership.run(),
                membership.watch(),
                orders.run(),
                self._revival.run(),
                self._take_late(opening, membership),
                UnknownBlobScan(self._rpc, membership, self._targets, self._disk).run(),
                audit.run(),
            ]
            ready.set_result((self._host, port))
            await self._run_parts(parts, stop)
        finally:
            listener.close()
            if local is not None:
                local.close()
            await self._close()

    def _serve_metrics(self, membership: Membership) -> None:
        """Let Prometheus ask, if it is to. Raises ConfigError if there is no such address."""
        if not self._config.metrics_address:
            return
        assert self._data is not None
        self._metrics = DaemonMetrics(
            self._config.metrics_address,
            self._data,
            self._targets,
            amend=self._amend,
            node=lambda: membership.node,
        )

    async def _open(self, opening: Opening, stop: asyncio.Event) -> bool:
        """Open the targets that exist, and whose disks answer; return whether not told to stop."""
        opened = asyncio.ensure_future(opening.run())
        if await _first_of(opened, stop):
            opening.close()
            return False
        self._targets.take(opened.result())
        return True

    async def _take_late(self, opening: Opening, membership: Membership) -> None:
        """Use targets whose disks hung when we started, as these answer."""
        while True:
            taken = self._targets.take_late(*await opening.next_late())
            for target, store in taken:
                log.warning("target_back", extra={"target": target})
                self._on_revived(target, store)
            membership.targets_joined()

    def _on_closed(self, connection: int) -> None:
        if self._data_port is not None:
            self._data_port.closed(connection)

    def _on_refused(self, *facts: int) -> None:
        if self._data_port is not None:
            self._data_port.refused(*facts)

    def _listen_local(self, address: tuple[str, int]) -> socket.socket | None:
        try:
            return listen_local(self._key, address)
        except OSError as error:  # clients on this host use TCP
            log.warning("same_host_unavailable", extra={"reason": error.strerror})
            return None

    def _build(self, reply: RegisterReply, membership: Membership) -> None:
        """Create new targets, then the data loop over all, then the logic of writes."""
        self._targets.create_new(reply.cluster_id, reply.targets)
        if self._fault is not None:
            _storage.fault_set(self._fault.call, self._fault.nth, self._fault.error)
        self._data = _storage.DataLoop(
            self._targets.stores,
            loops=self._config.loops,
            write_buffer_bytes=self._config.write_buffer_bytes,
            congestion=self._config.congestion,
            io=self._config.io,
            read_buffer_bytes=self._config.read_buffer_bytes,
            slow_read_ms=self._config.slow_read_ms,
            rdma=self._config.transport == "auto" and self._relay is None,
            rdma_device=self._config.rdma_device,
            rdma_gid_index=self._config.rdma_gid_index,
            rdma_max_sge=self._config.rdma_sge_max,
            rdma_connect=self._config.rdma_connect,
        )

        self._data_since_ns = self._clock.monotonic_ns()
        self._say_how_it_reads(self._data)

        def stopped(target_id: int) -> None:
            log.error("target_stopped", extra={"target": target_id})
            self._targets.stop(target_id)
            assert self._upkeep is not None
            self._upkeep.target_stopped()
            membership.beat_soon()

        self._upkeep = self._build_upkeep(self._data, membership)
        self._peers = Peers(
            self._data, self._key, congestion=self._config.congestion, relay=self._relay
        )
        logic = ChainLogic(self._targets.stores)
        self._pump = WritePump(
            self._data,
            logic,
            self._peers,
            on_stopped=stopped,
            on_refresh=membership.beat_soon,
            on_suspect=self._upkeep.suspect,
            on_failure=self._fail,
            on_closed=self._on_closed,
            on_refused=self._on_refused,
        )
        self._revival = self._build_revival(logic, membership)
        self._on_routing(reply.routing)
        self._pump.start()
        self._upkeep.start()

    def _on_revived(self, target: int, store: _storage.ChunkStore) -> None:
        assert self._pump is not None and self._upkeep is not None
        self._pump.revive(target, store)
        self._upkeep.target_revived(target)

    def _build_revival(self, logic: ChainLogic, membership: Membership) -> Revival:
        def revived(target: int, store: _storage.ChunkStore) -> None:
            try:
                self._on_revived(target, store)
                membership.target_revived()
            except Exception as error:  # noqa: BLE001  it ends the daemon
                self._fail(error)

        return Revival(
            self._targets,
            self._config.hung_disk_ms,
            goes_on_without=logic.goes_on_without,
            on_revived=revived,
        )

    def _build_upkeep(self, data: _storage.DataLoop, membership: Membership) -> Upkeep:
        loop = asyncio.get_running_loop()

        def gone(blobs: Iterable[int]) -> set[int]:
            asked = gone_among(self._rpc, membership.node, blobs)
            return asyncio.run_coroutine_threadsafe(asked, loop).result()

        return Upkeep(
            self._config,
            self._key,
            self._targets,
            reads_wait=lambda: data.stats()["read_buffer_bytes"] > 0,
            call_soon=loop.call_soon_threadsafe,
            on_synced=membership.beat_soon,
            gone_among=gone,
            relay=self._relay,
        )

    def _say_how_it_reads(self, data: _storage.DataLoop) -> None:
        """Once, where the kernel or a file system has refused the fast way."""
        ring_errno = data.stats()["ring_errno"]
        if ring_errno != 0:
            log.warning("io_uring_refused", extra={"reason": os.strerror(ring_errno)})
        if self._config.io != "buffered":
            for path in self._targets.without_direct_reads():
                log.warning("direct_reads_refused", extra={"path": path})

    async def _run_parts(
        self, parts: Sequence[Coroutine[Any, Any, None]], stop: asyncio.Event
    ) -> None:
        """Run all parts until `stop` or until one fails; all have ended on return."""
        tasks = [asyncio.create_task(part) for part in parts]
        waits = [asyncio.create_task(event.wait()) for event in (stop, self._failed)]
        try:
            await asyncio.wait([*tasks, *waits], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*tasks, *waits):
                task.cancel()
            results = await asyncio.gather(*tasks, *waits, return_exceptions=True)
        failures = [r for r in results if isinstance(r, Exception)]
        if self._failure is not None:
            raise self._failure
        if failures:
            raise failures[0]

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self._failed.set()

    def _on_routing(self, routing: Routing) -> None:
        if self._pump is not None:
            self._pump.routing_changed(routing)
            if routing.version == self._pump.routing_version:
                self._in_chains = {target for chain in routing.chains for target in chain.targets}
                if self._upkeep is not None:
                    self._upkeep.routing_changed(routing)

    def _on_orders(self, orders: TargetOrders, reply: HeartbeatReply) -> None:
        if reply.create or reply.retire:
            orders.take(reply)
        if self._upkeep is not None:
            self._upkeep.compare(reply.compare)

    def _on_created(self, target: int, store: _storage.ChunkStore) -> None:
        assert self._data is not None and self._pump is not None
        self._data.add_store(target, store)
        self._pump.add_target(target)

    def _amend(self, report: TargetReport) -> TargetReport:
        return report if self._upkeep is None else self._upkeep.amend(report)

    def _counters(self) -> DataLoopCounters | None:
        if self._data is None:
            return None
        now_ns = self._clock.monotonic_ns()
        counters = counters_of(self._data, now_ns - self._data_since_ns)
        return replace(counters, daemon=self._reporter.report(self._data, now_ns))

    def _routing_version(self) -> int:
        return self._pump.routing_version if self._pump is not None else -1

    async def _close(self) -> None:
        """Stop the network first, then the disk: nothing may use a store after its close."""
        if self._metrics is not None:
            await asyncio.to_thread(self._metrics.close)  # a scrape under way waits for the loop
        if self._pump is not None:
            self._pump.stop()
        if self._upkeep is not None:
            await self._ended(self._upkeep.close)
        if self._peers is not None:
            await self._peers.close()
        if self._data is not None:
            log.info("data_loop_closed", extra=self._data.stats())
            await self._ended(self._data.close)
        if self._relay is not None:
            self._relay.close()
        await self._rpc.close()
        await self._ended(lambda: self._disk.shutdown(wait=True, cancel_futures=True))
        await self._ended(self._targets.close)

    async def _ended(self, end: Callable[[], None]) -> None:
        """Have a part end; it may take what it takes, unless a disk hangs that it may wait for."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Exception | None] = loop.create_future()

        def work() -> None:
            failure = None
            try:
                end()
            except Exception as error:  # noqa: BLE001  it is raised below
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop is closed: this one was left behind
                loop.call_soon_threadsafe(done.set_result, failure)

        threading.Thread(target=work, name="ffs-end", daemon=True).start()
        while not done.done():
            await asyncio.wait([done], timeout=LEAVE_S)
            hangs = self._revival is not None and self._revival.hangs()
            if not done.done() and (hangs or self.left_behind):
                log.error("disk_left_behind")
                self.left_behind = True
                return
        failure = done.result()
        if failure is not None:
            raise failure


def counters_of(data: _storage.DataLoop, age_ns: int) -> DataLoopCounters:
    """Return what a data loop counts, as it goes into a heartbeat."""
    stats = data.stats()
    counts: dict[str, Any] = {name: stats[name] for name in COUNTER_NAMES}
    return DataLoopCounters(age_ns, **counts)


async def _first_of(work: asyncio.Future[Any], stop: asyncio.Event) -> bool:
    """Wait for `work`, at most until `stop`; tell whether it was stopped. Raises what work did."""
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait([work, stopped], return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not work.done():
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        return True
    work.result()
    return False
