"""One seed of a whole simulated cluster: servers, clients, faults, and what must hold.

Three storage daemons with several targets each, two metadata servers over one database, two clients
that do 200 operations, five faults. Then peace: links are mended, processes run, disks fail no
more; and within a bounded time every operation must end, every chain serve fully, every file be
read back and a new one be written, all members of a chain hold the same chunks, and nothing lie on
a disk that belongs to nothing. An operator may be at work meanwhile (operator.py), and a database
be lost at the end (restored.py).
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from ffs.config import MetaConfig
from ffs.errors import FFSError
from ffs.server.meta.store import Transaction
from ffs.types import TargetState
from tests.sim.chain_of_one import Violation
from tests.sim.cluster.client import Client
from tests.sim.cluster.database import Database
from tests.sim.cluster.disks import Disk, Store
from tests.sim.cluster.fabric import Fabric, Host
from tests.sim.cluster.faults import Nemesis
from tests.sim.cluster.ledger import Ledger
from tests.sim.cluster.linearizable import contradiction
from tests.sim.cluster.metadata import MetaServer
from tests.sim.cluster.operator import Operator
from tests.sim.cluster.restored import Restored
from tests.sim.cluster.storage import StorageNode
from tests.sim.world import MS, SECOND, NetworkFaults, World

H = TypeVar("H", bound=Host)

NODES: Final = 3
DISKS: Final = 2
REPLICAS: Final = 3
SERVERS: Final = 2
CLIENTS: Final = 2
LANES: Final = 4
OPERATIONS: Final = 200
START_NS: Final = 20 * SECOND
"""By when a new cluster must serve."""
JUDGED_NS: Final = 5 * SECOND
"""After so long without faults the manager has heard of all who live, and given up the others: by
then its lease, those of nodes and the disks' patience have each run out, one after another."""
PEACE_NS: Final = 40 * SECOND
"""How long after the last fault everything may take to be as it should."""
CHECK_NS: Final = SECOND

CONFIG: Final = MetaConfig(
    heartbeat_ms=500,
    node_lease_ms=1_000,
    replicas=REPLICAS,
    session_ttl_ms=1_600,
    gc_delay_s=1,
    chunk_size_bytes=1 << 16,
    backup_dir="",
)


