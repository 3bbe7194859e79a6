"""Services of one PostgreSQL database in one process: what each must know of what others did."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ffs.config import MetaConfig
from ffs.errors import ConfigError, NotFoundError
from ffs.seams import SystemClock, SystemRandomness
from ffs.server.meta.engine import check_config
from ffs.server.meta.manager import Chore
from ffs.server.meta.ops import servers
from ffs.server.meta.ops.servers import ServerRow
from ffs.server.meta.peers import AgreedClock, Peers
from ffs.server.meta.postgres import PostgresStore
from ffs.server.meta.postgres_connection import connect
from ffs.server.meta.service import MetaService
from ffs.server.meta.store import Transaction
from ffs.types import TargetState
from ffs.wire import messages as wire
from ffs.wire.membership import (
    HEARTBEAT,
    REGISTER,
    ChunkName,
    DataLoopCounters,
    HeartbeatRequest,
    RegisterReply,
    RegisterRequest,
    TargetHealth,
    TargetReport,
)
from ffs.wire.method import Method
from ffs.wire.status import STATUS, StatusRequest
from tests.databases import PostgresDatabase, new_database
from tests.namespace import ME, call, good
from tests.sim.world import SECOND, WALL_START_NS, World

HOUR_NS = 3_600 * SECOND
TTL_MS = 60_000
HEALTH = TargetHealth(
    scrubbed_chunks=2, repaired_total=1, unrepairable_chunks=[ChunkName(1 << 40, 3)]
)


class Skewed(SystemClock):
    """The clock of a host that is an hour ahead."""

    def wall_ns(self) -> int:
        """The wrong time."""
        return super().wall_ns() + HOUR_NS


class Rig:
    """Two services of one database; the second one's host has its clock an hour ahead."""

    def __init__(self, url: str) -> None:
        self.stores = [PostgresStore(url, writers=2, readers=2) for _ in range(2)]
        self.services = [
            MetaService(
                store,
                MetaConfig(session_ttl_ms=TTL_MS, heartbeat_ms=10_000, node_lease_ms=20_000),
                clock=clock,
                randomness=SystemRandomness(),
                retry_budget_ns=SECOND,
            )
            for store, clock in zip(self.stores, (SystemClock(), Skewed()), strict=True)
        ]

    async def start(self, index: int) -> None:
        """Let one serve."""
        await self.services[index].start()
        await self.services[index].serves_at("host", 1 + index)

    async def call(self, index: int, method: Method[Any, Any], request: object) -> Any:
        """Call a handler as the RPC server does."""
        return await call(self.services[index], method, request)

    async def register(self, index: int, label: str = "disk", node: int = 0) -> RegisterReply:
        """A daemon with one new target comes up."""
        report = TargetReport(label, 0, 1 << 40, 5, 1, False, "boot:1")
        request = RegisterRequest(node, b"", 1, "h", 1, [report])
        reply: RegisterReply = await self.call(index, REGISTER, request)
        return reply

    async def beat(
        self, index: int, version: int, *dropped: int, stopped: bool = False, port: int = 1
    ) -> Any:
        """The daemon's heartbeat, at any server."""
        report = TargetReport("disk", 1, 1 << 40, 7, 2, stopped, "boot:1", health=HEALTH)
        counters = DataLoopCounters(5, ranges_total=index)
        request = HeartbeatRequest(
            1, [report], list(dropped), version, pid=1, port=port, counters=counters
        )
        return await self.call(index, HEARTBEAT, request)

    async def judge(self, index: int) -> Any:
        """The manager's turn, if that server is the manager; returns the routing."""
        await self.services[index]._role.turn()
        return (await self.call(index, wire.ROUTING, wire.RoutingRequest())).routing

    async def do(self, index: int, chore: Chore) -> None:
        """A chore, now."""
        service = self.services[index]
        await self.stores[index].write(service._alone(chore))

    async def stop(self) -> None:
        """End both."""
        for service, store in zip(self.services, self.stores, strict=True):
            await service.stop()
            await store.close()


Scenario = Callable[[Rig], Awaitable[None]]


@pytest.fixture
def database(tmp_path: Path) -> PostgresDatabase:
    """An empty database."""
    made = new_database("postgres", tmp_path)
    assert isinstance(made, PostgresDatabase)
    return made


@pytest.fixture
def play(database: PostgresDatabase) -> Callable[[Scenario], None]:
    """Run a scenario with two services over one database."""

    def run(scenario: Scenario) -> None:
        async def main() -> None:
            rig = Rig(database.url)
            try:
                await scenario(rig)
            finally:
                await rig.stop()

        asyncio.run(main())

    return run


