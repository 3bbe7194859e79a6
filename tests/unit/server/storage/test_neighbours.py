"""What a routing means for those who copy chunks from each other."""

from __future__ import annotations

from ffs.server.storage.neighbours import Peer, View
from ffs.types import ChainInfo, NodeInfo, Routing, TableInfo, TargetInfo, TargetState

SERVING, SYNCING, OFFLINE = TargetState.SERVING, TargetState.SYNCING, TargetState.OFFLINE


def routing(*states: TargetState) -> Routing:
    """Two chains over three nodes: targets 1, 2, 3 and 4, 5, 6 on nodes 1, 2, 3."""
    return Routing(
        version=9,
        nodes=[NodeInfo(node, "h", 100 + node) for node in (1, 2, 3)],
        targets=[
            TargetInfo(target, (target - 1) % 3 + 1, state, since=7)
            for target, state in enumerate(states, 1)
        ],
        chains=[ChainInfo(1, 8, [1, 2, 3]), ChainInfo(2, 5, [4, 5, 6])],
        tables=[TableInfo(1, [1, 2])],
    )


def test_peers_are_the_other_members_that_serve() -> None:
    view = View(routing(SERVING, SYNCING, SERVING, SERVING, OFFLINE, SYNCING))
    place = view.place(2)
    assert place is not None
    assert (place.chain, place.chain_version, place.state, place.since) == (1, 8, SYNCING, 7)
    assert place.peers == {1: Peer(1, 1, ("h", 101)), 3: Peer(3, 3, ("h", 103))}
    place = view.place(4)
    assert place is not None
    assert place.peers == {}
    assert view.place(7) is None
    assert View().place(1) is None


def test_nodes_that_pull_from_a_node_are_counted_once() -> None:
    view = View(routing(SERVING, SYNCING, SYNCING, SERVING, SYNCING, OFFLINE))
    assert view.pullers(1) == 2
    assert view.pullers(2) == 0
    assert View().pullers(1) == 0
