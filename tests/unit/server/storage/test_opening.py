"""A daemon's start beside disks that hang, fail late or never answer, on real chunk stores.

A directory hangs whose superblock is a pipe: whoever opens it to read waits for a writer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from ffs._reader import block_crcs
from ffs.errors import OK
from ffs.server.storage.directory import open_directory
from ffs.server.storage.opening import Opening
from ffs.server.storage.targets import Targets
from tests.unit.server.storage.test_revival import until
from tests.unit.server.storage.test_targets import CLUSTER, damage, made

PATIENCE_MS = 100


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Two targets, 7 and 8, of which the second one has a chunk, and a third, ordered beside it."""
    found = [tmp_path / "a", tmp_path / "b"]
    targets = made(*found)
    assert targets.stores[8].put(1, 0, b"data", block_crcs(b"data", 1, 0)) == OK
    targets.create_ordered(20, beside=8)
    targets.close()
    return found


@contextlib.contextmanager
def hanging(path: Path) -> Iterator[None]:
    """Have the disk below a directory hang; in the end it fails once, then it answers."""
    superblock, aside = path / "superblock", path / "aside"
    superblock.rename(aside)
    os.mkfifo(superblock)
    try:
        yield
    finally:
        writer = os.open(superblock, os.O_RDWR)  # who has waited has a pipe, which is no file
        aside.rename(superblock)
        os.close(writer)


def play(story: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await story

    asyncio.run(bounded())


def test_all_that_answer_are_opened(paths: list[Path]) -> None:
    async def story() -> None:
        targets = Targets(paths)
        assert targets.unanswered == [str(path) for path in paths]
        targets.take(await Opening(targets.given, PATIENCE_MS).run())
        assert sorted(targets.stores) == [7, 8, 20] and targets.unanswered == []
        targets.close()

    play(story())


def test_one_that_hangs_keeps_nobody_from_starting_and_comes_when_it_answers(
    paths: list[Path],
) -> None:
    async def story() -> None:
        targets = Targets(paths)
        opening = Opening(targets.given, PATIENCE_MS)
        with hanging(paths[1]):
            targets.take(await opening.run())
            assert list(targets.stores) == [7] and targets.unanswered == [str(paths[1])]
            assert [report.target for report in targets.reports()] == [7]
            late = asyncio.ensure_future(opening.next_late())
            await asyncio.sleep(3 * PATIENCE_MS / 1e3)
            assert not late.done()
        taken = targets.take_late(*await late)
        assert sorted(target for target, _ in taken) == [8, 20]
        assert targets.stores[8].blobs() == [1] and targets.unanswered == []
        assert [report.stopped for report in targets.reports()] == [False] * 3
        targets.close()

    play(story())


def test_with_no_target_that_works_the_first_is_waited_for(paths: list[Path]) -> None:
    async def story() -> None:
        damage(paths[0])
        targets = Targets(paths)
        opening = asyncio.ensure_future(Opening(targets.given, PATIENCE_MS).run())
        with hanging(paths[1]):
            await asyncio.sleep(3 * PATIENCE_MS / 1e3)
            assert not opening.done()
        targets.take(await opening)
        assert list(targets.stores) == [20]  # of 8 the disk has said at last that it fails
        targets.close()

    play(story())


def test_who_is_told_to_stop_meanwhile_holds_nothing(paths: list[Path]) -> None:
    async def story() -> None:
        opening = Opening(paths, 600_000)
        with hanging(paths[1]):
            running = asyncio.ensure_future(opening.run())
            await until(lambda: bool(opening._found))
            running.cancel()
            opening.close()
            again = Targets(paths[:1])
            again.open_existing()
            again.close()

    play(story())


def test_a_new_target_whose_disk_answers_late_is_left_out(paths: list[Path]) -> None:
    new = paths[0].parent / "new"
    targets = Targets([*paths, new])
    targets.take({path: open_directory(path) for path in paths})
    assert targets.unanswered == [str(new)]
    assert targets.take_late(new, open_directory(new)) == []
    assert [report.target for report in targets.reports()] == [7, 8, 20]
    assert targets.unanswered == []
    targets.close()


@pytest.mark.parametrize("kind", ["copy", "foreign", "damaged"])
def test_a_late_directory_that_does_not_belong_here_is_left_out(
    paths: list[Path], kind: str
) -> None:
    late = paths[0].parent / "late"
    if kind == "copy":
        made(late, first_id=8).close()
    else:
        made(late, first_id=9, cluster_id=CLUSTER if kind == "damaged" else bytes(16)).close()
    if kind == "damaged":
        damage(late)
    targets = Targets(paths)
    targets.open_existing()
    assert targets.take_late(late, open_directory(late)) == []
    assert [report.target for report in targets.reports()] == [7, 8, 20] == sorted(targets.stores)
    targets.close()
