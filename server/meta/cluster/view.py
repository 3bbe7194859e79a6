"""All that a cluster manager decides by, as values.

Previous hop: `ops.chains`, which loads it. Next hop: `evaluate` and `replace`. What depends on time
is in it as `Life`, so that those who decide need no clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ffs.server.meta.cluster.liveness import Life
from ffs.server.meta.cluster.states import Chain

CROWDED_PERCENT: Final = 90
"""A chain with a disk that is fuller takes no new files, and such a disk no new target."""


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
    ordered: bool = False
    """Its daemon was told to create it, and has not done so yet."""
    since: int = 0
    """The version of its chain, or of its last one, with which its state began."""

    @property
    def full_percent(self) -> float:
        """How full its disk is; 0 where that is not known."""
        return 100 * self.used_bytes / self.capacity_bytes if self.capacity_bytes else 0.0


@dataclass(frozen=True, slots=True)
class View:
    """All that a decision is made of, at one moment."""

    lives: Mapping[int, Life]
    """Of each node."""
    targets: Mapping[int, Target]
    chains: Sequence[Chain]
    crowded: frozenset[int] = frozenset()
    """The chains that take no new files."""


def free_targets(view: View) -> dict[int, list[int]]:
    """Return the targets that a chain could be made of, by node."""
    taken = {member.target for chain in view.chains for member in chain.members}
    free: dict[int, list[int]] = {}
    for target in view.targets.values():
        works = target.idle and not target.stopped and not target.damaged
        if target.target not in taken and works and view.lives.get(target.node) is Life.ALIVE:
            free.setdefault(target.node, []).append(target.target)
    return free
