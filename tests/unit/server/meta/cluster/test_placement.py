"""Which free targets become chains: members on different nodes, heads and pairs spread evenly."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest

from ffs.server.meta.cluster.placement import form_chains


def free(nodes: int, targets: int) -> dict[int, list[int]]:
    return {node: [100 * node + i for i in range(targets)] for node in range(1, nodes + 1)}


def nodes_of(chain: list[int]) -> list[int]:
    return [target // 100 for target in chain]


@pytest.mark.parametrize(("nodes", "replicas"), [(1, 1), (2, 2), (3, 3), (3, 2), (5, 3), (12, 3)])
def test_every_target_is_used_once_and_heads_are_even(nodes: int, replicas: int) -> None:
    chains = form_chains(free(nodes, replicas), replicas, [])
    assert len(chains) == nodes
    members = [target for chain in chains for target in chain]
    assert len(set(members)) == len(members) == nodes * replicas
    assert all(len(set(nodes_of(chain))) == replicas for chain in chains)
    heads = Counter(nodes_of(chain)[0] for chain in chains)
    assert set(heads.values()) == {1} and len(heads) == nodes


def test_nodes_share_chains_with_many_others() -> None:
    chains = form_chains(free(7, 6), 3, [])
    pairs = Counter(pair for c in chains for pair in combinations(sorted(nodes_of(c)), 2))
    assert len(chains) == 14 and len(pairs) == 21, "each pair of nodes meets"
    assert max(pairs.values()) <= 3


def test_too_few_nodes_form_nothing() -> None:
    assert form_chains(free(2, 5), 3, []) == []
    assert form_chains({}, 1, []) == []


def test_chains_that_are_there_count() -> None:
    (chain,) = form_chains(free(2, 1), 2, [[1, 2]])
    assert nodes_of(chain) == [2, 1]
