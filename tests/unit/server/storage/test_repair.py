"""Chunks that are bad or missing here are mended from a peer: suspected ones, and what scrubbing
finds by itself."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ffs import _storage
from ffs.errors import OK, ChunkMissingError, UnavailableError
from ffs.server.storage import repair as module
from ffs.server.storage import scrubber as scrubber_module
from ffs.server.storage.fetch import Source
from ffs.server.storage.neighbours import View
from ffs.server.storage.repair import SUSPECTS_MAX, Repairer
from ffs.server.storage.restoring import Restores
from ffs.server.storage.resync import ListPage, Outcome
from ffs.server.storage.scrubber import Scrubber
from ffs.types import TargetState
from tests.unit.server.storage.nodes import KEY, SINCE, Neighbourhood, neighbourhood

SERVING, SYNCING, OFFLINE = TargetState.SERVING, TargetState.SYNCING, TargetState.OFFLINE
KEYS = [(blob, chunk) for blob in (1, 2) for chunk in range(10)]


@pytest.fixture
def three(quick_path: Path) -> Iterator[Neighbourhood]:
    with neighbourhood(quick_path, 3) as made:
        for number in (1, 2):
            made.nodes[number].fill(KEYS)
        made.nodes[3].fill(KEYS)
        made.say(SERVING, SERVING, SERVING)
        yield made


def kept(blob: int) -> bool:
    """What a metadata server says of blobs that live."""
    return False


@contextlib.contextmanager
def repairing(
    around: Neighbourhood,
    target: int = 3,
    *,
    restores: Restores | None = None,
    is_gone: Callable[[int], bool] = kept,
) -> Iterator[Repairer]:
    stores = {target: around.nodes[target].store}
    repairer = Repairer(lambda: stores, around.pulling, restores or Restores(), is_gone)
    repairer.start()
    try:
        yield repairer
    finally:
        repairer.close()


@contextlib.contextmanager
def scrubbing(
    around: Neighbourhood,
    repairer: Repairer,
    bytes_per_s: int = 1 << 40,
    interval_s: int = 3600,
    reads_wait: Callable[[], bool] = lambda: False,
) -> Iterator[Scrubber]:
    node = around.nodes[3]
    scrubber = Scrubber(
        lambda: {3: node.store},
        lambda target: node.path,
        repairer,
        around.pulling,
        bytes_per_s=bytes_per_s,
        interval_s=interval_s,
        reads_wait=reads_wait,
    )
    scrubber.start()
    try:
        yield scrubber
    finally:
        scrubber.close()


def test_a_suspected_chunk_that_is_bad_is_mended(three: Neighbourhood) -> None:
    three.nodes[3].flip(1, 4)
    with repairing(three) as repairer:
        assert repairer.suspect(3, 1, 4)
        assert repairer.suspect(3, 1, 5)  # which is fine
        three.wait_for(lambda: repairer.health(3).repaired_total == 1)
        assert repairer.health(3).bad_total == 1
    assert all(three.nodes[3].store.verify(*key) == OK for key in KEYS)


def test_a_chunk_that_a_peer_has_and_we_have_not_comes_back(three: Neighbourhood) -> None:
    three.nodes[1].fill([(7, 3)])
    with repairing(three) as repairer:
        repairer.suspect(3, 7, 3)
        three.wait_for(lambda: repairer.health(3).missing_total == 1)
        assert repairer.health(3).repaired_total == 1
    assert three.nodes[3].store.verify(7, 3) == OK


def test_a_chunk_that_nobody_has_was_dropped(three: Neighbourhood) -> None:
    three.nodes[3].flip(1, 1)
    with repairing(three) as repairer:
        repairer.suspect(3, 7, 3)
        repairer.suspect(3, 1, 1)
        three.wait_for(lambda: repairer.health(3).repaired_total == 1)
        assert repairer.health(3).unrepairable == set()
        assert repairer.health(3).missing_total == 0


def test_a_chunk_that_is_bad_everywhere_is_named_until_it_is_whole(three: Neighbourhood) -> None:
    for number in (1, 2, 3):
        three.nodes[number].flip(2, 2)
    with repairing(three) as repairer:
        repairer.suspect(3, 2, 2)
        three.wait_for(lambda: repairer.health(3).unrepairable)
        assert repairer.health(3).unrepairable == {(2, 2)}
        assert three.nodes[1].suspects() == [(1, 2, 2)]
        three.nodes[2].store.drop([2])
        three.nodes[2].fill([(2, 2)])
        repairer.suspect(3, 2, 2)
        three.wait_for(lambda: not repairer.health(3).unrepairable)
        assert repairer.health(3).repaired_total == 1


def test_without_peers_nothing_is_touched(three: Neighbourhood) -> None:
    three.view = View()
    three.nodes[3].flip(1, 1)
    with repairing(three) as repairer:
        repairer.suspect(3, 9, 9)
        repairer.suspect(3, 1, 1)
        three.wait_for(lambda: repairer.health(3).unrepairable)
        assert repairer.health(3).unrepairable == {(1, 1)}
    assert three.nodes[3].store.lookup(1, 1) == three.nodes[1].store.lookup(1, 1)


def test_while_nobody_else_serves_a_chunk_waits(
    three: Neighbourhood, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    three.say(OFFLINE, OFFLINE, SERVING)
    three.nodes[3].flip(1, 1)
    with repairing(three) as repairer:
        repairer.suspect(3, 1, 1)
        three.wait_for(lambda: repairer._later)
        assert repairer.health(3).unrepairable == set()
        three.say(SERVING, OFFLINE, SERVING)
        three.wait_for(lambda: repairer.health(3).repaired_total == 1)


def test_a_peer_that_cannot_be_reached_is_tried_again(
    three: Neighbourhood, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    three.say(SERVING, OFFLINE, SERVING)
    three.nodes[1].stop_serving()
    three.nodes[3].flip(1, 1)
    with repairing(three) as repairer:
        repairer.suspect(3, 1, 1)
        three.say(OFFLINE, SERVING, SERVING)
        three.wait_for(lambda: repairer.health(3).repaired_total == 1)


def test_a_disk_that_cannot_read_a_chunk_gets_it_anew(three: Neighbourhood) -> None:
    _storage.fault_set("pread", 3, 5)  # entry, CRCs, and then the data
    try:
        with repairing(three) as repairer:
            repairer.suspect(3, 1, 1)
            three.wait_for(lambda: repairer.health(3).repaired_total == 1)
    finally:
        _storage.fault_set("*", 0, 0)
    assert three.nodes[3].store.verify(1, 1) == OK


def test_a_chunk_that_is_being_dropped_does_not_come_back(three: Neighbourhood) -> None:
    three.nodes[1].fill([(7, 3), (8, 3)])
    asked: list[int] = []

    def is_gone(blob: int) -> bool:
        asked.append(blob)
        return blob == 7

    with repairing(three, is_gone=is_gone) as repairer:
        repairer.suspect(3, 7, 3)
        repairer.suspect(3, 8, 3)
        three.wait_for(lambda: repairer.health(3).missing_total == 1)
    assert asked == [7, 8] and three.nodes[3].store.lookup(7, 3) is None


def test_a_chunk_whose_blob_is_dropped_meanwhile_does_not_come_back(three: Neighbourhood) -> None:
    three.nodes[1].fill([(7, 3)])
    restores = Restores()

    def is_gone(blob: int) -> bool:
        restores.drop([7])  # after the answer
        return False

    with repairing(three, restores=restores, is_gone=is_gone) as repairer:
        repairer.suspect(3, 7, 3)
        three.nodes[3].flip(1, 1)
        repairer.suspect(3, 1, 1)
        three.wait_for(lambda: repairer.health(3).repaired_total == 1)
    assert three.nodes[3].store.lookup(7, 3) is None


def test_a_missing_chunk_waits_until_somebody_can_be_asked(
    three: Neighbourhood, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    three.nodes[1].fill([(7, 3)])
    away = [UnavailableError("no server"), TimeoutError()]

    def is_gone(blob: int) -> bool:
        if away:
            raise away.pop()
        return False

    with repairing(three, is_gone=is_gone) as repairer:
        repairer.suspect(3, 7, 3)
        three.wait_for(lambda: repairer.health(3).missing_total == 1)


def test_bad_chunks_that_others_have_dropped_are_no_loss(three: Neighbourhood) -> None:
    for number in (1, 2):
        three.nodes[number].store.drop([2])
    three.nodes[3].flip(2, 2)
    three.nodes[3].flip(1, 1)
    with repairing(three, is_gone=lambda blob: blob == 2) as repairer:
        repairer.suspect(3, 2, 2)
        repairer.suspect(3, 1, 1)
        three.wait_for(lambda: repairer.health(3).repaired_total == 1)
        assert repairer.health(3).unrepairable == set()


def test_suspects_are_bounded(three: Neighbourhood) -> None:
    repairer = Repairer(dict, three.pulling, Restores(), kept)
    told = [repairer.suspect(3, 1, chunk) for chunk in range(SUSPECTS_MAX + 5)]
    assert told.count(True) == SUSPECTS_MAX


def test_one_chunk_is_found_by_its_name(three: Neighbourhood) -> None:
    source = Source(KEY, ("127.0.0.1", three.nodes[1].port), 1, "")
    for key in ((1, 0), (1, 9), (2, 0)):
        entry = source.find(key, SINCE)
        assert entry is not None
        assert entry.key == key
    assert source.find((1, 10), SINCE) is None
    assert source.find((1 << 63, 0), SINCE) is None
    source.close()


def test_whole_bytes_under_other_checksums_than_listed_are_bad(three: Neighbourhood) -> None:
    source = Source(KEY, ("127.0.0.1", three.nodes[1].port), 1, "")
    [entry, *_] = source.list_page(ListPage(1, 0, 0, 1), SINCE)
    _, [fetched] = source.fetch([entry._replace(digest=entry.digest ^ 1)])
    assert fetched.outcome is Outcome.BAD
    source.close()


# --- scrubbing ------------------------------------------------------------------------------------


def test_scrubbing_finds_what_nobody_reads(three: Neighbourhood) -> None:
    for key in ((1, 0), (2, 9)):
        three.nodes[3].flip(*key)
    three.nodes[1].fill([(7, 3)])
    with repairing(three) as repairer, scrubbing(three, repairer) as scrubber:
        three.wait_for(lambda: repairer.health(3).repaired_total == 3)
        assert (repairer.health(3).bad_total, repairer.health(3).missing_total) == (2, 1)
        three.wait_for(lambda: scrubber.state(3).ended_ns)
        assert scrubber.state(3).chunks == len(KEYS)
    assert three.nodes[3].keys() == three.nodes[1].keys()
    assert all(three.nodes[3].store.verify(*key) == OK for key in KEYS)
    written = json.loads((three.nodes[3].path / "scrub.json").read_text())
    assert written["ended_ns"] >= written["began_ns"] > 0


def test_scrubbing_keeps_to_its_rate_and_goes_on_after_a_restart(three: Neighbourhood) -> None:
    chunk_bytes = 9000
    with repairing(three) as repairer:
        with scrubbing(three, repairer, bytes_per_s=chunk_bytes // 3600) as scrubber:
            three.wait_for(lambda: scrubber.state(3).chunks == 1)
        assert scrubber.state(3).chunks == 1  # one chunk an hour
        with scrubbing(three, repairer) as scrubber:
            three.wait_for(lambda: scrubber.state(3).ended_ns)
            assert scrubber.state(3).chunks == len(KEYS)
        with scrubbing(three, repairer) as scrubber:
            three.wait_for(lambda: scrubber.state(3).began_ns)
            before = scrubber.state(3).began_ns
        assert scrubber.state(3).began_ns == before  # the next one is for later


def test_reads_that_wait_for_a_disk_go_first(
    three: Neighbourhood, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def reads_wait() -> bool:
        asked.append(len(asked))
        return len(asked) % 10 != 0

    monkeypatch.setattr(scrubber_module, "_YIELD_STEP_S", 0.001)
    with (
        repairing(three) as repairer,
        scrubbing(three, repairer, reads_wait=reads_wait) as scrubber,
    ):
        three.wait_for(lambda: scrubber.state(3).ended_ns)
    assert len(asked) == 10 * len(KEYS)


def test_scrubbing_can_be_switched_off(three: Neighbourhood) -> None:
    repairer = Repairer(dict, three.pulling, Restores(), kept)
    with scrubbing(three, repairer, bytes_per_s=0) as scrubber:
        assert scrubber.state(3).began_ns == 0
    assert three.nodes[3].store.lookup(9, 9) is None
    assert three.nodes[3].store.verify(9, 9) == ChunkMissingError.code
