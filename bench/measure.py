"""Rounds, ratios, intervals, verdicts: how a figure and its reference are compared.

Contestants take turns within a round and every round starts with another one, so that a slow spell
of the machine hits all of them alike. A *pair* is one contestant's run and another's within one
round; what is reported is the median of the pairs' ratios with a 95 % bootstrap interval, never a
ratio of medians. Pairs during which the host stole more than 2 % of the CPU time are dropped and
counted, and rounds are added (up to twice the plan) until enough pairs remain.

Verdicts: *met* if the interval's worse end is within 0.03 of the goal or better, *missed* if even
its better end fails the goal, else *unresolved*: run longer. Fewer than `PAIRS_MIN` pairs never
decide.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np

from ffs.bench import rawtools
from ffs.bench.latency import Latencies
from ffs.bench.machine import Ticks, ticks
from ffs.errors import ConfigError

STEAL_MAX = 0.02
TOLERANCE = 0.03
PAIRS_MIN = 5
RESAMPLES = 10_000
GB = 1e9


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to measure. `smoke` runs show that it works; their figures mean nothing."""

    pairs: int = 15
    seconds: float = 2.0
    spinners: bool = True
    smoke: bool = False

    def __post_init__(self) -> None:
        if self.pairs < 1 or self.seconds <= 0:
            raise ConfigError("a plan needs at least one pair and a positive time")

    @classmethod
    def quick(cls) -> Plan:
        """The plan of `--quick`."""
        return cls(pairs=2, seconds=0.05, smoke=True)

    @property
    def rounds_max(self) -> int:
        """How many rounds may be run until `pairs` of them are good."""
        return self.pairs if self.smoke else 2 * self.pairs


@dataclass(frozen=True, slots=True)
class Sample:
    """What one timed run came to. `server_cpu_s` is None where the servers cannot be seen."""

    seconds: float
    bytes: int
    operations: int
    client_cpu_s: float
    server_cpu_s: float | None = 0.0
    more: Mapping[str, float] = field(default_factory=dict)
    latencies: Latencies | None = None

    @property
    def bytes_rate(self) -> float:
        """GB/s (1e9)."""
        return self.bytes / self.seconds / GB

    @property
    def operation_rate(self) -> float:
        """Operations (ranges, paths, files) per second."""
        return self.operations / self.seconds

    @property
    def cpu_s(self) -> float:
        """CPU seconds of client and servers together."""
        return self.client_cpu_s + (self.server_cpu_s or 0.0)


@dataclass(frozen=True, slots=True)
class Run:
    """A sample with the machine's time that passed meanwhile."""

    sample: Sample
    spent: Ticks


Runner = Callable[[float], Sample]
"""Runs one contestant for about so many seconds."""

Metric = Callable[[Sample], float]


def by_bytes(sample: Sample) -> float:
    """GB/s: larger is better."""
    return sample.bytes_rate


def by_operations(sample: Sample) -> float:
    """Operations/s: larger is better."""
    return sample.operation_rate


def by_cpu(sample: Sample) -> float:
    """CPU seconds of both sides per GB: smaller is better."""
    return sample.cpu_s / sample.bytes * GB if sample.bytes else float("nan")


def by_client_cpu(sample: Sample) -> float:
    """CPU seconds of the client alone per GB: smaller is better."""
    return sample.client_cpu_s / sample.bytes * GB if sample.bytes else float("nan")


def by_operation_cpu(sample: Sample) -> float:
    """CPU seconds of both sides per operation: smaller is better."""
    return sample.cpu_s / sample.operations if sample.operations else float("nan")


def by_median(sample: Sample) -> float:
    """Median latency in microseconds: smaller is better."""
    return sample.more["p50_us"]


UNITS: Mapping[Metric, str] = {
    by_bytes: "GB/s",
    by_operations: "/s",
    by_cpu: "CPU-s/GB",
    by_client_cpu: "CPU-s/GB",
    by_operation_cpu: "CPU-s",
    by_median: "us",
}
"""What the figures of a metric are counted in; other metrics say it where they are compared."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A median with the 95 % bootstrap interval around it."""

    median: float
    low: float
    high: float


def bootstrap(values: Sequence[float], *, seed: int = 1) -> Interval:
    """Return the median of `values` and the interval that 95 % of resampled medians lie in."""
    if not values:
        raise ValueError("no values to take a median of")
    data = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(0, len(data), size=(RESAMPLES, len(data)))
    low, high = np.percentile(np.median(data[picks], axis=1), (2.5, 97.5))
    return Interval(float(np.median(data)), float(low), float(high))


class Verdict(StrEnum):
    """What the interval says about the goal."""

    MET = "met"
    MISSED = "missed"
    UNRESOLVED = "unresolved"


class Better(StrEnum):
    """Which way a metric improves."""

    LARGER = "larger"
    SMALLER = "smaller"


