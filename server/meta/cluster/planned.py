"""What a task would do, and how far it is, for operators; pure.

Previous hop: `server/meta/operators.py`. Next hop: `room` and `rebalance`, by which the manager
decides as well: a plan is what it does if nothing else happens meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from ffs.server.meta.cluster.evaluate import accepted, facts_of
from ffs.server.meta.cluster.liveness import Life
from ffs.server.meta.cluster.rebalance import shifts
from ffs.server.meta.cluster.room import Room, chain_bytes, leaves
from ffs.server.meta.cluster.states import Chain, Member
from ffs.server.meta.cluster.view import DiskKey, Task, View, free_targets
from ffs.types import TargetState
from ffs.wire.operators import DiskUse, Move, TaskKind
from ffs.wire.operators import Task as TaskReport


@dataclass(slots=True)
class Plan:
    """What moves where, and why some of it cannot."""

    moves: list[Move] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    effects: list[str] = field(default_factory=list)
    """What else comes of it."""


def drained_targets(view: View, kind: TaskKind, subject: int) -> set[int]:
    """Return the targets that a drain is about."""
    if kind is TaskKind.DRAIN_TARGET:
        return {subject} & view.targets.keys()
    return {target.target for target in view.targets.values() if target.node == subject}


def plan(view: View, kind: TaskKind, subject: int) -> Plan:
    """Return what a task would do if it were asked for now."""
    if kind in (TaskKind.DRAIN_NODE, TaskKind.DRAIN_TARGET):
        return _plan_drain(view, drained_targets(view, kind, subject))
    if kind is TaskKind.REBALANCE:
        return _plan_rebalance(view)
    if kind is TaskKind.ACCEPT_LOSS:
        return _plan_loss(view, subject)
    return Plan()


def _plan_loss(view: View, subject: int) -> Plan:
    """Say what accepting a chain's loss would come to."""
    (chain,) = (chain for chain in view.chains if chain.chain == subject)
    after = accepted(view, chain)
    serving = [m.target for m in after.members if m.state == TargetState.SERVING]
    if not serving:
        return Plan(stuck=[f"chain {subject} has no member that lives"])
    if after is chain and subject not in view.doubtful:
        return Plan(stuck=[f"chain {subject} waits for nobody who may have what others lost"])
    gone = [m.target for m in chain.members if not facts_of(view, chain, m).alive]
    effects = [f"chain {subject} is served by target {', '.join(map(str, sorted(serving)))}"]
    if gone:
        names = ", ".join(map(str, sorted(gone)))
        effects.append(f"what only target {names} may have is not waited for any more")
    return Plan(effects=effects)


def _plan_rebalance(view: View) -> Plan:
    room = Room(view, free_targets(view))
    return Plan(
        [_move(view, shift.chain, shift.member, shift.disk.node) for shift in shifts(view, room)]
    )


def _plan_drain(view: View, leaving: Collection[int]) -> Plan:
    targets = {
        name: replace(target, drained=True) if name in leaving else target
        for name, target in view.targets.items()
    }
    view = replace(view, targets=targets)
    room = Room(view, free_targets(view))
    found = Plan()
    for chain in view.chains:
        used: list[int] = []
        for lost in _members_left(chain, leaving):
            disk = room.best(chain, lost, used)
            reason = "" if disk is not None else _no_room(view, room, chain, lost, used)
            if all(member.state != TargetState.SERVING for member in chain.members):
                reason = f"chain {chain.chain} has no member that serves, to copy from"
            if reason:
                found.stuck.append(reason)
            elif disk is not None:
                room.move(chain, lost, disk)
                used.append(disk.node)
                found.moves.append(_move(view, chain, lost, disk.node))
    return found


def _members_left(chain: Chain, leaving: Collection[int]) -> list[Member]:
    """Return the members that are to leave and have no successor yet."""
    stay = {member.home for member in chain.members if member.target not in leaving}
    return [m for m in chain.members if m.target in leaving and m.home not in stay]


