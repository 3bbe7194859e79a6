"""What a cluster manager has to change, given all that it knows; pure.

Previous hop: `role`, with a `View` of the database and of what was heard. Next hop: `states` for
each chain, `replace` for members that are gone, `placement` for new chains. The `Decision` goes
back to be written down by `ops.chains`. Nothing here knows time or the database.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field
from typing import Final

from ffs.server.meta.cluster.liveness import Life
from ffs.server.meta.cluster.placement import form_chains
from ffs.server.meta.cluster.replace import Absence, replace_gone
from ffs.server.meta.cluster.states import Chain, Facts, Member, step
from ffs.server.meta.cluster.view import CROWDED_PERCENT, View, free_targets
from ffs.types import TargetState

ROOMY_PERCENT: Final = 85
"""A crowded chain takes new files when all of its disks are less full than this: a table of chains
is not made in vain."""
_AWAY: Final = (TargetState.LASTSRV, TargetState.OFFLINE)
_TAKES_WRITES: Final = (TargetState.SERVING, TargetState.SYNCING)


@dataclass(frozen=True, slots=True)
class Decision:
    """What has to change."""

    chains: list[Chain] = field(default_factory=list)
    """Those that are not as they were."""
    formed: list[list[int]] = field(default_factory=list)
    """Targets that make new chains, in order."""
    crowded: frozenset[int] | None = None
    """The chains that take no new files from now on; None: the same as before."""
    retired: list[int] = field(default_factory=list)
    """Targets that left their chains, to be emptied."""
    orders: list[tuple[int, int]] = field(default_factory=list)
    """Targets to be created: (node, beside which of its targets)."""

    @property
    def nothing(self) -> bool:
        """Whether all is as it must be."""
        changes = self.chains or self.formed or self.retired or self.orders
        return not changes and self.crowded is None


def decide(
    view: View, *, replicas: int, form: bool, overdue: Set[Absence] = frozenset()
) -> Decision:
    """Return what has to change.

    Args:    replicas: members of a new chain; form: whether new chains may be formed now;
             overdue: members that were gone for the grace time
    """
    changed: list[Chain] = []
    steady: list[Chain] = []
    for chain in view.chains:
        facts = {m.target: _facts(view, m) for m in chain.members}
        after = step(chain, facts).chain
        (steady if after is chain else changed).append(after)
    free = free_targets(view)
    done = replace_gone(view, steady, overdue, free)
    formed = []
    if form:
        nodes = [[view.targets[m.target].node for m in c.members] for c in view.chains]
        formed = form_chains(free, replicas, nodes)
    crowded = _crowded(view)
    return Decision(
        changed + done.chains,
        formed,
        None if crowded == view.crowded else crowded,
        done.retired,
        done.orders,
    )


def _facts(view: View, member: Member) -> Facts:
    target = view.targets[member.target]
    life = view.lives.get(target.node, Life.DEAD)
    if life is Life.UNKNOWN:  # as it was, until something is heard
        return Facts(alive=member.state not in _AWAY, whole=not target.damaged)
    alive = life is Life.ALIVE and not target.stopped
    return Facts(alive=alive, whole=not target.damaged, synced=target.synced)


def _crowded(view: View) -> frozenset[int]:
    return frozenset(
        chain.chain
        for chain in view.chains
        if _fullest_percent(view, chain)
        > (ROOMY_PERCENT if chain.chain in view.crowded else CROWDED_PERCENT)
    )


def _fullest_percent(view: View, chain: Chain) -> float:
    """How full the fullest disk is that a write to a chain goes to; 0 where that is not known."""
    targets = [view.targets[m.target] for m in chain.members if m.state in _TAKES_WRITES]
    return max((target.full_percent for target in targets), default=0.0)