def judge(
    interval: Interval, goal: float, *, better: Better = Better.LARGER, pairs: int
) -> Verdict:
    """Apply the rule of the module's docstring to a ratio."""
    if pairs < PAIRS_MIN:
        return Verdict.UNRESOLVED
    if better is Better.LARGER:
        met, missed = interval.low >= goal - TOLERANCE, interval.high < goal
    else:
        met, missed = interval.high <= goal + TOLERANCE, interval.low > goal
    return Verdict.MET if met else Verdict.MISSED if missed else Verdict.UNRESOLVED


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ours against a reference (or, with `reference` empty, against an absolute goal)."""

    name: str
    ours: str
    reference: str
    ratio: Interval | None
    goal: float | None
    verdict: Verdict | None
    pairs: int
    dropped: int
    unit: str = ""
    figure: float | None = None
    reference_figure: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def bounded(
    title: str, ours: str, figure: float, limit: float, *, unit: str, smoke: bool
) -> Comparison:
    """Hold a figure that is counted, not timed, against its upper bound: once is enough."""
    share = figure / limit
    verdict = Verdict.MET if share <= 1.0 else Verdict.MISSED
    return Comparison(
        title,
        ours,
        "its bound",
        Interval(share, share, share),
        1.0,
        Verdict.UNRESOLVED if smoke else verdict,
        1,
        0,
        unit,
        figure,
        limit,
    )


class Series:
    """The runs of some contestants, round by round: `rounds[i][name]`."""

    def __init__(self) -> None:
        self.rounds: list[dict[str, Run]] = []

    def samples(self, name: str) -> list[Sample]:
        """Return all samples of one contestant, quiet or not."""
        return [each[name].sample for each in self.rounds]

    def quiet(self, *names: str) -> list[dict[str, Run]]:
        """Return the rounds in which these contestants' runs together lost <= 2 % to steal."""
        return [
            each
            for each in self.rounds
            if sum((each[name].spent for name in names), Ticks(0, 0)).steal <= STEAL_MAX
        ]

    def median(self, name: str, metric: Metric) -> float:
        """Return the median of a metric over the rounds that were quiet for this contestant."""
        kept = self.quiet(name) or self.rounds
        return float(np.median([metric(each[name].sample) for each in kept]))

    def best(self, names: Sequence[str], metric: Metric, better: Better = Better.LARGER) -> str:
        """Return the contestant with the best median: the reference to be held against."""
        choose = max if better is Better.LARGER else min
        return choose(names, key=lambda name: self.median(name, metric))

    def compare(
        self,
        title: str,
        ours: str,
        reference: str,
        metric: Metric,
        *,
        goal: float | None = None,
        better: Better = Better.LARGER,
        unit: str = "",
    ) -> Comparison:
        """Hold the pairs' ratio ours / reference against `goal` (None: only report it)."""
        kept = self.quiet(ours, reference)
        values = [metric(each[ours].sample) / metric(each[reference].sample) for each in kept]
        found = self._conclude(title, ours, reference, values, goal, better)
        return replace(
            found,
            unit=unit or UNITS.get(metric, ""),
            figure=self.median(ours, metric),
            reference_figure=self.median(reference, metric),
        )

    def reach(
        self,
        title: str,
        ours: str,
        metric: Metric,
        limit: float,
        *,
        reference: str = "",
        goal: float | None = 1.0,
        better: Better = Better.LARGER,
        unit: str = "",
    ) -> Comparison:
        """Hold a figure against a number that nobody measures: the ratio is figure / limit."""
        values = [metric(each[ours].sample) / limit for each in self.quiet(ours)]
        return replace(
            self._conclude(title, ours, reference, values, goal, better),
            unit=unit or UNITS.get(metric, ""),
            figure=self.median(ours, metric),
            reference_figure=limit,
        )

    def _conclude(
        self,
        title: str,
        ours: str,
        reference: str,
        values: list[float],
        goal: float | None,
        better: Better,
    ) -> Comparison:
        ratio = bootstrap(values) if values else None
        verdict = None
        if goal is not None:
            verdict = Verdict.UNRESOLVED
            if ratio is not None:
                verdict = judge(ratio, goal, better=better, pairs=len(values))
        dropped = len(self.rounds) - len(values)
        return Comparison(title, ours, reference, ratio, goal, verdict, len(values), dropped)


def timed(runner: Runner, seconds: float) -> Run:
    """Run a contestant once and note what the machine did meanwhile."""
    before = ticks()
    sample = runner(seconds)
    return Run(sample, ticks() - before)


def run_rounds(
    contestants: Mapping[str, Runner],
    plan: Plan,
    *,
    warm: bool = True,
    progress: Callable[[str], None] = lambda text: None,
) -> Series:
    """Let contestants take turns until `plan.pairs` rounds were quiet for all of them.

    Args:    warm: run each shortly before, unrecorded
    Why: what one contestant meets the others meet too; see the module's docstring.
    """
    series, names = Series(), list(contestants)
    for name in names if warm else ():
        contestants[name](min(plan.seconds, 0.2))
    while len(series.rounds) < plan.rounds_max:
        index = len(series.rounds)
        turn = names[index % len(names) :] + names[: index % len(names)]
        series.rounds.append({name: timed(contestants[name], plan.seconds) for name in turn})
        kept = len(series.quiet(*names))
        progress(f"round {index + 1}: {kept} of {plan.pairs} pairs")
        if kept >= plan.pairs:
            break
    return series


@contextmanager
def spinners(plan: Plan, *, limit_s: int = 3600) -> Iterator[None]:
    """Keep an idle-priority spinner on every CPU while measuring (bench/raw/idlespin.c).

    Why:     what is measured must be of our session. Linux groups tasks by session (autogroup), and
             a spinner gives way at once only within its group: tasks of another group wait for it.
    """
    with ExitStack() as stack:
        if plan.spinners:
            for cpu in sorted(os.sched_getaffinity(0)):
                stack.enter_context(rawtools.spinner(cpu, limit_s))
        yield
