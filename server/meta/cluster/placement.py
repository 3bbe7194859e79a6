"""Which free targets become a chain together; pure.

Previous hop: `evaluate`. Next hop: nothing. Members of a chain lie on different nodes. Nodes with
the most free targets are used first, so that few targets stay over; pairs of nodes that share the
fewest chains are preferred, so that the load of a dead node spreads over many; and each chain is
headed by the node among its members that heads the fewest, as all writes of a chain enter there.
"""

from __future__ import annotations

from collections import Counter, deque
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
    formed: list[list[int]] = []  # nodes
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
        formed.append(members)
        left = {n: targets[1:] if n in members else targets for n, targets in left.items()}
        left = {node: targets for node, targets in left.items() if targets}
    _spread_heads(formed, heads)
    unused = {node: sorted(targets) for node, targets in free.items()}
    return [[unused[node].pop(0) for node in members] for members in formed]


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


def _count_pairs(shared: Counter[tuple[int, int]], nodes: Sequence[int]) -> None:
    for one in nodes:
        for other in nodes:
            if one != other:
                shared[one, other] += 1
