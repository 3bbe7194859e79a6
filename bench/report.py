"""Outcomes as text for people and as one JSON object for machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ffs.bench.cases.common import Figure, Outcome
from ffs.bench.measure import Comparison


def as_json(outcome: Outcome, machine: Mapping[str, str]) -> dict[str, Any]:
    """Return the outcome with the machine it is about, ready for json.dumps."""
    return {"machine": dict(machine), **asdict(outcome)}


def as_text(outcome: Outcome, machine: Mapping[str, str]) -> str:
    """Return the outcome as a few aligned lines."""
    lines = ["  ".join(f"{key}: {value}" for key, value in machine.items())]
    lines += [f"{key}: {value}" for key, value in outcome.conditions.items()]
    lines += ["", *_table([_figure_row(figure) for figure in outcome.figures])]
    if outcome.comparisons:
        lines += ["", *(_comparison(each) for each in outcome.comparisons)]
    lines += [f"note: {note}" for note in outcome.notes]
    return "\n".join(lines)


def _figure_row(figure: Figure) -> list[str]:
    server = "?" if figure.server_cpu is None else f"{figure.server_cpu:.3f}"
    row = [figure.name]
    if figure.bytes_rate:
        row.append(f"{figure.bytes_rate:.3f} GB/s")
    row += [
        f"{figure.operation_rate:,.0f} /s",
        f"client {figure.client_cpu:.3f} + server {server} {figure.cpu_unit}",
    ]
    return row + [f"{key} {value:.2f}" for key, value in figure.more.items()]


def _table(rows: list[list[str]]) -> list[str]:
    columns = max((len(row) for row in rows), default=0)
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(columns)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        for row in rows
    ]


def _comparison(each: Comparison) -> str:
    text = f"{each.name}: "
    if each.ratio is None:
        text += "no quiet pair"
    else:
        text += f"{each.ratio.median:.3f} [{each.ratio.low:.3f}, {each.ratio.high:.3f}]"
        text += f" of {each.reference}" if each.reference else " of the goal"
    if each.verdict is not None:
        text += f", goal {each.goal:g}: {each.verdict.value}"
    return text + f" ({each.pairs} pairs, {each.dropped} dropped for steal)"
