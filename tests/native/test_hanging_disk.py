"""A disk that hangs without an error: its target is given up, and only `close` waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ffs import _storage
from ffs._reader import block_crcs
from ffs.errors import OK, TargetStoppedError
from tests.native.fail_nth import wait_until
from tests.native.test_chunk_store import is_whole, open_store, put

HANG = -1
STOPPED = TargetStoppedError.code


class Call:
    """A call in a thread of its own, and what it returned or raised."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.result: object = None
        self._act = act
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._act()
        except OSError as error:
            self.result = error

    @property
    def over(self) -> bool:
        """Whether it has returned."""
        return not self._thread.is_alive()

    def end(self) -> object:
        """Wait for it."""
        self._thread.join(60)
        assert self.over
        return self.result


@pytest.fixture
def store(tmp_path: Path) -> Iterator[_storage.ChunkStore]:
    """A store with a chunk, whose next sync hangs."""
    made = open_store(tmp_path / "target", create=True)
    assert put(made, 1, 0, 4096) == OK
    wait_until(lambda: made.waiting_ms() == 0, "the writer does not rest")
    _storage.fault_set("fdatasync", 1, HANG)
    yield made
    _storage.fault_set("*", 0, 0)
    made.close()


def hung(store: _storage.ChunkStore) -> Call:
    """Have the writer hang with a put."""
    first = Call(lambda: put(store, 1, 1, 4096))
    wait_until(lambda: store.waiting_ms() > 20, "the disk does not hang")
    return first


def test_what_waits_behind_a_hanging_disk_ends_when_it_is_given_up(
    store: _storage.ChunkStore, tmp_path: Path
) -> None:
    first = hung(store)
    behind = Call(lambda: put(store, 1, 2, 4096))
    drop = Call(lambda: store.drop([1]))
    wait_until(lambda: store.waiting_ms() > 50, "time stands still")
    assert not (first.over or behind.over or drop.over)
    store.give_up()
    assert behind.end() == STOPPED
    assert isinstance(drop.end(), OSError)
    assert put(store, 1, 3, 4096) == STOPPED
    assert store.read(1, 0, 0, 1)[0] == STOPPED
    with pytest.raises(OSError, match="error"):
        store.drop([1])
    store.give_up()
    assert not first.over
    closing = Call(store.close)
    assert not closing.over
    _storage.fault_set("*", 0, 0)  # the disk answers
    assert first.end() == STOPPED
    closing.end()
    again = open_store(tmp_path / "target")
    assert is_whole(again, 1, 0, 4096)
    assert put(again, 1, 1, 4096) == OK
    again.close()


def test_a_disk_that_answers_late_is_not_given_up_by_itself(store: _storage.ChunkStore) -> None:
    first = hung(store)
    _storage.fault_set("*", 0, 0)
    assert first.end() == OK
    wait_until(lambda: store.waiting_ms() == 0, "nothing is under way")
    assert put(store, 1, 2, 4096) == OK


def test_a_chunk_that_is_replaced_while_the_table_grows_is_found_as_the_new_one(
    store: _storage.ChunkStore,
) -> None:
    """Behind the hanging put wait a replacement, so many chunks of its blob that the table has to
    grow, and another replacement: it comes after the first one, or nothing would be left of one."""
    first = hung(store)
    data = bytes(4096)
    rows = [(1, chunk, 0, 4096) for chunk in range(10, 30)]
    calls = [first]
    for act in (
        lambda: store.replace(1, 0, data, block_crcs(data, 1, 0)),
        lambda: store.put_many(rows, data, b"".join(block_crcs(data, 1, row[1]) for row in rows)),
        lambda: store.replace(1, 0, data, block_crcs(data, 1, 0)),
    ):
        calls.append(Call(act))
        time.sleep(0.2)  # nothing tells that it is in the queue; the other way round it passes
    _storage.fault_set("*", 0, 0)
    assert [call.end() for call in calls] == [OK, OK, [OK] * len(rows), OK]
    assert store.stats()["chunks"] == 2 + len(rows)
    assert store.verify(1, 0) == OK and store.read(1, 0, 0, 4096)[1] == data
    store.drop([1])
    wait_until(lambda: store.stats()["allocated_bytes"] == 0, "a slot was forgotten")


def test_nobody_takes_the_target_while_its_disk_hangs(
    store: _storage.ChunkStore, tmp_path: Path
) -> None:
    """What the disk has may still come to it: whoever opened it now would be overwritten."""
    first = hung(store)
    store.give_up()
    closing = Call(store.close)
    with pytest.raises(BlockingIOError):
        open_store(tmp_path / "target")
    _storage.fault_set("*", 0, 0)
    closing.end()
    first.end()
    open_store(tmp_path / "target").close()
