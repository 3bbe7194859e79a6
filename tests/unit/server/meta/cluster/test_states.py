"""The table of target states, tried exhaustively.

Two ways: every chain of up to three members in every state, with every event, for what must hold of
any single step; and every chain that can come about by steps, writes, syncs, damage and death, for
what must hold of the data. There one chunk stands for all: states do not depend on what is stored.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest

from ffs.server.meta.cluster.states import (
    CELLS,
    TABLE,
    Chain,
    Event,
    Facts,
    Member,
    as_markdown,
    step,
)
from ffs.types import TargetState

SERVING, SYNCING = TargetState.SERVING, TargetState.SYNCING
LASTSRV, OFFLINE, WAITING = TargetState.LASTSRV, TargetState.OFFLINE, TargetState.WAITING
VERSION = 7
SINCE = 5
FACTS = {
    Event.DEAD: Facts(alive=False),
    Event.DAMAGED: Facts(alive=True, whole=False, synced=SINCE),
    Event.EMPTIED: Facts(alive=True, synced=SINCE - 1, holds=False),
    Event.ALIVE: Facts(alive=True, synced=SINCE - 1),
    Event.SYNCED: Facts(alive=True, synced=SINCE),
}


def chain_of(*states: TargetState) -> Chain:
    members = [Member(i + 1, state, SINCE, home=i) for i, state in enumerate(states)]
    members.sort(key=lambda m: ({SERVING: 0, SYNCING: 1}.get(m.state, 2), m.home))
    return Chain(3, VERSION, tuple(members))


def states_of(chain: Chain) -> dict[int, TargetState]:
    return {member.target: member.state for member in chain.members}


def every_case() -> Iterator[tuple[Chain, Mapping[int, Facts]]]:
    for count in (1, 2, 3):
        for states in itertools.product(TargetState, repeat=count):
            for events in itertools.product(Event, repeat=count):
                yield chain_of(*states), {i + 1: FACTS[event] for i, event in enumerate(events)}


def test_a_step_leaves_a_chain_in_order_and_settled() -> None:
    used: set[tuple[TargetState, Event]] = set()
    for chain, facts in every_case():
        after, cells = (done := step(chain, facts)).chain, done.cells
        used.update(cells)
        found = [member.state for member in after.members]
        assert sorted(states_of(after)) == sorted(states_of(chain))
        assert found == sorted(found, key=lambda s: {SERVING: 0, SYNCING: 1}.get(s, 2))
        for _, group in itertools.groupby(after.members, lambda m: m.state in (SERVING, SYNCING)):
            by_state = [[m.home for m in g] for _, g in itertools.groupby(group, lambda m: m.state)]
            assert all(by_state)
        assert not {SERVING, LASTSRV} <= set(found), (chain, facts)
        assert SYNCING not in found or SERVING in found, (chain, facts)
        assert step(after, facts).chain == after, (chain, facts)
    assert used == set(CELLS) == set(TABLE)


def test_the_version_grows_if_and_only_if_something_changed() -> None:
    for chain, facts in every_case():
        after = step(chain, facts).chain
        before = {m.target: m for m in chain.members}
        if after.members == chain.members:
            assert after == chain
            continue
        assert after.version == VERSION + 1
        for member in after.members:
            old = before[member.target]
            assert member.since == (VERSION + 1 if member.state != old.state else SINCE)


def test_who_is_dead_neither_serves_nor_syncs() -> None:
    for chain, facts in every_case():
        for target, state in states_of(step(chain, facts).chain).items():
            assert facts[target].alive or state in (OFFLINE, LASTSRV)


# --- what the members hold ------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """A chain, and what is true of its members; target -> whether."""

    chain: Chain
    has: tuple[bool, ...]
    """Whether each holds the chunk."""
    damaged: tuple[bool, ...]
    synced: tuple[bool, ...]
    """Whether its daemon says that it has synced since its state began."""
    written: bool = False
    """Whether the chunk was acknowledged, and has not been lost by all that had to hold it."""

    def those(self, *states: TargetState) -> list[int]:
        return [m.target - 1 for m in self.chain.members if m.state in states]


def changed(values: tuple[bool, ...], places: list[int], value: bool) -> tuple[bool, ...]:
    return tuple(value if i in places else old for i, old in enumerate(values))


def after_step(world: World, alive: tuple[bool, ...]) -> World:
    """A step, with versions made equal again so that the number of worlds stays finite."""
    facts = {
        i + 1: Facts(alive[i], not world.damaged[i], SINCE if world.synced[i] else 0)
        for i in range(len(alive))
    }
    chain = step(world.chain, facts).chain
    moved = [m.target - 1 for m in chain.members if m.since != SINCE]
    members = tuple(replace(m, since=SINCE) for m in chain.members)
    return replace(
        world,
        chain=Chain(3, VERSION, members),
        synced=changed(world.synced, moved, value=False),
    )


def others(world: World) -> Iterator[World]:
    """What may happen between two steps."""
    serving = world.those(SERVING)
    if serving and not world.written and not any(world.has):
        has = changed(world.has, world.those(SERVING, SYNCING), value=True)
        yield replace(world, has=has, written=True)
    for place in world.those(SYNCING):
        got = world.has[place] or any(world.has[s] for s in serving)
        yield replace(
            world,
            has=changed(world.has, [place], value=got),
            damaged=changed(world.damaged, [place], value=False),
            synced=changed(world.synced, [place], value=True),
        )
    for place in range(len(world.has)) if not any(world.damaged) else ():
        damaged = changed(world.damaged, [place], value=True)
        yield replace(world, damaged=damaged)  # it loses another chunk than ours
        holders = [p for p in world.those(SERVING, LASTSRV) if p != place and world.has[p]]
        yield replace(
            world,
            damaged=damaged,
            has=changed(world.has, [place], value=False),
            written=world.written and (bool(holders) or place not in world.those(SERVING, LASTSRV)),
        )


@cache
def reachable(count: int) -> frozenset[World]:
    start = World(
        chain_of(*[SERVING] * count), (False,) * count, (False,) * count, (False,) * count
    )
    seen, left = {start}, [start]
    while left:
        world = left.pop()
        steps = [after_step(world, a) for a in itertools.product((True, False), repeat=count)]
        for following in [*steps, *others(world)]:
            if following not in seen:
                seen.add(following)
                left.append(following)
    return frozenset(seen)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_who_serves_has_all_that_was_acknowledged(count: int) -> None:
    worlds = reachable(count)
    assert {state for world in worlds for state in states_of(world.chain).values()} >= {
        SERVING,
        LASTSRV,
    }
    for world in worlds:
        if world.written:
            for place in world.those(SERVING):
                assert world.has[place] or world.damaged[place], world


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_chain_whose_members_are_back_serves_again(count: int) -> None:
    """Once all live and sync, all serve, and what was written is there."""
    for world in reachable(count):
        now = world
        for _ in range(4):
            now = after_step(now, (True,) * count)
            for place in now.those(SYNCING):
                got = now.has[place] or any(now.has[s] for s in now.those(SERVING))
                now = replace(
                    now,
                    has=changed(now.has, [place], value=got),
                    damaged=changed(now.damaged, [place], value=False),
                    synced=changed(now.synced, [place], value=True),
                )
        now = after_step(now, (True,) * count)
        assert set(states_of(now.chain).values()) == {SERVING}, world
        assert [m.home for m in now.chain.members] == list(range(count)), world
        if world.written:
            assert all(now.has), world


def test_the_last_ones_wait_for_each_other_only_when_they_have_lost_something() -> None:
    """Two served when the last was lost: the first that is back serves, damaged ones wait."""
    chain = chain_of(LASTSRV, LASTSRV, OFFLINE)
    dead, alive, damaged = FACTS[Event.DEAD], FACTS[Event.ALIVE], FACTS[Event.DAMAGED]
    assert states_of(step(chain, {1: dead, 2: alive, 3: alive}).chain) == {
        1: OFFLINE,
        2: SERVING,
        3: SYNCING,
    }
    waiting = step(chain, {1: damaged, 2: dead, 3: alive}).chain
    assert states_of(waiting) == {1: LASTSRV, 2: LASTSRV, 3: WAITING}
    torn = step(chain_of(SERVING, SERVING, OFFLINE), {1: damaged, 2: dead, 3: alive}).chain
    assert states_of(torn) == {1: LASTSRV, 2: LASTSRV, 3: WAITING}
    both = step(chain, {1: damaged, 2: damaged, 3: dead}).chain
    assert states_of(both) == {1: SERVING, 2: SYNCING, 3: OFFLINE}


def test_who_was_emptied_serves_nobody_before_it_has_synced() -> None:
    emptied, alive, dead = FACTS[Event.EMPTIED], FACTS[Event.ALIVE], FACTS[Event.DEAD]
    synced = Facts(alive=True, synced=VERSION + 1)
    for state in (SERVING, LASTSRV):
        chain = chain_of(state, state, OFFLINE)
        beside = step(chain, {1: emptied, 2: alive, 3: dead}).chain
        assert states_of(beside) == {1: SYNCING, 2: SERVING, 3: OFFLINE}
        assert states_of(step(beside, {1: synced, 2: alive, 3: dead}).chain)[1] == SERVING
        alone = step(chain, {1: emptied, 2: dead, 3: alive}).chain
        assert states_of(alone) == {1: WAITING, 2: LASTSRV, 3: WAITING}
        nobody = step(chain, {1: emptied, 2: emptied, 3: alive}).chain
        assert states_of(nobody) == {1: WAITING, 2: WAITING, 3: WAITING}


def test_once_a_loss_is_accepted_the_best_of_those_that_live_serves() -> None:
    dead, alive = FACTS[Event.DEAD], FACTS[Event.ALIVE]
    damaged, emptied = FACTS[Event.DAMAGED], FACTS[Event.EMPTIED]

    def accepted(chain: Chain, *facts: Facts) -> dict[int, TargetState]:
        known = dict(enumerate(facts, start=1))
        return states_of(step(chain, known, loss_accepted=True).chain)

    torn = chain_of(LASTSRV, LASTSRV, OFFLINE)
    assert accepted(torn, damaged, dead, alive) == {1: SERVING, 2: OFFLINE, 3: SYNCING}
    assert accepted(torn, dead, dead, alive) == {1: OFFLINE, 2: OFFLINE, 3: SERVING}
    assert accepted(torn, emptied, dead, alive) == {1: SYNCING, 2: OFFLINE, 3: SERVING}
    assert accepted(torn, dead, dead, dead) == {1: LASTSRV, 2: LASTSRV, 3: OFFLINE}
    # What is complete serves, whatever was accepted.
    assert accepted(torn, damaged, alive, alive) == {1: SYNCING, 2: SERVING, 3: SYNCING}
    nobody = chain_of(WAITING, WAITING, OFFLINE)
    assert accepted(nobody, alive, alive, dead) == {1: SERVING, 2: SYNCING, 3: OFFLINE}
    assert accepted(nobody, emptied, alive, dead) == {1: SYNCING, 2: SERVING, 3: OFFLINE}


def test_the_page_shows_the_table() -> None:
    page = (Path(__file__).resolve().parents[5] / "docs" / "cluster.md").read_text()
    assert as_markdown() in page
