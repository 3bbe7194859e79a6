"""Planning: what Python costs for each range before the first byte moves."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from ffs.client import planner
from ffs.client.handles import HandleTable
from ffs.client.layouts import Content, Route
from ffs.types import (
    Attr,
    ChainInfo,
    Layout,
    NodeInfo,
    Routing,
    Segment,
    TableInfo,
    TargetInfo,
    TargetState,
)
from ffs.wire.messages import OpenFile

RANGES = 256
RANGE_BYTES = 4096
FILE_BYTES = 512 << 20


@pytest.fixture
def route() -> Route:
    """A cluster of one node with four targets, each a chain."""
    ids = [1, 2, 3, 4]
    return Route(
        Routing(
            version=1,
            nodes=[NodeInfo(1, "127.0.0.1", 1)],
            targets=[TargetInfo(i, 1, TargetState.SERVING) for i in ids],
            chains=[ChainInfo(i, 1, [i]) for i in ids],
            tables=[TableInfo(1, ids)],
        )
    )


@pytest.fixture
def content(route: Route) -> Content:
    """A file of one segment over all chains."""
    attr = Attr(2, 1, 0o644, 0, 0, 1, FILE_BYTES, 1, 0, 0, 0)
    layout = Layout(chunk_size_bytes=1 << 20, stripe=0, table=1, seed=7)
    return Content("/file", OpenFile(attr, [Segment(5, FILE_BYTES, layout)]), route.tables)


@pytest.fixture
def offsets() -> npt.NDArray[np.uint64]:
    """Random aligned places in the file."""
    picks = np.random.default_rng(1).integers(0, FILE_BYTES // RANGE_BYTES, RANGES)
    return picks.astype(np.uint64) * np.uint64(RANGE_BYTES)


def test_plan_table(
    benchmark: BenchmarkFixture, route: Route, content: Content, offsets: npt.NDArray[np.uint64]
) -> None:
    table = HandleTable()
    ranges: npt.NDArray[Any] = np.zeros(RANGES, dtype=planner.RANGE_DTYPE)
    ranges["handle"] = table.add([content])[0]
    ranges["offset"] = offsets
    ranges["length"] = RANGE_BYTES
    plan = benchmark(planner.plan_table, ranges, table, route)
    assert plan.total == RANGES * RANGE_BYTES


def test_plan_ranges(
    benchmark: BenchmarkFixture, route: Route, content: Content, offsets: npt.NDArray[np.uint64]
) -> None:
    places = offsets.tolist()
    lengths = [RANGE_BYTES] * RANGES
    plan = benchmark(planner.plan_ranges, [content] * RANGES, places, lengths, route)
    assert plan.total == RANGES * RANGE_BYTES


def _first(chain: int, route: Route) -> int:
    return route.target(chain)


def test_plan_one(benchmark: BenchmarkFixture, route: Route, content: Content) -> None:
    assert benchmark(planner.plan_one, content, 8192, RANGE_BYTES, route, _first) is not None
