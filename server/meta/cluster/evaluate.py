"""What a cluster manager has to change, given all that it knows; pure.

Previous hop: `role`, with a `View` of the database and of what was heard. Next hop: `states` for
each chain, `replace` for members that are gone or have to leave, `rebalance` if an operator asked
for it, `placement` for new chains. The `Decision` goes back to be written down by `ops.chains`.
Nothing here knows time or the database.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Final

from ffs.server.meta.cluster.liveness import Life
from ffs.server.meta.cluster.placement import form_chains
from ffs.server.meta.cluster.rebalance import shifts
from ffs.server.meta.cluster.replace import Absence, Replacing, replace_gone
from ffs.server.meta.cluster.room import Room
from ffs.server.meta.cluster.states import Chain, Facts, Member, step
from ffs.server.meta.cluster.view import (
    CROWDED_PERCENT,
    DiskKey,
    Task,
    View,
    free_targets,
    has_leavings,
    unused_targets,
)
from ffs.types import TargetState
from ffs.wire.operators import TaskKind

ROOMY_PERCENT: Final = 85
"""A crowded chain takes new files when all of its disks are less full than this: a table of chains
is not made in vain."""
PASSED_MAX: Final = 1_000
"""Moves that have to wait for others which are looked at in one turn."""
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

    begun: list[Task] = field(default_factory=list)
    """Tasks that come of others."""
    ended: list[Task] = field(default_factory=list)
    """Tasks that are done."""
    doubtful: frozenset[int] | None = None
    """The chains that may have lost chunks from now on; None: the same as before."""

    @property
    def nothing(self) -> bool:
        """Whether all is as it must be."""
        changes = self.chains or self.formed or self.retired or self.orders or self.ended
        return not changes and self.crowded is None and self.doubtful is None


def decide(
    view: View, *, replicas: int, form: bool, overdue: Set[Absence] = frozenset()
) -> Decision:
    """Return what has to change.

    Args:    replicas: members of a new chain; form: whether new chains may be formed now;
             overdue: members that were gone for the grace time
    """
    changed: list[Chain] = []
    steady: list[Chain] = []
    lost = {task.subject for task in view.asked(TaskKind.ACCEPT_LOSS)}
    doubtful = doubtful_chains(view, lost)
    for chain in view.chains:
        after = _stepped(view, chain, loss_accepted=chain.chain in lost)
        (steady if after is chain else changed).append(after)
    known, view = view.doubtful, replace(view, doubtful=doubtful)
    find_room = cache(lambda: Room(view, free_targets(view)))
    done = replace_gone(view, steady, overdue, find_room)
    touched = {chain.chain for chain in changed + done.chains}
    tasks = _advance(view, done, touched, find_room)
    crowded = _crowded(view)
    return Decision(
        changed + done.chains,
        _form(view, replicas, find_room()) if form else [],
        None if crowded == view.crowded else crowded,
        done.retired + _leavings(view),
        done.orders,
        *tasks,
        doubtful=None if doubtful == known else doubtful,
    )


def _form(view: View, replicas: int, room: Room) -> list[list[int]]:
    """Return new chains of the targets that never were in one, and do not join one now."""
    left = {target for disk in room.disks.values() for target in disk.free}
    unused = {
        node: [target for target in targets if target in left]
        for node, targets in unused_targets(view).items()
    }
    standing = [[view.targets[m.target].disk_key for m in c.members] for c in view.chains]
    disks = {t: view.targets[t].disk_key for targets in unused.values() for t in targets}
    return form_chains(unused, replicas, standing, disks)


def _leavings(view: View) -> list[int]:
    """Return targets that left their chains, to be emptied once more."""
    found = {target.target for target in view.targets.values() if has_leavings(target)}
    return sorted(found - {m.target for chain in view.chains for m in chain.members})


# --- what operators ask for ---------------------------------------------------------------------


def _advance(
    view: View, done: Replacing, touched: set[int], find_room: Callable[[], Room]
) -> tuple[list[Task], list[Task]]:
    """Go on with tasks; return those that begin and those that end."""
    begun: list[Task] = []
    ended: list[Task] = []
    for task in view.asked(TaskKind.ADD_NODE):
        if _has_come(view, task):
            ended.append(task)
            begun.append(Task(TaskKind.REBALANCE))
    untouched = {chain.chain: chain for chain in view.chains if chain.chain not in touched}
    ended += [
        task
        for task in view.asked(TaskKind.ACCEPT_LOSS)
        if task.subject in untouched and is_settled(untouched[task.subject])
    ]
    if asked := view.asked(TaskKind.REBALANCE):
        even = _rebalance(view, done, touched, find_room())
        ended += asked if even and not touched and is_calm(view) else []
    return begun, ended


def _has_come(view: View, task: Task) -> bool:
    """Tell whether the node that is expected is there, with a target to put something on."""
    used = {view.targets[m.target].node for chain in view.chains for m in chain.members}
    return any(
        (target.node > task.subject or target.node not in used)
        and not (target.drained or target.beside)
        and view.lives.get(target.node) is Life.ALIVE
        and task.host in ("", view.hosts.get(target.node, ""))
        for target in view.targets.values()
    )


def _rebalance(view: View, done: Replacing, touched: set[int], room: Room) -> bool:
    """Let members move, at most one from each disk and one to each at a time; return whether none
    does, and none has to."""
    busy = _busy(view)
    passed = 0
    for shift in shifts(view, room):
        if shift.source in busy or shift.disk.key in busy or shift.chain.chain in touched:
            passed += 1
            if passed > PASSED_MAX:
                break
            continue
        busy |= {shift.source, shift.disk.key}
        touched.add(shift.chain.chain)
        done.succeed(view, shift.chain, shift.member, shift.disk, moving=True)
    return not busy and not passed


def _busy(view: View) -> set[DiskKey]:
    """Return the disks between which members move."""
    return {
        view.targets[member.target].disk_key
        for chain in view.chains
        if any(member.moving for member in chain.members)
        for member in chain.members
        if member.moving or member.state == TargetState.SYNCING
    }


def is_calm(view: View) -> bool:
    """Return whether every node is known to live or not, and every chain has all of its members."""
    return Life.UNKNOWN not in view.lives.values() and all(
        member.state == TargetState.SERVING for chain in view.chains for member in chain.members
    )


def accepted(view: View, chain: Chain) -> Chain:
    """Return a chain as it will be once an operator has accepted its loss."""
    return _stepped(view, chain, loss_accepted=True)


def _stepped(view: View, chain: Chain, *, loss_accepted: bool) -> Chain:
    facts = {m.target: facts_of(view, chain, m) for m in chain.members}
    return step(chain, facts, loss_accepted=loss_accepted).chain


def facts_of(view: View, chain: Chain, member: Member) -> Facts:
    """Return what is known of a member of a chain."""
    target = view.targets[member.target]
    life = view.lives.get(target.node, Life.DEAD)
    facts = Facts(
        alive=life is Life.ALIVE and not target.stopped,
        whole=not target.damaged,
        synced=target.synced,
        holds=target.holds in (0, chain.chain),
    )
    if life is Life.UNKNOWN:  # as it was, until something is heard
        return replace(facts, alive=member.state not in _AWAY, synced=0)
    return facts


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


# --- doubt --------------------------------------------------------------------------------------


def doubtful_chains(view: View, accepted: Set[int]) -> frozenset[int]:
    """Return the chains that may have lost chunks which only members that are gone still have.

    One gets there when only members serve that lost chunks, or one cannot make some whole, and out
    of it when every member serves, and has made up for what it lacked and another one has.

    Args:    accepted: those whose loss an operator has accepted
    """
    return frozenset(
        chain.chain
        for chain in view.chains
        if chain.chain not in accepted
        and (_lacks(view, chain) or (chain.chain in view.doubtful and not _are_equal(view, chain)))
    )


def is_settled(chain: Chain) -> bool:
    """Tell whether a chain has a member that serves, and one member for each place."""
    homes = [member.home for member in chain.members]
    served = any(member.state == TargetState.SERVING for member in chain.members)
    return served and len(set(homes)) == len(homes)


def _are_equal(view: View, chain: Chain) -> bool:
    """Tell whether all members serve, and each was compared with the others since."""
    return all(
        member.state == TargetState.SERVING
        and view.targets[member.target].compared == chain.version
        for member in chain.members
    )


def _lacks(view: View, chain: Chain) -> bool:
    """Tell whether those that serve are known to lack chunks that others may have."""
    serving = [m for m in chain.members if m.state == TargetState.SERVING]
    found = [view.targets[member.target] for member in serving]
    lost = bool(found) and all(target.damaged for target in found)
    return lost or any(target.lacking for target in found)
