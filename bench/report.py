"""Outcomes as text for people and as one JSON object for machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ffs.bench.cases.common import Figure, Outcome
from ffs.bench.measure import Comparison
from ffs.bench.records import records


def as_json(outcome: Outcome, machine: Mapping[str, str]) -> dict[str, Any]:
    """Return the outcome with the machine it is about, ready for json.dumps."""
    flat = [record.as_dict() for record in records(outcome, machine)]
    return {"machine": dict(machine), **asdict(outcome), "records": flat}


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
    if each.figure is not None:
        text += f"{_number(each.figure)} {each.unit}, "
    if each.ratio is None:
        text += "no quiet pair"
    else:
        text += f"{each.ratio.median:.3f} [{each.ratio.low:.3f}, {each.ratio.high:.3f}]"
        text += f" of {each.reference}" if each.reference else " of the goal"
        if each.reference_figure is not None:
            text += f" ({_number(each.reference_figure)})"
    if each.verdict is not None:
        text += f", goal {each.goal:g}: {each.verdict.value}"
    return text + f" ({each.pairs} pairs, {each.dropped} dropped for steal)"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def goals_table(outcomes: Mapping[str, Outcome]) -> str:
    """Return a line for each goal of these cases, and for each case that could not run."""
    rows = [["case", "goal", "figure", "reference", "ratio", "wanted", "verdict"]]
    for case, outcome in outcomes.items():
        if not outcome.comparisons:
            rows.append([case, *outcome.notes])
        rows += [
            [case, *_goal_row(each)] for each in outcome.comparisons if each.verdict is not None
        ]
    return "\n".join(_table(rows))


def _goal_row(each: Comparison) -> list[str]:
    ratio, interval = "no quiet pair", ""
    if each.ratio is not None:
        ratio = f"{each.ratio.median:.3f}"
        interval = f" [{each.ratio.low:.3f}, {each.ratio.high:.3f}]"
    figure = "" if each.figure is None else f"{_number(each.figure)} {each.unit}"
    beside = "" if each.reference_figure is None else f" {_number(each.reference_figure)}"
    verdict = "" if each.verdict is None else each.verdict.value
    return [
        each.name,
        figure,
        f"{each.reference}{beside}",
        ratio + interval,
        f"{each.goal:g}",
        verdict + (f", {each.dropped} dropped" if each.dropped else ""),
    ]
