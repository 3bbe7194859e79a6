"""The rules of measuring: pairs, dropped pairs, intervals, verdicts. No figure of this machine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ffs.bench import measure
from ffs.bench.machine import Ticks
from ffs.bench.measure import Better, Interval, Plan, Run, Sample, Series, Verdict
from ffs.errors import ConfigError


def sample(rate: float, seconds: float = 1.0) -> Sample:
    moved = round(rate * seconds * 1e9)
    return Sample(seconds, moved, moved // 4096, client_cpu_s=0.2 * seconds, server_cpu_s=0.1)


def series_of(rounds: list[dict[str, tuple[float, int]]]) -> Series:
    """A series from (GB/s, stolen ticks of 100) a contestant and round."""
    series = Series()
    for each in rounds:
        series.rounds.append(
            {name: Run(sample(rate), Ticks(100, stolen)) for name, (rate, stolen) in each.items()}
        )
    return series


def test_a_sample_knows_its_rates() -> None:
    one = Sample(2.0, 4_000_000_000, 1000, client_cpu_s=0.6, server_cpu_s=0.2)
    assert one.bytes_rate == pytest.approx(2.0)
    assert one.operation_rate == pytest.approx(500)
    assert measure.by_cpu(one) == pytest.approx(0.2)
    assert measure.by_operation_cpu(one) == pytest.approx(0.0008)


def test_servers_out_of_sight_cost_nothing_known() -> None:
    assert Sample(1.0, 10, 1, client_cpu_s=0.5, server_cpu_s=None).cpu_s == 0.5


def test_bootstrap_encloses_the_median_and_repeats() -> None:
    values = list(np.random.default_rng(7).normal(0.8, 0.05, 15))
    first, again = measure.bootstrap(values), measure.bootstrap(values)
    assert first == again
    assert first.low <= first.median <= first.high
    assert first.median == pytest.approx(float(np.median(values)))
    assert first.high - first.low < 0.1


def test_bootstrap_of_equal_values_is_a_point() -> None:
    assert measure.bootstrap([0.5] * 9) == Interval(0.5, 0.5, 0.5)


def test_bootstrap_covers_the_true_median_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    covered = 0
    for seed in range(100):
        interval = measure.bootstrap(list(generator.normal(1.0, 0.1, 15)), seed=seed)
        covered += interval.low <= 1.0 <= interval.high
    assert 85 <= covered <= 100


def test_bootstrap_needs_values() -> None:
    with pytest.raises(ValueError, match="no values"):
        measure.bootstrap([])


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.71, 0.75, Verdict.MET),
        (0.67, 0.75, Verdict.MET),
        (0.66, 0.75, Verdict.UNRESOLVED),
        (0.50, 0.70, Verdict.UNRESOLVED),
        (0.50, 0.69, Verdict.MISSED),
    ],
)
def test_verdict_when_larger_is_better(low: float, high: float, verdict: Verdict) -> None:
    interval = Interval((low + high) / 2, low, high)
    assert measure.judge(interval, 0.7, pairs=15) is verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.0, 3.0, Verdict.MET),
        (1.0, 3.03, Verdict.MET),
        (2.9, 3.2, Verdict.UNRESOLVED),
        (3.01, 3.2, Verdict.MISSED),
    ],
)
def test_verdict_when_smaller_is_better(low: float, high: float, verdict: Verdict) -> None:
    interval = Interval((low + high) / 2, low, high)
    assert measure.judge(interval, 3.0, better=Better.SMALLER, pairs=15) is verdict


def test_few_pairs_never_decide() -> None:
    assert measure.judge(Interval(9, 9, 9), 0.7, pairs=4) is Verdict.UNRESOLVED


def test_ratios_are_taken_within_pairs() -> None:
    """The machine halves its speed every other round; the pairs do not notice."""
    rounds = [{"ours": (0.8 * s, 0), "raw": (1.0 * s, 0)} for s in (4, 2, 4, 2, 4, 2)]
    found = series_of(rounds).compare("x", "ours", "raw", measure.by_bytes, goal=0.7)
    assert found.ratio is not None
    assert found.ratio.low == pytest.approx(0.8)
    assert found.ratio.high == pytest.approx(0.8)
    assert found.verdict is Verdict.MET
    assert (found.pairs, found.dropped) == (6, 0)


def test_stolen_pairs_are_dropped_and_counted() -> None:
    quiet, stolen = {"ours": (0.8, 1), "raw": (1.0, 3)}, {"ours": (0.1, 2), "raw": (1.0, 3)}
    found = series_of([quiet] * 6 + [stolen] * 2).compare("x", "ours", "raw", measure.by_bytes)
    assert (found.pairs, found.dropped) == (6, 2)
    assert found.ratio is not None
    assert found.ratio.low == pytest.approx(0.8)
    assert found.verdict is None


def test_nothing_quiet_leaves_it_unresolved() -> None:
    noisy = series_of([{"ours": (1.0, 50), "raw": (1.0, 50)}] * 9)
    found = noisy.compare("x", "ours", "raw", measure.by_bytes, goal=0.7)
    assert found.ratio is None
    assert found.verdict is Verdict.UNRESOLVED


def test_the_best_reference_is_the_one_with_the_best_median() -> None:
    rounds = [{"a": (1.0, 0), "b": (1.2, 0)}, {"a": (9.0, 0), "b": (1.3, 0)}] + [
        {"a": (1.0, 0), "b": (1.2, 0)}
    ] * 3
    assert series_of(rounds).best(["a", "b"], measure.by_bytes) == "b"


def test_an_absolute_goal_is_a_ratio_to_it() -> None:
    found = series_of([{"ours": (1.0, 0)}] * 6).reach("x", "ours", measure.by_bytes, 2.0)
    assert found.ratio is not None
    assert found.ratio.median == pytest.approx(0.5)
    assert found.verdict is Verdict.MISSED


def test_contestants_take_turns_and_each_round_starts_with_another() -> None:
    calls: list[tuple[str, float]] = []

    def contestant(name: str) -> Callable[[float], Sample]:
        def run(seconds: float) -> Sample:
            calls.append((name, seconds))
            return sample(1.0, seconds)

        return run

    plan = Plan(pairs=3, seconds=0.5, smoke=True)
    series = measure.run_rounds({name: contestant(name) for name in "abc"}, plan)
    assert len(series.rounds) <= 3
    assert calls[:3] == [("a", 0.2), ("b", 0.2), ("c", 0.2)]  # warm-up, not recorded
    order = [name for name, _ in calls[3:]]
    assert order[:6] == ["a", "b", "c", "b", "c", "a"]
    assert {seconds for _, seconds in calls[3:]} == {0.5}


def test_rounds_are_added_while_the_host_steals(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = iter(range(1_000_000))

    def noisy() -> Ticks:
        spent = next(counter)
        return Ticks(spent * 100, spent * 50)

    monkeypatch.setattr(measure, "ticks", noisy)
    series = measure.run_rounds({"a": lambda s: sample(1.0, s)}, Plan(pairs=4, seconds=0.1))
    assert len(series.rounds) == 8


def test_a_plan_without_pairs_is_refused() -> None:
    with pytest.raises(ConfigError):
        Plan(pairs=0)
    with pytest.raises(ConfigError):
        Plan(seconds=0)


def test_an_absolute_limit_may_be_an_upper_one() -> None:
    found = series_of([{"ours": (0.1, 0)}] * 6).reach(
        "x", "ours", measure.by_bytes, 0.2, reference="the bound", better=Better.SMALLER
    )
    assert found.figure == pytest.approx(0.1)
    assert found.reference_figure == 0.2
    assert found.ratio is not None
    assert found.ratio.median == pytest.approx(0.5)
    assert found.verdict is Verdict.MET


@pytest.mark.parametrize(("figure", "verdict"), [(1.0, Verdict.MET), (1.01, Verdict.MISSED)])
def test_a_bound_that_is_counted_needs_no_pairs(figure: float, verdict: Verdict) -> None:
    assert measure.bounded("x", "ours", figure, 1.0, unit="MiB", smoke=False).verdict is verdict
    smoke = measure.bounded("x", "ours", figure, 1.0, unit="MiB", smoke=True)
    assert smoke.verdict is Verdict.UNRESOLVED


def test_a_comparison_has_both_figures_and_their_unit() -> None:
    found = series_of([{"ours": (0.8, 0), "raw": (1.0, 0)}] * 5).compare(
        "x", "ours", "raw", measure.by_bytes
    )
    assert (found.unit, found.figure, found.reference_figure) == ("GB/s", 0.8, 1.0)
