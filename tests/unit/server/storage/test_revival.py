"""Disks that hang, and stopped targets that work again, on real chunk stores."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from ffs import _storage
from ffs._reader import block_crcs
from ffs._storage import ChunkStore
from ffs.errors import OK, TargetStoppedError
from ffs.server.storage import revival
from ffs.server.storage.revival import Revival
from ffs.server.storage.targets import Targets
from tests.unit.server.storage.test_targets import made

HANG = -1
PATIENCE_MS = 100


def put(store: ChunkStore, blob: int) -> int:
    return store.put(blob, 0, b"data", block_crcs(b"data", blob, 0))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  nothing tells of it
            await asyncio.sleep(0.005)


class Rig:
    """A daemon's target with one chunk, and who looks after its disk."""

    def __init__(self, path: Path) -> None:
        self.targets = made(path)
        self.others = True
        self.revived: list[int] = []
        self.revival = Revival(
            self.targets,
            PATIENCE_MS,
            goes_on_without=lambda target: self.others,
            on_revived=lambda target, store: self.revived.append(target),
        )
        assert put(self.store, 1) == OK

    @property
    def store(self) -> ChunkStore:
        """What the target has now."""
        return self.targets.stores[7]

    def is_stopped(self) -> bool:
        """What the daemon reports."""
        return self.targets.reports()[0].stopped

    @contextlib.asynccontextmanager
    async def hanging(self) -> AsyncIterator[asyncio.Future[int]]:
        """Have a put hang in the disk meanwhile; its end is awaited."""
        _storage.fault_set("fdatasync", 1, HANG)
        store = self.store
        write = asyncio.ensure_future(asyncio.to_thread(put, store, 2))
        await until(lambda: store.waiting_ms() > 0)
        yield write
        _storage.fault_set("*", 0, 0)
        await write


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "a")
    yield made
    _storage.fault_set("*", 0, 0)
    made.targets.close()


def play(rig: Rig, story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Tell a story while the disk is looked after."""

    async def running() -> None:
        task = asyncio.create_task(rig.revival.run())
        try:
            await story()
        finally:
            task.cancel()

    asyncio.run(running())


def test_a_disk_that_hangs_is_given_up_and_taken_back_once_it_answers(rig: Rig) -> None:
    async def story() -> None:
        before = rig.store
        async with rig.hanging() as write:
            await until(rig.is_stopped)
            assert put(before, 3) == TargetStoppedError.code
            # Nothing is trusted while the disk may still do what it was told.
            await asyncio.sleep(5 * PATIENCE_MS / 1e3)
            assert rig.revival.hangs() and not write.done() and not rig.revived
        assert write.result() == TargetStoppedError.code
        await until(lambda: rig.revived == [7])
        assert not rig.is_stopped() and rig.store is not before and not rig.revival.hangs()
        assert put(rig.store, 4) == OK
        assert set(rig.store.blobs()) >= {1, 4}
        assert put(before, 5) == TargetStoppedError.code
        assert before.lookup(5, 0) is None

    play(rig, story)


def test_a_disk_that_answers_no_reads_is_given_up_too(rig: Rig, tmp_path: Path) -> None:
    superblock, aside = tmp_path / "a" / "superblock", tmp_path / "aside"

    async def story() -> None:
        before = rig.store
        superblock.rename(aside)
        os.mkfifo(superblock)  # whoever opens it to read waits for a writer
        await until(rig.is_stopped)
        assert before.waiting_ms() == 0
        await asyncio.sleep(3 * PATIENCE_MS / 1e3)
        assert not rig.revived
        opened = os.open(superblock, os.O_RDWR)
        aside.rename(superblock)
        await until(lambda: rig.revived == [7])
        os.close(opened)
        assert put(rig.store, 2) == OK and rig.store.blobs() == [1, 2]
        await asyncio.sleep(3 * PATIENCE_MS / 1e3)
        assert not rig.is_stopped()

    play(rig, story)


def test_who_waits_for_a_disk_that_answers_no_reads_hears_of_it(rig: Rig, tmp_path: Path) -> None:
    """The end of a daemon asks, when nobody looks after disks any more."""
    superblock, aside = tmp_path / "a" / "superblock", tmp_path / "aside"
    superblock.rename(aside)
    os.mkfifo(superblock)

    async def story() -> None:
        await until(rig.revival.hangs)
        opened = os.open(superblock, os.O_RDWR)
        aside.rename(superblock)
        await until(lambda: not rig.revival.hangs())
        os.close(opened)

    asyncio.run(story())


def test_the_last_one_that_serves_is_waited_for(rig: Rig) -> None:
    async def story() -> None:
        rig.others = False
        before = rig.store
        async with rig.hanging() as write:
            await until(lambda: before.waiting_ms() > 5 * PATIENCE_MS)
            assert not rig.is_stopped()
        assert write.result() == OK
        assert put(before, 3) == OK and rig.store is before

    play(rig, story)


def test_a_target_that_stops_again_and_again_is_left(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revival, "REVIVALS_MAX", 2)
    monkeypatch.setattr(revival, "PAUSE_S_MAX", 0.02)

    async def story() -> None:
        for times in range(3):
            await until(lambda times=times: len(rig.revived) == times)  # type: ignore[misc]
            _storage.fault_set("fdatasync", 1, 5)
            assert put(rig.store, 10 + times) == TargetStoppedError.code
            assert rig.is_stopped()
        await asyncio.sleep(5 * PATIENCE_MS / 1e3)
        assert rig.revived == [7, 7] and rig.is_stopped()

    play(rig, story)


def test_what_cannot_be_opened_is_tried_again(rig: Rig, tmp_path: Path) -> None:
    async def story() -> None:
        rig.store.give_up()
        assert rig.is_stopped()
        (tmp_path / "a").rename(tmp_path / "away")
        await until(lambda: rig.revival._stopped[7].tries > 0 if rig.revival._stopped else False)
        assert not rig.revived
        (tmp_path / "away").rename(tmp_path / "a")
        await until(lambda: rig.revived == [7])
        assert rig.store.blobs() == [1]

    play(rig, story)


def test_a_released_store_is_a_stopped_one_to_those_who_still_have_it(tmp_path: Path) -> None:
    targets: Targets = made(tmp_path / "a")
    store = targets.stores[7]
    assert put(store, 1) == OK
    threads = [threading.Thread(target=store.release) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert put(store, 2) == TargetStoppedError.code
    assert store.read(1, 0, 0, 4)[0] == TargetStoppedError.code
    assert store.verify(1, 0) == TargetStoppedError.code
    assert store.blobs() == [1] and store.stats()["chunks"] == 1
    with pytest.raises(OSError, match="error"):
        store.drop([1])
    again = targets.open_again(7)
    assert again.blobs() == [1]
    targets.take_back(7, again)
    targets.close()
