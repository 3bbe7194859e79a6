"""A scrubbing pass: its order, its place over restarts, when the next one begins."""

from __future__ import annotations

import pytest

from ffs.server.storage.resync import ChunkKey, Entry
from ffs.server.storage.scrub import ScrubPass, ScrubState

DAY = 86_400 * 10**9
KEYS = [(blob, chunk) for blob in (1, 2, 5) for chunk in range(3)]


def page(keys: list[ChunkKey], after: ChunkKey, limit: int) -> list[Entry]:
    return [Entry(*key, 10, 0) for key in keys if key > after][:limit]


def look_at_some(
    scrub: ScrubPass, keys: list[ChunkKey], count: int, wall_ns: int
) -> list[ChunkKey]:
    seen: list[ChunkKey] = []
    while scrub.under_way and len(seen) < count:
        if (after := scrub.page_after) is not None:
            scrub.listed(page(keys, after, 2), wall_ns)
        if scrub.under_way:
            seen.append(scrub.next().key)
    return seen


def test_a_pass_sees_every_chunk_once_in_order() -> None:
    scrub = ScrubPass(ScrubState(), DAY)
    assert not scrub.under_way
    assert scrub.begin_in_ns(5) == 0
    scrub.begin(5)
    assert look_at_some(scrub, KEYS, 100, wall_ns=9) == KEYS
    assert not scrub.under_way
    assert (scrub.state.began_ns, scrub.state.ended_ns, scrub.state.chunks) == (5, 9, len(KEYS))
    assert scrub.begin_in_ns(9) == DAY - 4
    assert scrub.begin_in_ns(DAY + 5) == 0


@pytest.mark.parametrize("seen", range(len(KEYS)))
def test_a_pass_goes_on_where_it_was_after_a_restart(seen: int) -> None:
    scrub = ScrubPass(ScrubState(), DAY)
    scrub.begin(5)
    first = look_at_some(scrub, KEYS, seen, wall_ns=6)
    scrub = ScrubPass(ScrubState.from_text(scrub.state.to_text()), DAY)
    assert scrub.under_way
    assert first + look_at_some(scrub, KEYS, 100, wall_ns=7) == KEYS
    assert scrub.state.chunks == len(KEYS)


def test_chunks_that_come_and_go_meanwhile() -> None:
    keys = list(KEYS)
    scrub = ScrubPass(ScrubState(), DAY)
    scrub.begin(5)
    seen = look_at_some(scrub, keys, 2, wall_ns=6)
    keys.remove((2, 2))
    keys += [(1, 7), (9, 9)]
    seen += look_at_some(scrub, sorted(keys), 100, wall_ns=7)
    assert seen == sorted({*keys} | {*KEYS} - {(2, 2)})


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"blob": null}', "\x00"])
def test_a_place_that_cannot_be_read_is_the_beginning(text: str) -> None:
    assert ScrubState.from_text(text) == ScrubState()


def test_a_clock_that_was_set_back_does_not_stop_scrubbing() -> None:
    scrub = ScrubPass(ScrubState(began_ns=50 * DAY, ended_ns=51 * DAY), DAY)
    assert scrub.begin_in_ns(DAY) == 0
    scrub.begin(DAY)
    assert scrub.under_way
    assert look_at_some(scrub, KEYS, 100, wall_ns=DAY + 1) == KEYS
    assert not scrub.under_way
