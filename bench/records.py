"""Measurements as flat records: one JSON object for each comparison, and for each limit.

Made from an Outcome (bench/cases/common.py) by bench/report.py. A record can be read without the
rest of the result: it repeats the conditions and the machine. What was not measured is null; an
absolute limit (a link's rate, a bound) is a reference without costs of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ffs.bench.cases.common import Figure, Outcome
from ffs.bench.latency import PERCENTILES
from ffs.bench.measure import Comparison


@dataclass(frozen=True, slots=True)
class Costs:
    """What one side of a measurement took besides time."""

    gb_per_s: float | None = None
    operations_per_s: float | None = None
    client_cpu_s_per_gb: float | None = None
    server_cpu_s_per_gb: float | None = None
    latency_us: Mapping[str, float] | None = None
    minor_faults_per_gb: float | None = None
    wire_bytes_per_byte: float | None = None
    copied_bytes_per_byte: float | None = None

    @classmethod
    def of(cls, figure: Figure | None) -> Costs:
        """Return what a contestant's medians say."""
        if figure is None:
            return cls()
        more = figure.more
        moved = bool(figure.bytes_rate)
        return cls(
            gb_per_s=figure.bytes_rate if moved else None,
            operations_per_s=figure.operation_rate,
            client_cpu_s_per_gb=figure.client_cpu if moved else None,
            server_cpu_s_per_gb=figure.server_cpu if moved else None,
            latency_us={key: more[key] for key in PERCENTILES if key in more} or None,
            minor_faults_per_gb=more.get("faults_per_gb"),
            wire_bytes_per_byte=more.get("wire_per_byte"),
            copied_bytes_per_byte=more.get("copied_per_byte"),
        )


@dataclass(frozen=True, slots=True)
class Record:
    """One figure with its reference, goal and verdict. `interval` is that of the ratio."""

    case: str
    name: str
    ours: str
    figure: float | None
    unit: str
    costs: Costs
    reference: str
    reference_figure: float | None
    reference_costs: Costs
    ratio: float | None
    interval: tuple[float, float] | None
    goal: float | None
    verdict: str | None
    pairs: int
    dropped_pairs: int
    settings: Mapping[str, str]
    machine: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def records(outcome: Outcome, machine: Mapping[str, str]) -> list[Record]:
    """Return a record for each comparison, and for each contestant that is in none."""
    figures = {figure.name: figure for figure in outcome.figures}
    named = {name for each in outcome.comparisons for name in (each.ours, each.reference)}
    alone = [_alone(figure) for figure in outcome.figures if figure.name not in named]
    return [_record(each, figures, outcome, machine) for each in (*outcome.comparisons, *alone)]


def _alone(figure: Figure) -> Comparison:
    """Return what is measured but compared with nothing."""
    moved = bool(figure.bytes_rate)
    return Comparison(
        figure.name,
        figure.name,
        reference="",
        ratio=None,
        goal=None,
        verdict=None,
        pairs=0,
        dropped=0,
        unit="GB/s" if moved else "/s",
        figure=figure.bytes_rate if moved else figure.operation_rate,
    )


def _record(
    each: Comparison,
    figures: Mapping[str, Figure],
    outcome: Outcome,
    machine: Mapping[str, str],
) -> Record:
    ratio = each.ratio
    return Record(
        case=outcome.command,
        name=each.name,
        ours=each.ours,
        figure=each.figure,
        unit=each.unit,
        costs=Costs.of(figures.get(each.ours)),
        reference=each.reference,
        reference_figure=each.reference_figure,
        reference_costs=Costs.of(figures.get(each.reference)),
        ratio=None if ratio is None else ratio.median,
        interval=None if ratio is None else (ratio.low, ratio.high),
        goal=each.goal,
        verdict=None if each.verdict is None else each.verdict.value,
        pairs=each.pairs,
        dropped_pairs=each.dropped,
        settings=outcome.conditions,
        machine=machine,
    )
