"""Three daemons with three replicas, each a machine of its own, and rounds of faults upon them.

A round: strike, let clients work under the fault, heal as a repairman would (the process is
started again, the cable plugged in), and wait until every chain has all members in service again,
which nobody commands. Afterwards what was acknowledged must be there, the same chunks on all three.

The times that the product promises are measured and printed (and appended to the file FFS_REPORT
names); they are asserted if FFS_TIMES is 1, as in `make soak`: the clock of a machine that runs
other tests too would break them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from ffs import chains
from ffs._storage import ChunkStore
from ffs.client.filesystem import FFSFileSystem
from ffs.client.layouts import Content
from ffs.key import ClusterKey
from ffs.rpc.blocking import RpcClient
from ffs.wire.status import STATUS, StatusReply, StatusRequest
from tests.cluster.faults.clients import Clients
from tests.cluster.faults.network import HUB_ADDRESS, Network
from tests.cluster.faults.workload import CHUNK, FILES, content_of, path_of
from tests.harness import Cluster, stopped_at_exit

ROUNDS: Final = int(os.environ.get("FFS_ROUNDS", "3"))
SEED: Final = int(os.environ.get("FFS_SEED", "1"))
DAEMONS: Final = 3
LATE_S_MAX: Final = 0.2
BLOCKED_S_MAX: Final = 10.0
WAIT_S: Final = 80.0
SHORT_LEASE: Final[dict[str, object]] = {
    "meta.heartbeat_ms": 200,
    "meta.node_lease_ms": 1_000,
    "storage.hung_disk_ms": 1_000,
}
DEFAULT_LEASE: Final[dict[str, object]] = {"meta.heartbeat_ms": 1_000, "meta.node_lease_ms": 5_000}
_ALWAYS: Final[dict[str, object]] = {
    "meta.replicas": DAEMONS,
    "meta.gc_delay_s": 0,
    "meta.session_ttl_ms": 5_000,
}
"""What was not acknowledged is garbage soon, so that the members can be compared."""


class FaultCluster(Cluster):
    """A cluster whose daemons are machines of a network; all else is at its hub.

    Args:    wrap: what to put before the metadata server's command
    """

    def __init__(
        self,
        directory: Path,
        network: Network,
        lease: dict[str, object],
        wrap: tuple[str, ...] = (),
    ) -> None:
        super().__init__(directory, DAEMONS, {**_ALWAYS, **lease}, targets=2)
        self.network = network
        self.lease_s = float(str(lease["meta.node_lease_ms"])) / 1e3
        self._wrap = wrap

    def _meta_argv(self) -> list[str]:
        return [*self._wrap, *_at(HUB_ADDRESS, super()._meta_argv())]

    def _storage_argv(self, index: int) -> list[str]:
        argv = _at(self.network.address(index), super()._storage_argv(index))
        return [*self.network.enter(index), *argv]

    def status(self) -> StatusReply:
        """What the metadata server says of the cluster."""
        client = RpcClient([self.address], ClusterKey.load(self.key_file), connect_ms=5_000)
        try:
            return client.call(STATUS, StatusRequest(), deadline_ms=30_000)
        finally:
            client.close()

    def redundant(self) -> bool:
        """Whether all members of all chains serve."""
        routing = self.status().routing
        states = chains.target_states(routing)
        served = [len(chains.serving(chain, states)) for chain in routing.chains]
        return served == [DAEMONS] * self.targets

    def collected(self) -> bool:
        """Whether no blob is being written, or waits to be dropped."""
        status = self.status()
        return status.dead_blobs == 0 and status.sessions == 0

    def stored(self) -> list[set[tuple[int, int]]]:
        """The chunks that each daemon holds; all of them have ended."""
        return [self._keys_of(index) for index in range(DAEMONS)]

    def _keys_of(self, index: int) -> set[tuple[int, int]]:
        found: set[tuple[int, int]] = set()
        for target in range(self.targets):
            path = str(self.target_dir(index, target))
            known = ChunkStore.read_superblock(path)
            assert known is not None
            ids = {name: known[name] for name in ("cluster_id", "target_id")}
            store = ChunkStore(path, **ids)
            for blob in store.blobs(limit=1_000_000):
                found |= {(blob, chunk) for chunk, _ in store.chunks(blob)}
            store.close()
        return found


def _at(address: str, argv: list[str]) -> list[str]:
    place = argv.index("--host") + 1
    return [*argv[:place], address, *argv[place + 1 :]]


class Nemesis(Protocol):
    """A fault. `felt`: readers must have noticed it; `hold_leases`: how long it lasts at least."""

    name: str
    felt: bool
    hold_leases: float

    def strike(self, victim: int) -> None:
        """Let it begin."""
        ...

    def heal(self, victim: int) -> None:
        """Let it end."""
        ...


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something; not for ever."""
    give_up = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up, what
        time.sleep(0.1)


