"""Which free targets become a chain together; pure.

Previous hop: `evaluate`. Next hop: nothing. Members of a chain lie on different nodes. Nodes with
the most free targets are used first, so that few targets stay over; pairs of nodes that share the
fewest chains are preferred, so that the load of a dead node spreads over many; and each chain is
headed by the node among its members that heads the fewest, as all writes of a chain enter there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence


def form_chains(
    free: Mapping[int, Sequence[int]], replicas: int, chains: Sequence[Sequence[int]]
) -> list[list[int]]:
    """Return new chains of targets, heads first, as many as the free targets make.

    Args:    free: node -> its targets that belong to no chain; replicas: members of a chain;
             chains: the nodes of the chains that there are already, heads first
    """
    left = {node: sorted(targets) for node, targets in free.items() if targets}
    heads = Counter(nodes[0] for nodes in chains if nodes)
    shared: Counter[tuple[int, int]] = Counter()
    for nodes in chains:
        _count_pairs(shared, nodes)
    formed: list[list[int]] = []
    while len(left) >= replicas:
        members: list[int] = []
        while len(members) < replicas:
            members.append(
                min(
                    left.keys() - set(members),
                    key=lambda n: (-len(left[n]), sum(shared[n, m] for m in members), n),
                )
            )
        members.sort(key=lambda node: (heads[node], node))
        heads[members[0]] += 1
        _count_pairs(shared, members)
        formed.append([left[node].pop(0) for node in members])
        left = {node: targets for node, targets in left.items() if targets}
    return formed


def _count_pairs(shared: Counter[tuple[int, int]], nodes: Sequence[int]) -> None:
    for one in nodes:
        for other in nodes:
            if one != other:
                shared[one, other] += 1
