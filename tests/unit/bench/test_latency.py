"""Distributions of latencies: what was recorded comes out again, to three digits."""

from __future__ import annotations

import numpy as np
import pytest

from ffs.bench.latency import Latencies


def test_percentiles_of_known_latencies() -> None:
    found = Latencies()
    found.add_ns(np.arange(1, 1001) * 1000)
    assert found.count == 1000
    usual = {"p50_us": 500, "p99_us": 990, "p99_9_us": 999}
    assert found.percentiles() == pytest.approx(usual, rel=1e-3)


def test_distributions_add_up() -> None:
    first, second = Latencies(), Latencies()
    first.add_ns(np.full(900, 10_000))
    second.add_ns(np.full(100, 20_000))
    first.add(second)
    curve = first.curve()
    assert first.count == 1000
    assert curve[0][0] == pytest.approx(10, rel=0.01)
    assert curve[-1][0] == pytest.approx(20, rel=0.01)
    assert [share for _, share in curve] == sorted(share for _, share in curve)


def test_what_is_out_of_range_is_counted_at_its_end() -> None:
    found = Latencies()
    found.add_ns(np.array([1, 10**12]))
    assert found.count == 2
    assert found.percentile_us(100) == pytest.approx(60e6, rel=0.01)
