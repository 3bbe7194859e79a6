"""Planning a copy, grouping small files, and local targets that appear whole or not at all."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffs.cli import transfer
from ffs.cli.cp import Plan, leave_out_existing, plan_copy
from ffs.cli.output import human_bytes
from ffs.cli.sides import Links, LocalSide
from ffs.cli.transfer import BATCH_BYTES, BATCH_FILES, SMALL_BYTES, Item, batches
from ffs.errors import FileExpectedError

SIZES = st.lists(st.sampled_from([0, 1, 4096, SMALL_BYTES, SMALL_BYTES + 1, 9 << 20]), max_size=60)


@given(SIZES)
def test_batches_hold_every_file_once_and_keep_their_bounds(sizes: list[int]) -> None:
    items = [Item(str(i), str(i), size) for i, size in enumerate(sizes)]
    made = batches(items)
    assert sorted(i.source for b in made for i in b) == sorted(i.source for i in items)
    for batch in made:
        assert len(batch) == 1 or all(item.size <= SMALL_BYTES for item in batch)
        assert len(batch) <= BATCH_FILES
        assert len(batch) == 1 or sum(item.size for item in batch) <= BATCH_BYTES


def test_many_tiny_files_share_few_batches() -> None:
    assert len(batches([Item("a", "b", 10)] * 1000)) == 2


def tree(root: Path) -> Path:
    """A small directory tree."""
    (root / "src" / "sub" / "empty").mkdir(parents=True)
    (root / "src" / "a").write_bytes(b"a" * 10)
    (root / "src" / "sub" / "b").write_bytes(b"")
    return root / "src"


def planned(root: Path, links: Links = Links.FOLLOW) -> tuple[Plan, list[str]]:
    """The plan of copying a tree to `goal`, and what was left out."""
    left_out: list[str] = []
    source = LocalSide(str(root))
    found = list(source.walk(links, left_out.append))
    return plan_copy(source, LocalSide("goal"), found, recursive=True), left_out


def test_plan_lists_parents_first_and_keeps_empty_directories(tmp_path: Path) -> None:
    plan, left_out = planned(tree(tmp_path))
    assert [one.relative for one in plan.directories] == ["", "sub", "sub/empty"]
    assert [(i.target, i.size) for i in plan.items] == [("goal/a", 10), ("goal/sub/b", 0)]
    assert left_out == []


def test_directory_needs_the_recursive_flag(tmp_path: Path) -> None:
    source = LocalSide(str(tree(tmp_path)))
    found = list(source.walk(Links.FOLLOW, pytest.fail))
    with pytest.raises(FileExpectedError, match="add -r"):
        plan_copy(source, LocalSide("x"), found, recursive=False)


def test_what_exists_is_left_out(tmp_path: Path) -> None:
    source, goal = LocalSide(str(tree(tmp_path))), tmp_path / "goal"
    (goal / "sub").mkdir(parents=True)
    (goal / "a").symlink_to("nowhere")
    found = list(source.walk(Links.FOLLOW, pytest.fail))
    plan = plan_copy(source, LocalSide(str(goal)), found, recursive=True)
    assert leave_out_existing(plan, LocalSide(str(goal))) == 1
    assert [one.relative for one in plan.files] == ["sub/b"]
    assert [item.target for item in plan.items] == [str(goal / "sub" / "b")]


def test_what_is_no_regular_file_is_left_out_and_told(tmp_path: Path) -> None:
    source = tree(tmp_path)
    (source / "dangling").symlink_to("nowhere")
    (source / "sub" / "up").symlink_to("..")
    os.mkfifo(source / "pipe")
    plan, left_out = planned(source)
    assert len(plan.items) == 2 and plan.links == []
    assert [line.partition(": ")[0] for line in left_out] == [
        "left out, a link that leads nowhere",
        "left out, not a regular file",
        "left out, a link to a directory that it is in",
    ]


def test_links_are_kept_when_asked_for(tmp_path: Path) -> None:
    source = tree(tmp_path)
    (source / "dangling").symlink_to("nowhere")
    (source / "dir").symlink_to("sub")
    plan, left_out = planned(source, Links.KEEP)
    assert [(one.relative, one.leads_to) for one in plan.links] == [
        ("dangling", "nowhere"),
        ("dir", "sub"),
    ]
    assert left_out == [] and len(plan.items) == 2


def test_a_tree_deeper_than_the_stack_is_walked(tmp_path: Path) -> None:
    top = tmp_path / "top"
    path = top
    path.mkdir()
    for _ in range(300):
        path /= "d"
        path.mkdir()
    plan, _ = planned(top)
    assert len(plan.directories) == 301


def test_local_links_replace_files(tmp_path: Path) -> None:
    side = LocalSide(str(tmp_path))
    (tmp_path / "name").write_bytes(b"old")
    for target in ("one", "two"):
        side.symlink(target, str(tmp_path / "name"))
        assert os.readlink(tmp_path / "name") == target


def test_local_target_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")

    async def write(fail: bool) -> None:
        async with transfer._replacing(str(target)) as file:
            await file.write(b"new")
            if fail:
                raise OSError(5, "broken")

    with pytest.raises(OSError, match="broken") as caught:
        asyncio.run(write(True))
    assert caught.value.filename == str(target)
    assert target.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]
    asyncio.run(write(False))
    assert target.read_bytes() == b"new" and os.listdir(tmp_path) == ["file"]


def test_a_thread_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "STOP_S", 0.01)
    release, began = threading.Event(), threading.Event()

    def hang() -> None:
        began.set()
        release.wait()

    async def story() -> None:
        task = asyncio.ensure_future(transfer.in_thread(hang))
        await asyncio.to_thread(began.wait)
        task.cancel()
        with pytest.raises(transfer.StuckError):
            await task

    asyncio.run(story())
    release.set()


def test_a_cancelled_call_is_waited_for() -> None:
    release, began, ended = threading.Event(), threading.Event(), threading.Event()

    def call() -> None:
        began.set()
        release.wait()
        ended.set()

    async def story() -> None:
        task = asyncio.ensure_future(transfer.in_thread(call))
        await asyncio.to_thread(began.wait)
        task.cancel()
        asyncio.get_running_loop().call_later(0.01, release.set)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(story())


def test_what_a_thread_raises_is_raised_where_it_is_awaited() -> None:
    def fail() -> None:
        raise OSError(5, "broken")

    with pytest.raises(OSError, match="broken"):
        asyncio.run(transfer.in_thread(fail))


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (5 << 30, "5.0 GiB"),
        (1 << 70, "1048576.0 PiB"),
    ],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert human_bytes(count) == text
