"""Who takes the place of a member that is gone for too long, or has to leave; pure.

Previous hop: `evaluate`, with the chains that no fact changes otherwise. Next hop: `room`. A member
that was OFFLINE for the grace time (`Absences`), or whose node or target is drained, gets a
successor: a free target where there is room, else one that is ordered there. It joins as SYNCING
with the same home, so two members stand for one place; as soon as one of them serves the other
leaves, and is emptied. A member that comes back before its successor serves keeps its place; one
that is to leave keeps serving until the successor serves.

Nobody leaves a chain that is in doubt, which may have lost chunks that one who is gone has: members
stay beside their successors until all serve and hold the same, or an operator accepts the loss.

Invariants: who leaves was gone, or syncing, or served beside another one of the same home, so
no chain has fewer places that are served; one place at a time gets a successor; a target
joins with a version that it cannot have synced for. All that is known lies in chains, orders and
targets (`away_ms`), so another manager goes on where one has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Final

from ffs.server.meta.cluster.liveness import Life
from ffs.server.meta.cluster.room import Disk, Room
from ffs.server.meta.cluster.states import Chain, Member, in_order
from ffs.server.meta.cluster.view import View
from ffs.types import TargetState

Absence = tuple[int, int]
"""A target that is OFFLINE, and the version of its chain since which it is."""
_MS: Final = 1_000_000
_NOTES_PER_GRACE: Final = 16


class Absences:
    """Measures for how long members are OFFLINE while somebody is the manager.

    What managers before us measured is added; when none was there does not count, as nobody could
    have heard who came back.

    Args:    grace_ns: after that they are replaced
    """

    def __init__(self, grace_ns: int) -> None:
        self._grace_ns = grace_ns
        self._began_ns: dict[Absence, int] = {}

    def begin(self) -> None:
        """Measure by ourselves from now on: we have just become the manager."""
        self._began_ns.clear()

    def turn(
        self, chains: Sequence[Chain], away_ms: Mapping[int, int], now_ns: int
    ) -> frozenset[Absence]:
        """Return those that have lasted for the grace time by now.

        Args:    away_ms: target -> for how long it was away, as it was last written down
        """
        self._began_ns = {
            (m.target, m.since): self._began_ns.get(
                (m.target, m.since), now_ns - away_ms.get(m.target, 0) * _MS
            )
            for chain in chains
            for m in chain.members
            if m.state == TargetState.OFFLINE
        }
        return frozenset(
            one for one, began_ns in self._began_ns.items() if now_ns - began_ns >= self._grace_ns
        )

    def news(self, away_ms: Mapping[int, int], now_ns: int) -> list[tuple[int, int, int]]:
        """Return what is worth writing down, now and then: (target, since, for how long in ms)."""
        lasted = {
            one: min(now_ns - began_ns, self._grace_ns) // _MS
            for one, began_ns in self._began_ns.items()
        }
        step_ms = self._grace_ns // _NOTES_PER_GRACE // _MS
        return [
            (target, since, lasted_ms)
            for (target, since), lasted_ms in sorted(lasted.items())
            if lasted_ms - away_ms.get(target, 0) > step_ms
        ]


# --- one chain --------------------------------------------------------------------------------


def settled(chain: Chain, gone: Collection[int], drained: Collection[int]) -> Chain:
    """Return a chain without those whose place another member has; itself if there are none.

    Args:    gone: members that are to be replaced; drained: members that are to leave
    """
    leave: set[int] = set()
    for sharing in _by_home(chain).values():
        keeper = _keeper(sharing, gone, drained)
        if keeper is not None:
            leave.update(member.target for member in sharing if member is not keeper)
    if not leave:
        return chain
    stay = (member for member in chain.members if member.target not in leave)
    return Chain(chain.chain, chain.version + 1, tuple(replace(m, moving=False) for m in stay))


def joined(chain: Chain, lost: Member, target: int, synced: int, *, moving: bool = False) -> Chain:
    """Return a chain with a target that takes the place of a member once it has synced.

    Args:    synced: a version up to which the target may have synced in another chain; moving:
             whether the member leaves though it is neither gone nor drained
    """
    version = max(chain.version, synced) + 1
    member = Member(target, TargetState.SYNCING, version, lost.home)
    rest = (replace(m, moving=moving) if m is lost else m for m in chain.members)
    return Chain(chain.chain, version, in_order((*rest, member)))


def vacant(chain: Chain, gone: Collection[int], drained: Collection[int]) -> Member | None:
    """Return the member that needs a successor now: one at a time, and beside a server."""
    if not any(member.state == TargetState.SERVING for member in chain.members):
        return None
    places = _by_home(chain).values()
    if any(len(sharing) > 1 and not _is_served(sharing, drained) for sharing in places):
        return None
    lone = {sharing[0].target for sharing in places if len(sharing) == 1}
    for wanted in (gone, drained):
        for member in chain.members:
            if member.target in wanted and member.target in lone:
                return member
    return None


def _is_served(sharing: Sequence[Member], drained: Collection[int]) -> bool:
    """Tell whether one who stays serves a place, and who else stands for it only waits in doubt."""
    serving = [m for m in sharing if m.state == TargetState.SERVING]
    stays = any(not (m.moving or m.target in drained) for m in serving)
    return stays and all(m in serving or m.state == TargetState.OFFLINE for m in sharing)


def _by_home(chain: Chain) -> dict[int, list[Member]]:
    places: dict[int, list[Member]] = {}
    for member in chain.members:
        places.setdefault(member.home, []).append(member)
    return places


def _keeper(
    sharing: Sequence[Member], gone: Collection[int], drained: Collection[int]
) -> Member | None:
    """Return who of those that share a place stays; None: that is not decided yet."""
    serving = [member for member in sharing if member.state == TargetState.SERVING]
    stay = [m for m in serving if not (m.moving or m.target in drained)]
    comes = any(m not in serving and m.target not in {*gone, *drained} for m in sharing)
    if stay or (serving and not comes):  # all who serve are complete
        return max(stay or serving, key=lambda member: (member.since, member.target))
    if serving:
        return None
    return sharing[0] if all(member.target in gone for member in sharing) else None


# --- all chains -------------------------------------------------------------------------------


@dataclass(slots=True)
class Replacing:
    """What has to be done, as it is found."""

    chains: list[Chain] = field(default_factory=list)
    """Those that change."""
    retired: list[int] = field(default_factory=list)
    """Targets that leave their chains."""
    orders: list[tuple[int, int]] = field(default_factory=list)
    """Targets to be created: (node, beside which of its targets)."""

    def succeed(
        self, view: View, chain: Chain, lost: Member, disk: Disk, *, moving: bool = False
    ) -> None:
        """Let a free target of a disk take a member's place; else order one, or await it."""
        target = disk.choose()
        if target is not None:
            found = view.targets[target]
            synced = max(found.since, found.synced)
            self.chains.append(joined(chain, lost, target, synced, moving=moving))
        elif disk.ordered:
            disk.ordered -= 1  # it is for this one, as far as we care
        else:
            self.orders.append((disk.node, min(disk.working)))


