"""The keyed permutation: its specification in plain integers, vectors, and how well it shuffles."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffs.client.permutation import LENGTH_MAX, Permutation
from ffs.errors import InvalidError
from ffs.layout import GOLDEN64, mix64

MASK64 = (1 << 64) - 1

VECTORS = [
    # length, seed, epoch, first position, samples from there
    (1, 0, 0, 0, [0]),
    (5, 0, 0, 0, [4, 0, 2, 3, 1]),
    (10, 42, 3, 0, [7, 8, 4, 3, 2, 1, 9, 6, 0, 5]),
    (1000, 7, 1, 990, [711, 308, 244, 821, 874]),
    (1 << 20, 1, 0, 0, [1238, 244909, 809696, 113290]),
    (10**9 + 7, 123456789, 17, 10**9, [736604741, 412236185, 904666467]),
    (1 << 62, MASK64, MASK64, (1 << 62) - 2, [294346348402268432, 874068152886805699]),
]


def specified(length: int, seed: int, epoch: int, position: int) -> int:
    """The module's steps, one position at a time."""
    bits = max(6, (length - 1).bit_length())
    low_bits, high_bits = bits // 2, bits - bits // 2
    state = 0
    for part in (seed, epoch, length):
        state = mix64(state + GOLDEN64 + part)
    keys = [mix64(state + (i + 1) * GOLDEN64) for i in range(10)]

    def f(value: int, key: int, width: int) -> int:
        x = ((value + key) * GOLDEN64) & MASK64
        x ^= x >> 32
        return ((x * 0xD6E8FEB86659FD93) & MASK64) >> (64 - width)

    value = position
    while True:
        high, low = value >> low_bits, value & ((1 << low_bits) - 1)
        for i, key in enumerate(keys):
            if i % 2 == 0:
                high ^= f(low, key, high_bits)
            else:
                low ^= f(high, key, low_bits)
        value = high << low_bits | low
        if value < length:
            return value


def samples_at(
    length: int, positions: Sequence[int] | range, seed: int = 0, epoch: int = 0
) -> list[int]:
    """What the module says."""
    wanted = np.array(positions, dtype=np.uint64)
    found: list[int] = Permutation(length, seed=seed, epoch=epoch)[wanted].tolist()
    return found


@pytest.mark.parametrize(("length", "seed", "epoch", "first", "expected"), VECTORS)
def test_vectors(length: int, seed: int, epoch: int, first: int, expected: list[int]) -> None:
    """An order that changes here would be another one for every run that is resumed."""
    assert samples_at(length, range(first, first + len(expected)), seed, epoch) == expected


@given(st.integers(1, LENGTH_MAX), st.integers(0, MASK64), st.integers(0, MASK64), st.data())
def test_blocks_follow_the_specification(
    length: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    positions = data.draw(st.lists(st.integers(0, length - 1), max_size=20))
    expected = [specified(length, seed, epoch, p) for p in positions]
    assert samples_at(length, positions, seed, epoch) == expected


@given(st.integers(0, 5_000), st.integers(0, MASK64))
def test_each_sample_stands_at_one_position(length: int, seed: int) -> None:
    assert sorted(samples_at(length, range(length), seed)) == list(range(length))


@pytest.mark.parametrize("length", [2**18, 2**18 + 1])
def test_each_sample_of_many_stands_at_one_position(length: int) -> None:
    found = Permutation(length, seed=7, epoch=3)[np.arange(length, dtype=np.uint64)]
    assert np.array_equal(np.sort(found), np.arange(length))


@pytest.mark.parametrize("bad", [{"length": -1}, {"length": LENGTH_MAX + 1}, {"seed": -1}])
def test_numbers_out_of_bounds_are_refused(bad: dict[str, int]) -> None:
    arguments = {"length": 10, "seed": 0, "epoch": 0, **bad}
    with pytest.raises(InvalidError, match=next(iter(bad))):
        Permutation(arguments.pop("length"), **arguments)


# --- how well it shuffles: the seeds are fixed, so each figure is the same everywhere -----------


def deviation(counts: Counter[tuple[int, ...]], cells: int) -> float:
    """Chi-square of counts that should be equal, in standard deviations from its mean."""
    mean = counts.total() / cells
    chi = sum((count - mean) ** 2 / mean for count in counts.values())
    chi += (cells - len(counts)) * mean
    return (chi - (cells - 1)) / math.sqrt(2 * (cells - 1))


def test_every_order_of_four_samples_is_equally_likely() -> None:
    orders = Counter(tuple(samples_at(4, range(4), seed)) for seed in range(16 * 24))
    assert abs(deviation(orders, 24)) < 4


def test_neighbours_are_independent() -> None:
    """Every pair of first two samples is equally likely, over seeds."""
    length = 33
    pairs = Counter(tuple(samples_at(length, range(2), seed)) for seed in range(2_500))
    assert abs(deviation(pairs, length * (length - 1))) < 4


@pytest.mark.parametrize("length", [1_000, 65_536, 300_000])
def test_one_order_looks_random(length: int) -> None:
    """Within one epoch: steps, place against sample, and what one batch holds."""
    order = Permutation(length, seed=1, epoch=0)[np.arange(length, dtype=np.uint64)]
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 4 / math.sqrt(length)
    assert abs(np.corrcoef(order, np.arange(length))[0, 1]) < 4 / math.sqrt(length)
    tenths = Counter(map(tuple, np.stack((order[:-1], order[1:]), 1) * 10 // length))
    assert abs(deviation(tenths, 100)) < 4


def test_epochs_and_seeds_have_nothing_in_common() -> None:
    """Two random orders of n agree at about one position, whatever n is."""
    length = 10_000
    everywhere = np.arange(length, dtype=np.uint64)
    orders = [
        Permutation(n, seed=seed, epoch=epoch)[everywhere]
        for n, seed, epoch in [(length, 0, 0), (length, 0, 1), (length, 1, 0), (length + 1, 0, 0)]
    ]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert np.count_nonzero(one == other) < 8
            assert abs(np.corrcoef(one, other)[0, 1]) < 4 / math.sqrt(length)
