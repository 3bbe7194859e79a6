"""`ffs cluster status`: what an operator has asked for, what moves, and how full each disk is."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ffs.cli import output
from ffs.cli.entries import time_text
from ffs.cli.outcome import EXIT_DONE
from ffs.cli.remote import cluster
from ffs.cli.status import path_of
from ffs.client.operators import Operator
from ffs.types import Routing, TargetState
from ffs.wire.operators import DiskUse, Move, Task, TaskKind, TasksReply
from ffs.wire.status import STATUS, StatusReply, StatusRequest


def status(args: argparse.Namespace) -> int:
    """Show what was asked for and how far it is, what moves, and how full each disk is.

    `ffs status` shows every process, target and chain.
    """
    meta = cluster(args).core.meta
    report = as_report(meta.call(STATUS, StatusRequest()), Operator(meta).tasks())
    if args.json:
        output.print_json(report)
    else:
        _print(report)
    return EXIT_DONE


def as_report(known: StatusReply, asked: TasksReply) -> dict[str, Any]:
    """The replies as plain data."""
    drained = {task.subject for task in asked.tasks if task.kind == TaskKind.DRAIN_NODE}
    return {
        "nodes": [
            {"id": n.id, "state": n.state, "address": n.address, "drain": n.id in drained}
            for n in known.nodes
            if n.role == "storage"
        ],
        "disks": [_disk(disk) for disk in asked.disks],
        "chains": _chains(known.routing),
        "tasks": [_task(task) for task in asked.tasks],
        "moves": [asdict(move) for move in asked.moves],
    }


def _disk(disk: DiskUse) -> dict[str, Any]:
    return {**asdict(disk), "path": path_of(disk.path)}


def _task(task: Task) -> dict[str, Any]:
    return {
        "task": TaskKind(task.kind).name.lower(),
        "subject": task.subject,
        "host": task.host,
        "began": task.began_ns / 1e9 if task.began_ns else None,
        "total_bytes": task.total_bytes,
        "left_bytes": task.left_bytes,
        "moves_left": task.moves_left,
        "waits_for": task.waits_for,
    }


def _chains(routing: Routing) -> dict[str, int]:
    """How many chains there are in which way: each is counted once, by its worst member."""
    states = {target.target: target.state for target in routing.targets}
    counts = Counter(_worst([states[t] for t in chain.targets]) for chain in routing.chains)
    return {"total": len(routing.chains)} | {
        name: counts[name] for name in ("whole", "copying", "short", "unserved")
    }


def _worst(members: Sequence[int]) -> str:
    if TargetState.SERVING not in members:
        return "unserved"
    if TargetState.OFFLINE in members:
        return "short"
    return "copying" if TargetState.SYNCING in members else "whole"


def _print(report: dict[str, Any]) -> None:
    chains = report["chains"]
    words = ", ".join(f"{n} {name}" for name, n in chains.items() if n and name != "total")
    output.print_line(f"{output.counted(chains['total'], 'chain')}: {words or 'none'}")
    output.print_line("")
    rows = [
        (node["id"], node["state"], "yes" if node["drain"] else "-", node["address"])
        for node in report["nodes"]
    ]
    output.print_table(("node", "state", "drain", "address"), rows)
    output.print_line("")
    _print_disks(report["disks"])
    if report["tasks"]:
        output.print_line("")
        _print_tasks(report["tasks"])
    if report["moves"]:
        output.print_line("")
        print_moves([Move(**move) for move in report["moves"]])


def _print_disks(disks: Sequence[dict[str, Any]]) -> None:
    rows = []
    for disk in disks:
        capacity = disk["capacity_bytes"]
        full = f"{100 * disk['used_bytes'] / capacity:.0f} %" if capacity else "-"
        rows.append(
            (
                *(disk["node"], output.human_bytes(capacity), full),
                *(output.human_bytes(disk["stored_bytes"]), disk["members"], disk["targets"]),
                output.shown(disk["path"]),
            )
        )
    heading = ("node", "disk", "full", "replicas hold", "members", "targets", "path")
    output.print_table(heading, rows)


def _print_tasks(tasks: Sequence[dict[str, Any]]) -> None:
    rows = [
        (
            task["task"].replace("_", " "),
            task["host"] or task["subject"] or "-",
            time_text(task["began"]) if task["began"] else "-",
            task["moves_left"],
            output.human_bytes(task["left_bytes"]),
            _state(task),
        )
        for task in tasks
    ]
    output.print_table(("task", "of", "began", "moves left", "to copy", "state"), rows)


def _state(task: dict[str, Any]) -> str:
    if task["waits_for"]:
        return f"waits for {task['waits_for']}"
    if not task["moves_left"] and task["task"].startswith("drain"):
        return "done"
    return "under way"


def print_moves(moves: Sequence[Move]) -> None:
    """Print which member moves where."""
    output.print_table(
        ("chain", "target", "from node", "to node", "holds", "to copy"),
        [
            (
                *(move.chain, move.source, move.source_node, move.node or "-"),
                output.human_bytes(move.total_bytes),
                output.human_bytes(move.left_bytes),
            )
            for move in moves
        ],
    )
