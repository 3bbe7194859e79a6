"""What `ffs doctor` makes of a host and of a cluster's words: faults are named, health is not."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import ffs
from ffs.cli.checks.cluster import ServerStatus, check_cluster
from ffs.cli.checks.finding import Finding, Verdict
from ffs.cli.checks.host import check_host
from ffs.cli.checks.path import check_path, probe
from ffs.config import ClientConfig
from ffs.latency import BUCKETS
from ffs.types import ChainInfo, Routing, TargetInfo, TargetState
from ffs.wire.membership import (
    DaemonReport,
    DataLoopCounters,
    DiskLatency,
    TargetHealth,
    TargetReport,
)
from ffs.wire.status import NodeStatus, StatusReply

SECOND_NS = 1_000_000_000


def problems(findings: list[Finding]) -> list[Finding]:
    return [one for one in findings if one.verdict is Verdict.PROBLEM]


# --- the host -------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host's /proc and /sys with nothing wrong."""
    files = {
        "proc/sys/kernel/io_uring_disabled": "0",
        "proc/sys/net/ipv4/tcp_available_congestion_control": "reno cubic",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
        "sys/class/net/eth0/statistics/rx_packets": "1000000",
        "sys/class/net/eth0/statistics/tx_packets": "1000000",
        "sys/class/net/eth0/statistics/rx_errors": "9",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return tmp_path


def test_a_host_that_is_well(root: Path) -> None:
    findings = list(check_host(ClientConfig(congestion="reno"), root))
    assert [one.verdict for one in findings] == [Verdict.FINE] * 5
    assert "reno" in findings[0].message


def test_a_kernel_without_the_congestion_control_that_is_wanted(root: Path) -> None:
    (found,) = problems(list(check_host(ClientConfig(congestion="nonsense"), root)))
    assert "nonsense" in found.message and "reno cubic" in found.message


def test_losses_of_a_link_are_told_by_kind(root: Path) -> None:
    (root / "sys/class/net/eth0/statistics/rx_missed_errors").write_text("12")
    (found,) = problems(list(check_host(ClientConfig(congestion="reno"), root)))
    assert "eth0" in found.message and "9 rx_errors, 12 rx_missed_errors" in found.message


def test_what_a_kernel_switches_off_is_a_note(root: Path) -> None:
    (root / "proc/sys/kernel/io_uring_disabled").write_text("2")
    (root / "sys/kernel/mm/transparent_hugepage/enabled").write_text("always madvise [never]")
    findings = list(check_host(ClientConfig(congestion="reno"), root))
    notes = [one.check for one in findings if one.verdict is Verdict.NOTE]
    assert notes == ["io_uring", "huge pages"] and not problems(findings)


def test_rdma_needs_memory_that_may_be_locked(root: Path) -> None:
    (root / "sys/class/infiniband/mlx5_0").mkdir(parents=True)
    wanted = ClientConfig(congestion="reno", rdma_window_bytes=1 << 36)
    for config in (wanted, replace(wanted, transport="tcp")):
        found = next(one for one in check_host(config, root) if one.check == "locked memory")
        assert "mlx5_0" in found.message
        if "unlimited" not in found.message:
            assert (found.verdict is Verdict.PROBLEM) == (config.transport == "auto")


def test_a_host_that_shows_nothing_has_no_problems(tmp_path: Path) -> None:
    assert not problems(list(check_host(ClientConfig(congestion="reno"), tmp_path)))


def test_the_way_to_this_host_takes_the_largest_packets() -> None:
    found = probe("127.0.0.1", 1)
    assert found.link == found.whole >= 16_384
    assert check_path("127.0.0.1", 1).verdict is Verdict.FINE
    assert check_path("no.such.host.invalid", 1).verdict is Verdict.NOTE


# --- the cluster ----------------------------------------------------------------------------------


def took(bucket: int, count: int = 100) -> list[int]:
    return [count if place == bucket else 0 for place in range(BUCKETS)]


def daemon(node: int, **facts: object) -> NodeStatus:
    report = DaemonReport(
        version=ffs.__version__, congestion="cubic", disks=[DiskLatency(node, took(6))]
    )
    counters = DataLoopCounters(1, ring=1, daemon=report)
    return replace(NodeStatus(node, "storage", 7, "up", f"h{node}:1", counters), **facts)  # type: ignore[arg-type]


def telling(node: NodeStatus, **facts: object) -> NodeStatus:
    """The node, with other words of its own."""
    assert node.counters is not None and node.counters.daemon is not None
    report = replace(node.counters.daemon, **facts)  # type: ignore[arg-type]
    return replace(node, counters=replace(node.counters, daemon=report))


def counting(node: NodeStatus, **facts: object) -> NodeStatus:
    assert node.counters is not None
    return replace(node, counters=replace(node.counters, **facts))  # type: ignore[arg-type]


def report_of(target: int, **facts: object) -> TargetReport:
    return replace(TargetReport(f"/disk{target}", target, 1 << 40, 0, 5, False), **facts)  # type: ignore[arg-type]


def status(*nodes: NodeStatus) -> StatusReply:
    servers = [NodeStatus(0, "meta", 1, "up", "m:1")]
    targets = [TargetInfo(n, n, int(TargetState.SERVING)) for n in (1, 2, 3)]
    routing = Routing(1, [], targets, [ChainInfo(1, 1, [1, 2, 3])], [])
    return StatusReply(
        *(b"c" * 16, servers + list(nodes), routing, [report_of(n) for n in (1, 2, 3)]),
        *(1, 1, 0, 0),
        version=ffs.__version__,
        wall_ns=1,
    )


def judged(
    change: Callable[[list[NodeStatus]], list[NodeStatus]] = lambda nodes: nodes,
    *,
    nodes: Sequence[NodeStatus] | None = None,
    ahead_ns: int = 0,
    error_ns: int = 0,
    **facts: object,
) -> list[Finding]:
    reply = replace(status(*(nodes or change([daemon(n) for n in (1, 2, 3)]))), **facts)  # type: ignore[arg-type]
    return list(check_cluster([ServerStatus("m:1", reply, ahead_ns, error_ns)]))


def test_a_cluster_that_is_well() -> None:
    findings = judged()
    assert {one.verdict for one in findings} == {Verdict.FINE}
    assert {one.check for one in findings} == {"versions", "clocks", "nodes", "targets", "disks"}


@pytest.mark.parametrize(
    ("change", "check", "named"),
    [
        (lambda n: [replace(n[0], state="down"), *n[1:]], "nodes", "storage 1 at h1:1 is down"),
        (lambda n: [replace(n[0], returns=3), *n[1:]], "nodes", "node 1 at h1:1 flaps: it came"),
        (
            lambda n: [*n[:2], telling(n[2], clock_ahead_ns=-3 * SECOND_NS)],
            "clocks",
            "node 3 is 3.00 s behind",
        ),
        (lambda n: [telling(n[0], congestion="bbr2"), *n[1:]], "congestion control", "node 1"),
        (
            lambda n: [counting(n[0], ring=0, ring_errno=errno.EPERM), *n[1:]],
            "io_uring",
            "Operation not permitted",
        ),
        (
            lambda n: [*n[:2], telling(n[2], disks=[DiskLatency(3, took(12))])],
            "disks",
            "target 3 of node 3 (/disk3) is slow",
        ),
    ],
)
def test_each_fault_of_a_node_is_named_alone(
    change: Callable[[list[NodeStatus]], list[NodeStatus]], check: str, named: str
) -> None:
    (found,) = problems(judged(change))
    assert found.check == check and named in found.message and found.advice


def test_disks_that_were_hardly_read_from_are_not_judged() -> None:
    few = [DiskLatency(3, took(15, 19))]
    assert not problems(judged(lambda n: [*n[:2], telling(n[2], disks=few)]))
    alone = judged(lambda n: [telling(n[0], disks=[DiskLatency(1, took(16))])])
    assert [one.check for one in problems(alone)] == ["disks"], "half a second is slow anywhere"


def test_one_slow_tenth_is_enough_and_less_is_not() -> None:
    for slow, named in ((11, 1), (9, 0)):
        mixed = [a + b for a, b in zip(took(6, 100 - slow), took(13, slow), strict=True)]
        third = telling(daemon(3), disks=[DiskLatency(3, mixed)])
        assert len(problems(judged(nodes=[daemon(1), daemon(2), third]))) == named


def test_clocks_are_held_against_each_other() -> None:
    (found,) = problems(judged(ahead_ns=3_600 * SECOND_NS))
    assert "the metadata server at m:1 is 3600 s ahead" in found.message
    assert not problems(judged(ahead_ns=2 * SECOND_NS, error_ns=2 * SECOND_NS)), "too slow to tell"


def test_what_several_servers_have_seen_of_a_node_adds_up() -> None:
    replies = [status(daemon(1, returns=n), daemon(2), daemon(3)) for n in (1, 2)]
    servers = [ServerStatus(f"m:{n}", reply, 0, 0) for n, reply in enumerate(replies)]
    assert [one.check for one in problems(list(check_cluster(servers)))] == ["nodes"]
    assert not problems(list(check_cluster(servers[:1])))


def test_lost_chunks_lost_targets_and_failed_backups_are_problems() -> None:
    sick = report_of(2, health=TargetHealth(unrepairable=4))
    found = problems(judged(reports=[report_of(1), sick, report_of(3)], backup_error="disk full"))
    assert [one.check for one in found] == ["targets", "backup"]
    assert "target 2 has 4 chunks" in found[0].message and "disk full" in found[1].message
    gone = [TargetInfo(1, 1, int(TargetState.OFFLINE)), TargetInfo(2, 2, 1), TargetInfo(3, 3, 1)]
    for chains, count in (([ChainInfo(1, 1, [1, 2, 3])], 1), ([ChainInfo(1, 1, [2, 3])], 0)):
        assert len(problems(judged(routing=Routing(1, [], gone, chains, [])))) == count


def test_versions_that_differ_are_a_note() -> None:
    findings = judged(lambda n: [telling(n[0], version="0.0.9"), *n[1:]])
    (found,) = [one for one in findings if one.verdict is Verdict.NOTE]
    assert "node 1 0.0.9" in found.message and not problems(findings)
    assert judged(version="")[0].verdict is Verdict.FINE, "an older server does not tell"