class Cluster:
    """All that one seed makes.

    Args:    faults: kinds of faults to choose from; empty: all; keep_history: hold every event;
             operated: one node more, and an operator who drains and rebalances; restored: and
             at the end the database is lost, and comes back from a backup
    """

    def __init__(
        self,
        seed: int,
        *,
        faults: Sequence[str] = (),
        keep_history: bool = False,
        operated: bool = False,
        restored: bool = False,
    ) -> None:
        operated = operated or restored
        nodes = NODES + int(operated)
        self.world = World(seed, keep_history=keep_history)
        chance = self.world.random
        self.fabric = Fabric(
            self.world,
            NetworkFaults(
                drop=chance.choice([0.0, 0.0, 0.005, 0.02]),
                duplicate=chance.choice([0.0, 0.01, 0.05]),
                delay_ns_max=chance.choice([1, 3, 10]) * MS,
                stall=chance.choice([0.0, 0.01]),
                stall_ns_max=SECOND,
            ),
        )
        self.database = Database(self.world)
        self.disks = [
            Disk(self.world, f"node{node}/disk{disk}")
            for node in range(nodes)
            for disk in range(DISKS)
        ]
        self.ledger = Ledger(self.database.tx, self.disks)
        names = [f"meta{i}" for i in range(SERVERS)]
        self.servers = [
            MetaServer(self.world, self.fabric, name, self.database, CONFIG, self.ledger)
            for name in names
        ]
        self.nodes = [self._node(i, names) for i in range(nodes)]
        self.clients = [
            Client(
                self.world,
                self.fabric,
                f"client{i}",
                self.ledger,
                names,
                lanes=LANES,
                operations=OPERATIONS // CLIENTS // LANES,
            )
            for i in range(CLIENTS)
        ]
        self.nemesis = Nemesis(self, faults)
        self.operator = Operator(self, seed) if operated else None
        self.restored = Restored(self, seed) if restored else None

    def _node(self, i: int, servers: list[str]) -> StorageNode:
        disks = self.disks[i * DISKS : (i + 1) * DISKS]
        return StorageNode(self.world, self.fabric, f"node{i}", self.ledger, servers, disks)

    @property
    def hosts(self) -> list[Host]:
        """Every process."""
        return [*self.servers, *self.nodes, *self.clients]

    def stores_of(self, node: Host) -> list[Store]:
        """Return the open stores of a storage daemon."""
        assert isinstance(node, StorageNode)
        return list(node.targets.stores.values())

    # --- the run ----------------------------------------------------------------------------------

    def run(self) -> World:
        """Play the seed; raises Violation."""
        try:
            with quiet(), without_collection():
                self._start()
                self._work()
                self._make_peace()
                self._inspect()
        finally:
            for host in self.hosts:
                host.bury()
            self.database.close()
        return self.world

    def _start(self) -> None:
        for host in (*self.servers, *self.nodes):
            host.start()
        self.until(self.serves, START_NS, "a new cluster does not serve")
        self.database.after_commit = self._after_commit
        self.ledger.on_routing()
        for client in self.clients:
            client.start()

    def _after_commit(self, tx: Transaction) -> None:
        self.ledger.on_routing()

    def _work(self) -> None:
        self.nemesis.plan()
        if self.operator is not None:
            self.operator.plan()
        end_ns = self.nemesis.end_ns
        while self.world.now_ns < end_ns:
            self.world.run(min(end_ns, self.world.now_ns + CHECK_NS))
            self.ledger.check()

    def _make_peace(self) -> None:
        self.nemesis.make_peace()
        if any(disk.hangs for disk in self.ledger.disks):
            self.world.run(self.world.now_ns + JUDGED_NS)
            self.nemesis.let_one_hang()
        self.until(self._all_done, PEACE_NS, "operations have not ended")
        if self.nemesis.hanging is not None:
            self._everywhere(self.clients, Client.write_some, "writing beside a disk that hangs")
            self.nemesis.end_hanging()
        self.until(self.serves, PEACE_NS, "a chain does not serve fully")
        if self.operator is not None:
            self.until(self.operator.satisfied, PEACE_NS, "what was asked for is not done")
        for node in self.nodes:
            node.scrubs = False
        self._everywhere(self.nodes, StorageNode.scrub, "scrub")
        if self.restored is not None:
            self.restored.play()
        self._everywhere(self.clients, Client.use_everything, "reading everything back")
        for client in self.clients:
            client.crash()
        self.until(self._collected, PEACE_NS, "dead blobs are not dropped")
        self._everywhere(self.nodes, StorageNode.scan_now, "the scan")

    def _inspect(self) -> None:
        self.ledger.check()
        self.ledger.check_equal()
        calls = [call for client in self.clients for call in client.calls]
        paths = contradiction(calls)
        if paths:
            raise Violation(f"no order explains what clients saw of {paths}")

    # --- conditions -------------------------------------------------------------------------------

    def until(self, done: Callable[[], bool], limit_ns: int, otherwise: str) -> None:
        """Run until something holds; looked at every 50 ms."""
        limit_ns += self.world.now_ns
        while not done():
            if self.world.now_ns >= limit_ns:
                raise Violation(f"{otherwise} after {limit_ns / SECOND:.1f} s")
            self.world.run(self.world.now_ns + 50 * MS)

    def _everywhere(
        self, hosts: Sequence[H], act: Callable[[H], Coroutine[Any, Any, None]], what: str
    ) -> None:
        """Have all hosts do something, and wait for them."""
        tasks: list[asyncio.Task[None]] = []

        def begin(host: H) -> None:
            tasks.append(host.loop.create_task(act(host)))

        for host in hosts:
            host.loop.enter(begin, host)
        self.until(lambda: all(task.done() for task in tasks), PEACE_NS, f"{what} has not ended")
        for task in tasks:
            try:
                task.result()
            except FFSError as error:
                raise Violation(f"{what} has failed: {error!r}") from error

    def _all_done(self) -> bool:
        return all(client.done for client in self.clients)

    def serves(self) -> bool:
        """Whether there are chains, and all members of all of them serve."""
        routing = self.ledger.newest()
        states = {target.target: target.state for target in routing.targets}
        members = [target for chain in routing.chains for target in chain.targets]
        return (
            len(members) >= NODES * DISKS
            and all(states[target] == TargetState.SERVING for target in members)
            and all(node.ready for node in self.nodes)
            and not self.ledger.in_doubt()
        )

    def _collected(self) -> bool:
        return not self.ledger.dying()


class _Alarm(logging.Handler):
    """An error that a server logs with its traceback is a bug that it has survived."""

    def emit(self, record: logging.LogRecord) -> None:
        """Raise it where it was logged."""
        if record.exc_info and isinstance(record.exc_info[1], Violation):
            raise record.exc_info[1]
        if record.exc_info and record.exc_info[1] is not None:
            raise Violation(f"{record.getMessage()}: {record.exc_info[1]!r}") from (
                record.exc_info[1]
            )


@contextmanager
def quiet() -> Iterator[None]:
    """Let servers log nothing but bugs, which end the run."""
    logger = logging.getLogger("ffs")
    before = logger.level, logger.propagate, logger.handlers
    logger.setLevel(logging.ERROR)
    logger.propagate = False
    logger.handlers = [_Alarm()]
    try:
        yield
    finally:
        logger.setLevel(before[0])
        logger.propagate, logger.handlers = before[1:]


@contextmanager
def without_collection() -> Iterator[None]:
    """Let garbage lie for the time of a run: looking for it costs an eighth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def run(seed: int, *, faults: Sequence[str] = (), operated: bool = False) -> World:
    """Run one seed; return its world, whose digest names the history. Raises Violation."""
    return Cluster(seed, faults=faults, operated=operated).run()
