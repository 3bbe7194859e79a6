"""What storage daemons count can be seen while they run, whichever metadata server is asked."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

import fsspec
import pytest

from ffs.key import ClusterKey
from ffs.rpc.blocking import RpcClient
from ffs.wire.membership import DataLoopCounters
from ffs.wire.status import STATUS, StatusRequest
from tests.harness import Cluster

WAIT_S = 60.0
CONFIG = {"meta.heartbeat_ms": 50, "meta.node_lease_ms": 10_000, "client.same_host": "off"}
DATA = os.urandom(300_000)


def address_of(text: str) -> tuple[str, int]:
    host, port = text.rsplit(":", 1)
    return host, int(port)


def seen(cluster: Cluster, server: int, enough: Callable[[DataLoopCounters], bool]) -> None:
    """Wait until one metadata server tells what the only daemon counts as a test wants it."""
    address = address_of(cluster.meta_addresses[server])
    rpc = RpcClient([address], ClusterKey.load(cluster.key_file))
    with contextlib.closing(rpc):
        give_up = time.monotonic() + WAIT_S
        while True:
            nodes = rpc.call(STATUS, StatusRequest(), deadline_ms=5_000).nodes
            (counters,) = [node.counters for node in nodes if node.role == "storage"]
            if counters is not None and enough(counters):
                return
            assert time.monotonic() < give_up, counters
            time.sleep(0.05)


@pytest.mark.parametrize("metas", [1, 2], ids=["sqlite", "postgres"])
def test_reads_are_seen_to_be_counted(new_cluster: Callable[..., Cluster], metas: int) -> None:
    cluster = new_cluster(config=CONFIG, metas=metas, postgres=metas > 1)
    fs = fsspec.filesystem("ffs", **cluster.storage_options, skip_instance_cache=True)
    fs.pipe("/file", DATA)
    for reads in (1, 2):
        assert fs.cat("/file") == DATA

        def enough(counters: DataLoopCounters, wanted: int = reads * len(DATA)) -> bool:
            return counters.read_bytes_total >= wanted and counters.connections > 0

        for server in range(metas):
            seen(cluster, server, enough)
    fs.close()
    cluster.restart("storage")
    for server in range(metas):
        seen(cluster, server, lambda counters: counters.read_bytes_total == 0)
