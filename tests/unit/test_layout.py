"""Where chunks live and how blocks are seeded: fixed vectors; if one changes, data is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffs.layout import (
    block_count,
    block_seed,
    chain_of_chunk,
    chunk_count,
    chunk_length,
    mix64,
    stripe_places,
)

U64 = st.integers(0, 2**64 - 1)


def test_mix64_is_the_published_splitmix64() -> None:
    """The reference stream of seed 1234567, and the finaliser alone at its corners."""
    golden, state, stream = 0x9E3779B97F4A7C15, 1234567, []
    for _ in range(3):
        state = (state + golden) & (2**64 - 1)
        stream.append(mix64(state))
    assert stream == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert mix64(0) == 0
    assert mix64(1) == 0x5692161D100B05E5
    assert mix64(2**64 - 1) == 0xB4D055FCF2CBBD7B


@pytest.mark.parametrize(
    ("table_chains", "stripe", "seed", "places"),
    [
        (1, 0, 7, (0,)),
        (2, 0, 0, (1, 0)),
        (3, 9, 42, (1, 2, 0)),
        (5, 0, 1, (0, 4, 2, 1, 3)),
        (8, 3, 1, (1, 0, 2)),
        (8, 0, 2**64 - 1, (0, 2, 3, 5, 6, 4, 7, 1)),
        (16, 4, 42, (5, 2, 1, 6)),
    ],
)
def test_stripe_places_vectors(
    table_chains: int, stripe: int, seed: int, places: tuple[int, ...]
) -> None:
    assert stripe_places(table_chains, stripe, seed) == places


@pytest.mark.parametrize(
    ("blob", "chunk", "block", "seed"),
    [
        (1, 0, 0, 0x82C0D5B8),
        (1, 0, 1, 0x8D51E97B),
        (1, 1, 0, 0x6C2172B9),
        (2, 0, 0, 0xCA094F3C),
        (2**64 - 1, 2**32 - 1, 16383, 0x8F7D72EB),
        (0x0123456789ABCDEF, 7, 255, 0xA2B4A73F),
    ],
)
def test_block_seed_vectors(blob: int, chunk: int, block: int, seed: int) -> None:
    assert block_seed(blob, chunk, block) == seed


def test_chunks_go_round_the_stripe() -> None:
    chains = [10, 20, 30, 40, 50]
    found = [chain_of_chunk(chains, 3, 99, i) for i in range(7)]
    assert found == [40, 20, 10, 40, 20, 10, 40]


@given(st.integers(1, 64), st.integers(0, 80), U64)
def test_places_are_distinct_and_within_the_table(chains: int, stripe: int, seed: int) -> None:
    places = stripe_places(chains, stripe, seed)
    wanted = chains if stripe == 0 else min(stripe, chains)
    assert len(places) == wanted == len(set(places))
    assert all(0 <= p < chains for p in places)


@given(U64, U64)
def test_mix64_is_injective(first: int, second: int) -> None:
    assert (mix64(first) == mix64(second)) == (first == second)


@given(st.integers(0, 1 << 40), st.sampled_from([1 << n for n in range(16, 27)]))
def test_chunk_lengths_add_up(length: int, chunk_size: int) -> None:
    count = chunk_count(length, chunk_size)
    if count == 0:
        assert length == 0
        return
    last = chunk_length(length, chunk_size, count - 1)
    assert 0 < last <= chunk_size
    assert (count - 1) * chunk_size + last == length
    assert chunk_length(length, chunk_size, 0) == min(length, chunk_size)


def test_seeds_spread_blobs_over_chains() -> None:
    """Ten thousand one-chunk blobs over ten chains: none has more than a quarter too many."""
    counts = [0] * 10
    for seed in range(10_000):
        counts[chain_of_chunk(range(10), 1, mix64(seed), 0)] += 1
    assert max(counts) < 1250


def test_block_count_rounds_up() -> None:
    assert [block_count(n) for n in (0, 1, 4096, 4097)] == [0, 1, 1, 2]
