"""What becomes of a chain's members when facts about them are known: one pure function, one table.

Previous hop: `evaluate`, for each chain, with what is known of its targets now. Next hop: nothing:
the changed chain goes back, to be written down and told. What makes it simple is the rule of
writes: one is acknowledged only when every member that serves or syncs has it on its disk, at one
version of the chain. So whoever serves has all that was acknowledged, whoever has synced since a
version has it too, and a member that was away for a shorter time than its lease missed nothing.

A step goes in two moves. First it is settled who serves: those of the best rank there are in the
table (`Cell.rank`). Then every other member goes where the table sends it, which depends only on
whether anybody serves. Members stand in the order SERVING, SYNCING, the rest, and within these by
their home places, so that heads are spread again as they once were when all have come back.

Invariants (tests/unit/server/meta/cluster/test_states.py tries all chains of up to three members):
a member that missed an acknowledged write does not serve before it has synced, but for chunks that
every member lost; no LASTSRV stands beside a SERVING; a second step with the same facts changes
nothing; the version grows by one if anything changed, and not otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from ffs.types import TargetState

SERVING = TargetState.SERVING
SYNCING = TargetState.SYNCING
WAITING = TargetState.WAITING
LASTSRV = TargetState.LASTSRV
OFFLINE = TargetState.OFFLINE


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a target now, from its daemon."""

    alive: bool
    """Its daemon was heard within its lease, and the target has not stopped."""
    whole: bool = True
    """It has lost no chunk that it held."""
    synced: int = 0
    """The version for which its daemon says that it has synced."""
    holds: bool = True
    """It was not emptied since it was a member of this chain."""


@dataclass(frozen=True, slots=True)
class Member:
    """One target of a chain. `since`: the chain's version at which its state began."""

    target: int
    state: TargetState
    since: int
    home: int = 0
    """Its place among the members when all serve; that of the one whose place it takes, too."""
    moving: bool = False
    """It leaves as soon as the other one of its place serves: what it holds goes elsewhere."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain and its members, in order."""

    chain: int
    version: int
    members: tuple[Member, ...]


class Event(Enum):
    """What the facts say about a member."""

    DEAD = "dead"
    DAMAGED = "damaged"
    """Alive, and it has lost chunks."""
    EMPTIED = "emptied"
    """Alive, and it holds nothing of this chain: the database is older than its retirement."""
    ALIVE = "alive"
    SYNCED = "synced"
    """Alive, and it has all that was acknowledged, since the state that it is in began."""


class Rank(Enum):
    """Who may serve. Only the best rank that a chain has does; the order here is from the best."""

    COMPLETE = "complete"
    """Has all that was acknowledged. All of them serve."""
    RETURNED = "returned"
    """Served when the last server was lost, and is back. All of them serve."""
    REMNANT = "remnant"
    """Would be one of these, but has lost chunks. The first serves, so that the others can copy
    from it, unless one that is gone may have what it lost: then it waits for that one."""


@dataclass(frozen=True, slots=True)
class Cell:
    """Where a member in a state goes at an event, if it does not serve."""

    rank: Rank | None
    """As what it may serve; None: it may not."""
    served: TargetState
    """Its state beside one that serves."""
    unserved: TargetState
    """Its state if nobody serves."""


TABLE: Final[Mapping[tuple[TargetState, Event], Cell]] = {
    (SERVING, Event.DEAD): Cell(None, OFFLINE, LASTSRV),
    (SERVING, Event.DAMAGED): Cell(Rank.REMNANT, SYNCING, LASTSRV),
    (SERVING, Event.EMPTIED): Cell(None, SYNCING, WAITING),
    (SERVING, Event.ALIVE): Cell(Rank.COMPLETE, SERVING, SERVING),
    (SYNCING, Event.DEAD): Cell(None, OFFLINE, OFFLINE),
    (SYNCING, Event.DAMAGED): Cell(None, SYNCING, WAITING),
    (SYNCING, Event.ALIVE): Cell(None, SYNCING, WAITING),
    (SYNCING, Event.SYNCED): Cell(Rank.COMPLETE, SERVING, SERVING),
    (WAITING, Event.DEAD): Cell(None, OFFLINE, OFFLINE),
    (WAITING, Event.DAMAGED): Cell(None, SYNCING, WAITING),
    (WAITING, Event.ALIVE): Cell(None, SYNCING, WAITING),
    (LASTSRV, Event.DEAD): Cell(None, OFFLINE, LASTSRV),
    (LASTSRV, Event.DAMAGED): Cell(Rank.REMNANT, SYNCING, LASTSRV),
    (LASTSRV, Event.EMPTIED): Cell(None, SYNCING, WAITING),
    (LASTSRV, Event.ALIVE): Cell(Rank.RETURNED, SYNCING, LASTSRV),
    (OFFLINE, Event.DEAD): Cell(None, OFFLINE, OFFLINE),
    (OFFLINE, Event.DAMAGED): Cell(None, SYNCING, WAITING),
    (OFFLINE, Event.ALIVE): Cell(None, SYNCING, WAITING),
}
"""Every state and event that go together: only a SYNCING member can have synced, and what one that
does not serve holds is of no account."""

