"""Several metadata servers over one database, seen from clients, daemons and operators: each knows
of the others, any of them does, and one that hangs or has no database is no reason to fail."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from ffs.client.filesystem import FFSFileSystem
from ffs.errors import DeadlineError, UnavailableError
from ffs.key import ClusterKey
from ffs.rpc.addresses import parse_address
from ffs.rpc.blocking import RpcClient
from ffs.wire.messages import MKDIR, ROUTING, MkdirRequest, RoutingRequest
from ffs.wire.status import STATUS, StatusReply, StatusRequest
from tests.cluster.mutating import Client, check, found_at
from tests.harness import Cluster

CONFIG: dict[str, object] = {
    "meta.heartbeat_ms": 100,
    "meta.node_lease_ms": 1_000,
    "meta.gc_delay_s": 0,
    "client.meta_deadline_ms": 7_500,
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two servers and a daemon that was told of the first one only."""
    directory = tmp_path_factory.mktemp("several")
    one = Cluster(directory, 1, CONFIG, metas=2, postgres=True, tell_all=False)
    yield one.start()
    one.kill_all()


@pytest.fixture
def fs(cluster: Cluster) -> Iterator[FFSFileSystem]:
    """A client that was told of the first server only."""
    with closing(FFSFileSystem(skip_instance_cache=True, **cluster.storage_options)) as one:
        assert "hosts" not in cluster.storage_options
        yield one


@pytest.fixture
def clients() -> Iterator[list[Client]]:
    """The processes that a test starts; they end with it."""
    made: list[Client] = []
    yield made
    for client in made:
        client.stop()


def rpc(cluster: Cluster, index: int) -> RpcClient:
    """One server and no other."""
    address = parse_address(cluster.meta_addresses[index])
    return RpcClient([address], ClusterKey.load(cluster.key_file))


def status(cluster: Cluster, index: int) -> StatusReply:
    """What a server says."""
    with closing(rpc(cluster, index)) as client:
        return client.call(STATUS, StatusRequest(), deadline_ms=10_000)


def until(holds: Callable[[], bool]) -> None:
    """Ask again and again, for as long as the test may run."""
    while not holds():
        time.sleep(0.01)


def test_every_server_knows_all_there_is(cluster: Cluster) -> None:
    def complete(said: StatusReply) -> bool:
        states = [(node.role, node.state) for node in said.nodes]
        return states == [("meta", "up"), ("meta", "up"), ("storage", "up")]

    for index in (0, 1):
        until(lambda index=index: complete(status(cluster, index)))  # type: ignore[misc]
    said = [status(cluster, index) for index in (0, 1)]
    assert [node.address for node in said[0].nodes][:2] == sorted(cluster.meta_addresses)
    pids = {node.address: node.pid for node in said[1].nodes if node.role == "meta"}
    assert set(pids.values()) == {cluster.process("meta", i).pid for i in (0, 1)}
    assert said[0].routing == said[1].routing and said[0].routing.version > 0
    for one in said:
        (report,) = one.reports
        assert report.capacity_bytes > 0 and report.disk and report.target == 1


def age_of_daemon(cluster: Cluster) -> int:
    """How old the daemon was with its last beat, in ns."""
    counters = status(cluster, 0).nodes[-1].counters
    return 0 if counters is None else counters.age_ns


