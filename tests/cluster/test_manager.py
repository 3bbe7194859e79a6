"""Daemons that die, stand still and come back, as the cluster manager sees it and people are told.

Leases are long enough for a busy machine to beat within them, and nothing here is timed: a state is
waited for, however long that takes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ffs.chains import serving, target_states
from ffs.key import ClusterKey
from ffs.rpc.blocking import RpcClient
from ffs.types import Routing, TargetState
from ffs.wire.status import STATUS, StatusReply, StatusRequest
from tests.harness import Cluster, UpCluster

OFFLINE = TargetState.OFFLINE
QUICK: dict[str, object] = {"meta.heartbeat_ms": 200, "meta.node_lease_ms": 2_000}
WAIT_S = 60.0


def wait_for(condition: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up, what
        time.sleep(0.05)


def status(cluster: Cluster, server: int = 0) -> StatusReply:
    host, port = cluster.meta_addresses[server].rsplit(":", 1)
    client = RpcClient([(host, int(port))], ClusterKey.load(cluster.key_file), connect_ms=2_000)
    try:
        return client.call(STATUS, StatusRequest(), deadline_ms=10_000)
    finally:
        client.close()


def states(routing: Routing, node: int) -> set[TargetState]:
    return {TargetState(target.state) for target in routing.targets if target.node == node}


def versions(routing: Routing) -> dict[int, int]:
    return {chain.chain: chain.version for chain in routing.chains}


def all_serve(routing: Routing, members: int) -> bool:
    states = target_states(routing)
    return bool(routing.chains) and all(
        len(serving(chain, states)) == members for chain in routing.chains
    )


def node_of(cluster: Cluster, index: int) -> int:
    """The node that a process of the cluster is."""
    pid = cluster.process("storage", index).pid
    (node,) = [n.id for n in status(cluster).nodes if n.role == "storage" and n.pid == pid]
    return node


def test_a_daemon_that_stands_still_leaves_its_chains_and_comes_back(
    new_cluster: Callable[..., Cluster],
) -> None:
    cluster = new_cluster(3, {**QUICK, "meta.replicas": 3}, targets=3)
    wait_for(lambda: all_serve(status(cluster).routing, 3), "chains were not formed")
    before = status(cluster).routing
    homes = {target.target: target.node for target in before.targets}
    assert len(before.chains) == 3
    assert {homes[chain.targets[0]] for chain in before.chains} == {1, 2, 3}
    node = node_of(cluster, 1)
    cluster.pause("storage", 1)
    wait_for(lambda: states(status(cluster).routing, node) == {OFFLINE}, "it still serves")
    without = status(cluster).routing
    assert all(versions(without)[chain] > old for chain, old in versions(before).items())
    assert all(homes[chain.targets[-1]] == node for chain in without.chains)
    cluster.resume("storage", 1)

    def as_before() -> bool:
        now = status(cluster).routing
        order = [chain.targets for chain in now.chains]
        return all_serve(now, 3) and order == [chain.targets for chain in before.chains]

    wait_for(as_before, "it did not come back to its place")


def test_another_server_is_the_manager_when_the_first_one_dies(
    new_cluster: Callable[..., Cluster],
) -> None:
    cluster = new_cluster(2, {**QUICK, "meta.replicas": 2}, targets=2, metas=2, postgres=True)
    wait_for(lambda: all_serve(status(cluster).routing, 2), "chains were not formed")
    node = node_of(cluster, 0)
    cluster.kill("meta", 0)
    cluster.kill("storage", 0)
    wait_for(
        lambda: states(status(cluster, 1).routing, node) == {OFFLINE}, "nobody noticed its death"
    )
    cluster.restart("storage", 0)
    wait_for(lambda: all_serve(status(cluster, 1).routing, 2), "it did not come back")


def test_up_keeps_as_many_replicas_as_it_is_told(tmp_path: Path) -> None:
    def told() -> dict[str, Any]:
        argv = [sys.executable, "-m", "ffs.cli", "status", "--json"]
        done = subprocess.run(
            argv, env={**os.environ, **up.environment}, stdout=subprocess.PIPE, check=True
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    with UpCluster(tmp_path / "dir", storage=3, replicas=3) as up:
        report = told()
        assert {key: sorted(report[key][0]) for key in ("nodes", "chains")} == {
            "nodes": sorted(
                ("id", "role", "pid", "state", "address", "counters", "transport", "why")
                + ("returns", "version", "congestion")
            ),
            "chains": ["id", "targets", "version"],
        }
        assert [(n["id"], n["role"], n["state"]) for n in report["nodes"]] == [
            (0, "meta", "up"),
            *((node, "storage", "up") for node in (1, 2, 3)),
        ]
        assert [chain["id"] for chain in report["chains"]] == [1, 2, 3]
        for chain in report["chains"]:
            assert [sorted(target) for target in chain["targets"]] == [["id", "node", "state"]] * 3
            assert sorted(target["node"] for target in chain["targets"]) == [1, 2, 3]
            assert {target["state"] for target in chain["targets"]} == {"serving"}
        killed = report["nodes"][1]
        os.kill(killed["pid"], signal.SIGKILL)

        def is_back() -> bool:
            report = told()
            (node,) = [n for n in report["nodes"] if n["id"] == killed["id"]]
            states = {target["state"] for c in report["chains"] for target in c["targets"]}
            return node["pid"] != killed["pid"] and states == {"serving"}

        wait_for(is_back, "the daemon did not come back")
    with UpCluster(tmp_path / "dir", storage=3, replicas=3) as up:
        assert len(told()["chains"]) == 3, "the same as before"
