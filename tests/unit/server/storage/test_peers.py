"""Three data loops in one process that forward to each other over real connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from ffs import _reader
from ffs._storage import ChunkStore, DataLoop
from ffs.errors import OK, StaleChainError, TooFewReplicasError, UnavailableError
from ffs.handshake import HandshakeKind, connect
from ffs.key import ClusterKey
from ffs.rpc.door import listen
from ffs.server.storage.chain import ChainLogic
from ffs.server.storage.data_port import DataPort
from ffs.server.storage.peers import Peers
from ffs.server.storage.pump import WritePump
from ffs.types import ChainInfo, NodeInfo, Routing, TargetInfo, TargetState

KEY = ClusterKey(bytes(range(32)))
CHAIN = 3
LENGTH = 20_000
WRITE_OP = struct.Struct("<QQIIIIIHH")
S, Y, O = TargetState.SERVING, TargetState.SYNCING, TargetState.OFFLINE  # noqa: E741


class Member:
    """Targets `number` and `number` + 10 on node `number`: all of a daemon but its membership."""

    def __init__(self, number: int, path: Path) -> None:
        self.number = number
        self.stores = {
            target: ChunkStore(
                str(path / str(target)), cluster_id=bytes(16), target_id=target, create=True
            )
            for target in (number, number + 10)
        }
        self.store = self.stores[number]
        self.data = DataLoop(self.stores, loops=2)
        self.logic = ChainLogic(self.stores)
        self.peers = Peers(self.data, KEY, congestion="cubic", connect_ms=60_000)
        self.failures: list[Exception] = []
        self.suspects: list[tuple[int, ...]] = []
        self.pump = WritePump(
            self.data,
            self.logic,
            self.peers,
            on_stopped=lambda target: None,
            on_refresh=lambda: None,
            on_suspect=lambda *place: self.suspects.append(place),
            on_failure=self.failures.append,
            patience_ms=50,
        )
        self.listener = listen("127.0.0.1", 0)
        self.serving: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.pump.start()
        self.serving = asyncio.create_task(DataPort(self.listener, KEY, self.data).serve())

    async def stop(self) -> None:
        """Gone, as after a crash: whoever is connected sees the end."""
        if self.serving is not None:
            self.serving.cancel()
            await asyncio.gather(self.serving, return_exceptions=True)
            self.serving = None
            self.pump.stop()
            await self.peers.close()
            self.listener.close()
            self.data.close()
            for store in self.stores.values():
                store.close()


class Cluster:
    """Members 1, 2, 3 in one chain, and 11, 12, 13 in another, which stays as it is."""

    def __init__(self, path: Path) -> None:
        self.members = {n: Member(n, path / str(n)) for n in (1, 2, 3)}
        self.ports = {n: m.listener.getsockname()[1] for n, m in self.members.items()}

    def route(self, version: int, *states: TargetState, order: str = "123", least: int = 1) -> None:
        """Tell all of them the states of targets 1, 2, 3 and their order."""
        table = Routing(
            version=version,
            nodes=[NodeInfo(n, "127.0.0.1", port) for n, port in self.ports.items()],
            targets=[
                *(TargetInfo(n, n, s) for n, s in zip((1, 2, 3), states, strict=True)),
                *(TargetInfo(n + 10, n, S) for n in (1, 2, 3)),
            ],
            chains=[
                ChainInfo(CHAIN, version, [int(n) for n in order]),
                ChainInfo(CHAIN + 1, 1, [11, 12, 13]),
            ],
            tables=[],
            min_replicas=least,
        )
        for member in self.members.values():
            if member.serving is not None:
                member.pump.routing_changed(table)

    async def write(
        self, chunks: range, version: int = 1, *, head: int = 1, fill: bytes = b"x"
    ) -> set[int]:
        """Write chunks of blob 5 to the head; return the statuses that there were."""
        return await asyncio.to_thread(self._write, chunks, version, head, fill)

    @contextlib.contextmanager
    def connection(self, number: int) -> Iterator[_reader.Connection]:
        """A client's connection to a member."""
        sock = connect("127.0.0.1", self.ports[number], KEY, HandshakeKind.DATA, timeout_ms=60_000)
        with contextlib.closing(_reader.Connection(sock.detach())) as connection:
            yield connection

    def _write(self, chunks: range, version: int, head: int, fill: bytes) -> set[int]:
        with self.connection(head) as connection:
            ops = bytearray()
            for chunk in chunks:
                op = (5, 0, chunk, head, CHAIN, LENGTH, version, 0, _reader.STATUS_PENDING)
                ops += WRITE_OP.pack(*op)
            _reader.write_batch([connection], ops, fill * LENGTH, deadline_ms=60_000)
        return {fields[-1] for fields in WRITE_OP.iter_unpack(ops)}

    def held(self) -> list[dict[int, tuple[int, int] | None]]:
        """Length and checksum of each chunk of blob 5, for each member."""
        return [
            {chunk: m.store.lookup(5, chunk) for chunk, _ in m.store.chunks(5)}
            for m in self.members.values()
        ]


