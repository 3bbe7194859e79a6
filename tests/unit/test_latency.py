"""Durations in buckets: sums, differences, quantiles, and how they are told."""

from __future__ import annotations

import itertools

import pytest

from ffs.latency import BOUNDS_NS, BUCKETS, added, quantile_ns, since, text_of

NONE = [0] * BUCKETS


def counts(**by_bucket: int) -> list[int]:
    """A histogram with so many in buckets named b0, b1, ..."""
    found = list(NONE)
    for name, count in by_bucket.items():
        found[int(name[1:])] = count
    return found


def test_bounds_are_powers_of_two_from_16_us_to_17_s() -> None:
    assert len(BOUNDS_NS) == BUCKETS - 1
    assert (BOUNDS_NS[0], BOUNDS_NS[-1]) == (16_384, 17_179_869_184)
    assert all(b == 2 * a for a, b in itertools.pairwise(BOUNDS_NS))


def test_a_quantile_is_the_bound_that_so_many_are_below() -> None:
    found = counts(b0=90, b3=9, b21=1)
    assert quantile_ns(found, 0.5) == quantile_ns(found, 0.9) == BOUNDS_NS[0]
    assert quantile_ns(found, 0.95) == quantile_ns(found, 0.99) == BOUNDS_NS[3]
    assert quantile_ns(found, 1.0) == 2 * BOUNDS_NS[-1]
    assert quantile_ns(NONE, 0.5) is None


def test_what_lies_between_two_looks() -> None:
    assert since(counts(b1=5, b2=7), counts(b1=5, b2=3)) == counts(b2=4)
    assert since(counts(b1=1), counts(b1=5)) == counts(b1=1), "it counts anew"
    assert added([counts(b1=1), counts(b1=2, b4=1)]) == counts(b1=3, b4=1)
    assert added([]) == NONE


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (None, "-"),
        (0, "0.00 us"),
        (1_234, "1.23 us"),
        (999_700, "1000 us"),
        (12_345_678, "12.3 ms"),
        (456_000_000, "456 ms"),
        (3_600 * 1e9, "3600 s"),
    ],
)
def test_durations_are_told_in_the_unit_that_suits(ns: float | None, text: str) -> None:
    assert text_of(ns) == text
