"""`ffs status`: the cluster as its metadata server sees it."""

from __future__ import annotations

import argparse
import re
import time
from dataclasses import asdict
from typing import Any, Final

from ffs.cli import output
from ffs.cli.action import Action
from ffs.cli.counters import add_rates, print_counters
from ffs.cli.entries import time_text
from ffs.cli.outcome import EXIT_DONE
from ffs.cli.remote import Remote, file_system
from ffs.cli.slowest import HEADING, rows, slow_reads
from ffs.cli.units import duration_s
from ffs.client.core import Core
from ffs.errors import FFSError
from ffs.types import TargetInfo, TargetState
from ffs.wire import messages as wire
from ffs.wire.membership import TargetHealth, TargetReport
from ffs.wire.status import STATUS, NodeStatus, StatusReply, StatusRequest

_CLAIM: Final = re.compile(r"#[0-9a-f]{16}$")
"""What tells a new target's directory from another's of the same name, until it starts again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare status's arguments."""
    parser.add_argument("cluster", nargs="?", default="", metavar="ffs://HOST:PORT")
    parser.add_argument(
        "--interval",
        type=duration_s,
        metavar="TIME",
        help="look again after so long (5s, 1m), and show what happened in between for each second",
    )
    parser.add_argument(
        "--slow",
        action="store_true",
        help="show the slowest reads of the last minute, nothing else",
    )


def run(args: argparse.Namespace) -> int:
    """Show the processes, the targets, the replication chains and the totals of a cluster."""
    url = (args.cluster or args.url or "").rstrip("/")
    core = file_system(Remote(url, "/"), args).core
    meta = core.meta
    earlier = None
    if args.interval is not None:
        earlier = meta.call(STATUS, StatusRequest())
        time.sleep(args.interval)
    reply = meta.call(STATUS, StatusRequest())
    if args.slow:
        return _show_slowest(args, slow_reads(reply.nodes, meta))
    report = as_report(reply, meta.statfs())
    _add_transports(report["nodes"], core)
    if earlier is not None:
        add_rates(report["nodes"], earlier.nodes, reply.nodes)
    if args.json:
        output.print_json(report)
    else:
        _print(report)
    return EXIT_DONE


def _show_slowest(args: argparse.Namespace, found: list[dict[str, Any]]) -> int:
    if args.json:
        output.print_json(found)
    elif found:
        output.print_table(HEADING, rows(found))
    else:
        output.print_line("no daemon has served a read in the last minute")
    return EXIT_DONE


def _add_transports(nodes: list[dict[str, Any]], core: Core) -> None:
    """Say of each daemon how this machine reaches it, and why not in a better way."""
    for node in nodes:
        node["transport"], node["why"] = "", ""
        if node["role"] != "storage":
            continue
        host, _, port = node["address"].rpartition(":")
        try:
            told = core.connections.reach((host, int(port)), timeout_ms=core.config.connect_ms)
        except FFSError as error:
            told = {"transport": "none", "why": error.message}
        node |= told


def as_report(reply: StatusReply, space: wire.StatfsReply) -> dict[str, Any]:
    """The replies as plain data."""
    targets = {target.target: target for target in reply.routing.targets}
    nodes = [
        {"id": n.id, "role": n.role, "pid": n.pid, "state": n.state, "address": n.address}
        | _told(n)
        for n in reply.nodes
    ]
    chains = [
        {
            "id": chain.chain,
            "version": chain.version,
            "targets": [_place(targets[target]) for target in chain.targets],
        }
        for chain in reply.routing.chains
    ]
    return {
        "cluster": reply.cluster_id.hex(),
        "nodes": nodes,
        "targets": [
            _place(targets[report.target]) | _holds(report)
            for report in reply.reports
            if report.target in targets
        ],
        "chains": chains,
        "totals": {
            "inodes": reply.inodes,
            "blobs": reply.blobs,
            "sessions": reply.sessions,
            "dead_blobs": reply.dead_blobs,
            "chunks": sum(r.chunks for r in reply.reports),
            "capacity_bytes": space.capacity_bytes,
            "used_bytes": space.used_bytes,
            "available_bytes": space.available_bytes,
            "routing_version": reply.routing.version,
        },
        "backup": {
            "made": reply.backup_ns / 1e9 if reply.backup_ns else None,
            "error": reply.backup_error,
        },
    }


