"""A node is drained and removed, another one added, while files are written, read and verified.

Promised: no read or write fails, at each moment each chain has as many members that serve as ever,
and in the end all disks hold about as much. The metadata server is killed in the middle of both.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

import numpy as np

from ffs.chains import serving, target_states
from ffs.client.filesystem import FFSFileSystem
from ffs.client.operators import Operator
from ffs.errors import StillNeededError, UnavailableError
from ffs.wire.operators import TaskKind
from tests.cluster.test_manager import all_serve, node_of, status, wait_for
from tests.harness import Cluster

CHUNK = 64 << 10
REPLICAS = 3
CONFIG: dict[str, object] = {
    "meta.replicas": REPLICAS,
    "meta.heartbeat_ms": 200,
    "meta.node_lease_ms": 5_000,  # however busy the machine is, who lives is heard within that
}
PAUSE_S = 0.02
"""Between two operations of a client: what is read and written is to be much, not too much."""


class Watched(threading.Thread):
    """Something that goes on until it is told to end, or fails."""

    def __init__(self, step: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._step = step
        self._ending = threading.Event()
        self._failure: BaseException | None = None
        self.steps = 0

    def run(self) -> None:
        while not self._ending.wait(PAUSE_S):
            try:
                self._step()
            except BaseException as error:
                self._failure = error
                return
            self.steps += 1

    def end(self) -> int:
        """Stop; raises what it failed of. Returns how often it was done."""
        self._ending.set()
        self.join()
        if self._failure is not None:
            raise self._failure
        return self.steps


class Traffic:
    """Writes files that are read back, and reads old ones, on every replica in turn."""

    def __init__(self, fs: FFSFileSystem) -> None:
        self._fs = fs
        self._dice = np.random.default_rng(8)
        self.files: dict[str, bytes] = {}

    def write(self) -> None:
        path = f"/f{len(self.files)}"
        content = self._dice.bytes(int(self._dice.integers(1, 4 * CHUNK)))
        self._fs.pipe_file(path, content, chunk_size_bytes=CHUNK)
        assert self._fs.cat_file(path) == content
        self.files[path] = content

    def read(self) -> None:
        if self.files:
            path = np.random.default_rng().choice(list(self.files))
            assert self._fs.cat_file(path) == self.files[path]


class Redundancy:
    """Looks at all chains again and again."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.most = 0

    def look(self) -> None:
        try:
            routing = status(self._cluster).routing
        except (UnavailableError, OSError):  # the metadata server is being started again
            return
        states = target_states(routing)
        counts = [len(serving(chain, states)) for chain in routing.chains]
        assert min(counts) >= REPLICAS, f"a chain has {min(counts)} replicas"
        self.most = max(self.most, *(len(chain.targets) for chain in routing.chains))


def fill(fs: FFSFileSystem, files: int) -> dict[str, bytes]:
    """Enough that moving it takes longer than a look at the chains."""
    dice = np.random.default_rng(3)
    content = {f"/old/{i}": dice.bytes(2 << 20) for i in range(files)}
    fs.pipe(content, chunk_size_bytes=CHUNK)
    return content


def members_by_node(operator: Operator) -> Counter[int]:
    """Node -> how many members of chains lie there."""
    members: Counter[int] = Counter()
    for disk in operator.tasks().disks:
        members[disk.node] += disk.members
    return members


def busy_daemon(cluster: Cluster, operator: Operator) -> tuple[int, int]:
    """A daemon that has members of chains: its place in the cluster, and its node.

    Why: the last one to come up may find that all chains were formed without it.
    """
    members = members_by_node(operator)
    nodes = [node_of(cluster, index) for index in range(4)]
    return next((index, node) for index, node in enumerate(nodes) if members[node])


def go_through(cluster: Cluster, operator: Operator, kind: TaskKind, subject: int = 0) -> None:
    """Ask for something twice, kill the metadata server as it begins, and see it end."""
    operator.begin(kind, subject)
    wait_for(lambda: bool(operator.tasks().moves), "nothing moves")
    cluster.restart("meta")
    operator.begin(kind, subject)
    assert operator.wait(kind, subject, look_s=0.1)


def remove(operator: Operator, node: int) -> bool:
    try:
        operator.remove_node(node)
    except StillNeededError:  # its lease has not ended yet
        return False
    return True


def test_nodes_come_and_go_under_readers_and_writers(new_cluster: Callable[..., Cluster]) -> None:
    cluster = new_cluster(4, CONFIG, targets=3)
    wait_for(lambda: all_serve(status(cluster).routing, REPLICAS), "chains were not formed")
    fs = FFSFileSystem(skip_instance_cache=True, **cluster.storage_options)
    operator = Operator(fs.core.meta)
    try:
        old = fill(fs, 12)
        traffic, redundancy = Traffic(fs), Redundancy(cluster)
        threads = [Watched(step) for step in (traffic.write, traffic.read, redundancy.look)]
        for thread in threads:
            thread.start()
        index, leaving = busy_daemon(cluster, operator)
        go_through(cluster, operator, TaskKind.DRAIN_NODE, leaving)
        assert members_by_node(operator)[leaving] == 0
        assert cluster.process("storage", index).terminate() == 0
        wait_for(lambda: remove(operator, leaving), "it is not forgotten")
        new = cluster.add_storage(targets=1)
        coming = node_of(cluster, new)
        go_through(cluster, operator, TaskKind.REBALANCE)
        written, read, looks = [thread.end() for thread in threads]
        print(f"{written} files written, {read} read, {looks} looks at the chains")
        assert redundancy.most == REPLICAS + 1, "a member was added before one left"
        counts = members_by_node(operator)
        assert counts[coming] >= 2 and max(counts.values()) - min(counts.values()) <= 1
        assert leaving not in counts
        wait_for(lambda: not operator.plan(TaskKind.REBALANCE).moves, "bytes are not even")
        everything = old | traffic.files
        assert {path: fs.cat_file(path) for path in everything} == everything
        assert leaving not in {node.id for node in status(cluster).nodes}
    finally:
        fs.close()


def test_one_that_was_removed_comes_back_empty(new_cluster: Callable[..., Cluster]) -> None:
    cluster = new_cluster(4, {**CONFIG, "meta.node_lease_ms": 2_000}, targets=3)
    wait_for(lambda: all_serve(status(cluster).routing, REPLICAS), "chains were not formed")
    fs = FFSFileSystem(skip_instance_cache=True, **cluster.storage_options)
    operator = Operator(fs.core.meta)
    try:
        files = fill(fs, 2)
        index, leaving = busy_daemon(cluster, operator)
        cluster.kill("storage", index)  # with all that it holds
        wait_for(lambda: not all_serve(status(cluster).routing, REPLICAS), "nobody misses it")
        operator.begin(TaskKind.DRAIN_NODE, leaving)
        assert operator.wait(TaskKind.DRAIN_NODE, leaving, look_s=0.1)
        wait_for(lambda: remove(operator, leaving), "it is not forgotten")
        cluster.restart("storage", index)
        back = node_of(cluster, index)

        def is_empty() -> bool:
            homes = {t.target: t.node for t in status(cluster).routing.targets}
            reports = status(cluster).reports
            return not sum(r.chunks for r in reports if homes.get(r.target) == back)

        wait_for(is_empty, "it still holds what it held")
        assert operator.tasks().tasks == []
        operator.begin(TaskKind.REBALANCE)
        assert operator.wait(TaskKind.REBALANCE, look_s=0.1)
        assert members_by_node(operator)[back] > 0
        assert {path: fs.cat_file(path) for path in files} == files
    finally:
        fs.close()