def test_the_rows_of_servers(database: PostgresDatabase) -> None:
    def beat(address: str, at_ns: int) -> list[str]:
        me = ServerRow(address, 7, at_ns)
        census = database.transact(lambda tx: servers.beat(tx, me, lease_ns=10, forget_ns=100))
        return census.servers

    database.tx.run("INSERT INTO counters (name, value) VALUES ('routing', 3)")
    assert beat("b:1", 1_000) == ["b:1"]
    assert beat("a:1", 1_005) == ["a:1", "b:1"]
    assert beat("a:1", 1_011) == ["a:1"], "silent for longer than a lease"
    assert [row.address for row in servers.known(database.tx)] == ["a:1", "b:1"]
    assert servers.heard_since(database.tx, 1_010)
    assert not servers.heard_since(database.tx, 1_011)
    assert beat("a:1", 1_101) == ["a:1"]
    assert servers.known(database.tx) == [ServerRow("a:1", 7, 1_101)], "forgotten"
    database.transact(lambda tx: servers.leave(tx, "a:1"))
    assert servers.known(database.tx) == []


def test_a_server_that_leaves_in_the_middle_of_a_beat_is_gone(
    database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = threading.Event()
    beat = servers.beat

    def slow_beat(tx: Transaction, *args: Any) -> servers.Census:
        began.set()
        time.sleep(0.2)
        return beat(tx, *args)

    async def main() -> None:
        store = PostgresStore(database.url, writers=2, readers=1)
        peers = Peers(
            store,
            AgreedClock(SystemClock()),
            heartbeat_ns=SECOND // 100,
            lease_ns=SECOND,
            on_routing=lambda routing: None,
        )
        await peers.join()
        await peers.live("h:1")
        monkeypatch.setattr(servers, "beat", slow_beat)
        await asyncio.to_thread(began.wait)
        await peers.leave()
        await store.close()

    database.tx.run("INSERT INTO counters (name, value) VALUES ('routing', 3)")
    asyncio.run(main())
    assert database.transact(lambda tx: tx.rows("SELECT address FROM meta_servers")) == []


def test_a_clock_that_was_agreed_on_runs_by_itself() -> None:
    world = World(1)
    clock = AgreedClock(world.clock)
    assert clock.wall_ns() == WALL_START_NS
    clock.agree(5_000, world.now_ns - 1_000)
    assert clock.wall_ns() == 6_000
    world.run(10)
    assert (clock.wall_ns(), clock.monotonic_ns()) == (6_010, 10)


def test_the_time_is_the_database_s(play: Callable[[Scenario], None]) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start(0)
        await rig.start(1)
        times = [service._clock.wall_ns() for service in rig.services]
        assert abs(times[0] - times[1]) < HOUR_NS // 2
        await rig.register(0)
        create = wire.CreateManyRequest(b"c" * 16, ME, [wire.CreateEntry(b"/f")])
        session = good((await rig.call(0, wire.CREATE_MANY, create)).sessions[0])
        await rig.do(1, Chore.REAP_SESSIONS)
        close = wire.CloseManyRequest(b"d" * 16, ME, [wire.CloseEntry(session.session, 0)])
        good((await rig.call(1, wire.CLOSE_MANY, close)).attrs[0])

    play(scenario)


def test_leases_get_a_full_term_only_where_nobody_served(play: Callable[[Scenario], None]) -> None:
    async def scenario(rig: Rig) -> None:
        store = rig.stores[0]

        async def run_out() -> None:
            enter = "INSERT INTO leases (client, expires_ns) VALUES (?, 1)"
            again = "ON CONFLICT (client) DO UPDATE SET expires_ns = 1"
            await store.write(lambda tx: tx.run(f"{enter} {again}", (ME,)))

        async def holds() -> bool:
            row = await store.read(lambda tx: tx.row("SELECT expires_ns FROM leases"))
            return row is not None and row[0] > SystemClock().wall_ns()

        await run_out()
        await rig.start(0)
        assert await holds(), "it could not be renewed"
        await run_out()
        await rig.start(1)
        assert not await holds(), "it could"
        # One that was cut off from the database for a while cannot tell, and lets nothing end.
        rig.services[1]._manager.leases_seen(1)
        await rig.do(1, Chore.REAP_SESSIONS)
        assert await holds()

    play(scenario)


def test_daemons_may_go_from_one_server_to_the_next(play: Callable[[Scenario], None]) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start(0)
        await rig.start(1)
        with pytest.raises(NotFoundError):
            await rig.beat(1, 0)
        await rig.services[0]._peers.refresh()
        registered = await rig.register(0)
        assert registered.servers == ["host:1", "host:2"]
        heard = await rig.beat(1, registered.routing.version)
        assert heard.routing is None and heard.servers == ["host:1", "host:2"]
        create = wire.CreateManyRequest(b"c" * 16, ME, [wire.CreateEntry(b"/f")])
        session = good((await rig.call(0, wire.CREATE_MANY, create)).sessions[0])
        abort = wire.AbortManyRequest(b"a" * 16, ME, [session.session])
        await rig.call(1, wire.ABORT_MANY, abort)
        await rig.stores[0].write(lambda tx: tx.run("UPDATE blobs SET changed_ns = 1"))
        await rig.do(1, Chore.SCHEDULE_DROPS)
        version = registered.routing.version
        assert (await rig.beat(0, version)).drops == [session.blob]
        assert (await rig.beat(1, version, session.blob)).drops == []
        status = await rig.call(0, STATUS, StatusRequest())
        assert (status.blobs, status.dead_blobs) == (0, 0)
        await rig.beat(1, version, stopped=True)
        changed = await rig.judge(0)
        assert changed.version > version
        told = await rig.call(1, wire.ROUTING, wire.RoutingRequest())
        assert told.routing == changed
        assert told.servers == ["host:1", "host:2"]

    play(scenario)


def test_status_is_the_same_everywhere(play: Callable[[Scenario], None]) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start(0)
        await rig.start(1)
        version = (await rig.register(0)).routing.version
        await rig.beat(0, version)
        await rig.beat(1, version)
        for index in (0, 1):
            status = await rig.call(index, STATUS, StatusRequest())
            assert [(n.role, n.state, n.address) for n in status.nodes] == [
                ("meta", "up", "host:1"),
                ("meta", "up", "host:2"),
                ("storage", "up", "h:1"),
            ]
            told = DataLoopCounters(5, ranges_total=1)
            assert [n.counters for n in status.nodes] == [None, None, told]
            told_of_target = TargetReport("disk", 1, 1 << 40, 7, 2, False, "boot:1")
            assert status.reports == [replace(told_of_target, health=HEALTH)]
        await rig.services[1].stop()
        status = await rig.call(0, STATUS, StatusRequest())
        assert [n.address for n in status.nodes] == ["host:1", "h:1"]

    play(scenario)


def test_what_was_written_late_is_corrected_by_the_next_heartbeat(
    play: Callable[[Scenario], None],
) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start(0)
        await rig.start(1)
        version = (await rig.register(0)).routing.version
        await rig.beat(1, version, stopped=True)
        told = await rig.judge(0)
        assert told.targets[0].state == TargetState.LASTSRV
        # The other server stood still and writes only now what it was told before.
        await rig.beat(0, told.version)
        told = await rig.judge(0)
        assert told.targets[0].state == TargetState.SERVING
        await rig.beat(1, told.version, stopped=True)
        told = await rig.judge(0)
        assert told.targets[0].state == TargetState.LASTSRV
        with pytest.raises(NotFoundError, match="no such storage node"):
            await rig.beat(1, told.version, port=2)  # the address that was registered last

    play(scenario)


def test_a_chore_runs_in_one_server_at_a_time(play: Callable[[Scenario], None]) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start(0)
        began, go_on = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def slow(tx: Any) -> bool:
            assert tx.try_lock(Chore.SCHEDULE_DROPS.value)
            loop.call_soon_threadsafe(began.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(10)
            return True

        other = asyncio.create_task(rig.stores[0].write(slow))
        await began.wait()
        service = rig.services[1]
        vars(service)["_chore"] = lambda chore: lambda tx: True
        assert not await rig.stores[1].write(service._alone(Chore.SCHEDULE_DROPS))
        go_on.set()
        assert await other
        # A server's own house-keeping may be at it, and says nothing when it is done.
        while not await rig.stores[1].write(service._alone(Chore.SCHEDULE_DROPS)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    play(scenario)


def test_a_server_among_others_says_where_it_is() -> None:
    shared = MetaConfig(database="postgres://u@h/d", host="0.0.0.0")
    with pytest.raises(ConfigError, match="no address") as caught:
        check_config(shared)
    assert "advertise_host" in caught.value.hint
    check_config(replace(shared, advertise_host="meta-1"))
    check_config(replace(shared, database="", data_dir="/data"))


def test_the_kernel_notices_that_the_database_s_machine_died(database: PostgresDatabase) -> None:
    async def options() -> list[int]:
        connection = await connect(database.url)
        sock = connection._transport.get_extra_info("socket")
        told = [
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
            sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
        ]
        await connection.close()
        return told

    assert asyncio.run(options()) == [1, 5, 11_000]
