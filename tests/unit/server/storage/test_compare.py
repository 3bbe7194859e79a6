"""Members of a chain in doubt get what another one has and they lack, by real data ports."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest

from ffs.errors import UnavailableError
from ffs.server.storage import compare as module
from ffs.server.storage.compare import Comparer
from ffs.server.storage.resync import ResyncPlan
from ffs.types import TargetState
from tests.native.fail_nth import wait_until
from tests.unit.server.storage.nodes import SINCE, Neighbourhood, neighbourhood
from tests.unit.server.storage.test_repair import repairing

SERVING, OFFLINE = TargetState.SERVING, TargetState.OFFLINE
COMMON = [(1, chunk) for chunk in range(10)]


@pytest.fixture
def three(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Neighbourhood]:
    """Each of 1 and 2 has a chunk that 3 lacks."""
    monkeypatch.setattr(module, "PAUSE_S", 0.01)
    with neighbourhood(quick_path, 3) as made:
        for number, node in made.nodes.items():
            node.fill([*COMMON, (number + 1, 0)] if number < 3 else COMMON)
        made.say(SERVING, SERVING, SERVING)
        yield made


def none_gone(blobs: Iterable[int]) -> set[int]:
    """What a metadata server says of blobs that live."""
    return set()


@contextlib.contextmanager
def comparing(
    around: Neighbourhood, gone_among: Callable[[Iterable[int]], set[int]] = none_gone
) -> Iterator[tuple[Comparer, threading.Event]]:
    """Who compares target 3."""
    told = threading.Event()
    with repairing(around, is_gone=lambda blob: blob in gone_among([blob])) as repairer:
        stores = {3: around.nodes[3].store}
        comparer = Comparer(lambda: stores, repairer, around.pulling, gone_among, told.set)
        comparer.start()
        try:
            yield comparer, told
        finally:
            comparer.close()


def test_what_any_other_member_has_is_fetched_before_one_is_equal(three: Neighbourhood) -> None:
    with comparing(three) as (comparer, told):
        assert comparer.compared(3) == 0

        def equal() -> bool:
            comparer.ask([3])  # as each heartbeat does
            return comparer.compared(3) == SINCE

        wait_until(equal, "it never had all")
        assert told.wait(60)
        store = three.nodes[3].store
        assert store.lookup(2, 0) is not None and store.lookup(3, 0) is not None
        assert three.nodes[1].store.lookup(3, 0) is None, "others are their own business"


def test_nobody_is_equal_while_a_member_is_away(three: Neighbourhood) -> None:
    three.say(SERVING, OFFLINE, SERVING)
    with comparing(three) as (comparer, told):
        for _ in range(20):
            comparer.ask([3])
            assert not told.wait(0.01)
        assert comparer.compared(3) == 0
        three.nodes[3].fill([(2, 0), (3, 0)])
        three.say(SERVING, SERVING, SERVING)
        comparer.ask([3])
        wait_until(told.is_set, "it was not compared")


def test_what_another_member_has_left_of_a_blob_that_is_gone_is_not_awaited(
    three: Neighbourhood,
) -> None:
    """It does not come back here, and there it lies until that daemon looks for such, an hour."""
    away = [UnavailableError("no server")] * 3

    def gone_among(blobs: Iterable[int]) -> set[int]:
        if away:
            raise away.pop()
        return {2} & set(blobs)

    with comparing(three, gone_among) as (comparer, told):

        def equal() -> bool:
            comparer.ask([3])
            return comparer.compared(3) == SINCE

        wait_until(equal, "it waits for what is gone")
        assert told.is_set() and not away
        store = three.nodes[3].store
        assert store.lookup(3, 0) is not None, "what lives is fetched as ever"
        assert store.lookup(2, 0) is None and three.nodes[1].store.lookup(2, 0) is not None


def test_chunks_that_a_plan_has_no_room_for_are_awaited_too(
    three: Neighbourhood, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that it has room for are gone; what comes behind them is not."""
    monkeypatch.setattr(module, "ResyncPlan", partial(ResyncPlan, page_entries=4, queue_max=4))
    three.nodes[1].fill([*((10, chunk) for chunk in range(8)), (11, 0)])
    asked: list[int] = []

    def gone_among(blobs: Iterable[int]) -> set[int]:
        asked.append(1)
        return {2, 10} & set(blobs)

    with comparing(three, gone_among) as (comparer, told):

        def asked_often() -> bool:
            comparer.ask([3])
            return len(asked) >= 12

        wait_until(asked_often, "it was given up")
        assert comparer.compared(3) == 0 and not told.is_set()
        three.nodes[1].store.drop([2, 10])  # as it is told, or finds out

        def equal() -> bool:
            comparer.ask([3])
            return comparer.compared(3) == SINCE

        wait_until(equal, "it never had all")
        assert three.nodes[3].store.lookup(11, 0) is not None