def replace_gone(
    view: View, steady: Sequence[Chain], overdue: Set[Absence], find_room: Callable[[], Room]
) -> Replacing:
    """Return what is to be done about members that are gone or drained.

    Args:    steady: the chains that do not change otherwise; overdue: members that were gone for
             the grace time; find_room: tells where others can lie; what is used is taken out
    """
    done = Replacing()
    for chain in steady:
        gone = {m.target for m in chain.members if _is_gone(view, m, overdue)}
        drained = {m.target for m in chain.members if view.targets[m.target].drained}
        may_leave = _is_heard(view, chain) and chain.chain not in view.doubtful
        after = settled(chain, gone, drained) if may_leave else chain
        if after is not chain:
            done.chains.append(after)
            stay = {member.target for member in after.members}
            done.retired += [m.target for m in chain.members if m.target not in stay]
        elif (lost := vacant(chain, gone, drained)) is not None:
            room = find_room()
            disk = room.best(chain, lost)
            if disk is not None:
                room.move(chain, lost, disk)
                done.succeed(view, chain, lost, disk)
    return done


def _is_gone(view: View, member: Member, overdue: Set[Absence]) -> bool:
    if member.state != TargetState.OFFLINE or (member.target, member.since) not in overdue:
        return False
    # Of some it is not known: this manager stood still, or was cut off.
    return view.lives.get(view.targets[member.target].node, Life.DEAD) is not Life.UNKNOWN


def _is_heard(view: View, chain: Chain) -> bool:
    """Tell whether all who serve are known to live: nobody is emptied in favour of one that may
    have died while no manager listened."""
    serving = (m for m in chain.members if m.state == TargetState.SERVING)
    return all(view.lives.get(view.targets[m.target].node) is Life.ALIVE for m in serving)
