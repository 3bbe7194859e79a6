"""What one routing says about our targets and those who hold the same chunks: a value, made once.

Previous hop: the routing that server/storage/membership.py got. Next hops: recovery.py and
repair.py, whose threads take the newest view and use it without a lock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ffs.chains import serving, target_states
from ffs.types import Routing, TargetState

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Peer:
    """Another member of a target's chain that serves."""

    target: int
    node: int
    address: Address


@dataclass(frozen=True, slots=True)
class Place:
    """Where a target stands in its chain. `since`: the chain version at which that began."""

    chain: int
    chain_version: int
    state: int
    since: int
    peers: Mapping[int, Peer]
    members: int


class View:
    """The chains of one routing as our targets see them."""

    def __init__(self, routing: Routing | None = None) -> None:
        self._places: dict[int, Place] = {}
        self._pullers: dict[int, set[int]] = {}
        if routing is not None:
            self._take(routing)

    def place(self, target: int) -> Place | None:
        """Return where a target stands; None if it is in no chain."""
        return self._places.get(target)

    def pullers(self, node: int) -> int:
        """Return how many nodes have a target that syncs from targets of `node`."""
        return len(self._pullers.get(node, ()))

    def _take(self, routing: Routing) -> None:
        states = target_states(routing)
        infos = {info.target: info for info in routing.targets}
        addresses = {node.node: (node.host, node.port) for node in routing.nodes}
        for chain in routing.chains:
            served = {
                target: Peer(target, infos[target].node, addresses[infos[target].node])
                for target in serving(chain, states)
                if infos[target].node in addresses
            }
            for target in chain.targets:
                info = infos.get(target)
                if info is None:
                    continue
                peers = {t: peer for t, peer in served.items() if t != target}
                self._places[target] = Place(
                    chain.chain, chain.version, info.state, info.since, peers, len(chain.targets)
                )
                if info.state == TargetState.SYNCING:
                    for peer in peers.values():
                        self._pullers.setdefault(peer.node, set()).add(info.node)
