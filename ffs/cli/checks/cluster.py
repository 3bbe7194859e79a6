"""What the cluster tells of itself: nodes, clocks, disks, versions, targets.

Previous hop: ffs/cli/doctor.py, with the status of each metadata server that answers. Pure: the
same statuses give the same findings.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import ffs
from ffs import latency
from ffs.cli import output
from ffs.cli.checks.finding import Finding, fine, note, problem
from ffs.cli.checks.host import bbr_problem
from ffs.types import TargetState
from ffs.wire.status import RETURNS_KEPT_S, NodeStatus, StatusReply

SKEW_NS: Final = 500_000_000
"""What logs and leases of two hosts may differ by before it misleads those who read them."""
RETURNS_MIN: Final = 3
DISK_READS_MIN: Final = 20
DISK_SHARE: Final = 0.9
DISK_FACTOR: Final = 8
DISK_SLOW_NS: Final = 20_000_000
DISK_ALONE_NS: Final = 500_000_000
"""A disk is slow that takes so long, or so many times longer than the others and no less than the
second bound, for the slowest tenth of its reads."""


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """One metadata server's status, and by how much its clock is ahead of ours, give or take."""

    address: str
    reply: StatusReply
    ahead_ns: int
    error_ns: int


def check_cluster(servers: Sequence[ServerStatus]) -> Iterator[Finding]:
    """Look at what metadata servers have told."""
    reply = servers[0].reply
    daemons = [node for node in reply.nodes if node.role == "storage"]
    yield _versions(servers)
    yield from _clocks(servers, daemons)
    yield from _nodes(servers, reply)
    yield from _targets(reply)
    yield from _disks(daemons, reply)
    yield from _daemons(daemons)
    if reply.backup_error:
        advice = "see meta.backup_dir, and the metadata server's log"
        yield problem("backup", f"the last one failed: {reply.backup_error}", advice)


def _versions(servers: Sequence[ServerStatus]) -> Finding:
    found = {"this client": ffs.__version__}
    found |= {f"server {server.address}": server.reply.version for server in servers}
    for node in servers[0].reply.nodes:
        if node.counters is not None and node.counters.daemon is not None:
            found[f"node {node.id}"] = node.counters.daemon.version
    known = {who: version for who, version in found.items() if version}
    if len(set(known.values())) == 1:
        return fine("versions", f"{ffs.__version__} everywhere")
    told = ", ".join(f"{who} {version}" for who, version in known.items())
    return note("versions", f"they differ: {told}", "upgrade all to one version")


def _clocks(servers: Sequence[ServerStatus], daemons: Sequence[NodeStatus]) -> Iterator[Finding]:
    check, right = "clocks", True
    for server in servers:
        if abs(server.ahead_ns) - server.error_ns > SKEW_NS:
            right = False
            yield _skewed(f"the metadata server at {server.address}", server.ahead_ns, "this host")
    for node in daemons:
        report = node.counters.daemon if node.counters is not None else None
        if report is not None and abs(report.clock_ahead_ns) > SKEW_NS:
            right = False
            yield _skewed(f"node {node.id}", report.clock_ahead_ns, "its metadata server")
    if right:
        yield fine(check, "this host, the servers and the nodes agree")


def _skewed(who: str, ahead_ns: int, than: str) -> Finding:
    apart = latency.text_of(abs(ahead_ns))
    way = "ahead of" if ahead_ns > 0 else "behind"
    advice = "see to NTP on both: `chronyc tracking` or `timedatectl timesync-status`"
    return problem("clocks", f"the clock of {who} is {apart} {way} that of {than}", advice)


