"""Commands for those who run a cluster: what they report, as text and as JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import pytest

from ffs.cli.status import _holds, _print_health
from ffs.wire.membership import ChunkName, DataLoopCounters, TargetHealth, TargetReport
from tests.cli.support import Cli, one_line
from tests.harness import Cluster


def test_status_tells_nodes_chains_and_totals(ffs: Cli, cluster: Cluster) -> None:
    report = ffs("status", "--json").json()
    while any(n["role"] == "storage" and n["counters"] is None for n in report["nodes"]):
        report = ffs("status", "--json").json()  # no heartbeat yet
    assert set(report) == {"cluster", "nodes", "targets", "chains", "totals", "backup"}
    assert {node["role"] for node in report["nodes"]} == {"meta", "storage"}
    assert {n["pid"] for n in report["nodes"]} == set(cluster.pids.values())
    keys = {"id", "role", "pid", "state", "address", "counters", "transport", "why"}
    keys |= {"returns", "version", "congestion"}
    assert all(set(n) == keys for n in report["nodes"])
    counted = [n["counters"] for n in report["nodes"] if n["role"] == "storage"]
    names = {field.name for field in fields(DataLoopCounters)} - {"daemon"}
    assert all(set(c) == names for c in counted)
    assert [n["counters"] for n in report["nodes"] if n["role"] == "meta"] == [None]
    (chain,) = report["chains"]
    assert set(chain) == {"id", "version", "targets"}
    assert [target["state"] for target in chain["targets"]] == ["serving"]
    (target,) = report["targets"]
    assert set(target) == {
        *("id", "node", "state", "chunks", "capacity_bytes", "used_bytes", "path", "health")
    }
    assert set(target["health"]) == {
        *("sync", "scrub", "bad", "missing", "repaired", "unrepairable", "unrepairable_chunks")
    }
    assert target["path"] == str(cluster.target_dir())
    assert all(isinstance(value, int) for value in report["totals"].values())
    assert report["totals"]["capacity_bytes"] > report["totals"]["used_bytes"] > 0
    text = ffs("status").out
    assert text.startswith(f"cluster {report['cluster']}\n") and "serving" in text
    assert report["backup"]["error"] == "" and "\nbackup " in text


def test_status_with_an_interval_tells_rates(ffs: Cli) -> None:
    report = ffs("status", "--interval", "1s", "--json").json()
    meta, *daemons = [node["rates"] for node in report["nodes"]]
    assert meta is None
    # A daemon that could not beat in that second has none.
    assert all(rates is None or rates["seconds"] > 0 for rates in daemons)
    text = ffs("status", "--interval", "1").out
    assert "written/s" in text and "written/s" not in ffs("status").out
    assert "0s" in one_line(ffs("status", "--interval", "0s", check=False), "status", 2)


def test_a_target_is_called_by_its_directory_alone() -> None:
    """A new one is registered with a word of its own behind that; a `#` of the name stays."""
    for label in ("/disk#1/ffs#0123456789abcdef", "/disk#1/ffs"):
        assert _holds(TargetReport(label, 1, 2, 1, 0, False))["path"] == "/disk#1/ffs"


def test_status_names_what_is_being_copied_and_what_is_lost(
    capsys: pytest.CaptureFixture[str],
) -> None:
    health = TargetHealth(
        sync_chunks_left=3,
        sync_bytes_left=3 << 20,
        scrubbed_chunks=17,
        scrub_began_ns=2_000_000_000,
        bad_total=5,
        repaired_total=4,
        unrepairable=1,
        unrepairable_chunks=[ChunkName(70, 8)],
    )
    targets = [{"id": 6} | _holds(TargetReport("/d", 6, 2, 1, 0, False, health=health))]
    assert targets[0]["health"]["scrub"] == {"chunks": 17, "began": 2.0, "ended": None}
    _print_health([*targets, {"id": 7, "health": None}])
    heading, row, lost = capsys.readouterr().out.splitlines()[:3]
    assert heading.split()[0] == "target" and row.split()[0] == "6"
    assert "3" in row and "17 chunks" in row and "none yet" in row
    assert lost == "target 6 has blob 70 chunk 8 that no replica has whole"
    _print_health([{"id": 7, "health": None}])
    assert capsys.readouterr().out == ""


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
