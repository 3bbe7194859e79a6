"""Which free targets become a chain together; pure.

Previous hop: `evaluate`. Next hop: `spread`, for the disks of the nodes that are chosen here.
Members of a chain lie on different nodes. Nodes with the most free targets are used first, so that
few targets stay over. Then members of chains change places until a node shares about as many chains
with each other node, so that the readers of one that died turn to all others alike. In the end each
chain is headed by the node among its members that heads the fewest, as all writes of a chain enter
there.

Invariants: the same input gives the same chains; what was formed before is counted and never
changed. Failure behaviour: where no design is even, or none was found in `TRIES` attempts, what
came nearest is taken: that takes a second or two with 500 nodes, and happens once.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Final

from ffs.server.meta.cluster.spread import choose_targets
from ffs.server.meta.cluster.view import DiskKey

TRIES: Final = 200_000
"""Exchanges of two members that are looked at, at most, ..."""
_TRIES_FOR_EACH: Final = 2_000
"""... also for each chain there is: few chains have few ways to stand, ..."""
_TRIES_IN_A_ROW: Final = 64
"""... and for one chain before the next one has its turn."""
SLACK: Final = 0.1
"""A node takes no more than so much over its even share of another node's readers, but that
chains are whole."""


def form_chains(
    free: Mapping[int, Sequence[int]],
    replicas: int,
    standing: Sequence[Sequence[DiskKey]],
    disks: Mapping[int, DiskKey],
) -> list[list[int]]:
    """Return new chains of targets, heads first, as many as the free targets make.

    Args:    free: node -> its targets that belong to no chain; replicas: members of a chain;
             standing: the disks of the chains that there are already, heads first; disks: the disk
             of each free target
    """
    chains = [[node for node, _ in keys] for keys in standing]
    formed = _blocks(free, replicas)
    if replicas > 1:
        _Exchange(formed, chains).run()
    heads = Counter(nodes[0] for nodes in chains if nodes)
    for members in formed:
        members.sort(key=lambda node: (heads[node], node))
        heads[members[0]] += 1
    _spread_heads(formed, heads)
    return choose_targets(formed, free, disks, standing)


def _blocks(free: Mapping[int, Sequence[int]], replicas: int) -> list[list[int]]:
    """Return the nodes of as many chains as there can be: always of those with the most left."""
    dice = random.Random(0)
    left = [(-len(free[node]), dice.random(), node) for node in sorted(free) if free[node]]
    heapq.heapify(left)
    formed = []
    while len(left) >= replicas:
        taken = [heapq.heappop(left) for _ in range(replicas)]
        formed.append([node for _, _, node in taken])
        for negative, _, node in taken:
            if negative < -1:
                heapq.heappush(left, (negative + 1, dice.random(), node))
    return formed


class _Exchange:
    """Lets members of chains change places until pairs of nodes share chains evenly.

    A search downhill: the cost is the sum of the squares of how many chains each pair shares, and
    an exchange that leaves it as it was is taken too, which is what leads out of dead ends.
    """

    def __init__(self, formed: list[list[int]], chains: Sequence[Sequence[int]]) -> None:
        self._formed = formed
        self._dice = random.Random(0)
        self._shared: dict[int, Counter[int]] = {n: Counter() for c in formed for n in c}
        for nodes in (*chains, *formed):
            for one in nodes:
                if one in self._shared:
                    self._shared[one].update(other for other in nodes if other != one)
        others = max(1, len(self._shared) - 1)
        self._limit = {}
        for node, shared in self._shared.items():
            even = shared.total() / others
            self._limit[node] = max(math.ceil(even), math.floor((1 + SLACK) * even))

    def run(self) -> None:
        """Exchange members until none meets another too often, or for so many tries."""
        left = min(TRIES, _TRIES_FOR_EACH * len(self._formed))
        while left > 0 and (crowded := [c for c in self._formed if self._is_crowded(c)]):
            for chain in crowded:
                for _ in range(_TRIES_IN_A_ROW):
                    self._try(chain, self._dice.choice(self._formed))
                left -= _TRIES_IN_A_ROW

    def _is_crowded(self, chain: Sequence[int]) -> bool:
        return any(
            self._shared[one][other] > max(self._limit[one], self._limit[other])
            for place, one in enumerate(chain)
            for other in chain[:place]
        )

    def _try(self, chain: list[int], other: list[int]) -> None:
        """Exchange a member of one chain for one of another, if that is no worse."""
        here, there = (int(self._dice.random() * len(chain)) for _ in range(2))
        one, two = chain[here], other[there]
        if one in other or two in chain:
            return
        of_one, of_two = self._shared[one], self._shared[two]
        worse = 0
        for node in chain:
            if node != one and node not in other:
                worse += of_two[node] - of_one[node] + 1
        for node in other:
            if node != two and node not in chain:
                worse += of_one[node] - of_two[node] + 1
        if worse <= 0:
            self._count(chain, one, -1)
            self._count(other, two, -1)
            chain[here], other[there] = two, one
            self._count(chain, two, 1)
            self._count(other, one, 1)

    def _count(self, chain: Sequence[int], node: int, by: int) -> None:
        for other in chain:
            if other != node:
                self._shared[node][other] += by
                self._shared[other][node] += by


def _spread_heads(formed: list[list[int]], heads: Counter[int]) -> None:
    """Let other members head chains until no node heads two more than it must."""
    headed: dict[int, list[list[int]]] = {}
    for members in formed:
        headed.setdefault(members[0], []).append(members)
    busiest = sorted(headed, key=lambda node: -heads[node])
    while busiest:
        path = _path_to_idle(busiest[0], headed, heads)
        if not path:
            busiest.pop(0)
            continue
        for members, node in path:
            headed[members[0]].remove(members)
            heads[members[0]] -= 1
            members.insert(0, members.pop(members.index(node)))
            headed.setdefault(node, []).append(members)
            heads[node] += 1
        busiest.sort(key=lambda node: -heads[node])


def _path_to_idle(
    busy: int, headed: Mapping[int, list[list[int]]], heads: Counter[int]
) -> list[tuple[list[int], int]]:
    """Return which chains to give to which of their members, so that in the end `busy` heads one
    less and another node, which heads two less than it now, one more; empty if there is no way.
    """
    came: dict[int, tuple[int, list[int]]] = {}
    queue = deque([busy])
    while queue:
        node = queue.popleft()
        if heads[node] <= heads[busy] - 2:
            path = []
            while node != busy:
                before, members = came[node]
                path.append((members, node))
                node = before
            return path
        for members in headed.get(node, ()):
            for member in members[1:]:
                if member != busy and member not in came:
                    came[member] = (node, members)
                    queue.append(member)
    return []
