"""Where members of chains can lie: the disks there are, how full they are, and the best one; pure.

Previous hop: `replace` for members that are gone or have to leave, `rebalance` for those that would
lie better elsewhere. Next hop: nothing. What counts is the disk, not the node: a disk's load is
what the members on it hold and will hold, against its capacity. A chain weighs as many bytes as its
fullest member holds, and a little besides, so that chains which are empty yet are spread as well.

Invariants: members of a chain lie on different nodes; nothing comes to a disk that is more than
`CROWDED_PERCENT` full, would be more than `FULL_PERCENT` full then, or is drained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ffs.server.meta.cluster.liveness import Life
from ffs.server.meta.cluster.states import Chain, Member
from ffs.server.meta.cluster.view import CROWDED_PERCENT, DiskKey, Target, View
from ffs.types import TargetState

FULL_PERCENT: Final = 95
_BASE_SHARE: Final = 100
"""A chain weighs so much of the mean chain besides its bytes: a 100th, ..."""
_BASE_BYTES_MIN: Final = 1 << 20
"""... and this much at least."""
_CAPACITY_UNKNOWN: Final = 1 << 40


@dataclass(slots=True, eq=False)
class Disk:
    """One disk of a node that lives, as it will be when all that is under way is done."""

    key: DiskKey
    capacity_bytes: int = 0
    used_bytes: int = 0
    load: int = 0
    """The weights of the members that stay."""
    coming_bytes: int = 0
    """What is not copied yet of members that join."""
    working: list[int] = field(default_factory=list)
    """Targets beside which another one can be created."""
    free: list[int] = field(default_factory=list)
    """Targets that belong to no chain."""
    ordered: int = 0
    """Targets that are being created."""

    @property
    def node(self) -> int:
        """The node that it is in."""
        return self.key[0]

    @property
    def room_bytes(self) -> int:
        """Its capacity; where that is not known, one that is the same for all."""
        return self.capacity_bytes or _CAPACITY_UNKNOWN

    @property
    def fill(self) -> float:
        """Its load, as a share of its capacity."""
        return self.load / self.room_bytes

    def takes(self, more_bytes: int) -> bool:
        """Return whether so many bytes may come."""
        if not self.working:
            return False
        if not self.capacity_bytes:
            return True
        after_bytes = self.used_bytes + self.coming_bytes + more_bytes
        return (
            100 * self.used_bytes <= CROWDED_PERCENT * self.capacity_bytes
            and 100 * after_bytes <= FULL_PERCENT * self.capacity_bytes
        )

    def choose(self) -> int | None:
        """Take a free target; None: there is none."""
        return self.free.pop(0) if self.free else None


def chain_bytes(view: View, chain: Chain) -> int:
    """Return how much a new member of a chain has to copy, as far as that is known."""
    stored = {m.target: view.targets[m.target].stored_bytes for m in chain.members}
    serving = [m.target for m in chain.members if m.state == TargetState.SERVING]
    return max((stored[target] for target in serving or stored), default=0)


class Room:
    """All disks that can take members, and which chains' members met on which nodes.

    Args:    free: node -> targets in no chain; those that are used are taken out
    """

    def __init__(self, view: View, free: Mapping[int, Sequence[int]]) -> None:
        self.disks: dict[DiskKey, Disk] = {}
        self.bytes: dict[int, int] = {c.chain: chain_bytes(view, c) for c in view.chains}
        mean = sum(self.bytes.values()) // max(1, len(self.bytes))
        self._base = max(_BASE_BYTES_MIN, mean // _BASE_SHARE)
        self._view = view
        self._members: Counter[int] = Counter()
        self._shared: Counter[tuple[int, int]] = Counter()
        self._find_disks(free)
        for chain in view.chains:
            self._count(chain)
        rooms = [disk.room_bytes for disk in self.disks.values()]
        self._mean_room = sum(rooms) / max(1, len(rooms))

    def weight(self, chain: Chain) -> int:
        """Return what one member of a chain weighs."""
        return self.bytes[chain.chain] + self._base

    def nodes(self, members: Sequence[Member]) -> list[int]:
        """Return the nodes of members."""
        return [self._view.targets[member.target].node for member in members]

    def met(self, node: int, others: Collection[int]) -> int:
        """Return in how many chains a node is beside any of others."""
        return sum(self._shared[node, other] for other in others)

    def best(self, chain: Chain, lost: Member, avoid: Collection[int] = ()) -> Disk | None:
        """Return the disk where the successor of a member lies best; None: there is no room.

        That is the one with the least load, in members like this one. Of several it is one with a
        target at hand; then one of the node with the fewest members; then the one that has met the
        others of the chain the least.

        Args:    avoid: nodes that may not be, besides those of the other members
        """
        others = self.nodes([m for m in chain.members if m is not lost])
        left = self._view.targets[lost.target]
        weight, more_bytes = self.weight(chain), self.bytes[chain.chain]

        def order(disk: Disk) -> tuple[int, int, int, int, DiskKey]:
            alike = round(disk.fill * self._mean_room / weight)
            at_hand = 0 if disk.free else 1 if disk.ordered else 2
            node = disk.node
            return alike, at_hand, self._members[node], self.met(node, others), disk.key

        possible = (
            disk
            for disk in self.disks.values()
            if disk.node not in others
            and disk.node not in avoid
            and not (left.drained and disk.key == left.disk_key)
            and disk.takes(more_bytes)
        )
        return min(possible, key=order, default=None)

    def move(self, chain: Chain, lost: Member, disk: Disk) -> None:
        """Count that a member's successor comes to a disk."""
        others = self.nodes([m for m in chain.members if m is not lost])
        disk.load += self.weight(chain)
        disk.coming_bytes += self.bytes[chain.chain]
        self._meet(disk.node, others)
        source = self.disks.get(self._view.targets[lost.target].disk_key)
        if source is not None:
            source.load -= self.weight(chain)

    # --- as it is -----------------------------------------------------------------------------

    def _find_disks(self, free: Mapping[int, Sequence[int]]) -> None:
        at_hand = {target for targets in free.values() for target in targets}
        for target in self._view.targets.values():
            if self._view.lives.get(target.node) is not Life.ALIVE or target.drained:
                continue
            if target.beside:
                target = self._view.targets.get(target.beside, target)
                self._disk(target).ordered += 1
                continue
            if target.stopped:
                continue
            disk = self._disk(target)
            disk.capacity_bytes = max(disk.capacity_bytes, target.capacity_bytes)
            disk.used_bytes = max(disk.used_bytes, target.used_bytes)
            disk.working.append(target.target)
            if target.target in at_hand:
                disk.free.append(target.target)

    def _disk(self, target: Target) -> Disk:
        return self.disks.setdefault(target.disk_key, Disk(target.disk_key))

    def _count(self, chain: Chain) -> None:
        succeeded = Counter(member.home for member in chain.members)
        for place, member in enumerate(chain.members):
            target = self._view.targets[member.target]
            self._meet(target.node, self.nodes(chain.members[:place]))
            disk = self.disks.get(target.disk_key)
            if disk is None or (succeeded[member.home] > 1 and leaves(self._view, member)):
                continue
            disk.load += self.weight(chain)
            if member.state == TargetState.SYNCING:
                disk.coming_bytes += max(0, self.bytes[chain.chain] - target.stored_bytes)

    def _meet(self, node: int, others: Sequence[int]) -> None:
        self._members[node] += 1
        for other in others:
            self._shared[node, other] += 1
            self._shared[other, node] += 1


def leaves(view: View, member: Member) -> bool:
    """Return whether a member leaves its chain as soon as another one of its place serves."""
    away = member.state == TargetState.OFFLINE
    return away or member.moving or view.targets[member.target].drained
