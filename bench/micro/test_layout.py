"""Placement: where a chunk lives is computed for every range that is planned."""

from __future__ import annotations

from pytest_benchmark.fixture import BenchmarkFixture

from ffs import layout


def test_chain_of_chunk_with_places_remembered(benchmark: BenchmarkFixture) -> None:
    chains = list(range(1, 65))
    found = benchmark(layout.chain_of_chunk, chains, 8, 12345, 4242)
    assert found in chains


def test_stripe_places_of_a_new_seed(benchmark: BenchmarkFixture) -> None:
    seeds = iter(range(1, 1 << 60))
    places = benchmark(lambda: layout.stripe_places(64, 8, next(seeds)))
    assert len(set(places)) == 8