CELLS: Final = tuple(TABLE)


@dataclass(frozen=True, slots=True)
class Step:
    """What came of one step: the chain after it, and the cells of the table that it used."""

    chain: Chain
    cells: tuple[tuple[TargetState, Event], ...]


def step(chain: Chain, facts: Mapping[int, Facts], *, loss_accepted: bool = False) -> Step:
    """Return the chain as it must be, given the facts about its members' targets.

    Args:    facts: of every member; loss_accepted: an operator has said that who is left shall
             serve, whatever those that are gone may have
    Returns: the same chain, version included, if nothing changes
    """
    cells = [(member.state, event_of(member, facts[member.target])) for member in chain.members]
    servers = _servers(chain.members, cells, facts, loss_accepted=loss_accepted)
    version = chain.version + 1
    members = [
        _moved(member, _next_state(member, cell, servers), version)
        for member, cell in zip(chain.members, cells, strict=True)
    ]
    ordered = in_order(members)
    if ordered == chain.members:
        return Step(chain, tuple(cells))
    return Step(Chain(chain.chain, version, ordered), tuple(cells))


def in_order(members: Iterable[Member]) -> tuple[Member, ...]:
    """Return members in the order in which they stand in a chain."""
    return tuple(sorted(members, key=lambda member: (_order(member.state), member.home)))


def event_of(member: Member, facts: Facts) -> Event:
    """Return what facts about its target mean for a member."""
    if not facts.alive:
        return Event.DEAD
    if not facts.holds and member.state in (SERVING, LASTSRV):
        return Event.EMPTIED
    if not facts.whole:
        return Event.DAMAGED
    if member.state == SYNCING and facts.synced == member.since:
        return Event.SYNCED
    return Event.ALIVE


def _servers(
    members: Sequence[Member],
    cells: Sequence[tuple[TargetState, Event]],
    facts: Mapping[int, Facts],
    *,
    loss_accepted: bool,
) -> frozenset[int]:
    """Return the targets that serve from now on."""
    by_rank: dict[Rank | None, list[int]] = {}
    for member, cell in zip(members, cells, strict=True):
        by_rank.setdefault(TABLE[cell].rank, []).append(member.target)
    for rank in (Rank.COMPLETE, Rank.RETURNED):
        if rank in by_rank:
            return frozenset(by_rank[rank])
    awaited = (SERVING, Event.DEAD) in cells or (LASTSRV, Event.DEAD) in cells
    if awaited and not loss_accepted:
        return frozenset()
    found = by_rank.get(Rank.REMNANT, [])
    if not found and loss_accepted:
        found = _left(members, facts)
    return frozenset(found[:1])


def _left(members: Sequence[Member], facts: Mapping[int, Facts]) -> list[int]:
    """Return the members that live, those first that may have something."""
    alive = [member.target for member in members if facts[member.target].alive]
    return sorted(alive, key=lambda target: not facts[target].holds)


def _next_state(
    member: Member, cell: tuple[TargetState, Event], servers: frozenset[int]
) -> TargetState:
    if member.target in servers:
        return SERVING
    return TABLE[cell].served if servers else TABLE[cell].unserved


def _moved(member: Member, state: TargetState, version: int) -> Member:
    return member if state == member.state else replace(member, state=state, since=version)


def _order(state: TargetState) -> int:
    return {SERVING: 0, SYNCING: 1}.get(state, 2)


def as_markdown() -> str:
    """Return the table as docs/cluster.md shows it; a test compares them."""
    lines = [
        "| state | event | may serve as | beside a server | without any |",
        "| --- | --- | --- | --- | --- |",
    ]
    for (state, event), cell in TABLE.items():
        rank = "" if cell.rank is None else cell.rank.value
        row = (state.name, event.value, rank, cell.served.name, cell.unserved.name)
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"
