"""Who of a chain does what, as of one routing: the rules in one place, for both sides.

Previous hop: a `Routing`. Next hop: the client's choice of targets (client/layouts.py), the storage
daemon's judgement of writes (server/storage/chain.py), the cluster manager.

Invariant: a write goes through every writable member, in order, before it is acknowledged. So each
serving member has all that was acknowledged, and any of them may answer a read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ffs.types import ChainInfo, Routing, TargetState

NO_TARGET: Final = 0
"""Target ids start at 1; this is the head of a chain that nobody serves."""


def target_states(routing: Routing) -> dict[int, int]:
    """Return the state of each target."""
    return {target.target: target.state for target in routing.targets}


def serving(chain: ChainInfo, states: Mapping[int, int]) -> tuple[int, ...]:
    """Return the members that answer reads, in order."""
    return _in_state(chain, states, TargetState.SERVING)


def writable(chain: ChainInfo, states: Mapping[int, int]) -> tuple[int, ...]:
    """Return the members that every write goes through, in order; none if nobody serves.

    A syncing member takes writes as well, behind all that serve: what is written from now on is not
    missing when it has fetched the rest.
    """
    served = serving(chain, states)
    return served and served + _in_state(chain, states, TargetState.SYNCING)


def head(chain: ChainInfo, states: Mapping[int, int]) -> int:
    """Return the member that takes clients' writes: the first that serves, else NO_TARGET."""
    served = serving(chain, states)
    return served[0] if served else NO_TARGET


def _in_state(chain: ChainInfo, states: Mapping[int, int], state: TargetState) -> tuple[int, ...]:
    return tuple(target for target in chain.targets if states.get(target) == state)
