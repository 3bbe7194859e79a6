"""`ffs-bench shaped`: a link of a known rate between two network namespaces, and its payload.

1 MiB ranges, CRC on, one connection, over a veth pair whose both ends carry 1 or 5 Gbit/s, with an
MTU of 1,500 and of 9,000. Two references: the rate itself, of which headers take 4.4 % at an MTU of
1,500 and 0.7 % at 9,000; and a raw flow in the same round, bench/raw/stream.c by sendfile. Each run
is warmed up for a second of the same reading, since the bucket starts full and the window small.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from ffs.bench.cases.common import (
    MIB,
    Context,
    Figure,
    Outcome,
    figures,
    raw_runner,
    runs,
    take_turns,
)
from ffs.bench.cases.reading import Caller, DataSet, file_system, in_order, stored
from ffs.bench.cluster import Work
from ffs.bench.link import Link, link
from ffs.bench.measure import Comparison, Plan, Runner, Sample, by_bytes
from ffs.errors import ConfigError

RATES_MBIT = (1_000, 5_000)
MTUS = (1_500, 9_000)
LINK_GOAL, FLOW_GOAL = 0.93, 0.97
RANGES_A_CALL = 16
SIZE_BYTES_MAX = 64 * MIB
WARM_S, SECONDS_MIN, PAIRS_MAX = 1.0, 1.5, 7
"""The bucket decides the speed: it hardly varies, and few pairs say enough."""


@dataclass(frozen=True, slots=True)
class _Shape:
    mbit: int
    mtu: int

    def __str__(self) -> str:
        return f"{self.mbit // 1000} Gbit/s, MTU {self.mtu}"

    @property
    def gb_per_s(self) -> float:
        return self.mbit / 8e3


def measure(context: Context) -> Outcome:
    """Store a file at the other end, then measure each rate and MTU with connections of its own."""
    if context.url:
        raise ConfigError("a shaped link needs a cluster of its own", hint="leave --url out")
    found_figures: list[Figure] = []
    comparisons: list[Comparison] = []
    found_runs: list[dict[str, Any]] = []
    with link() as wire, wire.at_client():
        context = replace(
            context,
            link=wire,
            plan=_plan(context.plan),
            size_bytes=min(context.size_bytes, SIZE_BYTES_MAX),
        )
        with stored(context) as data:
            for mbit, mtu in product(RATES_MBIT, MTUS):
                one = _measure_one(context, data, wire, _Shape(mbit, mtu))
                found_figures += one.figures
                comparisons += one.comparisons
                found_runs += one.runs
    return Outcome(
        command="shaped",
        conditions=context.conditions(
            link="veth between two network namespaces, tbf on both ends",
            ranges=f"1 MiB, {RANGES_A_CALL} a call, in file order, cached, CRC on",
            connections="1",
            warmed=f"{_warm_s(context.plan):g} s before each run",
            data=f"{context.size_bytes} bytes, verified beforehand at each rate",
        ),
        figures=found_figures,
        comparisons=comparisons,
        runs=found_runs,
        notes=data.where.notes,
    )


def _plan(plan: Plan) -> Plan:
    if plan.smoke:
        return plan
    seconds = max(plan.seconds, SECONDS_MIN)
    return replace(plan, pairs=min(plan.pairs, PAIRS_MAX), seconds=seconds)


def _warm_s(plan: Plan) -> float:
    return 0.1 if plan.smoke else WARM_S


def _measure_one(context: Context, data: DataSet, wire: Link, shape: _Shape) -> Outcome:
    """Compare with the rate and with a raw flow under one shape."""
    ours, raw = f"{shape}: readv_into", f"{shape}: plain C, sendfile"
    wire.shape(mbit=shape.mbit, mtu=shape.mtu)
    with file_system(data.where, context) as fs:
        caller = Caller(fs, data, in_order(data.size_bytes, MIB, RANGES_A_CALL))
        caller.verify(MIB)
        work = caller.batches(MIB)
        contestants: dict[str, Runner] = {
            ours: _warmed(work, data.where.metered(work), _warm_s(context.plan)),
            raw: raw_runner(
                context,
                "stream",
                mode="sendfile",
                file=data.plain,
                range_bytes=MIB,
                window=caller.offsets.shape[1],
                warm_seconds=_warm_s(context.plan),
                check=1,
                dest_bytes=data.size_bytes,
            ),
        }
        series = take_turns(context, contestants)
    rate = shape.gb_per_s
    reached = series.reach(
        f"{shape}: payload of the link", ours, by_bytes, rate, reference="the link", goal=LINK_GOAL
    )
    flow = series.compare(f"{shape}: of a raw flow", ours, raw, by_bytes, goal=FLOW_GOAL)
    limit = series.reach(
        f"{shape}: raw flow of the link", raw, by_bytes, rate, reference="the link", goal=None
    )
    return Outcome(
        "shaped", {}, figures(series, list(contestants)), [reached, flow, limit], runs(series)
    )


def _warmed(work: Work, runner: Runner, warm_s: float) -> Runner:
    """Return the contestant with some of the same work before each run."""

    def run(seconds: float) -> Sample:
        found: tuple[int, int, Mapping[str, float] | Any] = work(time.perf_counter() + warm_s)
        assert found[0] > 0
        return runner(seconds)

    return run
