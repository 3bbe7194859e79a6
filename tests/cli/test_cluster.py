"""`ffs cluster`: what it asks for, what it refuses, and how it waits."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.cli.support import Cli, one_line, terminal
from tests.harness import Cluster


@pytest.fixture
def asked_for_nothing(ffs: Cli) -> Iterator[Cli]:
    """Run `ffs ...` on the shared cluster, and take back what was asked for."""
    yield ffs
    ffs("cluster", "add-node", "--cancel")
    assert ffs("cluster", "status", "--json").json()["tasks"] == []


def test_status_tells_disks_chains_and_tasks(asked_for_nothing: Cli, cluster: Cluster) -> None:
    ffs = asked_for_nothing
    report = ffs("cluster", "status", "--json").json()
    assert set(report) == {"nodes", "disks", "chains", "tasks", "moves"}
    (node,) = report["nodes"]
    assert (node["id"], node["state"], node["drain"]) == (1, "up", False)
    (disk,) = report["disks"]
    assert disk["path"] == str(cluster.target_dir())
    assert (disk["members"], disk["targets"]) == (1, 1)
    assert report["chains"] == {"total": 1, "whole": 1, "copying": 0, "short": 0, "unserved": 0}
    assert ffs("cluster", "status").out.startswith("1 chain: 1 whole\n")
    ffs("cluster", "add-node", "--no-wait", "node7")
    (task,) = ffs("cluster", "status", "--json").json()["tasks"]
    assert (task["task"], task["host"]) == ("add_node", "node7")
    assert "waits for a node at node7 to come up" in ffs("cluster", "status").out


def test_a_drain_that_would_lose_replicas_is_refused(ffs: Cli) -> None:
    for argv in (("1",), ("1", "--dry-run"), ("--target", "1"), ("1", "--no-wait")):
        error = one_line(ffs("cluster", "drain", *argv, check=False), "cluster drain", 1)
        assert "chain 1 would be left with 0 of 1 replicas" in error and "add a node" in error
    done = ffs("cluster", "drain", "1", "--dry-run", "--json", check=False)
    assert done.code == 1 and "chain 1" in done.json()["refusal"] and not done.json()["moves"]
    assert ffs("cluster", "drain", "1", "--cancel", "--json").json()["state"] == "nothing"


def test_usage_that_makes_no_sense_is_refused(ffs: Cli) -> None:
    for argv in ((), ("1", "--target", "1"), ("one",), ("1", "--cancel", "--dry-run")):
        one_line(ffs("cluster", "drain", *argv, check=False), "cluster drain", 2)


def test_a_node_that_runs_is_not_removed(ffs: Cli) -> None:
    error = one_line(ffs("cluster", "remove-node", "1", check=False), "cluster remove-node", 1)
    assert "node 1 still runs" in error and "stop its daemon" in error


def test_an_even_cluster_is_rebalanced_at_once(ffs: Cli) -> None:
    assert ffs("cluster", "rebalance", "--dry-run").out == "0 moves, 0 B to copy\n"
    assert ffs("cluster", "rebalance").out == "all disks are about as full\n"
    report = {"task": "rebalance", "state": "done"}
    assert ffs("cluster", "rebalance", "--json").json() == report


def test_add_node_says_what_to_run(asked_for_nothing: Cli, cluster: Cluster) -> None:
    ffs = asked_for_nothing
    out = ffs("cluster", "add-node", "node7", "--dry-run").out
    command = f"ffs storage --meta {cluster.url.removeprefix('ffs://')} --key-file cluster.key"
    assert f"  {command} --host node7 --target DIRECTORY\n" in out
    assert ffs("cluster", "status", "--json").json()["tasks"] == []
    for _ in range(2):  # asking twice is asking once
        report = ffs("cluster", "add-node", "node7", "--no-wait", "--json").json()
        assert report["run"].startswith(command) and report["state"] == "under way"
    assert len(ffs("cluster", "status", "--json").json()["tasks"]) == 1
    assert ffs("cluster", "add-node", "--cancel").out == "cancelled: add a node\n"
    assert "nobody has asked" in ffs("cluster", "add-node", "--cancel").out


def test_ctrl_c_leaves_it_going(asked_for_nothing: Cli, environment: dict[str, str]) -> None:
    with terminal(("cluster", "add-node", "node7"), environment) as shown:
        shown.wait_for(b"waits for a node at node7")
        os.kill(shown.process.pid, signal.SIGINT)
        code, out, drawn = shown.finish()
    assert code == 128 + signal.SIGINT and b"on the new machine" in out
    assert "goes on by itself" in drawn and "ffs cluster add-node --cancel" in drawn
    assert len(asked_for_nothing("cluster", "status", "--json").json()["tasks"]) == 1


def test_a_drain_is_drawn_on_a_terminal_and_silent_in_a_pipe(
    new_cluster: Callable[..., Cluster], bare: Cli
) -> None:
    own = new_cluster(storage=2)
    options = ("--url", own.url, "--key-file", str(own.key_file))
    bare("cp", str(own.key_file), f"{own.url}/key", "--key-file", str(own.key_file))
    environment = {**os.environ, **own.environment, "TERM": "xterm"}
    with terminal(("cluster", "drain", "2"), environment) as shown:
        code, out, drawn = shown.finish()
    assert code == 0 and "drain node 2" in drawn
    assert out.decode().startswith("node 2 is drained: its daemon can be stopped, then `ffs")
    assert bare("cluster", "drain", "2", *options).out == out.decode(), "and once more"
    report = bare("cluster", "status", "--json", *options).json()
    assert [node["drain"] for node in report["nodes"]] == [False, True]
    assert [disk["members"] for disk in report["disks"]] == [2, 0]
    bare("cluster", "drain", "2", "--cancel", *options)
    moved = bare("cluster", "rebalance", "--dry-run", "--json", *options).json()["moves"]
    assert [move["node"] for move in moved] == [2]
    bare("cluster", "rebalance", *options)
    report = bare("cluster", "status", "--json", *options).json()
    assert [disk["members"] for disk in report["disks"]] == [1, 1]
