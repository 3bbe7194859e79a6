"""Planning a copy, grouping small files, and local targets that appear whole or not at all."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffs.cli import transfer
from ffs.cli.cp import LocalSide, plan_copy
from ffs.cli.output import human_bytes
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


def test_plan_lists_parents_first_and_keeps_empty_directories(tmp_path: Path) -> None:
    goal = LocalSide(str(tmp_path / "goal"))
    plan = plan_copy(LocalSide(str(tree(tmp_path))), goal, recursive=True)
    relative = [os.path.relpath(d, goal.path) for d in plan.directories]
    assert relative == [".", "sub", "sub/empty"]
    assert [(os.path.relpath(i.target, goal.path), i.size) for i in plan.items] == [
        ("a", 10),
        ("sub/b", 0),
    ]


def test_directory_needs_the_recursive_flag(tmp_path: Path) -> None:
    with pytest.raises(FileExpectedError, match="add -r"):
        plan_copy(LocalSide(str(tree(tmp_path))), LocalSide("x"), recursive=False)


def test_no_clobber_leaves_out_what_exists(tmp_path: Path) -> None:
    source, goal = tree(tmp_path), tmp_path / "goal"
    goal.mkdir()
    (goal / "a").write_bytes(b"mine")
    plan = plan_copy(LocalSide(str(source)), LocalSide(str(goal)), recursive=True, clobber=False)
    assert (plan.skipped, len(plan.items)) == (1, 1)


def test_what_is_no_regular_file_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tree(tmp_path)
    (source / "dangling").symlink_to("nowhere")
    os.mkfifo(source / "pipe")
    plan = plan_copy(LocalSide(str(source)), LocalSide("goal"), recursive=True)
    assert len(plan.items) == 2
    err = capsys.readouterr().err
    assert "a dangling link" in err and "not a regular file" in err


def test_local_target_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")

    async def write(fail: bool) -> None:
        async with transfer._replacing(str(target)) as file:
            await file.write(b"new")
            if fail:
                raise OSError(5, "broken")

    with pytest.raises(OSError, match="broken"):
        asyncio.run(write(True))
    assert target.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]
    asyncio.run(write(False))
    assert target.read_bytes() == b"new" and os.listdir(tmp_path) == ["file"]


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
