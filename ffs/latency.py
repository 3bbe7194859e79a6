"""Durations as the native engines count them: how many fell into each of a few buckets.

Previous hops: `ffs._reader.latency`, `ffs._storage` (native/core/latency.h). Next hops: metrics,
heartbeats, `ffs status`, `ffs top`, `ffs doctor`.

A bucket's bound is a power of two: a quantile is known to a factor of two, which is enough to tell
a slow disk from a fast one, and costs a few instructions for each thing that is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

BUCKETS: Final = 22
BOUNDS_NS: Final = tuple(1 << (14 + k) for k in range(BUCKETS - 1))
"""What durations of each bucket are below, 16 us to 17 s; the last bucket is for all others."""
_UNITS: Final = (("s", 1e9), ("ms", 1e6), ("us", 1e3))


def since(later: Sequence[int], earlier: Sequence[int]) -> list[int]:
    """Return what was counted between two looks; all of `later` if the counting began anew."""
    grown = [after - before for after, before in zip(later, earlier, strict=True)]
    return list(later) if min(grown) < 0 else grown


def added(histograms: Iterable[Sequence[int]]) -> list[int]:
    """Return the sum of histograms."""
    total = [0] * BUCKETS
    for buckets in histograms:
        total = [a + b for a, b in zip(total, buckets, strict=True)]
    return total


def quantile_ns(buckets: Sequence[int], share: float) -> int | None:
    """Return the bound that `share` of all durations are below; None without any.

    What is beyond the last bound is told as twice that.
    """
    wanted = share * sum(buckets)
    if not wanted:
        return None
    seen = 0
    for bound_ns, count in zip((*BOUNDS_NS, 2 * BOUNDS_NS[-1]), buckets, strict=True):
        seen += count
        if seen >= wanted:
            return bound_ns
    return 2 * BOUNDS_NS[-1]


def text_of(duration_ns: float | None) -> str:
    """Return a duration for people, in the unit that suits it."""
    if duration_ns is None:
        return "-"
    unit, size = next((one for one in _UNITS if duration_ns >= one[1]), _UNITS[-1])
    value = duration_ns / size
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f} {unit}"
