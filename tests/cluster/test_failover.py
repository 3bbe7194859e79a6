"""kill -9 of metadata servers and of their database at random moments, under clients that change
names all the time.

After each round every client says what must be there: that and nothing else is, each change counted
once, and the database keeps every invariant. No client saw an error.

FFS_ROUNDS sets the number of rounds over PostgreSQL and over SQLite together (`make soak`: 100),
FFS_SEED the first seed.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator

import pytest

from ffs.client.filesystem import FFSFileSystem
from tests.cluster.mutating import Client, check, found_at
from tests.harness import Cluster

ROUNDS = int(os.environ.get("FFS_ROUNDS", "6"))
SEED = int(os.environ.get("FFS_SEED", "1"))
CLIENTS = 3
CONFIG: dict[str, object] = {
    "meta.heartbeat_ms": 100,
    "meta.node_lease_ms": 1_000,
    "meta.gc_delay_s": 0,
}


@pytest.fixture
def clients() -> Iterator[list[Client]]:
    """The processes that a test starts; they end with it."""
    made: list[Client] = []
    yield made
    for client in made:
        client.stop()


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
    # Whichever servers the clients went to, they cannot have gone on without a retry now.
    rounds.play(lambda: rounds.restart_later(0, 1, 2))
    assert rounds.operations > 0 and rounds.retries > 0


def test_the_only_server_dies(new_cluster: Callable[..., Cluster], clients: list[Client]) -> None:
    cluster = new_cluster(1, CONFIG)
    rounds = Rounds(cluster, clients, SEED)
    for _ in range(max(1, ROUNDS // 3)):
        rounds.play(lambda: rounds.restart_later(0))
    assert rounds.operations > 0 and rounds.retries > 0
