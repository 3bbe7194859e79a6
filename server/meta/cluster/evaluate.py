"""What a cluster manager has to change, given all that it knows; pure.

Previous hop: `role`, with a `View` of the database and of what was heard. Next hop: `states` for
each chain, `placement` for new chains. The `Decision` goes back to be written down by `ops.chains`.
Nothing here knows time or the database: what depends on time is in the view, as `Life`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ffs.server.meta.cluster.liveness import Life
from ffs.server.meta.cluster.placement import form_chains
from ffs.server.meta.cluster.states import Chain, Facts, Member, step
from ffs.types import TargetState

CROWDED_PERCENT: Final = 90
"""A chain with a disk that is fuller takes no new files, ..."""
ROOMY_PERCENT: Final = 85
"""... until all of its disks are less full than this: a table of chains is not made in vain."""
_AWAY: Final = (TargetState.LASTSRV, TargetState.OFFLINE)
_TAKES_WRITES: Final = (TargetState.SERVING, TargetState.SYNCING)


@dataclass(frozen=True, slots=True)
class Target:
    """A target as its daemon last told of it."""

    target: int
    node: int
    stopped: bool = False
    damaged: bool = False
    synced: int = 0
    capacity_bytes: int = 0
    used_bytes: int = 0
    idle: bool = True
    """Nothing was ordered of it that is not done: it could take part in a chain."""


@dataclass(frozen=True, slots=True)
class View:
    """All that a decision is made of, at one moment."""

    lives: Mapping[int, Life]
    """Of each node."""
    targets: Mapping[int, Target]
    chains: Sequence[Chain]
    crowded: frozenset[int] = frozenset()
    """The chains that take no new files."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What has to change."""

    chains: list[Chain] = field(default_factory=list)
    """Those that are not as they were."""
    formed: list[list[int]] = field(default_factory=list)
    """Targets that make new chains, in order."""
    crowded: frozenset[int] | None = None
    """The chains that take no new files from now on; None: the same as before."""

    @property
    def nothing(self) -> bool:
        """Whether all is as it must be."""
        return not self.chains and not self.formed and self.crowded is None


def decide(view: View, *, replicas: int, form: bool) -> Decision:
    """Return what has to change.

    Args:    replicas: members of a new chain; form: whether new chains may be formed now
    """
    changed = []
    for chain in view.chains:
        facts = {m.target: _facts(view, m) for m in chain.members}
        after = step(chain, facts).chain
        if after is not chain:
            changed.append(after)
    formed = []
    if form:
        nodes = [[view.targets[m.target].node for m in c.members] for c in view.chains]
        formed = form_chains(free_targets(view), replicas, nodes)
    crowded = _crowded(view)
    return Decision(changed, formed, None if crowded == view.crowded else crowded)


def free_targets(view: View) -> dict[int, list[int]]:
    """Return the targets that a chain could be made of, by node."""
    taken = {member.target for chain in view.chains for member in chain.members}
    free: dict[int, list[int]] = {}
    for target in view.targets.values():
        works = target.idle and not target.stopped and not target.damaged
        if target.target not in taken and works and view.lives.get(target.node) is Life.ALIVE:
            free.setdefault(target.node, []).append(target.target)
    return free


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
    known = [target for target in targets if target.capacity_bytes]
    return max((100 * t.used_bytes / t.capacity_bytes for t in known), default=0.0)
