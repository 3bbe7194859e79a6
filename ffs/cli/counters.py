"""What `ffs status` says of the work of storage daemons: since they came up, and by the second.

Previous hop: `status`, with nodes as their last heartbeats told of them. Rates are the difference
of two such tellings, over the daemon's own time between them: no server keeps any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from ffs.cli import output
from ffs.wire.membership import DataLoopCounters
from ffs.wire.status import NodeStatus

WAYS: Final = ("mapped", "sendfile", "buffered", "disk", "direct")
"""How bytes of ranges reach a socket (`ffs/_storage.pyi`)."""
_UNKNOWN: Final = "-"
_TOTAL: Final = "_total"


def rates(
    earlier: DataLoopCounters | None, later: DataLoopCounters | None
) -> dict[str, float] | None:
    """How much every total grew in a second of the daemon's time.

    Returns: None where that cannot be said: nothing was heard in between, or the daemon is another
    """
    if earlier is None or later is None or later.age_ns <= earlier.age_ns:
        return None
    seconds = (later.age_ns - earlier.age_ns) / 1e9
    before, after = asdict(earlier), asdict(later)
    grown = {
        name.removesuffix(_TOTAL): after[name] - before[name]
        for name in after
        if name.endswith(_TOTAL)
    }
    return {"seconds": seconds} | {name: count / seconds for name, count in grown.items()}


def add_rates(
    report: Sequence[dict[str, Any]], earlier: Sequence[NodeStatus], later: Sequence[NodeStatus]
) -> None:
    """Give each node of a report its `rates`; `later` is what the report was made of."""
    before = {(node.role, node.id, node.pid): node.counters for node in earlier}
    for shown, node in zip(report, later, strict=True):
        shown["rates"] = rates(before.get((node.role, node.id, node.pid)), node.counters)


def print_counters(nodes: Sequence[dict[str, Any]]) -> None:
    """Print a line for each storage daemon; with its rates, if it has them."""
    heading = ["node", "connections", "ranges", "read", *WAYS, "slow", "written"]
    with_rates = any("rates" in node for node in nodes)
    if with_rates:
        heading += ["ranges/s", "read/s", "written/s"]
    rows = []
    for node in nodes:
        if node["role"] == "storage":
            cells = [node["id"], *_totals(node["counters"])]
            rows.append(cells + (_by_second(node["rates"]) if with_rates else []))
    output.print_table(heading, rows)


def _totals(counters: dict[str, Any] | None) -> list[object]:
    if counters is None:
        return [_UNKNOWN] * (5 + len(WAYS))
    sent = [counters[f"{way}_bytes_total"] for way in WAYS]
    return [
        counters["connections"],
        counters["ranges_total"],
        output.human_bytes(counters["read_bytes_total"]),
        *(f"{count / max(1, sum(sent)):.0%}" for count in sent),
        counters["slow_reads_total"],
        output.human_bytes(counters["write_bytes_total"]),
    ]


def _by_second(found: dict[str, float] | None) -> list[object]:
    if found is None:
        return [_UNKNOWN] * 3
    return [
        round(found["ranges"]),
        output.human_bytes(round(found["read_bytes"])),
        output.human_bytes(round(found["write_bytes"])),
    ]
