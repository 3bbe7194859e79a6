"""Prometheus asks real processes: what they count is there, documented, and on the dashboard."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.harness import Cluster

DOCS = Path(__file__).resolve().parents[2] / "docs"
SERVED = re.compile(r"metrics_served.*address=(\S+)")
DATA = os.urandom(3_000_000)
CLIENT = """
import os, sys, fsspec
from ffs.client import metrics
fs = fsspec.filesystem("ffs", **eval(sys.argv[1]))
assert not metrics.address(), "before the first I/O"
assert len(fs.cat("/file")) == 3_000_000
print(metrics.address(), flush=True)
if os.fork() == 0:
    assert not metrics.address(), "the socket is the parent's"
    assert len(fs.cat("/file")) == 3_000_000
    print(metrics.address(), flush=True)
    sys.stdin.read()
    os._exit(0)
sys.stdin.read()
assert os.wait()[1] == 0
"""


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose processes all answer scrapes; both daemons are given one address."""
    config = {
        "meta.metrics_address": "127.0.0.1:0",
        "storage.metrics_address": "127.0.0.1:0",
        "client.same_host": "off",
    }
    cluster = Cluster(tmp_path_factory.mktemp("metrics"), 2, config).start()
    fs = fsspec.filesystem("ffs", **cluster.storage_options, skip_instance_cache=True)
    fs.pipe("/file", DATA)
    assert fs.cat("/file") == DATA
    fs.close()
    yield cluster
    cluster.stop()


def served_at(cluster: Cluster, role: str, index: int = 0) -> str:
    match = SERVED.search(cluster.process(role, index).log_tail(1 << 20))
    assert match is not None
    return match[1]


def scrape(address: str) -> dict[str, Metric]:
    """The families by the names that Prometheus knows them by."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {f.name + ("_total" if f.type == "counter" else ""): f for f in families}


def value(families: dict[str, Metric], name: str, **labels: str) -> float:
    """One sample."""
    family = families[name]
    found = [
        s.value for s in family.samples if s.name == name and labels.items() <= s.labels.items()
    ]
    assert len(found) == 1, (name, family.samples)
    return found[0]


def total(cluster: Cluster, name: str, **labels: str) -> float:
    return sum(value(scrape(served_at(cluster, "storage", n)), name, **labels) for n in (0, 1))


def test_daemons_tell_what_they_served(counting: Cluster) -> None:
    assert total(counting, "ffs_storage_read_bytes_total") >= len(DATA)
    assert total(counting, "ffs_storage_write_bytes_total") >= len(DATA)
    for index in (0, 1):
        found = scrape(served_at(counting, "storage", index))
        target = str(index + 1)
        assert value(found, "ffs_storage_target_chunks", target=target) >= 1
        assert value(found, "ffs_storage_target_stopped", target=target) == 0
        durations = {s.name: s.value for s in found["ffs_storage_read_duration_seconds"].samples}
        assert durations["ffs_storage_read_duration_seconds_count"] >= 1
        assert 0 < durations["ffs_storage_read_duration_seconds_sum"] < 60
        commits = found["ffs_storage_target_commit_duration_seconds"].samples
        assert any(s.name.endswith("_count") and s.value >= 1 for s in commits)


def test_the_metadata_server_times_its_calls(counting: Cluster) -> None:
    found = scrape(served_at(counting, "meta"))
    name = "ffs_meta_request_duration_seconds"
    calls = {s.labels["method"]: s.value for s in found[name].samples if s.name == f"{name}_count"}
    assert calls["register"] >= 2 and calls["create_many"] >= 1
    assert "watch_routing" not in calls, "it waits, and does nothing"
    for name in ("ffs_meta_nodes", "ffs_meta_targets"):
        assert sum(sample.value for sample in found[name].samples) == 2
    assert value(found, "ffs_meta_chains") == 2
    assert value(found, "ffs_meta_connections") >= 2


def test_two_scrapes_cost_no_more_series_than_one(counting: Cluster) -> None:
    address = served_at(counting, "storage")
    first, second = (
        {(s.name, *s.labels.items()) for f in scrape(address).values() for s in f.samples}
        for _ in range(2)
    )
    assert first == second and len(first) < 500


def test_a_client_and_its_forked_child_have_endpoints_of_their_own(counting: Cluster) -> None:
    options = {**counting.storage_options, "metrics_address": "127.0.0.1:39411"}
    argv = [sys.executable, "-c", CLIENT, repr(options)]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        addresses = [process.stdout.readline().strip() for _ in range(2)]
        assert len(set(addresses)) == 2 and all(a.startswith("127.0.0.1:") for a in addresses)
        for address in addresses:
            found = scrape(address)
            assert value(found, "ffs_client_read_bytes_total") == len(DATA), "each its own"
            assert value(found, "ffs_client_crc_failures_total") == 0
            assert value(found, "ffs_client_troubled_ranges_total", how="stalled") == 0
        process.stdin.close()
        assert process.wait() == 0


@pytest.fixture(scope="module")
def names(counting: Cluster) -> set[str]:
    """All that any process tells."""
    from prometheus_client import CollectorRegistry, generate_latest

    from ffs.client.metrics import Collector

    registry = CollectorRegistry()
    registry.register(Collector())  # type: ignore[arg-type]
    client = text_string_to_metric_families(generate_latest(registry).decode())
    found = {f.name + ("_total" if f.type == "counter" else "") for f in client}
    for role in ("meta", "storage"):
        found |= scrape(served_at(counting, role)).keys()
    return {name for name in found if not name.startswith("python_gc")}


def test_every_metric_is_documented_and_none_is_made_up(names: set[str]) -> None:
    page = (DOCS / "observability.md").read_text()
    documented = set(re.findall(r"`((?:ffs|process)_[a-z_]+)`", page))
    ours = {name for name in names if name.startswith("ffs_")}
    assert ours == {name for name in documented if name.startswith("ffs_")}
    assert documented <= names


def test_the_dashboard_asks_for_what_there_is(names: set[str]) -> None:
    board = json.loads((DOCS / "grafana.json").read_text())
    asked = [t["expr"] for panel in board["panels"] for t in panel["targets"]]
    assert len(asked) > 20
    for expression in asked:
        used = set(re.findall(r"\b(?:ffs|process)_[a-z_]+", expression))
        assert used, expression
        assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in used} <= names, expression


def test_an_address_that_is_not_there_ends_the_start(new_cluster: Callable[..., Any]) -> None:
    from tests.harness import ProcessError

    with pytest.raises(ProcessError, match="cannot serve metrics at 192"):
        new_cluster(config={"meta.metrics_address": "192.0.2.1:9411"})
