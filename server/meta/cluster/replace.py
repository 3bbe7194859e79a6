"""Who takes the place of a member that is gone for too long; pure.

Previous hop: `evaluate`, with the chains that no fact changes otherwise. Next hop: nothing. A
member that was OFFLINE for the grace time (`Absences`) gets a replacement: a free target on a node
that has no other member of its chain, else one that is ordered there. It joins as SYNCING with the
same home, so two members stand for one place; as soon as one of them serves the other leaves, and
is emptied. A member that comes back before its replacement serves keeps its place.

Invariants: who leaves was gone, or syncing, or served beside another one of the same home, so
no chain has fewer places that are served; a chain has one member more than places at most; a target
joins with a version that it cannot have synced for. All that is known lies in chains and orders, so
another manager goes on where one has ended; only the grace time begins anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence, Set
from dataclasses import dataclass, field

from ffs.server.meta.cluster.liveness import Life
from ffs.server.meta.cluster.states import Chain, Member, in_order
from ffs.server.meta.cluster.view import CROWDED_PERCENT, Target, View
from ffs.types import TargetState

Absence = tuple[int, int]
"""A target that is OFFLINE, and the version of its chain since which it is."""


class Absences:
    """Measures for how long members are OFFLINE, as far as this manager saw it.

    Args:    grace_ns: after that they are replaced
    """

    def __init__(self, grace_ns: int) -> None:
        self._grace_ns = grace_ns
        self._began_ns: dict[Absence, int] = {}

    def begin(self) -> None:
        """Measure anew: we have just become the manager."""
        self._began_ns.clear()

    def turn(self, chains: Sequence[Chain], now_ns: int) -> frozenset[Absence]:
        """Return those that have lasted for the grace time by now."""
        self._began_ns = {
            (member.target, member.since): self._began_ns.get((member.target, member.since), now_ns)
            for chain in chains
            for member in chain.members
            if member.state == TargetState.OFFLINE
        }
        return frozenset(
            one for one, began_ns in self._began_ns.items() if now_ns - began_ns >= self._grace_ns
        )


# --- one chain --------------------------------------------------------------------------------


def settled(chain: Chain, gone: Collection[int]) -> Chain:
    """Return a chain without those whose place another member has; itself if there are none.

    Args:    gone: members that are to be replaced
    """
    leave: set[int] = set()
    for sharing in _by_home(chain).values():
        keeper = _keeper(sharing, gone)
        if keeper is not None:
            leave.update(member.target for member in sharing if member is not keeper)
    if not leave:
        return chain
    stay = tuple(member for member in chain.members if member.target not in leave)
    return Chain(chain.chain, chain.version + 1, stay)


def joined(chain: Chain, lost: Member, target: int, synced: int) -> Chain:
    """Return a chain with a target that takes the place of a member once it has synced.

    Args:    synced: a version up to which the target may have synced in another chain
    """
    version = max(chain.version, synced) + 1
    member = Member(target, TargetState.SYNCING, version, lost.home)
    return Chain(chain.chain, version, in_order((*chain.members, member)))


def vacant(chain: Chain, gone: Collection[int]) -> Member | None:
    """Return the member that needs a replacement now: one at a time, and beside a server."""
    if not any(member.state == TargetState.SERVING for member in chain.members):
        return None
    if any(len(sharing) > 1 for sharing in _by_home(chain).values()):
        return None
    return next((member for member in chain.members if member.target in gone), None)


def _by_home(chain: Chain) -> dict[int, list[Member]]:
    places: dict[int, list[Member]] = {}
    for member in chain.members:
        places.setdefault(member.home, []).append(member)
    return places


def _keeper(sharing: Sequence[Member], gone: Collection[int]) -> Member | None:
    """Return who of those that share a place stays; None: that is not decided yet."""
    serving = [member for member in sharing if member.state == TargetState.SERVING]
    if serving:  # all of them are complete
        return max(serving, key=lambda member: (member.since, member.target))
    return sharing[0] if all(member.target in gone for member in sharing) else None


# --- all chains -------------------------------------------------------------------------------


@dataclass(slots=True)
class Replacing:
    """What has to be done."""

    chains: list[Chain] = field(default_factory=list)
    """Those that change."""
    retired: list[int] = field(default_factory=list)
    """Targets that leave their chains."""
    orders: list[tuple[int, int]] = field(default_factory=list)
    """Targets to be created: (node, beside which of its targets)."""


def replace_gone(
    view: View, steady: Sequence[Chain], overdue: Set[Absence], free: dict[int, list[int]]
) -> Replacing:
    """Return what is to be done about members that are gone.

    Args:    steady: the chains that do not change otherwise; overdue: members that were gone for
             the grace time; free: node -> targets in no chain; those that are used are taken out
    """
    done = Replacing()
    room: _Room | None = None
    for chain in steady:
        gone = {m.target for m in chain.members if _is_gone(view, m, overdue)}
        after = settled(chain, gone) if _is_heard(view, chain) else chain
        if after is not chain:
            done.chains.append(after)
            stay = {member.target for member in after.members}
            done.retired += [m.target for m in chain.members if m.target not in stay]
        elif (lost := vacant(chain, gone)) is not None:
            room = room or _Room(view, free)
            room.replace(chain, lost, done)
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


class _Room:
    """Where targets can be had: on nodes that live, and disks that work and are not too full."""

    def __init__(self, view: View, free: dict[int, list[int]]) -> None:
        self._targets = view.targets
        self._free = free
        self._ordered: Counter[int] = Counter()
        self._beside: dict[int, list[int]] = {}
        self._load: Counter[int] = Counter()
        self._shared: Counter[tuple[int, int]] = Counter()
        for target in view.targets.values():
            if view.lives.get(target.node) is not Life.ALIVE:
                continue
            if target.ordered:
                self._ordered[target.node] += 1
            elif not target.stopped and _has_room(target):
                self._beside.setdefault(target.node, []).append(target.target)
        for chain in view.chains:
            for place, member in enumerate(chain.members):
                others = [self._targets[m.target].node for m in chain.members[:place]]
                self._use(self._targets[member.target].node, others)

    def replace(self, chain: Chain, lost: Member, done: Replacing) -> None:
        """Find a replacement for a member, or order one; where there is no room it waits."""
        others = [self._targets[m.target].node for m in chain.members if m is not lost]
        if node := self._best(filter(self._find_free, self._free), others):
            target = self._find_free(node)
            assert target is not None
            self._free[node].remove(target.target)
            synced = max(target.since, target.synced)
            done.chains.append(joined(chain, lost, target.target, synced))
        elif node := self._best(+self._ordered, others):
            self._ordered[node] -= 1  # it is for this one, as far as we care
        elif node := self._best(self._beside, others):
            choice = self._beside[node]
            done.orders.append((node, choice[self._load[node] % len(choice)]))
        else:
            return
        self._use(node, others)

    def _find_free(self, node: int) -> Target | None:
        free = (self._targets[target] for target in self._free[node])
        return next(filter(_has_room, free), None)

    def _best(self, nodes: Iterable[int], others: Sequence[int]) -> int:
        """Return the node with the fewest members, then the one that met the others the least; 0
        if none is left."""

        def order(node: int) -> tuple[int, int, int]:
            met = sum(self._shared[node, other] for other in others)
            return self._load[node], met, node

        return min((node for node in nodes if node not in others), key=order, default=0)

    def _use(self, node: int, others: Sequence[int]) -> None:
        self._load[node] += 1
        for other in others:
            self._shared[node, other] += 1
            self._shared[other, node] += 1


def _has_room(target: Target) -> bool:
    return target.full_percent <= CROWDED_PERCENT
