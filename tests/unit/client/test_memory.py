"""What a client remembers: for how long, and what outdates it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ffs.client import memory
from ffs.client.layouts import Content
from ffs.client.memory import Memory
from ffs.types import Attr, FileType
from ffs.wire.messages import OpenFile

MS = 1_000_000


@dataclass
class Clock:
    now: int = 0

    def monotonic_ns(self) -> int:
        return self.now

    def wall_ns(self) -> int:
        return self.now


def attr(inode: int, kind: FileType = FileType.FILE) -> Attr:
    return Attr(inode, kind, 0o644, 0, 0, 1, 0, 1, 0, 0, 0)


def content(path: str, inode: int) -> Content:
    return Content(path, OpenFile(attr(inode), []), {})


@pytest.fixture
def clock() -> Clock:
    return Clock(now=5 * MS)


@pytest.fixture
def held(clock: Clock) -> Memory:
    """Memory of /a/x and /b/x, which are one inode, and of /c."""
    held = Memory(clock, 1_000)
    question = held.question()
    clock.now += MS
    held.keep_content("/a/x", content("/a/x", 7), question)
    held.keep_attr("/b/x", attr(7), question, own=False)
    held.keep_attr("/c", attr(9), question, own=True)
    held.keep_attr("/a", attr(3, FileType.DIRECTORY), question, own=True)
    return held


def test_answers_age_from_when_they_were_asked_for(held: Memory, clock: Clock) -> None:
    clock.now = 5 * MS + 1_000 * MS - 1
    assert held.attr("/a/x") == held.attr("/b/x") == attr(7) and held.content("/a/x") is not None
    clock.now += 1
    assert held.attr("/a/x") is None and held.content("/a/x") is None
    assert held.last_content("/a/x") is not None


def test_many_contents_are_as_fresh_as_one(held: Memory, clock: Clock) -> None:
    question = held.question()
    clock.now += MS
    held.keep_content("/d", content("/d", 11), question)
    paths, fresh = ["/d", "/a/x", "/none", "/d"], list[int]()
    for _ in range(3):
        found = held.contents(paths)
        assert found == [held.content(path) for path in paths]
        fresh.append(sum(content is not None for content in found))
        held.changed(7)
        clock.now = 6 * MS + 1_000 * MS - len(fresh)
    assert fresh == [3, 2, 2]
    clock.now += MS
    assert held.contents(paths) == [None] * 4


def test_the_server_may_allow_less_and_never_more(held: Memory, clock: Clock) -> None:
    held.limit(5_000)
    assert held.attr("/c") is not None
    held.limit(2)
    assert held.attr("/c") is not None
    clock.now += 2 * MS
    assert held.attr("/c") is None


def test_a_change_outdates_an_inode_by_all_its_paths(held: Memory, clock: Clock) -> None:
    clock.now += 10
    held.changed(7)
    assert held.attr("/a/x") is None and held.attr("/b/x") is None
    assert held.content("/a/x") is None and held.attr("/c") is not None
    clock.now += 10
    held.keep_attr("/b/x", attr(7), held.question(), own=True)
    assert held.attr("/b/x") is not None and held.attr("/a/x") is None


def test_a_change_outdates_a_path_and_its_directory(held: Memory) -> None:
    held.invalidate("/a/x")
    assert held.attr("/a/x") is None and held.attr("/a") is None and held.attr("/c") is not None
    held.forget()
    assert held.attr("/c") is None


def test_a_change_that_overtakes_a_question_voids_its_answer(held: Memory) -> None:
    for change in (held.forget, lambda: held.invalidate("/q"), lambda: held.changed(99)):
        question = held.question()
        change()
        held.keep_attr("/late", attr(5), question, own=True)
        held.keep_content("/late", content("/late", 5), question)
        assert held.attr("/late") is None and held.content("/late") is None


def test_what_may_be_a_link_is_not_its_own(held: Memory) -> None:
    assert held.attr("/b/x") is not None and held.attr("/b/x", own=True) is None
    assert held.attr("/c", own=True) == attr(9)
    held.keep_attr("/c", attr(9), held.question(), own=False)
    assert held.attr("/c", own=True) == attr(9), "known to be no link"
    held.keep_attr("/c", attr(10), held.question(), own=False)
    assert held.attr("/c", own=True) is None, "another inode: it may be one now"


def test_what_is_remembered_is_bounded(
    held: Memory, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "ENTRIES_MAX", 10)
    for i in range(100):
        held.keep_content(f"/{i}", content(f"/{i}", 100 + i), held.question())
        clock.now += 1
        held.changed(1_000 + i)
        assert max(len(held._attrs), len(held._contents), len(held._changed)) <= 10
