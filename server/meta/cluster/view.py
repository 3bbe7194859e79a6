"""All that a cluster manager decides by, as values.

Previous hop: `ops.chains`, which loads it. Next hop: `evaluate`, `replace`, `room`, `rebalance`.
What depends on time is in it as `Life`, so that those who decide need no clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ffs.server.meta.cluster.liveness import Life
from ffs.server.meta.cluster.states import Chain
from ffs.wire.operators import TaskKind

CROWDED_PERCENT: Final = 90
"""A chain with a disk that is fuller takes no new files, and such a disk no new target."""


DiskKey = tuple[int, str]
"""A node and one of its disks."""


@dataclass(frozen=True, slots=True)
class Task:
    """What an operator has asked for; see `ffs.wire.operators.Task`."""

    kind: TaskKind
    subject: int = 0
    host: str = ""
    began_ns: int = 0
    total_bytes: int = 0


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
    beside: int = 0
    """Its daemon was told to create it on this one's disk, and has not done so yet; 0: it is there.
    """
    since: int = 0
    """The version of its chain, or of its last one, with which its state began."""
    disk: str = ""
    """Which disk of its node it lies on; empty: it is not known to share one."""
    stored_bytes: int = 0
    spare: bool = False
    """It left a chain: it takes others' places, and no new chain is made of it."""
    away_ms: int = 0
    """For how long it has been OFFLINE, as managers have written down."""
    holds: int = 0
    """See `TargetReport.holds`."""
    lacking: bool = False
    """It has chunks that are not whole, and no member that serves could give them to it."""
    compared: int = 0
    """See `TargetReport.compared`."""
    drained: bool = False
    """An operator wants it empty: it leaves its chain, and joins none."""

    @property
    def disk_key(self) -> DiskKey:
        """What tells its disk from all others; two nodes share none."""
        return self.node, self.disk or f"target {self.beside or self.target}"

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
    tasks: Sequence[Task] = ()
    hosts: Mapping[int, str] = field(default_factory=dict)
    """Of each node."""
    doubtful: frozenset[int] = frozenset()
    """The chains that may have lost chunks which only members that are gone still have."""

    def asked(self, kind: TaskKind) -> list[Task]:
        """Return the tasks of a kind."""
        return [task for task in self.tasks if task.kind == kind]


def has_leavings(target: Target) -> bool:
    """Return whether a target in no chain holds something of the one that it left.

    Why: what was under way to it when it left may come after it was emptied.
    """
    return target.spare and target.idle and target.stored_bytes > 0


def free_targets(view: View) -> dict[int, list[int]]:
    """Return the targets in no chain that one could take in, by node."""
    taken = {member.target for chain in view.chains for member in chain.members}
    free: dict[int, list[int]] = {}
    for target in view.targets.values():
        works = target.idle and not (target.stopped or target.damaged or target.drained)
        works = works and not has_leavings(target)
        if target.target not in taken and works and view.lives.get(target.node) is Life.ALIVE:
            free.setdefault(target.node, []).append(target.target)
    return free


def unused_targets(view: View) -> dict[int, list[int]]:
    """Return the targets that new chains are made of, by node: those that never were in one.

    Why: a cluster that moves members about would grow more chains with each move.
    """
    unused = {
        node: [target for target in targets if not view.targets[target].spare]
        for node, targets in free_targets(view).items()
    }
    return {node: targets for node, targets in unused.items() if targets}