class Rounds:
    """A cluster under a nemesis, with a reader and a writer at work.

    Args:    victims: the daemons that it strikes, in turn
    """

    def __init__(
        self, cluster: FaultCluster, clients: Clients, victims: Sequence[int] = range(DAEMONS)
    ) -> None:
        self.cluster, self.clients, self._victims = cluster, clients, victims
        self.healing_s: list[float] = []

    def play(self, nemesis: Nemesis, rounds: int = ROUNDS) -> None:
        """Strike each machine in turn; then hold what is there against what was promised."""
        try:
            self.clients.warm_up()
            for number in range(rounds):
                self._round(nemesis, self._victims[(number + SEED) % len(self._victims)])
            self.clients.finish()
            self._tell(nemesis, rounds)
            if nemesis.felt:
                assert self.clients.counters["doubts"] > 0, "readers never met the fault"
            self.check_files()
        except AssertionError as error:
            error.add_note(self.cluster.log_tails())
            raise

    def _round(self, nemesis: Nemesis, victim: int) -> None:
        began = time.monotonic()
        nemesis.strike(victim)
        if nemesis.hold_leases:
            time.sleep(nemesis.hold_leases * self.cluster.lease_s)
            self.clients.take_stock(began)  # both get something done under the fault
        healed = time.monotonic()
        nemesis.heal(victim)
        until(self.cluster.redundant, f"not redundant again after {nemesis.name} on {victim}")
        self.healing_s.append(time.monotonic() - healed)
        self.clients.take_stock(began)

    def check_files(self) -> None:
        """Everything acknowledged reads back through a client of its own."""
        fs = FFSFileSystem(skip_instance_cache=True, **self.cluster.storage_options)
        for path, digest in self.clients.acknowledged.items():
            assert hashlib.sha256(fs.cat_file(path)).hexdigest() == digest, path
        for number in range(FILES):
            assert fs.cat_file(path_of(number)) == content_of(number)
        fs.close()

    def _tell(self, nemesis: Nemesis, rounds: int) -> None:
        reads, writes = self.clients.reads, self.clients.writes
        facts: dict[str, Any] = {
            "fault": nemesis.name,
            "rounds": rounds,
            "lease_s": self.cluster.lease_s,
            "reads": len(reads.late),
            "reads_late_p999_ms": round(reads.quantile(0.999) * 1e3, 1),
            "reads_late_max_ms": round(reads.worst * 1e3, 1),
            "writes": len(writes.late),
            "writes_blocked_max_s": round(writes.worst, 2),
            "healing_max_s": round(max(self.healing_s), 2),
            "counters": self.clients.counters,
        }
        print(json.dumps(facts))
        if report := os.environ.get("FFS_REPORT"):
            with Path(report).open("a") as file:
                file.write(json.dumps(facts) + "\n")
        if os.environ.get("FFS_TIMES") == "1":
            assert reads.quantile(0.999) <= LATE_S_MAX
            assert writes.worst <= BLOCKED_S_MAX


@contextlib.contextmanager
def started(cluster: FaultCluster) -> Iterator[None]:
    """Run a cluster that holds what readers read; in the end all three daemons hold the same."""
    with stopped_at_exit(cluster):
        fill(cluster)
        yield
        check_same_keys(cluster)


def fill(cluster: FaultCluster) -> None:
    """Wait until all members serve, and write what readers read."""
    until(cluster.redundant, "the chains never came into service")
    fs = FFSFileSystem(skip_instance_cache=True, **cluster.storage_options)
    for number in range(FILES):
        fs.pipe_file(path_of(number), content_of(number), chunk_size_bytes=CHUNK)
    fs.close()


def check_same_keys(cluster: FaultCluster) -> None:
    """Once nobody writes, all three hold the same chunks: look into their stores.

    All of those of files, and none but those, once what was being dropped has been.
    """
    fs = FFSFileSystem(skip_instance_cache=True, **cluster.storage_options)
    contents = fs.core.meta.open_many(fs.find("/"))
    fs.close()
    blobs = {s.blob for c in contents if isinstance(c, Content) for s in c.segments}
    until(cluster.redundant, "not redundant in the end")
    until(cluster.collected, "what belongs to no file was not dropped")
    cluster.stop()
    held = cluster.stored()
    everywhere = set.intersection(*held)
    assert {blob for blob, _ in everywhere} == blobs
    odd = {f"daemon {index}": sorted(keys - everywhere) for index, keys in enumerate(held)}
    assert not any(odd.values()), f"not all hold {odd}"
