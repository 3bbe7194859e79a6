"""`ffs status`: the cluster as its metadata server sees it."""

from __future__ import annotations

import argparse
from typing import Any

from ffs.cli import output
from ffs.cli.action import Action
from ffs.cli.entries import time_text
from ffs.cli.remote import Remote, file_system
from ffs.types import TargetState
from ffs.wire import messages as wire


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare status's arguments."""
    parser.add_argument("cluster", nargs="?", default="", metavar="ffs://HOST:PORT")


def run(args: argparse.Namespace) -> int:
    """Show the processes, the replication chains and the totals of a cluster."""
    url = (args.cluster or args.url or "").rstrip("/")
    reply = file_system(Remote(url, "/"), args).core.meta.call(wire.STATUS, wire.StatusRequest())
    report = as_report(reply)
    if args.json:
        output.print_json(report)
    else:
        _print(report)
    return 0


def as_report(reply: wire.StatusReply) -> dict[str, Any]:
    """The reply as plain data: nodes, chains with their targets, and totals."""
    targets = {target.target: target for target in reply.routing.targets}
    chains = [
        {
            "id": chain.chain,
            "version": chain.version,
            "targets": [
                {
                    "id": target,
                    "node": targets[target].node,
                    "state": TargetState(targets[target].state).name.lower(),
                }
                for target in chain.targets
            ],
        }
        for chain in reply.routing.chains
    ]
    nodes = [
        {"id": n.id, "role": n.role, "pid": n.pid, "state": n.state, "address": n.address}
        for n in reply.nodes
    ]
    return {
        "cluster": reply.cluster_id.hex(),
        "nodes": nodes,
        "chains": chains,
        "totals": {
            "inodes": reply.inodes,
            "blobs": reply.blobs,
            "sessions": reply.sessions,
            "dead_blobs": reply.dead_blobs,
            "chunks": sum(r.chunks for r in reply.reports),
            "capacity_bytes": sum(r.capacity_bytes for r in reply.reports),
            "used_bytes": sum(r.used_bytes for r in reply.reports),
            "routing_version": reply.routing.version,
        },
        "backup": {
            "made": reply.backup_ns / 1e9 if reply.backup_ns else None,
            "error": reply.backup_error,
        },
    }


def _print(report: dict[str, Any]) -> None:
    output.print_line(f"cluster {report['cluster']}")
    output.print_line("")
    keys = ("id", "role", "pid", "state", "address")
    output.print_table(keys, ([node[key] for key in keys] for node in report["nodes"]))
    output.print_line("")
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
        output.print_line(f"{key:<16} {text}")
    backup = report["backup"]
    made = "none yet by the server" if backup["made"] is None else time_text(backup["made"])
    output.print_line(f"{'backup':<16} {made}")
    if backup["error"]:
        output.print_line(f"{'backup failed':<16} {backup['error']}")


ACTIONS = {"": Action(run, add_arguments, "ffs status ffs://127.0.0.1:7411")}
