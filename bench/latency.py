"""Latencies of many single operations, as an HDR histogram: percentiles and the whole distribution.

Used by bench/cases: operations are timed in a plain loop, and recorded here when it has ended, so
that recording costs the loop nothing. Resolution is three digits, from 100 ns to a minute; what is
longer counts as a minute, and nothing is averaged.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from hdrh.histogram import HdrHistogram

_NS_MIN, _NS_MAX, _DIGITS = 100, 60_000_000_000, 3
PERCENTILES = {"p50_us": 50.0, "p99_us": 99.0, "p99_9_us": 99.9}
_CURVE = (0, 1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.5, 99.9, 99.95, 99.99)


class Latencies:
    """A distribution of latencies that grows."""

    def __init__(self) -> None:
        self._histogram: Any = HdrHistogram(_NS_MIN, _NS_MAX, _DIGITS)

    def add_ns(self, nanoseconds: npt.NDArray[Any]) -> None:
        """Record operations by what each took."""
        capped = np.clip(np.asarray(nanoseconds, dtype=np.int64), _NS_MIN, _NS_MAX)
        values, counts = np.unique(capped, return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            self._histogram.record_value(value, count)

    def add(self, other: Latencies) -> None:
        """Take in all that another distribution has."""
        self._histogram.add(other._histogram)

    @property
    def count(self) -> int:
        """How many operations were recorded."""
        return int(self._histogram.get_total_count())

    def percentile_us(self, percent: float) -> float:
        """Return what so many per cent of the operations did not exceed."""
        return float(self._histogram.get_value_at_percentile(percent)) / 1e3

    def percentiles(self) -> dict[str, float]:
        """Return the usual percentiles by name."""
        return {name: self.percentile_us(percent) for name, percent in PERCENTILES.items()}

    def curve(self) -> list[tuple[float, float]]:
        """Return points (microseconds, share of operations that took no longer)."""
        return [(self.percentile_us(percent), percent / 100) for percent in _CURVE]
