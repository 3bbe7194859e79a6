"""The model of RDMA reads: its arithmetic, the published cluster, and the command."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from ffs.bench.model import PUBLISHED, PUBLISHED_TIB_S, Inputs, main, predict, scaled

ENDLESS = {
    "pcie_lanes": 10**6,
    "ssd_gb_s": 1e9,
    "ssd_reads_s": 1e12,
    "memory_gb_s": 1e9,
    "cores": 10**6,
    "client_cores": 10**6,
    "client_nics": 10**6,
    "depth": 10**6,
}
"""Nothing but the storage nodes' cards is a wall."""


def test_the_published_cluster_is_within_fifteen_percent_and_its_cards_are_the_wall() -> None:
    found = predict(PUBLISHED)
    assert found.tib_s == pytest.approx(PUBLISHED_TIB_S, rel=0.15)
    assert found.wall == "storage cards"


def test_a_card_carries_its_rate_without_the_bytes_around_packets() -> None:
    at = Inputs(nodes=1, nics=1, link="roce", message_bytes=4096, **ENDLESS)  # type: ignore[arg-type]
    wire = 4096 + 82 + 16 + (64 + 82)
    assert predict(at).total == pytest.approx(25 * 4096 / wire, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "wall"),
    [
        ({"pcie_generation": 3}, "storage PCIe"),
        ({"ssds": 4}, "SSDs"),
        ({"memory_gb_s": 60.0}, "storage memory"),
        ({"message_bytes": 4096, "cores": 8, "depth": 4096}, "storage CPU"),
        ({"clients": 100}, "client cards"),
        ({"depth": 1, "latency_us": 1000.0}, "outstanding ranges"),
        ({"message_bytes": 4096, "client_cores": 1, "depth": 4096}, "client CPU"),
    ],
)
def test_a_resource_that_is_made_scarce_is_the_wall(change: dict[str, float], wall: str) -> None:
    assert predict(replace(PUBLISHED, **change)).wall == wall  # type: ignore[arg-type]


def test_scarce_memory_halves_since_bytes_pass_twice() -> None:
    found = predict(replace(PUBLISHED, nodes=1, memory_gb_s=10.0, clients=500))
    assert found.total == pytest.approx(5.0)


def test_more_outstanding_ranges_never_cost_throughput() -> None:
    totals = [predict(replace(PUBLISHED, depth=depth)).total for depth in (1, 2, 4, 8, 64, 1024)]
    assert totals == sorted(totals)
    assert predict(replace(PUBLISHED, depth=10**6)).busy == pytest.approx(1.0, abs=1e-3)


def test_a_cluster_of_more_nodes_reaches_as_much_more() -> None:
    one = predict(PUBLISHED)
    ten = predict(scaled(PUBLISHED, 1800))
    assert ten.total == pytest.approx(10 * one.total, rel=1e-3)


def test_an_input_out_of_range_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--link", "tcp"], ["--pcie-generation", "9"], ["--nodes", "0"]):
        with pytest.raises(SystemExit) as error:
            main(arguments)
        assert error.value.code == 2
        assert arguments[0] in capsys.readouterr().err


def test_the_command_prints_the_published_cluster_and_ours_at_three_sizes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ffs.bench.model"], capture_output=True, text=True, check=True
    )
    assert "3FS's published cluster, 6.6 TiB/s" in done.stdout
    for nodes in (10, 180, 1000):
        assert f"FFS, {nodes} nodes" in done.stdout
    assert done.stdout.count("the wall: ") == 10


def test_one_cluster_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--nodes", "1", "--nic-gbit", "400", "--ssds", "2"]) == 0
    assert "the wall: SSDs" in capsys.readouterr().out
