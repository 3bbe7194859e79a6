"""Commands for those who run a cluster: what they report, as text and as JSON."""

from __future__ import annotations

from collections.abc import Callable

from ffs.cli.status import _holds
from ffs.wire.messages import TargetReport
from tests.cli.support import Cli, one_line
from tests.harness import Cluster


def test_status_tells_nodes_chains_and_totals(ffs: Cli, cluster: Cluster) -> None:
    report = ffs("status", "--json").json()
    assert set(report) == {"cluster", "nodes", "targets", "chains", "totals", "backup"}
    assert {node["role"] for node in report["nodes"]} == {"meta", "storage"}
    assert {n["pid"] for n in report["nodes"]} == set(cluster.pids.values())
    assert all(set(n) == {"id", "role", "pid", "state", "address"} for n in report["nodes"])
    (chain,) = report["chains"]
    assert set(chain) == {"id", "version", "targets"}
    assert [target["state"] for target in chain["targets"]] == ["serving"]
    (target,) = report["targets"]
    assert set(target) == {
        *("id", "node", "state", "chunks", "capacity_bytes", "used_bytes", "path")
    }
    assert target["path"] == str(cluster.target_dir())
    assert all(isinstance(value, int) for value in report["totals"].values())
    assert report["totals"]["capacity_bytes"] > report["totals"]["used_bytes"] > 0
    text = ffs("status").out
    assert text.startswith(f"cluster {report['cluster']}\n") and "serving" in text
    assert report["backup"]["error"] == "" and "\nbackup " in text


def test_a_target_is_called_by_its_directory_alone() -> None:
    """A new one is registered with a word of its own behind that; a `#` of the name stays."""
    for label in ("/disk#1/ffs#0123456789abcdef", "/disk#1/ffs"):
        assert _holds(TargetReport(label, 1, 2, 1, 0, False))["path"] == "/disk#1/ffs"


def test_status_takes_the_cluster_as_an_argument(bare: Cli, cluster: Cluster) -> None:
    key = ("--key-file", str(cluster.key_file))
    assert bare("status", *key, cluster.url).out.startswith("cluster ")
    assert "FFS_URL" in one_line(bare("status", *key, check=False), "status", 2)


def test_two_targets_on_one_disk_count_its_room_once(
    bare: Cli, new_cluster: Callable[..., Cluster]
) -> None:
    own = new_cluster(storage=2)
    options = ("--url", own.url, "--key-file", str(own.key_file))
    report = bare("status", "--json", *options).json()
    one, other = report["targets"]
    assert report["totals"]["capacity_bytes"] == one["capacity_bytes"] == other["capacity_bytes"]
    space = bare("df", "--json", *options).json()
    assert space["capacity_bytes"] == one["capacity_bytes"]
