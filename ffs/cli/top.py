"""`ffs top`: what the cluster is doing, drawn anew every few seconds."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from ffs import latency
from ffs.cli import output
from ffs.cli.action import Action
from ffs.cli.counters import rates
from ffs.cli.outcome import EXIT_DONE
from ffs.cli.remote import cluster
from ffs.cli.slowest import HEADING as SLOW_HEADING
from ffs.cli.slowest import rows as slow_rows
from ffs.cli.slowest import slow_reads
from ffs.cli.units import duration_s
from ffs.client.meta import MetaClient
from ffs.types import TargetState
from ffs.wire.status import STATUS, NodeStatus, StatusReply, StatusRequest

SLOW_SHOWN: Final = 5
HEADING: Final = (
    *("node", "state", "clients", "read/s", "ranges/s", "written/s", "p50", "p99"),
    *("disk p99", "from disk", "errors/s"),
)
_UNKNOWN: Final = "-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare top's arguments."""
    parser.add_argument(
        "--interval", type=duration_s, default=2, metavar="TIME", help="between two looks (2s)"
    )


def run(args: argparse.Namespace) -> int:
    """Show what each storage daemon does, by the second, and the slowest reads of the last minute.

    On a terminal it is drawn anew until Ctrl-C; in a pipe, and with --json, two looks are taken and
    what happened in between is shown once. p50 and p99 are of reads, at the daemon, to a factor of
    two.
    """
    meta = cluster(args).core.meta
    earlier = meta.call(STATUS, StatusRequest())
    if not args.json and sys.stdout.isatty() and os.environ.get("TERM") not in (None, "", "dumb"):
        return _watch(meta, earlier, args.interval)
    time.sleep(args.interval)
    look = _look(meta, earlier)
    if args.json:
        output.print_json(look.as_dict())
    else:
        for line in look.lines():
            output.print_line(line)
    return EXIT_DONE


@dataclass(frozen=True, slots=True)
class Look:
    """What happened between two statuses."""

    status: StatusReply
    nodes: list[dict[str, Any]]
    slowest: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "cluster": self.status.cluster_id.hex(),
            "targets": self._targets(),
            "nodes": self.nodes,
            "slowest": self.slowest,
        }

    def lines(self) -> list[str]:
        """The same for people."""
        targets = ", ".join(f"{count} {state}" for state, count in self._targets().items())
        up = sum(node["state"] == "up" for node in self.nodes)
        blobs = output.counted(self.status.blobs, "blob")
        of = f"{up} of {output.counted(len(self.nodes), 'node')}"
        head = [
            f"cluster {self.status.cluster_id.hex()}  {time.strftime('%H:%M:%S')}",
            f"{of} up, targets: {targets or 'none'}, {blobs}",
            "",
        ]
        lines = head + output.table_lines(HEADING, [_row(node) for node in self.nodes])
        if self.slowest:
            shown = slow_rows(self.slowest[:SLOW_SHOWN])
            lines += ["", "slowest reads of the last minute"]
            lines += output.table_lines(SLOW_HEADING, shown)
        return lines

    def _targets(self) -> dict[str, int]:
        states = [TargetState(target.state) for target in self.status.routing.targets]
        return {state.name.lower(): states.count(state) for state in TargetState if state in states}


def _look(meta: MetaClient, earlier: StatusReply) -> Look:
    later = meta.call(STATUS, StatusRequest())
    before = {(node.id, node.pid): node for node in earlier.nodes if node.role == "storage"}
    nodes = [
        _node(before.get((node.id, node.pid)), node)
        for node in later.nodes
        if node.role == "storage"
    ]
    return Look(later, nodes, slow_reads(later.nodes, meta))


def _node(before: NodeStatus | None, node: NodeStatus) -> dict[str, Any]:
    counters = node.counters
    then = None if before is None else before.counters
    daemon = None if counters is None else counters.daemon
    reads = list(daemon.reads) if daemon is not None else []
    if reads and then is not None and then.daemon is not None and then.daemon.reads:
        reads = latency.since(reads, then.daemon.reads)
    disks = latency.added(disk.reads for disk in daemon.disks) if daemon is not None else []
    return {
        "id": node.id,
        "state": node.state,
        "address": node.address,
        "connections": None if counters is None else counters.connections,
        "rates": rates(then, counters),
        "read_p50_ns": latency.quantile_ns(reads, 0.5) if reads else None,
        "read_p99_ns": latency.quantile_ns(reads, 0.99) if reads else None,
        "disk_p99_ns": latency.quantile_ns(disks, 0.99) if disks else None,
    }


def _row(node: dict[str, Any]) -> tuple[object, ...]:
    by_second = node["rates"]
    quantiles = [latency.text_of(node[f"{name}_ns"]) for name in ("read_p50", "read_p99")]
    connections = _UNKNOWN if node["connections"] is None else node["connections"]
    disk = latency.text_of(node["disk_p99_ns"])
    if by_second is None:
        numbers, share, errors = [_UNKNOWN] * 3, _UNKNOWN, _UNKNOWN
    else:
        from_disk = by_second["disk_bytes"] + by_second["direct_bytes"]
        share = f"{from_disk / max(1.0, by_second['read_bytes']):.0%}"
        errors = f"{by_second['errors']:.3g}"
        numbers = [
            output.human_bytes(round(by_second["read_bytes"])),
            str(round(by_second["ranges"])),
            output.human_bytes(round(by_second["write_bytes"])),
        ]
    return (node["id"], node["state"], connections, *numbers, *quantiles, disk, share, errors)


def _watch(meta: MetaClient, earlier: StatusReply, interval_s: int) -> int:
    """Draw until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt), _screen() as draw:
        draw(["looking ..."])
        while True:
            time.sleep(interval_s)
            look = _look(meta, earlier)
            draw(look.lines())
            earlier = look.status
    return EXIT_DONE


@contextlib.contextmanager
def _screen() -> Iterator[Any]:
    """Give a function that shows lines in place of those before; the terminal is as it was then."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(), screen=True, auto_refresh=False) as live:
        yield lambda lines: live.update(Text("\n".join(lines), no_wrap=True), refresh=True)


ACTIONS = {"": Action(run, add_arguments, "ffs top --interval 5s")}