def _told(node: NodeStatus) -> dict[str, Any]:
    """What a daemon's last heartbeat said of itself, and what the server makes of it."""
    counters = None if node.counters is None else asdict(node.counters)
    daemon = (None if counters is None else counters.pop("daemon")) or {}
    told = {name: daemon.get(name, "") for name in ("version", "congestion")}
    return {"counters": counters, "returns": node.returns} | told


def _place(target: TargetInfo) -> dict[str, Any]:
    state = TargetState(target.state).name.lower()
    return {"id": target.target, "node": target.node, "state": state}


def _holds(report: TargetReport) -> dict[str, Any]:
    return {
        "chunks": report.chunks,
        "capacity_bytes": report.capacity_bytes,
        "used_bytes": report.used_bytes,
        "path": path_of(report.label),
        "health": None if report.health is None else _health(report.health),
    }


def path_of(label: str) -> str:
    """The directory of the target with a label."""
    return _CLAIM.sub("", label)


def _health(health: TargetHealth) -> dict[str, Any]:
    return {
        "sync": {"chunks_left": health.sync_chunks_left, "bytes_left": health.sync_bytes_left},
        "scrub": {
            "chunks": health.scrubbed_chunks,
            "began": _seconds(health.scrub_began_ns),
            "ended": _seconds(health.scrub_ended_ns),
        },
        "bad": health.bad_total,
        "missing": health.missing_total,
        "repaired": health.repaired_total,
        "unrepairable": health.unrepairable,
        "unrepairable_chunks": [chunk._asdict() for chunk in health.unrepairable_chunks],
    }


def _seconds(time_ns: int) -> float | None:
    return time_ns / 1e9 if time_ns else None


def _print(report: dict[str, Any]) -> None:
    output.print_line(f"cluster {report['cluster']}")
    output.print_line("")
    keys = ("id", "role", "pid", "state", "address")
    output.print_table(keys, ([node[key] for key in keys] for node in report["nodes"]))
    output.print_line("")
    reached = [node for node in report["nodes"] if node["transport"]]
    output.print_table(
        ("node", "reached by", "why not better"),
        ((node["id"], node["transport"], output.shown(node["why"] or "-")) for node in reached),
    )
    output.print_line("")
    print_counters(report["nodes"])
    output.print_line("")
    output.print_table(
        ("target", "node", "state", "chunks", "disk", "used", "path"),
        [
            (
                *(target[key] for key in ("id", "node", "state", "chunks")),
                output.human_bytes(target["capacity_bytes"]),
                output.human_bytes(target["used_bytes"]),
                output.shown(target["path"]),
            )
            for target in report["targets"]
        ],
    )
    output.print_line("")
    _print_health(report["targets"])
    rows = [
        (
            chain["id"],
            chain["version"],
            ", ".join(f"{t['id']}@{t['node']} {t['state']}" for t in chain["targets"]),
        )
        for chain in report["chains"]
    ]
    output.print_table(("chain", "version", "targets (id@node state)"), rows)
    output.print_line("")
    for key, value in report["totals"].items():
        text = output.human_bytes(value) if key.endswith("_bytes") else value
        output.print_line(f"{key.removesuffix('_bytes'):<16} {text}")
    backup = report["backup"]
    made = "none yet by the server" if backup["made"] is None else time_text(backup["made"])
    output.print_line(f"{'backup':<16} {made}")
    if backup["error"]:
        output.print_line(f"{'backup failed':<16} {backup['error']}")


ACTIONS = {"": Action(run, add_arguments, "ffs status ffs://127.0.0.1:7411")}


def _print_health(targets: list[dict[str, Any]]) -> None:
    """What is being copied, when all was last read, and what was found and mended."""
    known = [target for target in targets if target["health"] is not None]
    if not known:
        return
    heading = ("target", "to copy", "scrubbed", "last pass", "bad", "missing", "repaired", "lost")
    output.print_table(heading, [_health_row(target) for target in known])
    for target in known:
        for name in target["health"]["unrepairable_chunks"]:
            place = f"blob {name['blob']} chunk {name['chunk']}"
            output.print_line(f"target {target['id']} has {place} that no replica has whole")
    output.print_line("")


def _health_row(target: dict[str, Any]) -> tuple[object, ...]:
    health = target["health"]
    scrub, left = health["scrub"], health["sync"]["bytes_left"]
    under_way = (scrub["began"] or 0) > (scrub["ended"] or 0)
    return (
        target["id"],
        output.human_bytes(left) if left else "-",
        f"{scrub['chunks']} chunks" if under_way else "-",
        time_text(scrub["ended"]) if scrub["ended"] else "none yet",
        *(health[key] for key in ("bad", "missing", "repaired", "unrepairable")),
    )
