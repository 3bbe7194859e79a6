"""Which free targets become chains: members on different nodes, heads and pairs spread evenly."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from itertools import combinations, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffs.server.meta.cluster.placement import SLACK, form_chains
from ffs.server.meta.cluster.view import DiskKey

NODE = 1_000
"""Targets of node n are n * NODE and those that follow."""


def free(nodes: int, targets: int) -> dict[int, list[int]]:
    return {node: [NODE * node + i for i in range(targets)] for node in range(1, nodes + 1)}


def form(
    of: dict[int, list[int]], replicas: int, before: Sequence[Sequence[int]], disks: int = 1
) -> list[list[int]]:
    """Form chains of targets that lie on so many disks of each node, all in turn."""
    standing = [[(node, "0") for node in nodes] for nodes in before]
    lies_on = {target: disk_of(target, disks) for targets in of.values() for target in targets}
    return form_chains(of, replicas, standing, lies_on)


def disk_of(target: int, disks: int) -> DiskKey:
    return target // NODE, str(target % NODE % disks)


def nodes_of(chain: list[int]) -> list[int]:
    return [target // NODE for target in chain]


def meetings(chains: list[list[int]]) -> Counter[tuple[int, int]]:
    """How many chains each pair of nodes shares."""
    return Counter(pair for c in chains for pair in combinations(sorted(nodes_of(c)), 2))


def check_valid(chains: list[list[int]], of: dict[int, list[int]], replicas: int) -> None:
    members = [target for chain in chains for target in chain]
    assert len(set(members)) == len(members)
    assert set(members) <= {target for targets in of.values() for target in targets}
    assert all(len(set(nodes_of(chain))) == len(chain) == replicas for chain in chains)


@pytest.mark.parametrize(
    ("nodes", "targets", "replicas"),
    [
        *[(1, 1, 1), (1, 7, 1), (2, 1, 1), (2, 2, 2), (2, 6, 2), (3, 3, 3), (3, 5, 2), (4, 3, 3)],
        *[(5, 6, 3), (6, 20, 3), (7, 3, 3), (9, 4, 3), (9, 8, 2), (10, 9, 3), (12, 33, 3)],
        *[(13, 4, 4), (13, 6, 3), (16, 5, 4), (20, 6, 3), (25, 6, 3), (31, 15, 3), (50, 10, 3)],
        *[(100, 12, 4), (127, 3, 3), (127, 6, 3), (127, 12, 5), (500, 3, 3), (500, 12, 3)],
    ],
)
def test_a_dead_nodes_readers_turn_to_all_others_alike(
    nodes: int, targets: int, replicas: int
) -> None:
    of = free(nodes, targets)
    chains = form(of, replicas, [])
    check_valid(chains, of, replicas)
    assert len(chains) == nodes * targets // replicas, "no more are left over than must be"
    # Chains are whole: nobody can share less than the next whole number.
    even = targets * (replicas - 1) / max(1, nodes - 1)
    most = max(meetings(chains).values(), default=0)
    assert most <= max(math.ceil(even), (1 + SLACK) * even)
    heads = Counter(nodes_of(chain)[0] for chain in chains)
    assert max(heads.values()) == math.ceil(len(chains) / nodes)
    assert min(heads[node] for node in of) == len(chains) // nodes


@pytest.mark.parametrize(
    ("nodes", "disks", "targets", "replicas"),
    [
        *[(4, 2, 3, 3), (5, 4, 3, 3), (6, 4, 6, 3), (10, 12, 3, 3), (12, 2, 4, 2), (20, 6, 4, 3)],
        *[(50, 4, 6, 3), (180, 16, 3, 3), (500, 4, 3, 3), (500, 12, 3, 3)],
    ],
)
def test_what_is_asked_of_others_when_a_disk_fails_is_spread_over_all(
    nodes: int, disks: int, targets: int, replicas: int
) -> None:
    of = free(nodes, disks * targets)
    before_s = time.thread_time()
    chains = form(of, replicas, [], disks)
    took_s = time.thread_time() - before_s
    print(f"{nodes} nodes of {disks} disks, {len(chains)} chains: {took_s:.2f} s of CPU")
    check_valid(chains, of, replicas)
    pairs = [
        (disk_of(one, disks), disk_of(other, disks))
        for chain in chains
        for one, other in permutations(chain, 2)
    ]
    # Chains are whole: nobody can share less than the next whole number.
    for taken_by, others in (
        (Counter((failed, node) for failed, (node, _) in pairs), nodes - 1),
        (Counter(pairs), (nodes - 1) * disks),
    ):
        even = targets * (replicas - 1) / others
        assert max(taken_by.values()) <= max(math.ceil(even), (1 + SLACK) * even)


def test_disks_of_chains_that_are_there_count() -> None:
    """Both new chains must lie on nodes 1 and 2, which have two disks each."""
    of = {1: [1_000, 1_001], 2: [2_000, 2_001]}
    disks = {target: disk_of(target, 2) for targets in of.values() for target in targets}
    standing = [[(1, "0"), (2, "0")], [(1, "1"), (2, "1")]]
    chains = form_chains(of, 2, standing, disks)
    assert sorted(sorted(disks[target][1] for target in chain) for chain in chains) == [
        ["0", "1"],
        ["0", "1"],
    ], "the same disks do not meet again"


@pytest.mark.parametrize(("nodes", "targets", "replicas"), [(25, 8, 4), (31, 6, 6), (127, 63, 3)])
def test_where_only_a_perfect_design_is_even_what_is_found_is_one_chain_off(
    nodes: int, targets: int, replicas: int
) -> None:
    of = free(nodes, targets)
    chains = form(of, replicas, [])
    check_valid(chains, of, replicas)
    shared = meetings(chains)
    assert max(shared.values()) == 2, "each pair meets once in the perfect one"
    assert len(shared) > 0.85 * nodes * (nodes - 1) / 2, "most pairs do meet"


def test_too_few_nodes_form_nothing() -> None:
    assert form(free(2, 5), 3, []) == []
    assert form({}, 1, []) == []


def test_chains_that_are_there_count() -> None:
    (chain,) = form(free(2, 1), 2, [[1, 2]])
    assert nodes_of(chain) == [2, 1]


def test_nodes_that_met_before_meet_others_first() -> None:
    before = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    chains = form(free(9, 3), 3, before)
    old = {pair for chain in before for pair in combinations(chain, 2)}
    assert len(chains) == 9 and not old & meetings(chains).keys()


@settings(max_examples=40)
@given(
    st.dictionaries(st.integers(1, 12), st.integers(0, 9), max_size=9),
    st.integers(1, 4),
    st.lists(st.lists(st.integers(1, 14), min_size=1, max_size=4, unique=True), max_size=6),
)
def test_any_cluster_gets_as_many_chains_as_there_can_be(
    targets: dict[int, int], replicas: int, before: list[list[int]]
) -> None:
    of = {node: [NODE * node + i for i in range(count)] for node, count in targets.items()}
    chains = form(of, replicas, before)
    check_valid(chains, of, replicas)
    most = max(
        k for k in range(100) if sum(min(k, count) for count in targets.values()) >= k * replicas
    )
    assert len(chains) == most
    reordered = dict(reversed(of.items()))
    assert form(reordered, replicas, before) == chains, "the same cluster, the same chains"
