"""Membership and the scan, against an RPC server that answers what a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ffs._reader import block_crcs
from ffs.errors import FormatError, NotFoundError, UnavailableError
from ffs.key import ClusterKey
from ffs.rpc.aio import AsyncRpcClient, Handler, Peer, RpcServer
from ffs.server.storage.directory import open_directory
from ffs.server.storage.membership import Membership
from ffs.server.storage.orders import TargetOrders
from ffs.server.storage.scan import UnknownBlobScan
from ffs.server.storage.targets import Targets
from ffs.types import Routing
from ffs.wire.membership import (
    DataLoopCounters,
    HeartbeatReply,
    HeartbeatRequest,
    NewTarget,
    RegisterReply,
    RegisterRequest,
    UnknownBlobsReply,
    UnknownBlobsRequest,
    WatchRoutingReply,
    WatchRoutingRequest,
)
from tests.unit.server.storage.test_targets import made

CLUSTER = bytes(range(16))
KEY = ClusterKey(bytes(range(32)))


def routing(version: int) -> Routing:
    return Routing(version=version, nodes=[], targets=[], chains=[], tables=[])


class MetaServer:
    """Answers registrations and heartbeats; its fields are what a test looks at and sets."""

    def __init__(self) -> None:
        self.registered: list[RegisterRequest] = []
        self.beats: list[HeartbeatRequest] = []
        self.asked: list[int] = []
        self.drops: list[int] = []
        self.unknown: set[int] = set()
        self.refusals: list[Exception] = []
        self.version = 1
        self.watched: list[WatchRoutingRequest] = []
        self.grown = asyncio.Event()
        self.create: list[NewTarget] = []
        self.retire: list[int] = []

    async def register(self, request: RegisterRequest, peer: Peer) -> RegisterReply:
        self._refuse()
        self.registered.append(request)
        ids = [report.target or 40 + i for i, report in enumerate(request.targets)]
        return RegisterReply(request.node or 5, CLUSTER, ids, routing(self.version), 20)

    async def heartbeat(self, request: HeartbeatRequest, peer: Peer) -> HeartbeatReply:
        self._refuse()
        self.beats.append(request)
        self.drops = [blob for blob in self.drops if blob not in request.dropped]
        newer = routing(self.version) if self.version > request.routing_version else None
        return HeartbeatReply(
            list(self.drops), newer, create=list(self.create), retire=list(self.retire)
        )

    async def watch_routing(self, request: WatchRoutingRequest, peer: Peer) -> WatchRoutingReply:
        self._refuse()
        self.watched.append(request)
        while self.version <= request.version:
            await self.grown.wait()
            self.grown.clear()
        return WatchRoutingReply(routing(self.version))

    async def unknown_blobs(self, request: UnknownBlobsRequest, peer: Peer) -> UnknownBlobsReply:
        self._refuse()
        self.asked += request.blobs
        return UnknownBlobsReply(sorted(self.unknown))

    def _refuse(self) -> None:
        if self.refusals:
            raise self.refusals.pop(0)


class Daemon:
    """The parts of a daemon that talk to the metadata server."""

    def __init__(self, rpc: AsyncRpcClient, *paths: Path) -> None:
        self.rpc = rpc
        self.disk = ThreadPoolExecutor(1)
        self.targets = Targets(paths)
        self.targets.open_existing()
        self.routing_version = -1
        self.scans: list[tuple[int, int, bool]] = []
        self.ordered: list[HeartbeatReply] = []
        self.told = 0
        self.damaged = False
        self.membership = Membership(
            rpc,
            self.targets,
            ("host", 1234),
            self.disk,
            on_routing=self._on_routing,
            routing_version=lambda: self.routing_version,
            on_scan=lambda node, scan, drop: self.scans.append((node, scan, drop)),
            on_orders=self.ordered.append,
            counters=self._counters,
            amend=lambda report: dataclasses.replace(report, damaged=self.damaged),
        )

    def _counters(self) -> DataLoopCounters:
        self.told += 1
        return DataLoopCounters(self.told)

    def _on_routing(self, newer: Routing) -> None:
        self.routing_version = newer.version

    async def register(self) -> None:
        reply = await self.membership.register_first()
        self.targets.create_new(reply.cluster_id, reply.targets)
        self.routing_version = reply.routing.version

    def put(self, *blobs: int) -> None:
        (store,) = self.targets.stores.values()
        for blob in blobs:
            assert store.put(blob, 0, b"data", block_crcs(b"data", blob, 0)) == 0

    def blobs(self) -> list[int]:
        (store,) = self.targets.stores.values()
        return store.blobs()


@contextlib.asynccontextmanager
async def running(meta: MetaServer, *paths: Path) -> AsyncIterator[Daemon]:
    handlers: dict[str, Handler] = {
        "register": meta.register,
        "heartbeat": meta.heartbeat,
        "unknown_blobs": meta.unknown_blobs,
        "watch_routing": meta.watch_routing,
    }
    server = RpcServer(handlers, KEY)
    address = await server.start("127.0.0.1", 0)
    daemon = Daemon(AsyncRpcClient([address], KEY), *paths)
    try:
        yield daemon
    finally:
        await daemon.rpc.close()
        await server.close()
        daemon.disk.shutdown()
        daemon.targets.close()


@contextlib.asynccontextmanager
async def background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  the other side's doing sets no event here
            await asyncio.sleep(0.005)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_registers_as_new_and_then_beats(tmp_path: Path) -> None:
    async def story() -> None:
        meta = MetaServer()
        async with running(meta, tmp_path / "t") as daemon:
            await daemon.register()
            first = meta.registered[0]
            assert (first.node, first.cluster_id, first.host, first.port) == (0, b"", "host", 1234)
            assert list(daemon.targets.stores) == [40]
            async with background(daemon.membership.run()):
                await until(lambda: len(meta.beats) >= 3)
            assert meta.beats[0].node == 5
            assert meta.beats[0].targets[0].target == 40

    run(story())


def test_waits_for_a_metadata_server_that_is_not_up_yet(tmp_path: Path) -> None:
    async def story() -> None:
        meta = MetaServer()
        meta.refusals = [UnavailableError("not yet"), UnavailableError("not yet")]
        async with running(meta, tmp_path / "t") as daemon:
            await daemon.register()
            assert len(meta.registered) == 1

    run(story())


def test_refusal_that_waiting_does_not_cure_is_raised(tmp_path: Path) -> None:
    async def story() -> None:
        meta = MetaServer()
        meta.refusals = [FormatError("another cluster")]
        async with running(meta, tmp_path / "t") as daemon:
            with pytest.raises(FormatError, match="another cluster"):
                await daemon.register()

    run(story())


@pytest.mark.parametrize("failure", [NotFoundError("no such node"), UnavailableError("gone")])
def test_registers_again_with_its_ids_after_a_failed_beat(
    tmp_path: Path, failure: Exception
) -> None:
    async def story() -> None:
        meta = MetaServer()
        async with running(meta, tmp_path / "t") as daemon:
            await daemon.register()
            async with background(daemon.membership.run()):
                await until(lambda: len(meta.beats) >= 1)
                meta.version = 9
                meta.refusals = [failure]
                await until(lambda: len(meta.registered) == 2)
                await until(lambda: daemon.routing_version == 9)
            again = meta.registered[1]
            assert (again.node, again.cluster_id) == (5, CLUSTER)
            assert [report.target for report in again.targets] == [40]

    run(story())


def test_a_target_that_joins_late_is_registered(tmp_path: Path) -> None:
    late = tmp_path / "late"
    made(late, first_id=41, cluster_id=CLUSTER).close()

    async def story() -> None:
        meta = MetaServer()
        async with running(meta, tmp_path / "t") as daemon:
            daemon.targets.given.append(late)
            await daemon.register()
            assert meta.registered[0].unanswered == [str(late)]
            async with background(daemon.membership.run()):
                await until(lambda: len(meta.beats) >= 1)
                assert daemon.targets.take_late(late, open_directory(late))
                daemon.membership.targets_joined()
                await until(lambda: len(meta.registered) == 2)
                await until(lambda: len(meta.beats[-1].targets) == 2)
            again = meta.registered[1]
            assert (again.node, again.unanswered) == (5, [])
            assert [report.target for report in again.targets] == [40, 41]

    run(story())


def test_a_registration_says_as_much_of_damage_as_a_beat(tmp_path: Path) -> None:
    async def story() -> None:
        meta = MetaServer()
        async with running(meta, tmp_path / "t") as daemon:
            daemon.damaged = True
            await daemon.register()
            async with background(daemon.membership.run()):
                await until(lambda: len(meta.beats) >= 1)
                meta.refusals = [NotFoundError("no such node")]
                await until(lambda: len(meta.registered) == 2)
            assert all(request.targets[0].damaged for request in meta.registered)
            assert all(request.targets[0].damaged for request in meta.beats)

    run(story())


def test_daemon_with_a_stopped_disk_stays_registered(tmp_path: Path) -> None:
    async def story() -> None:
        meta = MetaServer()
        async with running(meta, tmp_path / "t") as daemon:
            await daemon.register()
            daemon.targets.stop(40)
            async with background(daemon.membership.run()):
                await until(lambda: len(meta.beats) >= 1)
                meta.refusals = [NotFoundError("no such node")]
                await until(lambda: len(meta.registered) == 2)
                beats = len(meta.beats)
                await until(lambda: len(meta.beats) > beats)
            assert meta.registered[1].targets[0].stopped and meta.beats[-1].targets[0].stopped

    run(story())


def test_newer_routing_is_taken_and_asked_for_soon(tmp_path: Path) -> None:
    async def story() -> None:
        meta = MetaServer()
        async with running(meta, tmp_path / "t") as daemon:
            await daemon.register()
            daemon.membership._heartbeat_s = 60.0
            async with background(daemon.membership.run()):
                await until(lambda: len(meta.beats) == 1)
                meta.version = 2
                daemon.membership.beat_soon()
                await until(lambda: daemon.routing_version == 2)

    run(story())


def test_drops_are_done_and_then_confirmed(tmp_path: Path) -> None:
    async def story() -> None:
        meta = MetaServer()
        async with running(meta, tmp_path / "t") as daemon:
            await daemon.register()
            daemon.put(1, 2, 3)
            meta.drops = [1, 3, 99]
            async with background(daemon.membership.run()):
                await until(lambda: not meta.drops)
            assert daemon.blobs() == [2]
            assert [beat.dropped for beat in meta.beats if beat.dropped] == [[1, 3, 99]]

    run(story())


def test_a_drop_is_not_confirmed_of_a_target_that_was_away(tmp_path: Path) -> None:
    async def story() -> None:
        meta = MetaServer()
        async with running(meta, tmp_path / "a") as daemon:
            await daemon.register()
            daemon.put(1)
            daemon.targets.stop(40)
            meta.drops = [1]
            # Dropped by all that work, of which there are none; then one works again.
            await daemon.membership._drop_all([1])
            assert daemon.membership._dropped == {1}
            daemon.membership.target_revived()
            daemon.targets.take_back(40, daemon.targets.stores[40])
            assert daemon.blobs() == [1]
            async with background(daemon.membership.run()):
                await until(lambda: not meta.drops)
            assert daemon.blobs() == []

    run(story())


def test_scan_drops_what_is_unknown_and_only_what_was_there(tmp_path: Path) -> None:
    async def story() -> None:
        meta = MetaServer()
        async with running(meta, tmp_path / "t") as daemon:
            await daemon.register()
            daemon.put(1, 2, 3)
            meta.unknown = {2, 77}
            meta.refusals = []
            scan = UnknownBlobScan(daemon.rpc, daemon.membership, daemon.targets, daemon.disk)
            async with background(scan.run()):
                await until(lambda: daemon.blobs() == [1, 3])
            assert meta.asked == [1, 2, 3]

    run(story())


def test_scan_passes_over_a_stopped_target(tmp_path: Path) -> None:
    async def story() -> None:
        meta = MetaServer()
        async with running(meta, tmp_path / "a", tmp_path / "b") as daemon:
            await daemon.register()
            for store in daemon.targets.stores.values():
                assert store.put(9, 0, b"data", block_crcs(b"data", 9, 0)) == 0
            stopped, working = daemon.targets.stores.values()
            daemon.targets.stop(40)
            meta.unknown = {9}
            scan = UnknownBlobScan(daemon.rpc, daemon.membership, daemon.targets, daemon.disk)
            async with background(scan.run()):
                await until(lambda: working.blobs() == [])
            assert stopped.blobs() == [9]

    run(story())


def test_scan_keeps_everything_while_it_cannot_ask(tmp_path: Path) -> None:
    async def story() -> None:
        meta = MetaServer()
        async with running(meta, tmp_path / "t") as daemon:
            await daemon.register()
            daemon.put(1, 2)
            meta.unknown = {1, 2}
            meta.refusals = [UnavailableError("gone")]
            scan = UnknownBlobScan(daemon.rpc, daemon.membership, daemon.targets, daemon.disk)
            async with background(scan.run()):
                await until(lambda: not meta.refusals)
                await asyncio.sleep(0.05)
                assert daemon.blobs() == [1, 2] and meta.asked == []

    run(story())


def test_a_newer_routing_comes_without_a_beat(tmp_path: Path) -> None:
    async def story() -> None:
        meta = MetaServer()
        async with running(meta, tmp_path / "t") as daemon:
            await daemon.register()
            async with background(daemon.membership.watch()):
                for version in (2, 5):
                    await until(lambda: bool(meta.watched))
                    assert meta.watched.pop().version == daemon.routing_version
                    meta.version = version
                    meta.refusals = [UnavailableError("for a moment")] if version == 5 else []
                    meta.grown.set()
                    await until(lambda version=version: daemon.routing_version == version)
            assert meta.beats == []

    run(story())


def test_orders_are_carried_out_and_reported(tmp_path: Path) -> None:
    """Also: a target in a chain is not emptied, and ordered targets are found again."""

    async def story() -> None:
        meta = MetaServer()
        chained = {40}
        created: list[int] = []
        async with running(meta, tmp_path / "t") as daemon:
            await daemon.register()
            daemon.put(1, 2, 3)
            orders = TargetOrders(
                daemon.targets,
                daemon.disk,
                in_chain=chained.__contains__,
                on_created=lambda target, store: created.append(target),
                on_done=daemon.membership.beat_soon,
            )
            async with background(daemon.membership.run()), background(orders.run()):
                meta.create, meta.retire = [NewTarget(77, 40), NewTarget(78, 99)], [40]
                await until(lambda: bool(daemon.ordered))
                reply = daemon.ordered[-1]
                for _ in range(2):  # told again before it was reported
                    orders.take(reply)
                    seen = len(meta.beats)
                    await until(lambda seen=seen: len(meta.beats) > seen + 1)
                assert created == [77]
                assert [r.target for r in meta.beats[-1].targets] == [40, 77]
                assert daemon.targets.stores[40].blobs() == [1, 2, 3]
                chained.clear()
                orders.take(reply)
                await until(lambda: daemon.targets.stores[40].blobs() == [])
        again = Targets([tmp_path / "t"])
        again.open_existing()
        assert sorted(again.stores) == [40, 77]
        assert [report.target for report in again.reports()] == [40, 77]
        assert again.reports()[1].label == str(tmp_path / "t" / "targets" / "77")
        again.close()

    run(story())
