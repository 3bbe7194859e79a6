"""A target that was away becomes complete: real stores, real data ports, real threads."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ffs._reader import block_crcs
from ffs.errors import OK
from ffs.server.storage import recovery as module
from ffs.server.storage.fetch import Source
from ffs.server.storage.neighbours import View
from ffs.server.storage.recovery import Recovery
from ffs.server.storage.resync import Entry
from ffs.types import TargetState
from tests.unit.server.storage.nodes import SINCE, Neighbourhood, content, neighbourhood

SERVING, SYNCING, OFFLINE = TargetState.SERVING, TargetState.SYNCING, TargetState.OFFLINE
KEYS = [(blob, chunk) for blob in (1, 2, 3, 40) for chunk in range(25)]


@contextlib.contextmanager
def recovering(around: Neighbourhood, target: int) -> Iterator[tuple[Recovery, list[int]]]:
    """The recovery of one node, and how often it said that a target is complete."""
    said: list[int] = []
    recovery = Recovery(
        lambda: {target: around.nodes[target].store},
        around.pulling,
        call_soon=around.calls.put,
        remember=lambda *facts: around.remembered.append(facts),
        on_synced=lambda: said.append(target),
    )
    try:
        yield recovery, said
    finally:
        recovery.close()


@pytest.fixture
def three(quick_path: Path) -> Iterator[Neighbourhood]:
    with neighbourhood(quick_path, 3) as made:
        yield made


def test_what_is_missing_comes_from_all_who_serve(
    three: Neighbourhood, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_BYTES", 40_000)
    for number in (1, 2):
        three.nodes[number].fill(KEYS)
    three.nodes[3].fill(KEYS[10:30])
    three.nodes[3].fill([(99, 0)])  # what others lack is no business of a resync
    three.say(SERVING, SERVING, SYNCING)
    with recovering(three, 3) as (recovery, said):
        assert recovery.synced(3) == 0
        recovery.view_changed()
        three.wait_for(lambda: recovery.synced(3) == SINCE)
        assert said == [3]
        progress = recovery.progress(3)
        assert progress is not None
        assert progress.chunks_copied == len(KEYS) - 20
        assert (progress.chunks_left, progress.lost) == (0, 0)
    assert three.nodes[3].keys() == three.nodes[1].keys() + three.nodes[3].store.keys(98, 0, 1)
    read = [three.nodes[number].data.stats()["ranges_total"] for number in (1, 2)]
    assert sum(read) == len(KEYS) - 20
    assert min(read) > 0
    assert all(three.nodes[3].store.verify(*key) == OK for key in KEYS)


def test_chunks_larger_than_a_batch_come(three: Neighbourhood) -> None:
    three.nodes[1].fill([(1, 0), (1, 1)], length=1_000_001)
    three.nodes[1].store.put(2, 0, bytes(9 << 20), block_crcs(bytes(9 << 20), 2, 0))
    three.say(SERVING, OFFLINE, SYNCING)
    with recovering(three, 3) as (recovery, _):
        recovery.view_changed()
        three.wait_for(lambda: recovery.synced(3) == SINCE)
    assert three.nodes[3].keys() == three.nodes[1].keys()


def test_a_source_that_has_a_chunk_wrong_is_told_and_another_asked(three: Neighbourhood) -> None:
    for number in (1, 2):
        three.nodes[number].fill(KEYS)
    for key in KEYS[:50]:
        three.nodes[1].flip(*key)
    three.say(SERVING, SERVING, SYNCING)
    with recovering(three, 3) as (recovery, _):
        recovery.view_changed()
        three.wait_for(lambda: recovery.synced(3) == SINCE)
    assert all(three.nodes[3].store.verify(*key) == OK for key in KEYS)
    told = three.nodes[1].suspects()
    assert {(1, *key) for key in KEYS[:50]} >= set(told)
    assert three.nodes[2].suspects() == []


def test_what_nobody_has_whole_is_named_and_the_rest_copied(three: Neighbourhood) -> None:
    for number in (1, 2):
        three.nodes[number].fill(KEYS)
        three.nodes[number].flip(3, 4)
    three.say(SERVING, SERVING, SYNCING)
    with recovering(three, 3) as (recovery, _):
        recovery.view_changed()
        three.wait_for(lambda: recovery.synced(3) == SINCE)
        progress = recovery.progress(3)
        assert progress is not None
        assert progress.lost_chunks == [(3, 4)]
    assert three.nodes[3].store.lookup(3, 4) is None
    assert three.nodes[3].store.stats()["chunks"] == len(KEYS) - 1


def test_a_source_that_does_not_know_the_chain_yet_is_waited_for(three: Neighbourhood) -> None:
    three.nodes[1].fill(KEYS)
    three.nodes[2].fill(KEYS)
    three.say(SERVING, SERVING, SYNCING, since=SINCE + 1, version=SINCE + 1)
    with recovering(three, 3) as (recovery, said):
        recovery.view_changed()
        three.nodes[1].data.set_chain_version(1, SINCE + 1)
        assert said == []
        three.nodes[2].data.set_chain_version(2, SINCE + 1)
        three.wait_for(lambda: recovery.synced(3) == SINCE + 1)
    assert three.nodes[3].keys() == three.nodes[1].keys()


def test_a_source_that_died_is_left_to_the_others(
    three: Neighbourhood, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FAILURES_MAX", 2)
    three.nodes[1].fill(KEYS)
    three.nodes[2].fill(KEYS)
    three.nodes[1].stop_serving()
    three.say(SERVING, SERVING, SYNCING)
    with recovering(three, 3) as (recovery, _):
        recovery.view_changed()
        three.wait_for(lambda: recovery.synced(3) == SINCE)
    assert three.nodes[3].keys() == three.nodes[2].keys()


def test_another_since_starts_over_and_another_state_ends_it(three: Neighbourhood) -> None:
    three.nodes[1].fill(KEYS)
    three.nodes[1].data.set_chain_version(1, SINCE - 1)  # nothing can be listed
    three.say(SERVING, OFFLINE, SYNCING)
    with recovering(three, 3) as (recovery, said):
        recovery.view_changed()
        three.say(SERVING, OFFLINE, SYNCING, since=SINCE - 1, version=SINCE + 2)
        recovery.view_changed()
        three.wait_for(lambda: recovery.synced(3) == SINCE - 1)
        three.say(SERVING, OFFLINE, SERVING, since=SINCE + 3, version=SINCE + 3)
        recovery.view_changed()
        three.say(SERVING, OFFLINE, SYNCING, since=SINCE + 4, version=SINCE + 4)
        recovery.view_changed()
        three.say(SERVING, OFFLINE, OFFLINE, since=SINCE + 5, version=SINCE + 5)
        recovery.view_changed()
        assert recovery.synced(3) == SINCE - 1
        assert said == [3]


def test_sources_that_all_changed_start_it_over(three: Neighbourhood) -> None:
    three.nodes[2].fill(KEYS)
    three.nodes[1].stop_serving()
    three.say(SERVING, OFFLINE, SYNCING)
    with recovering(three, 3) as (recovery, _):
        recovery.view_changed()
        three.say(OFFLINE, SERVING, SYNCING, version=SINCE + 1)
        recovery.view_changed()
        three.wait_for(lambda: recovery.synced(3) == SINCE)
    assert three.nodes[3].keys() == three.nodes[2].keys()


def test_a_source_that_was_started_again_is_read_from_where_it_is_now(
    three: Neighbourhood,
) -> None:
    three.nodes[1].fill(KEYS)
    port, three.nodes[1].port = three.nodes[1].port, three.nodes[2].port  # has no target 1
    three.say(SERVING, OFFLINE, SYNCING)
    with recovering(three, 3) as (recovery, _):
        recovery.view_changed()
        three.nodes[1].port = port
        three.say(SERVING, OFFLINE, SYNCING, version=SINCE + 1)
        recovery.view_changed()
        three.wait_for(lambda: recovery.synced(3) == SINCE)
    assert three.nodes[3].keys() == three.nodes[1].keys()


def test_ours_makes_way_if_it_is_bad_and_stays_if_it_is_whole(three: Neighbourhood) -> None:
    three.nodes[1].fill([(1, 0), (1, 1)])
    for chunk in (0, 1):
        data, _ = content(1, 5, 9000)
        three.nodes[3].store.put(1, chunk, data, block_crcs(data, 1, chunk))
    path = next(three.nodes[3].path.glob("*.data"))
    with path.open("r+b") as file:
        file.write(b"\0\0\0\0")
    assert three.nodes[3].store.verify(1, 0) != OK
    three.say(SERVING, OFFLINE, SYNCING)
    with recovering(three, 3) as (recovery, _):
        recovery.view_changed()
        three.wait_for(lambda: recovery.synced(3) == SINCE)
        progress = recovery.progress(3)
        assert progress is not None
        assert progress.conflict_chunks == [(1, 1)]
    assert three.nodes[3].store.lookup(1, 0) == three.nodes[1].store.lookup(1, 0)
    assert three.nodes[3].store.verify(1, 0) == OK
    assert three.nodes[3].store.read(1, 1, 0, 9000)[1] == content(1, 5, 9000)[0]


def test_a_source_that_hangs_does_not_hold_up_the_end(
    three: Neighbourhood, monkeypatch: pytest.MonkeyPatch
) -> None:
    three.nodes[1].fill(KEYS)
    three.nodes[2].fill(KEYS)
    hanging, released = threading.Event(), threading.Event()
    fetch = Source.fetch

    def fetch_or_hang(source: Source, entries: Sequence[Entry]) -> object:
        if source.target == 1:
            hanging.set()
            assert released.wait(30)
        return fetch(source, entries)

    monkeypatch.setattr(module, "BATCH_BYTES", 40_000)
    monkeypatch.setattr(Source, "fetch", fetch_or_hang)
    three.say(SERVING, SERVING, SYNCING)
    with recovering(three, 3) as (recovery, said):
        recovery.view_changed()
        assert hanging.wait(30)
        three.say(OFFLINE, SERVING, SYNCING, version=SINCE + 1)
        recovery.view_changed()
        released.set()
        three.wait_for(lambda: recovery.synced(3) == SINCE)
        assert said == [3]
    assert three.nodes[3].keys() == three.nodes[2].keys()


def test_a_source_is_asked_for_no_more_than_its_share_of_the_time(three: Neighbourhood) -> None:
    """Counted by the clock that paces: readers have the rest to themselves."""
    three.nodes[1].fill([(blob, 0) for blob in range(1, 400)], length=100_000)
    pulling = dataclasses.replace(three.pulling, share=0.3)
    three.pulling = pulling
    three.say(SERVING, OFFLINE, SYNCING)
    turns, began = pulling.node(1).turns, pulling.clock.monotonic_ns()
    ended, busy = turns.ended, [0]

    def count(began_ns: int, now_ns: int, pullers: int) -> None:
        busy[0] += now_ns - began_ns
        assert pullers == 1
        ended(began_ns, now_ns, pullers)

    turns.ended = count  # type: ignore[method-assign]
    with recovering(three, 3) as (recovery, _):
        recovery.view_changed()
        three.wait_for(lambda: recovery.synced(3) == SINCE)
    rested = pulling.clock.monotonic_ns() + turns.wait_ns(pulling.clock.monotonic_ns())
    assert busy[0] <= 0.3 * (rested - began)


def test_what_a_target_synced_for_is_forgotten_when_it_leaves_its_chain(
    three: Neighbourhood,
) -> None:
    """Its next chain may come to the same version."""
    three.nodes[1].fill(KEYS[:3])
    three.say(SERVING, SERVING, SYNCING)
    with recovering(three, 3) as (recovery, _):
        recovery.view_changed()
        three.wait_for(lambda: recovery.synced(3) == SINCE)
        three.view = View()
        recovery.view_changed()
        assert recovery.synced(3) == 0