def test_clients_and_daemons_learn_of_the_others(cluster: Cluster, fs: FFSFileSystem) -> None:
    asked = (ROUTING, RoutingRequest())
    for index in (0, 1):
        with closing(rpc(cluster, index)) as one:
            until(lambda one=one: len(one.call(*asked, deadline_ms=5_000).servers) == 2)  # type: ignore[misc]
    for _ in range(2):  # by its second beat from now on the daemon has heard of them, too
        age_ns = age_of_daemon(cluster)
        until(lambda age_ns=age_ns: age_of_daemon(cluster) > age_ns)  # type: ignore[misc]
    fs.pipe_file("/before", b"x" * 100)
    again: FFSFileSystem = pickle.loads(pickle.dumps(fs))
    again.info("/before")
    cluster.kill("meta", 0)
    try:
        assert fs.cat_file("/before") == b"x" * 100
        fs.pipe_file("/after", b"y" * 100_000)
        again.mkdir("/again")
        pid = os.fork()
        if pid == 0:
            os._exit(0 if fs.cat_file("/after") == b"y" * 100_000 else 1)
        assert os.waitpid(pid, 0)[1] == 0
        # The daemon goes on reporting, to the other one.
        before = status(cluster, 1).reports[0].chunks
        fs.pipe_file("/more", b"z" * 100)
        until(lambda: status(cluster, 1).reports[0].chunks > before)
        until(lambda: status(cluster, 1).nodes[-1].state == "up")
        until(lambda: [n.state for n in status(cluster, 1).nodes].count("down") == 1)
    finally:
        cluster.process("meta", 0).start()


def test_drops_are_confirmed_to_any_server(cluster: Cluster, fs: FFSFileSystem) -> None:
    fs.pipe({f"/drop-{i}": b"x" * 1_000 for i in range(50)})
    fs.rm([f"/drop-{i}" for i in range(50)])
    for index in (0, 1):
        until(lambda index=index: status(cluster, index).dead_blobs == 0)  # type: ignore[misc]


def test_four_writers_in_one_directory_meet_no_error(
    cluster: Cluster, clients: list[Client]
) -> None:
    clients += [Client(cluster, i, f"/client-{i}", i * 10, "/shared") for i in range(4)]
    for client in clients:
        client.report()
        client.go()
    time.sleep(2)
    reports = [client.report() for client in clients]
    expected: dict[str, Any] = {}
    for facts in reports:
        assert facts["operations"] > 0
        expected |= facts["state"]
    with closing(FFSFileSystem(**cluster.storage_options)) as fs:
        found = found_at(fs, ["/shared"])
    assert found.pop("/shared/hot")[1] == sum(facts["hot"] for facts in reports)
    assert found == expected
    check(cluster)


def test_a_server_that_hangs_is_left_for_another(cluster: Cluster, fs: FFSFileSystem) -> None:
    fs.mkdir("/hangs")
    cluster.pause("meta", 0)
    try:
        fs.mkdir("/hangs/not")
        assert fs.ls("/hangs", detail=False) == ["/hangs/not"]
    finally:
        cluster.resume("meta", 0)


@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_without_a_database_servers_stay_and_come_back(
    cluster: Cluster, fs: FFSFileSystem, how: str
) -> None:
    database = cluster.postgres
    assert database is not None
    pids = cluster.pids
    request = MkdirRequest(os.urandom(16), f"/database-{how}".encode())
    with closing(rpc(cluster, 1)) as client:
        database.pause() if how == "hangs" else database.stop_at_once()
        for _ in range(2):
            with pytest.raises((UnavailableError, DeadlineError)):
                client.call(MKDIR, request, deadline_ms=300)
        known = client.call(ROUTING, RoutingRequest(), deadline_ms=30_000)
        assert known.routing.version > 0, "the routing is told as last known: readers go on"
        database.resume() if how == "hangs" else database.start()
        client.call(MKDIR, request, deadline_ms=30_000)
    assert fs.isdir(f"/database-{how}")
    assert cluster.pids == pids


def test_a_server_says_goodbye_and_waits_for_its_database(cluster: Cluster) -> None:
    assert cluster.postgres is not None
    process = cluster.process("meta", 1)
    assert process.terminate() == 0
    assert [node.role for node in status(cluster, 0).nodes] == ["meta", "storage"], "it said so"
    cluster.postgres.stop_at_once()
    process.start(wait=False)
    cluster.postgres.start()
    process.wait_ready()