def _no_room(view: View, room: Room, chain: Chain, lost: Member, used: Collection[int]) -> str:
    """Say why a member's successor can lie nowhere."""
    others = {*room.nodes([m for m in chain.members if m is not lost]), *used}
    nodes = sorted({disk.node for disk in room.disks.values()} - others)
    places = len({member.home for member in chain.members})
    if not nodes:
        left = f"chain {chain.chain} would be left with {places - 1} of {places} replicas"
        return f"{left}: no other node could take the one of target {lost.target}"
    names = ", ".join(map(str, nodes))
    size = room.bytes[chain.chain]
    return f"chain {chain.chain}: no disk of node {names} has room for {size} bytes more"


def _move(view: View, chain: Chain, member: Member, node: int, target: int = 0) -> Move:
    total_bytes = chain_bytes(view, chain)
    left_bytes = total_bytes
    if target:
        left_bytes = max(0, total_bytes - view.targets[target].stored_bytes)
    source = view.targets[member.target]
    return Move(chain.chain, source.target, source.node, node, target, total_bytes, left_bytes)


# --- as it goes -----------------------------------------------------------------------------------


def under_way(view: View) -> list[Move]:
    """Return what moves now, from members that are gone as well."""
    return [
        _move(view, chain, lost, view.targets[comes.target].node, comes.target)
        for chain in view.chains
        for lost in chain.members
        if leaves(view, lost)
        for comes in chain.members
        if comes.home == lost.home and not leaves(view, comes)
    ]


def report(view: View, task: Task) -> TaskReport:
    """Return how far a task is."""
    moves, waits_for = _remaining(view, task)
    return TaskReport(
        int(task.kind),
        task.subject,
        task.host,
        task.began_ns,
        task.total_bytes,
        left_bytes=sum(move.left_bytes for move in moves),
        moves_left=len(moves),
        waits_for=waits_for,
    )


def _remaining(view: View, task: Task) -> tuple[list[Move], str]:
    """Return what is still to be moved, and what has to come before that can end."""
    if task.kind is TaskKind.ADD_NODE:
        return [], f"a node at {task.host} to come up" if task.host else "a node to come up"
    if task.kind is TaskKind.ACCEPT_LOSS:
        return [], f"chain {task.subject} to be served"
    if task.kind is TaskKind.REBALANCE:
        moving = {m.target for c in view.chains for m in c.members if m.moving}
        moves = [move for move in under_way(view) if move.source in moving]
        return moves + _plan_rebalance(view).moves, _unrest(view)
    leaving = drained_targets(view, task.kind, task.subject)
    left = _plan_drain(view, leaving)
    moves = [move for move in under_way(view) if move.source in leaving] + left.moves
    if left.stuck:
        return moves, left.stuck[0]
    return moves, "" if moves else _not_empty(view, leaving)


def _unrest(view: View) -> str:
    for node, life in sorted(view.lives.items()):
        if life is Life.UNKNOWN:
            return f"a word from node {node}"
    for chain in view.chains:
        for member in chain.members:
            if member.state == TargetState.OFFLINE:
                return f"chain {chain.chain} to be whole: target {member.target} is gone"
    return ""


def _not_empty(view: View, leaving: Collection[int]) -> str:
    """Name the targets that left their chains and whose daemons have not emptied them yet."""
    full = [
        str(name)
        for name in sorted(leaving)
        if not view.targets[name].idle
        and view.lives.get(view.targets[name].node) is Life.ALIVE
        and not view.targets[name].stopped
    ]
    return f"target {', '.join(full)} to be emptied" if full else ""


def disk_uses(view: View, paths: dict[int, str]) -> list[DiskUse]:
    """Return how full each disk is.

    Args:    paths: where each target lies
    """
    members = {m.target for chain in view.chains for m in chain.members}
    disks: dict[DiskKey, list[int]] = {}
    for target in view.targets.values():
        if not target.beside:
            disks.setdefault(target.disk_key, []).append(target.target)
    return [
        DiskUse(
            node=key[0],
            disk=key[1],
            path=paths.get(names[0], ""),
            capacity_bytes=max(view.targets[name].capacity_bytes for name in names),
            used_bytes=max(view.targets[name].used_bytes for name in names),
            stored_bytes=sum(view.targets[n].stored_bytes for n in names if n in members),
            members=len(members.intersection(names)),
            targets=len(names),
        )
        for key, names in sorted(disks.items())
    ]
