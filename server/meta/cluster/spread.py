"""On which disks of their nodes the members of new chains lie; pure.

Previous hop: `placement`, which has chosen the nodes of each chain. Next hop: nothing. Members of a
node's chains change disks with each other until each disk shares about as many chains with each
other node, and with each disk there: so what is asked of others when a disk fails is spread over
all of them. A search downhill, as in `placement`, which never changes who the nodes are.

Invariants: the same input gives the same targets. Failure behaviour: where no way is even, or none
was found in `TRIES` attempts, what came nearest is taken.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from ffs.server.meta.cluster.view import DiskKey

TRIES: Final = 400_000
_TRIES_FOR_EACH: Final = 4_000
_TRIES_IN_A_ROW: Final = 16
SLACK: Final = 0.1
"""A node takes no more than so much over its even share of another one's disk, but that chains are
whole."""


def choose_targets(
    chains: Sequence[Sequence[int]],
    free: Mapping[int, Sequence[int]],
    disks: Mapping[int, DiskKey],
    standing: Sequence[Sequence[DiskKey]],
) -> list[list[int]]:
    """Return the targets of new chains, in the order of their nodes.

    Args:    chains: the nodes of each; free: node -> targets to choose from; disks: target -> its
             disk; standing: the disks of the chains that there are already
    """
    left = {node: _by_turns(targets, disks) for node, targets in free.items()}
    chosen = [[left[node].pop() for node in nodes] for nodes in chains]
    if any(len({disks[target] for target in targets}) > 1 for targets in free.values()):
        _Search(chosen, disks, standing).run()
    return chosen


def _by_turns(targets: Sequence[int], disks: Mapping[int, DiskKey]) -> list[int]:
    """Return a node's targets from the last to the first, one of each disk in turn."""
    piles: dict[DiskKey, list[int]] = {}
    for target in sorted(targets):
        piles.setdefault(disks[target], []).append(target)
    rounds = max(map(len, piles.values()), default=0)
    ordered = [pile[i] for i in range(rounds) for pile in piles.values() if i < len(pile)]
    return ordered[::-1]


class _Search:
    """Lets chains exchange the disks that they have on a node."""

    def __init__(
        self,
        chosen: list[list[int]],
        disks: Mapping[int, DiskKey],
        standing: Sequence[Sequence[DiskKey]],
    ) -> None:
        self._chosen = chosen
        self._disks = disks
        self._dice = random.Random(0)
        self._with_disk: defaultdict[DiskKey, Counter[DiskKey]] = defaultdict(Counter)
        self._with_node: defaultdict[DiskKey, Counter[int]] = defaultdict(Counter)
        self._chains_on: defaultdict[int, list[tuple[list[int], int]]] = defaultdict(list)
        for chain in chosen:
            for place, target in enumerate(chain):
                self._chains_on[disks[target][0]].append((chain, place))
        for keys in (*standing, *([disks[target] for target in chain] for chain in chosen)):
            for one in keys:
                others = [other for other in keys if other != one]
                self._with_disk[one].update(others)
                self._with_node[one].update(node for node, _ in others)
        self._set_limits()

    def _set_limits(self) -> None:
        nodes = {node for node, _ in self._with_node}
        disks_on = Counter(node for node, _ in self._with_node)
        self._node_limit: dict[DiskKey, int] = {}
        """In how many chains a disk may meet a node, ..."""
        self._disk_limit: dict[DiskKey, int] = {}
        """... and another disk."""
        for key, counted in self._with_node.items():
            even = counted.total() / max(1, len(nodes) - 1)
            self._node_limit[key] = _limit(even)
            others = max(1, len(self._with_node) - disks_on[key[0]])
            self._disk_limit[key] = _limit(counted.total() / others)

    def run(self) -> None:
        """Exchange disks until none meets a node or a disk too often, or for so many tries."""
        left = min(TRIES, _TRIES_FOR_EACH * len(self._chosen))
        while left > 0:
            crowded = [chain for chain in self._chosen if self._is_crowded(chain)]
            if not crowded:
                return
            for chain in crowded:
                for _ in range(_TRIES_IN_A_ROW):
                    self._try(chain, self._dice.randrange(len(chain)))
                left -= _TRIES_IN_A_ROW

    def _is_crowded(self, chain: Sequence[int]) -> bool:
        keys = [self._disks[target] for target in chain]
        return any(
            self._with_node[one][other[0]] > self._node_limit[one]
            or self._with_disk[one][other] > max(self._disk_limit[one], self._disk_limit[other])
            for one in keys
            for other in keys
            if one != other
        )

    def _try(self, chain: list[int], place: int) -> None:
        """Exchange a chain's disk of a node for another chain's, if that is no worse."""
        one = self._disks[chain[place]]
        other_chain, other_place = self._dice.choice(self._chains_on[one[0]])
        two = self._disks[other_chain[other_place]]
        if one == two:
            return
        mine = {self._disks[t] for t in chain} - {one}
        theirs = {self._disks[t] for t in other_chain} - {two}
        if self._worse(one, two, mine, theirs) > 0:
            return
        self._count(one, mine, -1)
        self._count(two, theirs, -1)
        chain[place], other_chain[other_place] = other_chain[other_place], chain[place]
        self._count(two, mine, 1)
        self._count(one, theirs, 1)

    def _worse(self, one: DiskKey, two: DiskKey, mine: set[DiskKey], theirs: set[DiskKey]) -> int:
        """Return by how much the sum of the squares of what disks share would grow, halved."""
        on_disks_one, on_disks_two = self._with_disk[one], self._with_disk[two]
        on_nodes_one, on_nodes_two = self._with_node[one], self._with_node[two]
        worse = sum(on_disks_two[key] - on_disks_one[key] + 1 for key in mine - theirs)
        worse += sum(on_disks_one[key] - on_disks_two[key] + 1 for key in theirs - mine)
        my_nodes, their_nodes = {node for node, _ in mine}, {node for node, _ in theirs}
        worse += sum(on_nodes_two[node] - on_nodes_one[node] + 1 for node in my_nodes - their_nodes)
        worse += sum(on_nodes_one[node] - on_nodes_two[node] + 1 for node in their_nodes - my_nodes)
        return worse

    def _count(self, key: DiskKey, others: set[DiskKey], by: int) -> None:
        for other in others:
            self._with_disk[key][other] += by
            self._with_disk[other][key] += by
            self._with_node[key][other[0]] += by


def _limit(even: float) -> int:
    return max(math.ceil(even), math.floor((1 + SLACK) * even))