@contextlib.asynccontextmanager
async def running(path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(path)
    for member in cluster.members.values():
        member.start()
    try:
        yield cluster
    finally:
        for member in cluster.members.values():
            await member.stop()


def run(story: Callable[[Cluster], Coroutine[Any, Any, None]], path: Path) -> None:
    async def main() -> None:
        async with running(path) as cluster, asyncio.timeout(120):
            await story(cluster)
            for member in cluster.members.values():
                assert member.failures == []

    for number in (1, 2, 3):
        for target in (number, number + 10):
            (path / str(number) / str(target)).mkdir(parents=True)
    uvloop.run(main())  # as a daemon does


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  the data loop's threads set no event
        await asyncio.sleep(0.005)


def test_acknowledged_chunks_are_on_every_member(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        cluster.route(1, S, S, Y)
        assert await cluster.write(range(40)) == {OK}
        first, second, third = cluster.held()
        assert first == second == third
        assert sorted(first) == list(range(40))
        assert await cluster.write(range(40)) == {OK}, "a repetition"
        assert cluster.members[1].data.stats()["forwards_total"] == 80
        assert all(m.data.stats()["buffer_bytes"] == 0 for m in cluster.members.values())

    run(story, tmp_path)


def test_chunk_that_came_half_way_is_completed_by_its_repetition(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        cluster.route(1, S, O, O)
        assert await cluster.write(range(5)) == {OK}
        cluster.route(2, S, S, S)
        assert await cluster.write(range(5), 2) == {OK}
        first, second, third = cluster.held()
        assert first == second == third != {}

    run(story, tmp_path)


def test_members_turned_round_forward_the_other_way(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        for version, order in enumerate(("123", "321", "213"), start=1):
            cluster.route(version, S, S, S, order=order)
            head = int(order[0])
            chunks = range(10 * version, 10 * version + 10)
            assert await cluster.write(chunks, version, head=head) == {OK}
        first, second, third = cluster.held()
        assert first == second == third and len(first) == 30

    run(story, tmp_path)


def test_member_lists_its_chunks_for_the_version_that_it_judges_by(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        cluster.route(1, S, S, O)
        assert await cluster.write(range(4)) == {OK}

        def listed(since: int) -> tuple[int, int]:
            with cluster.connection(2) as connection:
                status, found = _reader.list_chunks(connection, 2, 0, 0, 100, since)
            return status, len(found) // 24

        assert await asyncio.to_thread(listed, 1) == (OK, 4)
        assert await asyncio.to_thread(listed, 2) == (StaleChainError.code, 0)
        cluster.route(2, S, S, Y)
        assert await asyncio.to_thread(listed, 2) == (OK, 4)

    run(story, tmp_path)


def test_what_readers_suspect_is_told(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        cluster.route(1, S, S, S)

        def suspect() -> int:
            with cluster.connection(2) as connection:
                return _reader.suspect(connection, struct.pack("<QIIII", 5, 7, 2, 0, 0))

        assert await asyncio.to_thread(suspect) == OK
        await until(lambda: cluster.members[2].suspects == [(2, 5, 7)])

    run(story, tmp_path)


def test_head_refuses_below_the_least_number_of_replicas(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        cluster.route(1, S, O, O, least=2)
        assert await cluster.write(range(3)) == {TooFewReplicasError.code}
        assert cluster.held() == [{}, {}, {}]

    run(story, tmp_path)


@pytest.mark.parametrize("victim", [2, 3])
def test_member_that_is_gone_fails_writes_until_the_chain_goes_round_it(
    tmp_path: Path, victim: int
) -> None:
    async def story(cluster: Cluster) -> None:
        cluster.route(1, S, S, S)
        assert await cluster.write(range(4)) == {OK}
        await cluster.members.pop(victim).stop()
        assert await cluster.write(range(4, 8)) == {UnavailableError.code}
        assert await cluster.write(range(4, 8)) == {UnavailableError.code}
        states = [O if n == victim else S for n in (1, 2, 3)]
        cluster.route(2, *states)
        assert await cluster.write(range(4, 8), 2) == {OK}
        one, other = cluster.held()
        assert one == other and len(one) == 8

    run(story, tmp_path)


def test_member_that_says_nothing_holds_writes_until_the_routing_changes(tmp_path: Path) -> None:
    """Once it never completes the handshake; once it has, and then never answers a write."""

    async def story(cluster: Cluster) -> None:
        await cluster.members.pop(3).stop()
        with socket.create_server(("127.0.0.1", 0)) as silent:
            cluster.ports[3] = silent.getsockname()[1]
            cluster.route(1, S, S, S)
            writing = asyncio.create_task(cluster.write(range(4)))
            await until(lambda: cluster.members[2].logic.writes_pending == 4)
            cluster.route(2, S, S, O)
            assert await writing == {StaleChainError.code}
            assert await cluster.write(range(4), 2) == {OK}

    run(story, tmp_path)


def test_forward_under_way_ends_soon_when_its_chain_has_changed(tmp_path: Path) -> None:
    """The node stays a successor of the other chain's."""

    async def story(cluster: Cluster) -> None:
        cluster.route(1, S, S, S)
        assert await cluster.write(range(4)) == {OK}
        cluster.members[3].pump.stop()  # it receives, and decides nothing
        writing = asyncio.create_task(cluster.write(range(4, 8)))
        await until(lambda: cluster.members[2].data.stats()["forwards_total"] >= 8)
        assert not writing.done()
        cluster.route(2, S, S, O)
        assert await writing == {StaleChainError.code}
        assert await cluster.write(range(4, 8), 2) == {OK}
        cluster.members[3].pump.start()

    run(story, tmp_path)


def test_connection_that_was_lost_is_opened_again(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        cluster.route(1, S, S, S)
        assert await cluster.write(range(4)) == {OK}
        for peer_id in list(cluster.members[1].peers._hops):
            cluster.members[1].data.close_peer(peer_id)
        await until(lambda: not cluster.members[1].peers._hops)
        assert await cluster.write(range(4, 8)) == {OK}

    run(story, tmp_path)


def test_daemon_that_moved_is_found_at_its_new_address(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> None:
        cluster.route(1, S, S, S)
        assert await cluster.write(range(4)) == {OK}
        with listen("127.0.0.1", 0) as elsewhere:
            port = DataPort(elsewhere, KEY, cluster.members[2].data)
            serving = asyncio.create_task(port.serve())
            cluster.members[2].serving.cancel()  # type: ignore[union-attr]  # it serves
            cluster.ports[2] = elsewhere.getsockname()[1]
            cluster.route(2, S, S, S)
            assert await cluster.write(range(4, 8), 2) == {OK}
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    run(story, tmp_path)