def _nodes(servers: Sequence[ServerStatus], reply: StatusReply) -> Iterator[Finding]:
    well = 0
    for node in reply.nodes:
        if node.state != "up":
            who = f"{node.role} {node.id or ''}".strip()
            advice = "start it, or `ffs cluster drain` what is gone for good; its log says more"
            yield problem("nodes", f"{who} at {node.address} is {node.state}", advice)
        if node.role != "storage":
            continue
        returns = sum(
            other.returns
            for server in servers
            for other in server.reply.nodes
            if other.role == "storage" and other.id == node.id
        )
        if returns >= RETURNS_MIN:
            yield problem(
                "nodes",
                f"node {node.id} at {node.address} flaps: it came back {returns} times in "
                f"{RETURNS_KEPT_S // 60} minutes",
                "look for restarts in its log (out of memory, a crash), else at its network link",
            )
        well += node.state == "up" and returns < RETURNS_MIN
    yield fine("nodes", f"{output.counted(well, 'storage node')} up and steady")


def _targets(reply: StatusReply) -> Iterator[Finding]:
    serving = 0
    in_chains = {target for chain in reply.routing.chains for target in chain.targets}
    for target in reply.routing.targets:
        state = TargetState(target.state)
        serving += state is TargetState.SERVING
        if state in (TargetState.OFFLINE, TargetState.LASTSRV) and target.target in in_chains:
            yield problem(
                "targets",
                f"target {target.target} of node {target.node} is {state.name.lower()}",
                "see the daemon's log for a disk error; `ffs cluster drain --target` if it is lost",
            )
    for report in reply.reports:
        if report.health is not None and report.health.unrepairable:
            lost = output.counted(report.health.unrepairable, "chunk")
            advice = "`ffs fsck` names the files: restore them from their source"
            yield problem(
                "targets", f"target {report.target} has {lost} that no replica has whole", advice
            )
    yield fine("targets", f"{serving} of {len(reply.routing.targets)} serve")


def _disks(daemons: Sequence[NodeStatus], reply: StatusReply) -> Iterator[Finding]:
    """Find disks that take much longer than the others, or very long."""
    labels = {report.target: report.label for report in reply.reports}
    took: dict[tuple[int, int], int] = {}
    for node in daemons:
        report = node.counters.daemon if node.counters is not None else None
        for disk in report.disks if report is not None else ():
            slow_ns = latency.quantile_ns(disk.reads, DISK_SHARE)
            if slow_ns is not None and sum(disk.reads) >= DISK_READS_MIN:
                took[node.id, disk.target] = slow_ns
    slow = 0
    for (node_id, target), slow_ns in took.items():
        others = [other for which, other in took.items() if which != (node_id, target)]
        usual_ns = statistics.median_low(others) if others else 0
        outlier = usual_ns and slow_ns >= max(DISK_FACTOR * usual_ns, DISK_SLOW_NS)
        if not outlier and slow_ns < DISK_ALONE_NS:
            continue
        slow += 1
        than = f", the others under {latency.text_of(usual_ns)}" if usual_ns else ""
        yield problem(
            "disks",
            f"target {target} of node {node_id} ({labels.get(target, '')}) is slow: a tenth of its "
            f"reads took {latency.text_of(slow_ns / 2)} or more of late{than}",
            "look at the disk (`smartctl -a`, `iostat -x 1`), and replace it: `ffs cluster drain "
            f"--target {target}`",
        )
    if not slow:
        told = f"{len(took)} read from of late, none much slower than the others"
        yield fine("disks", told if took else "none was read from of late")


def _daemons(daemons: Sequence[NodeStatus]) -> Iterator[Finding]:
    """What daemons say of their own hosts."""
    for node in daemons:
        counters = node.counters
        if counters is None:
            continue
        if not counters.ring and counters.ring_errno:
            yield problem(
                "io_uring",
                f"node {node.id} reads its disks by threads: "
                f"io_uring was refused ({os.strerror(counters.ring_errno)})",
                "allow it there: sysctl kernel.io_uring_disabled=0, and the container's seccomp "
                "profile",
            )
        if counters.daemon is not None and counters.daemon.congestion.startswith("bbr"):
            yield bbr_problem("congestion control", f"node {node.id}", "storage.congestion")
        if counters.direct_refused_total:
            yield note(
                "direct reads",
                f"node {node.id}: a file system has refused to read past the page cache",
                "targets on ext4 or XFS are read in the fast way",
            )
