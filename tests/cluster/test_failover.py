"""kill -9 of metadata servers and of their database at random moments, under clients that change
names all the time.

After each round every client says what must be there: that and nothing else is, each change counted
once, and the database keeps every invariant. No client saw an error.

FFS_ROUNDS sets the number of rounds over PostgreSQL and over SQLite together (`make soak`: 100),
FFS_SEED the first seed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ffs.client.filesystem import FFSFileSystem
from ffs.server.meta.postgres import Connection
from ffs.server.meta.sqlite import DATABASE_NAME, SqliteTransaction, open_database
from tests.harness import Cluster
from tests.namespace import check_database

ROUNDS = int(os.environ.get("FFS_ROUNDS", "6"))
SEED = int(os.environ.get("FFS_SEED", "1"))
ROOT = Path(__file__).parents[2]
CLIENTS = 3
CONFIG: dict[str, object] = {
    "meta.heartbeat_ms": 100,
    "meta.node_lease_ms": 1_000,
    "meta.gc_delay_s": 0,
}


class Client:
    """A `tests.cluster.mutator` process. Each begins with another metadata server."""

    def __init__(self, cluster: Cluster, index: int, directory: str, seed: int, *shared: str):
        self.directory = directory
        addresses = cluster.meta_addresses
        first = index % len(addresses)
        hosts = addresses[first:] + addresses[:first]
        options = json.dumps(cluster.storage_options | {"url": f"ffs://{hosts[0]}", "hosts": hosts})
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.mutator", options, directory, str(seed), *shared],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def report(self) -> dict[str, Any]:
        """Let it finish what it does, and return what it expects; it waits for `go`."""
        self._say("report\n")
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self._ended()
        facts: dict[str, Any] = json.loads(line)
        return facts

    def go(self) -> None:
        """Go on."""
        self._say("go\n")

    def stop(self) -> None:
        """End."""
        self._process.kill()
        self._process.communicate()

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(word)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise AssertionError(self._ended()) from None

    def _ended(self) -> str:
        return f"client of {self.directory} met an error and ended with {self._process.wait(10)}"


@pytest.fixture
def clients() -> Iterator[list[Client]]:
    """The processes that a test starts; they end with it."""
    made: list[Client] = []
    yield made
    for client in made:
        client.stop()


def found_at(fs: FFSFileSystem, directories: Iterable[str]) -> dict[str, Any]:
    """What is there, in a client's words."""
    return {
        entry["name"]: (
            "directory" if entry["type"] == "directory" else [entry["size"], entry["version"]]
        )
        for directory in directories
        for entry in fs.ls(directory, detail=True)
    }


def check(cluster: Cluster) -> None:
    """Hold the database against every invariant."""
    if cluster.postgres is not None:
        connection = Connection(cluster.postgres.url(), writes=True)
        try:
            check_database(connection.open())
        finally:
            connection.close()
        return
    sqlite = open_database(cluster.meta_dir / DATABASE_NAME)
    try:
        check_database(SqliteTransaction(sqlite))
    finally:
        sqlite.close()


class Rounds:
    """Clients at work, disturbed again and again."""

    def __init__(self, cluster: Cluster, clients: list[Client], seed: int) -> None:
        self.cluster = cluster
        self.chance = random.Random(seed)
        self._clients = clients
        self._clients += [
            Client(cluster, i, f"/client-{i}", seed * 100 + i * 10) for i in range(CLIENTS)
        ]
        self._fs = FFSFileSystem(skip_instance_cache=True, **cluster.storage_options)
        self.operations = self.retries = 0
        for client in self._clients:  # they are at work from here on
            client.report()
            client.go()

    def play(self, disturb: Callable[[], None]) -> None:
        """Disturb at a random moment; then everything must be as the clients were told."""
        time.sleep(self.chance.uniform(0.05, 0.5))
        disturb()
        time.sleep(self.chance.uniform(0.0, 0.3))
        reports = [client.report() for client in self._clients]
        for facts in reports:
            assert found_at(self._fs, facts["directories"]) == facts["state"]
        check(self.cluster)
        self.operations = sum(facts["operations"] for facts in reports)
        self.retries = sum(facts["retries"] for facts in reports)
        for client in self._clients:
            client.go()

    def restart_later(self, *indices: int) -> None:
        """Kill metadata servers at once, and start them again after a while."""
        for index in indices:
            self.cluster.kill("meta", index)
        time.sleep(self.chance.uniform(0.0, 0.5))
        for index in indices:
            self.cluster.process("meta", index).start()


def test_servers_and_postgres_die(
    new_cluster: Callable[..., Cluster], clients: list[Client]
) -> None:
    cluster = new_cluster(1, CONFIG, metas=3, postgres=True)
    database = cluster.postgres
    assert database is not None
    rounds = Rounds(cluster, clients, SEED)

    def kill_servers() -> None:
        rounds.restart_later(*rounds.chance.sample(range(3), rounds.chance.choice((1, 2))))

    def kill_postmaster() -> None:
        database.kill()
        database.start()

    def kill_backends() -> None:
        while not database.kill_backends(2):
            time.sleep(0.01)

    def stop_database() -> None:
        database.stop_at_once()
        time.sleep(rounds.chance.uniform(0.0, 0.5))
        database.start()

    def kill_both() -> None:
        index = rounds.chance.randrange(3)
        cluster.kill("meta", index)
        kill_postmaster()
        cluster.process("meta", index).start()

    faults = [kill_servers, kill_postmaster, kill_both, kill_backends, stop_database]
    for i in range(max(1, ROUNDS * 2 // 3)):
        rounds.play(faults[i % len(faults)])
    assert rounds.operations > 0 and rounds.retries > 0


def test_the_only_server_dies(new_cluster: Callable[..., Cluster], clients: list[Client]) -> None:
    cluster = new_cluster(1, CONFIG)
    rounds = Rounds(cluster, clients, SEED)
    for _ in range(max(1, ROUNDS // 3)):
        rounds.play(lambda: rounds.restart_later(0))
    assert rounds.operations > 0 and rounds.retries > 0


def test_four_writers_in_one_directory_meet_no_error(
    new_cluster: Callable[..., Cluster], clients: list[Client]
) -> None:
    cluster = new_cluster(1, CONFIG, metas=2, postgres=True)
    clients += [Client(cluster, i, f"/client-{i}", SEED + i * 10, "/shared") for i in range(4)]
    for client in clients:
        client.report()
        client.go()
    time.sleep(3)
    reports = [client.report() for client in clients]
    expected: dict[str, Any] = {}
    for facts in reports:
        assert facts["retries"] == 0
        assert facts["operations"] > 0
        expected |= facts["state"]
    with contextlib.closing(FFSFileSystem(**cluster.storage_options)) as fs:
        found = found_at(fs, ["/shared"])
    assert found.pop("/shared/hot")[1] == sum(facts["hot"] for facts in reports)
    assert found == expected
    check(cluster)
