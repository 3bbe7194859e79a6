"""Which members of chains lie better on another disk, so that all disks are about as full; pure.

Previous hop: `evaluate`, at each turn of a rebalance, and `planned` for one that is only shown.
Next hop: `room`. The plan is greedy: from the fullest disk to the emptiest one that can take one of
its members, for as long as the first stays at least as full as the second gets.

Invariants: no member moves from a disk that is no fuller than the mean, and none twice, so nothing
is copied but what is too much somewhere (to within one member for each disk); a plan for what a
plan made is empty. Only chains all of whose members serve are touched. With 500 nodes it takes a
second or so (tests/unit/server/meta/cluster/test_rebalance.py prints how long).
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ffs.server.meta.cluster.room import Disk, Room, leaves
from ffs.server.meta.cluster.states import Chain, Member
from ffs.server.meta.cluster.view import DiskKey, View
from ffs.types import TargetState

SLACK: Final = 0.02
"""Disks that are fuller than the mean by no more than this share of it are left alone."""


@dataclass(frozen=True, slots=True)
class Shift:
    """A member that moves to another disk."""

    chain: Chain
    member: Member
    source: DiskKey
    disk: Disk


def shifts(view: View, room: Room) -> Iterator[Shift]:
    """Yield what to move, the most useful first; `room` counts each as moved from then on."""
    movable = _movable(view, room)
    loads = [disk for disk in room.disks.values() if disk.working]
    if not loads:
        return
    mean = sum(disk.load for disk in loads) / sum(disk.room_bytes for disk in loads)
    fullest = [(-disk.fill, disk.key) for disk in loads if disk.key in movable]
    heapq.heapify(fullest)
    emptiest = sorted(loads, key=lambda disk: (disk.fill, disk.key))
    while fullest:
        negative, key = heapq.heappop(fullest)
        source = room.disks[key]
        if source.fill != -negative:
            heapq.heappush(fullest, (-source.fill, key))
            continue
        if source.fill <= (1 + SLACK) * mean:
            return
        shift = _best(room, source, movable[key], emptiest)
        if shift is None:
            continue
        movable[key].remove((shift.chain, shift.member))
        room.move(shift.chain, shift.member, shift.disk)
        _put(emptiest, shift.disk)
        _put(emptiest, source)
        heapq.heappush(fullest, (-source.fill, key))
        yield shift


def _movable(view: View, room: Room) -> dict[DiskKey, list[tuple[Chain, Member]]]:
    """Return the members that could move, by disk, heaviest first."""
    movable: dict[DiskKey, list[tuple[Chain, Member]]] = {}
    for chain in view.chains:
        if any(m.state != TargetState.SERVING or leaves(view, m) for m in chain.members):
            continue
        if len({member.home for member in chain.members}) < len(chain.members):
            continue  # two that serve share a place: one is about to leave
        for member in chain.members:
            key = view.targets[member.target].disk_key
            if key in room.disks:
                movable.setdefault(key, []).append((chain, member))
    for members in movable.values():
        members.sort(key=lambda one: (-room.weight(one[0]), one[1].target))
    return movable


def _best(
    room: Room, source: Disk, members: list[tuple[Chain, Member]], emptiest: list[Disk]
) -> Shift | None:
    """Return a member of the source that the emptiest disk can take which can take any."""
    for disk in emptiest:
        if disk.fill >= source.fill:
            return None
        found: list[tuple[int, int, Chain, Member]] = []
        for chain, member in members:
            weight = room.weight(chain)
            less = (source.load - weight) / source.room_bytes
            more = (disk.load + weight) / disk.room_bytes
            if less < more or not disk.takes(room.bytes[chain.chain]):
                continue
            others = room.nodes([m for m in chain.members if m is not member])
            if disk.node not in others:
                met = room.met(disk.node, others)
                found.append((met, len(found), chain, member))
        if found:
            _, _, chain, member = min(found, key=lambda one: one[:2])
            return Shift(chain, member, source.key, disk)
    return None


def _put(emptiest: list[Disk], disk: Disk) -> None:
    """Put a disk whose fill changed where it belongs."""
    emptiest.remove(disk)
    bisect.insort(emptiest, disk, key=lambda one: one.fill)
