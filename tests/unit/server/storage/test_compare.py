"""Members of a chain in doubt get what another one has and they lack, by real data ports."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ffs.server.storage import compare as module
from ffs.server.storage.compare import Comparer
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


@contextlib.contextmanager
def comparing(around: Neighbourhood) -> Iterator[tuple[Comparer, threading.Event]]:
    """Who compares target 3."""
    told = threading.Event()
    with repairing(around) as repairer:
        stores = {3: around.nodes[3].store}
        comparer = Comparer(lambda: stores, repairer, around.pulling, told.set)
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
