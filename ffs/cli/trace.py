"""`ffs trace read`: where the time of a read goes, range by range."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any, Final

from ffs import latency
from ffs.cli import output
from ffs.cli.action import Action
from ffs.cli.outcome import EXIT_DONE
from ffs.cli.remote import literal
from ffs.cli.units import size_bytes
from ffs.client import trace
from ffs.client.traced import PARTS, TracedRead
from ffs.seams import SystemRandomness

WINDOW_BYTES: Final = 64 << 20
"""Read by one call: a longer range is read by several, one after the other."""
SHOWN_MAX: Final = 20


def add_read_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `ffs trace read`."""
    parser.add_argument("path", metavar="PATH")
    parser.add_argument(
        "--offset", type=size_bytes, default=0, metavar="SIZE", help="from here on (0)"
    )
    parser.add_argument(
        "--length", type=size_bytes, metavar="SIZE", help="so many bytes (to the end)"
    )
    parser.add_argument(
        "--all", action="store_true", help=f"every range, not the {SHOWN_MAX} slowest"
    )


def run_read(args: argparse.Namespace) -> int:
    """Read a file, drop its bytes, and show where the time of each range went.

    python: before and after the engine; queue: in the engine until its request went out; network:
    on the way; server: at the daemon; disk: there, waiting for the disk; crc: checking its blocks.
    A daemon on this host is read by its files: disk is that then. The daemons' logs and `ffs status
    --slow` name reads by the same trace id.
    """
    fs, path = literal(args.path, args)
    trace_id = SystemRandomness().u64() or 1
    with trace.tracing(trace_id):
        reads = _read(fs, path, args.offset, args.length)
    report = _report(trace_id, path, reads)
    if args.json:
        output.print_json(report)
    else:
        _print(report, everything=args.all)
    return EXIT_DONE


def _read(fs: Any, path: str, offset: int, length: int | None) -> list[TracedRead]:
    """Read a range, window by window; one that is not inside the file is refused by the first."""
    end = max(offset, fs.info(path)["size"]) if length is None else offset + length
    starts = range(offset, end, WINDOW_BYTES) or range(offset, offset + 1)
    return [fs.trace_read(path, at, min(WINDOW_BYTES, end - at)) for at in starts]


def _report(trace_id: int, path: str, reads: list[TracedRead]) -> dict[str, Any]:
    ranges = [asdict(one) for read in reads for one in read.ranges]
    took_ns = sum(read.took_ns for read in reads)
    return {
        "trace_id": trace.as_fact(trace_id),
        "path": path,
        "calls": len(reads),
        "bytes": sum(read.length for read in reads),
        "took_ns": took_ns,
        "python_ns": sum(read.python_ns for read in reads),
        "ranges": ranges,
    }


def _print(report: dict[str, Any], *, everything: bool) -> None:
    took = latency.text_of(report["took_ns"])
    size = output.human_bytes(report["bytes"])
    output.print_line(f"trace {report['trace_id']}: {output.shown(report['path'])}")
    ranges = report["ranges"]
    output.print_line(f"{size} in {took}, {output.counted(len(ranges), 'range')}")
    if not ranges:
        return
    output.print_line("")
    shown = sorted(ranges, key=lambda one: -one["took_ns"])[: None if everything else SHOWN_MAX]
    heading = ("offset", "size", "node", "target", "by", "connection", "tries", "took", *PARTS)
    output.print_table(heading, [_row(one) for one in shown])
    if len(shown) < len(ranges):
        output.print_line(f"... and {len(ranges) - len(shown)} faster ones: --all shows them")
    output.print_line("")
    output.print_table(
        ("node", "address", "ranges", "bytes", "took at most", *PARTS), _by_node(ranges)
    )


def _row(one: dict[str, Any]) -> tuple[object, ...]:
    return (
        one["offset"],
        output.human_bytes(one["length"]),
        *(one[key] for key in ("node", "target", "transport")),
        one["connection"] or "-",
        one["tries"],
        latency.text_of(one["took_ns"]),
        *(latency.text_of(one[f"{part}_ns"]) for part in PARTS),
    )


def _by_node(ranges: list[dict[str, Any]]) -> list[tuple[object, ...]]:
    """Which part of their ranges' time each node's took, in per cent."""
    rows: list[tuple[object, ...]] = []
    for node, address in sorted({(one["node"], one["address"]) for one in ranges}):
        its = [one for one in ranges if one["node"] == node]
        spent = {part: sum(one[f"{part}_ns"] for one in its) for part in PARTS}
        whole = max(1, sum(spent.values()))
        slowest = latency.text_of(max(one["took_ns"] for one in its))
        size = output.human_bytes(sum(one["length"] for one in its))
        shares = (f"{spent[part] / whole:.0%}" for part in PARTS)
        rows.append((node, address, len(its), size, slowest, *shares))
    return rows


ACTIONS = {"read": Action(run_read, add_read_arguments, "ffs trace read /data/train/part-0")}
