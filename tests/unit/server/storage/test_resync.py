"""ResyncPlan: what is listed, fetched, tried elsewhere and given up; whole runs at random."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffs.server.storage.resync import (
    ChunkKey,
    Entry,
    Outcome,
    ResyncPlan,
    Wanted,
    pack_entries,
    parse_entries,
)

Chunks = dict[ChunkKey, tuple[int, int]]


def page(chunks: Chunks, after: ChunkKey, limit: int) -> list[Entry]:
    keys = sorted(key for key in chunks if key > after)[:limit]
    return [Entry(*key, *chunks[key]) for key in keys]


def answer_lists(plan: ResyncPlan, peers: dict[int, Chunks]) -> int:
    """Give every page that is asked for; return how many there were."""
    asked = 0
    while lists := plan.lists():
        for source, blob, chunk, limit in lists:
            asked += 1
            plan.listed(source, page(peers[source], (blob, chunk), limit))
    return asked


def planned(mine: Chunks, peers: dict[int, Chunks], **bounds: int) -> ResyncPlan:
    return ResyncPlan(5, peers, lambda blob, chunk: mine.get((blob, chunk)), **bounds)


def keys_of(taken: list[Wanted]) -> list[ChunkKey]:
    return [wanted.entry.key for wanted in taken]


def test_page_is_read_as_it_is_written() -> None:
    entries = [Entry(1, 0, 4096, 7), Entry((1 << 63) + 1, (1 << 32) - 1, 1, (1 << 32) - 1)]
    assert len(pack_entries(entries)) == 48
    assert parse_entries(pack_entries(entries)) == entries


def test_nothing_to_do_where_all_is_here() -> None:
    chunks = {(1, 0): (10, 1), (2, 0): (10, 2)}
    plan = planned(dict(chunks), {1: chunks, 2: chunks})
    answer_lists(plan, {1: chunks, 2: chunks})
    assert plan.finished
    assert plan.progress.chunks_left == 0


def test_missing_chunks_are_shared_among_their_holders() -> None:
    both = {(1, n): (100, n) for n in range(4)}
    peers = {1: both, 2: both | {(2, 0): (100, 9)}}
    plan = planned({}, peers)
    answer_lists(plan, peers)
    assert plan.progress.chunks_left == 5
    first = plan.take(1, bytes_max=250)
    second = plan.take(2, bytes_max=250)
    assert keys_of(first) == [(1, 0), (1, 1)]
    assert keys_of(second) == [(1, 2), (1, 3)]
    assert plan.take(1, bytes_max=250) == []
    last = plan.take(2, bytes_max=250)
    assert keys_of(last) == [(2, 0)]
    for source, taken in ((1, first), (2, second), (2, last)):
        for wanted in taken:
            assert not plan.finished
            plan.ended(source, wanted, Outcome.STORED)
    assert plan.finished
    assert (plan.progress.chunks_copied, plan.progress.bytes_copied) == (5, 500)
    assert (plan.progress.chunks_left, plan.progress.bytes_left) == (0, 0)


def test_chunk_larger_than_the_room_comes_alone() -> None:
    peers = {1: {(1, 0): (1000, 0), (1, 1): (1, 0)}}
    plan = planned({}, peers)
    answer_lists(plan, peers)
    assert keys_of(plan.take(1, bytes_max=10)) == [(1, 0)]
    assert keys_of(plan.take(1, bytes_max=10)) == [(1, 1)]


@pytest.mark.parametrize("outcome", [Outcome.BAD, Outcome.GONE])
def test_what_one_source_fails_is_asked_of_another(outcome: Outcome) -> None:
    chunks = {(1, 0): (10, 1)}
    peers = {1: chunks, 2: chunks}
    plan = planned({}, peers)
    answer_lists(plan, peers)
    [wanted] = plan.take(1, bytes_max=10)
    plan.ended(1, wanted, outcome)
    assert plan.take(1, bytes_max=10) == []
    [wanted] = plan.take(2, bytes_max=10)
    plan.ended(2, wanted, outcome)
    assert plan.finished
    assert plan.progress.lost == (outcome is Outcome.BAD)
    assert plan.progress.lost_chunks == ([(1, 0)] if outcome is Outcome.BAD else [])
    assert plan.progress.chunks_copied == 0


def test_what_came_to_nothing_is_tried_again() -> None:
    peers = {1: {(1, 0): (10, 1)}}
    plan = planned({}, peers)
    answer_lists(plan, peers)
    for _ in range(3):
        [wanted] = plan.take(1, bytes_max=10)
        plan.ended(1, wanted, Outcome.LATER)
    assert not plan.finished


def test_page_that_did_not_come_is_asked_for_again() -> None:
    plan = planned({}, {1: {}, 2: {}})
    assert [source for source, *_ in plan.lists()] == [1, 2]
    assert plan.lists() == []
    plan.listed(1, [])
    plan.not_listed(2)
    assert [source for source, *_ in plan.lists()] == [2]


def test_other_checksums_than_ours_are_looked_into() -> None:
    peers = {1: {(1, 0): (10, 1)}}
    plan = planned({(1, 0): (10, 2)}, peers)
    answer_lists(plan, peers)
    [wanted] = plan.take(1, bytes_max=10)
    plan.ended(1, wanted, Outcome.CONFLICT)
    assert plan.finished
    assert plan.progress.conflict_chunks == [(1, 0)]


def test_sources_that_disagree_are_both_asked() -> None:
    peers = {1: {(1, 0): (10, 1)}, 2: {(1, 0): (10, 2)}}
    plan = planned({}, peers)
    answer_lists(plan, peers)
    [first] = plan.take(1, bytes_max=100)
    [second] = plan.take(2, bytes_max=100)
    plan.ended(1, first, Outcome.BAD)
    plan.ended(2, second, Outcome.STORED)
    assert plan.finished


def test_lost_source_leaves_its_work_to_the_others() -> None:
    chunks = {(1, 0): (10, 1), (1, 1): (10, 1)}
    peers = {1: chunks, 2: chunks}
    plan = planned({}, peers)
    answer_lists(plan, peers)
    [wanted] = plan.take(1, bytes_max=10)
    plan.lose(1)
    plan.ended(1, wanted, Outcome.LATER)
    assert not plan.stuck
    assert keys_of(plan.take(2, bytes_max=100)) == [(1, 0), (1, 1)]


def test_source_lost_while_it_was_asked_for_a_page() -> None:
    peers: dict[int, Chunks] = {1: {(1, 0): (10, 1)}, 2: {(1, 0): (10, 1)}}
    plan = planned({}, peers)
    assert len(plan.lists()) == 2
    plan.listed(2, page(peers[2], (0, 0), 10))
    plan.lose(1)
    assert plan.progress.counted
    assert keys_of(plan.take(2, bytes_max=100)) == [(1, 0)]


def test_without_sources_the_plan_is_stuck() -> None:
    plan = planned({}, {1: {}})
    plan.lose(1)
    assert plan.stuck
    assert plan.lists() == []


def test_more_than_fits_is_counted_and_listed_again() -> None:
    peers = {1: {(1, n): (10, n) for n in range(100)}}
    mine: Chunks = {}
    plan = planned(mine, peers, page_entries=10, queue_max=20)
    answer_lists(plan, peers)
    assert plan.progress.counted
    assert plan.progress.chunks_left == 100
    copied: list[ChunkKey] = []
    while not plan.finished:
        answer_lists(plan, peers)
        taken = plan.take(1, bytes_max=70)
        assert len(plan._queue) <= 20
        for wanted in taken:
            mine[wanted.entry.key] = (wanted.entry.length, wanted.entry.digest)
            plan.ended(1, wanted, Outcome.STORED)
        copied += keys_of(taken)
    assert copied == sorted(peers[1])
    assert plan.progress.chunks_left == 0


def _contents(rng: random.Random) -> Chunks:
    keys = [(rng.randint(1, 6), rng.randint(0, 6)) for _ in range(rng.randint(0, 40))]
    return {key: (10 * sum(key), int(rng.random() < 0.05)) for key in keys}


@given(st.integers(0, 1 << 32))
@settings(max_examples=150, deadline=None)
def test_any_run_ends_with_all_that_can_be_had(seed: int) -> None:
    rng = random.Random(seed)
    peers = {source: _contents(rng) for source in range(1, rng.randint(2, 5))}
    bad = {(s, k) for s, chunks in peers.items() for k in chunks if rng.random() < 0.2}
    mine = _contents(rng)
    plan = planned(mine, peers, page_entries=rng.randint(1, 9), queue_max=rng.randint(1, 9))
    taken: list[tuple[int, Wanted]] = []
    asked: list[tuple[int, ChunkKey, int]] = []
    for _ in range(100_000):
        if plan.finished or plan.stuck:
            break
        asked += [(source, (blob, chunk), limit) for source, blob, chunk, limit in plan.lists()]
        roll = rng.random()
        if roll < 0.01 and len(plan.sources) > 1:
            plan.lose(rng.choice(sorted(plan.sources)))
        elif roll < 0.3 and asked:
            source, after, limit = asked.pop(rng.randrange(len(asked)))
            if rng.random() < 0.2:
                plan.not_listed(source)
            else:
                plan.listed(source, page(peers[source], after, limit))
        elif roll < 0.6:
            source = rng.choice(sorted(plan.sources))
            taken += [(source, wanted) for wanted in plan.take(source, rng.randint(1, 100))]
            working = [wanted.entry for _, wanted in taken]
            assert len(working) == len(set(working)), "one chunk is fetched twice at once"
        elif taken:
            source, wanted = taken.pop(rng.randrange(len(taken)))
            key = wanted.entry.key
            if source not in plan.sources or rng.random() < 0.2:
                plan.ended(source, wanted, Outcome.LATER)
            elif (source, key) in bad:
                plan.ended(source, wanted, Outcome.BAD)
            elif mine.setdefault(key, peers[source][key]) != peers[source][key]:
                plan.ended(source, wanted, Outcome.CONFLICT)
            else:
                plan.ended(source, wanted, Outcome.STORED)
    assert plan.finished
    can_give = {k for s in plan.sources for k in peers[s] if (s, k) not in bad}
    assert can_give <= mine.keys()
    assert plan.progress.chunks_left == 0
