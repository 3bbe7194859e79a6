"""A daemon that is gone for good: what it had is copied to others by itself.

Nothing here is timed: a state is waited for, however long that takes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

import numpy as np

from ffs.client.filesystem import FFSFileSystem
from ffs.types import Routing
from tests.cluster.test_manager import all_serve, node_of, status, wait_for
from tests.harness import Cluster

CHUNK = 64 << 10
CONFIG: dict[str, object] = {
    "meta.replicas": 3,
    "meta.heartbeat_ms": 200,
    "meta.node_lease_ms": 2_000,
    "meta.rereplicate_after_s": 1,
}


def whole_without(routing: Routing, node: int) -> bool:
    homes = {target.target: target.node for target in routing.targets}
    return all_serve(routing, 3) and all(
        len({homes[target] for target in chain.targets} - {node}) == 3 for chain in routing.chains
    )


def test_what_a_lost_daemon_had_is_copied_to_the_others(
    new_cluster: Callable[..., Cluster],
) -> None:
    cluster = new_cluster(3, CONFIG, targets=3)
    wait_for(lambda: all_serve(status(cluster).routing, 3), "chains were not formed")
    assert len(status(cluster).routing.chains) == 3
    dice = np.random.default_rng(5)
    files = {f"/f{i}": dice.bytes(5 * CHUNK + i) for i in range(20)}
    fs = FFSFileSystem(skip_instance_cache=True, **cluster.storage_options)
    try:
        fs.pipe(files, chunk_size_bytes=CHUNK)
        node = node_of(cluster, 2)
        cluster.kill("storage", 2)
        shutil.rmtree(cluster.target_dir(2).parent)
        new = cluster.add_storage(targets=1)  # two more it has to make by order
        wait_for(lambda: whole_without(status(cluster).routing, node), "it is still missed")
        cluster.restart("storage", new)
        wait_for(lambda: whole_without(status(cluster).routing, node), "it did not come back")
        cluster.kill("storage", 0)
        cluster.kill("storage", 1)
        # What was made by order was found again, and has everything.
        assert {path: fs.cat_file(path) for path in files} == files
        cluster.restart("storage", 0)
        cluster.restart("storage", 1)
        wait_for(lambda: whole_without(status(cluster).routing, node), "they did not come back")
        fs.pipe_file("/new", files["/f1"], chunk_size_bytes=CHUNK)
        assert fs.cat_file("/new") == files["/f1"]
    finally:
        fs.close()
