"""Quotas of directories: what counts, what is refused, nested ones, and moves over borders.

That the counters are right is counted again by `check` after each test (`conftest`).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ffs.errors import (
    AccessError,
    DirectoryExpectedError,
    InvalidError,
    NotFoundError,
    QuotaBorderError,
    QuotaExceededError,
)
from ffs.server.meta.ops.access import Caller
from ffs.types import Attr
from ffs.wire.messages import CloseEntry, CreateEntry, CreateMode, QuotaInfo
from tests.namespace import Namespace, good, kind

ANY = -1


def used(ns: Namespace, path: bytes) -> tuple[int, int]:
    """(bytes, files) that the quota of a directory itself counts."""
    (own,) = (info for info in ns.quotas(path) if info.path == path)
    return own.bytes_used, own.files_used


@pytest.fixture
def q(ns: Namespace) -> Namespace:
    """/q, which may hold 1,000 bytes in 10 files, has a file of 100 bytes and a directory."""
    ns.mkdir(b"/q")
    ns.write(b"/q/f", 100)
    ns.mkdir(b"/q/d")
    ns.mkdir(b"/out")
    ns.write(b"/out/big", 950)
    ns.set_quota(b"/q", bytes_max=1_000, files_max=10)
    assert used(ns, b"/q") == (100, 2)
    return ns


def test_what_changes_the_count(q: Namespace) -> None:
    steps: list[tuple[Callable[[], object], tuple[int, int]]] = [
        (lambda: q.write(b"/q/d/new", 50), (150, 3)),
        (lambda: q.write(b"/q/d/new", 20), (120, 3)),
        (lambda: q.append(b"/q/d/new", 30), (150, 3)),
        (lambda: q.setattr(b"/q/f", size=10), (60, 3)),
        (lambda: q.setattr(b"/q/f", size=100), (150, 3)),
        (lambda: q.copy(b"/q/f", b"/q/copy"), (250, 4)),
        (lambda: q.copy(b"/q/d/new", b"/q/copy"), (200, 4)),
        (lambda: q.link(b"/q/f", b"/q/d/link"), (200, 4)),
        (lambda: q.append(b"/q/d/link", 5), (205, 4)),
        (lambda: q.remove(b"/q/f"), (205, 4)),
        (lambda: q.symlink(b"/q/symlink", b"somewhere"), (205, 5)),
        (lambda: q.link(b"/q/symlink", b"/q/symlink2"), (205, 5)),
        (lambda: q.mkdir(b"/q/x/y/z", parents=True), (205, 8)),
        (lambda: q.rename(b"/q/copy", b"/q/x/y/z/f"), (205, 8)),
        (lambda: q.rename(b"/q/d/link", b"/q/x/y/z/f"), (155, 7)),
        (lambda: q.rmdir(b"/q/d", recursive=True), (105, 5)),
        (lambda: q.rmdir(b"/q/x", recursive=True), (0, 1)),
        (lambda: q.remove(b"/q/symlink", b"/q/symlink2"), (0, 0)),
    ]
    for number, (step, expected) in enumerate(steps):
        step()
        assert used(q, b"/q") == expected, f"after step {number}"


def test_a_session_over_a_link_takes_its_place(q: Namespace) -> None:
    session = q.open_session(b"/q/s")
    q.symlink(b"/q/s", b"nowhere")
    assert used(q, b"/q") == (100, 3)
    q.publish(session, 7)
    assert used(q, b"/q") == (107, 3)


def refused(call: Callable[[], object]) -> None:
    """It is over quota, and the error is what any program knows as that."""
    with pytest.raises(QuotaExceededError, match="quota exceeded") as caught:
        call()
    assert isinstance(caught.value, OSError) and not caught.value.retryable


def test_what_does_not_fit_is_refused_and_changes_nothing(q: Namespace) -> None:
    session = q.open_session(b"/q/new")
    appending = q.open_session(b"/q/f", create_mode=CreateMode.APPEND)
    replacing = q.open_session(b"/q/f")
    closed = q.close_sessions(CloseEntry(session.session, 901), CloseEntry(appending.session, 901))
    assert [kind(one) for one in closed] == [QuotaExceededError] * 2
    assert kind(q.close_sessions(CloseEntry(replacing.session, 1_001))[0]) is QuotaExceededError
    refused(lambda: q.setattr(b"/q/f", size=1_001))
    refused(lambda: q.copy(b"/out/big", b"/q/copy"))
    refused(lambda: q.rename(b"/out/big", b"/q/big"))
    refused(lambda: q.rename(b"/out", b"/q/out"))
    assert used(q, b"/q") == (100, 2)
    q.copy(b"/out/big", b"/q/f")  # over a file of 100 bytes
    assert used(q, b"/q") == (950, 2)
    assert q.publish(session, 50).size == 50, "a refused session goes on, and may close smaller"


def test_how_many_there_may_be(q: Namespace) -> None:
    for number in range(8):
        q.mkdir(b"/q/d/%d" % number)
    refused(lambda: q.mkdir(b"/q/no"))
    refused(lambda: q.mkdir(b"/q/no/below", parents=True))
    refused(lambda: q.symlink(b"/q/no", b"x"))
    refused(lambda: q.copy(b"/q/f", b"/q/no"))
    assert kind(q.create(CreateEntry(b"/q/no"))[0]) is QuotaExceededError
    q.link(b"/q/f", b"/q/link")
    q.write(b"/q/f", 1_000)
    q.rmdir(b"/q/d/0")
    refused(lambda: good(q.create(b"/q/one")[0]))  # no byte is left
    q.write(b"/q/f", 0)
    q.write(b"/q/one", 1)
    assert used(q, b"/q") == (1, 10)


def test_a_batch_is_refused_entry_by_entry(q: Namespace) -> None:
    sessions = [good(one) for one in q.create(*(b"/q/%d" % i for i in range(12)))]
    closed = q.close_sessions(*(CloseEntry(session.session, 100) for session in sessions))
    assert [isinstance(one, Attr) for one in closed] == [True] * 8 + [False] * 4
    assert {kind(one) for one in closed[8:]} == {QuotaExceededError}
    assert used(q, b"/q") == (900, 10)
    q.abort(*(session.session for session in sessions))


def test_a_whole_batch_that_fits(q: Namespace) -> None:
    sessions = [good(one) for one in q.create(*(b"/q/%d" % i for i in range(8)))]
    q.close_sessions(*(CloseEntry(session.session, 9) for session in sessions))
    assert used(q, b"/q") == (172, 10)


def test_quotas_nest(ns: Namespace) -> None:
    ns.mkdir(b"/a/b/c", parents=True)
    ns.write(b"/a/b/c/f", 10)
    ns.set_quota(b"/a", bytes_max=100)
    ns.set_quota(b"/a/b/c", files_max=2)
    ns.set_quota(b"/a/b", bytes_max=50)
    assert ns.quotas(b"/a/b/c/f") == [
        QuotaInfo(b"/a/b/c", ANY, 2, 10, 1),
        QuotaInfo(b"/a/b", 50, ANY, 10, 2),
        QuotaInfo(b"/a", 100, ANY, 10, 3),
    ]
    refused(lambda: ns.copy(b"/a/b/c/f", b"/a/b/c/g/h", parents=True))
    session = ns.open_session(b"/a/b/g")
    assert kind(ns.close_sessions(CloseEntry(session.session, 41))[0]) is QuotaExceededError
    ns.publish(session, 40)
    ns.write(b"/a/g", 50)
    refused(lambda: ns.write(b"/a/x", 1))
    ns.set_quota(b"/a/b")
    assert [info.path for info in ns.quotas(b"/a/b/c")] == [b"/a/b/c", b"/a"]
    ns.rmdir(b"/a/b/c", recursive=True)
    assert ns.quotas(b"/a/b") == [QuotaInfo(b"/a", 100, ANY, 90, 3)]
    assert ns.set_quota(b"/a", bytes_max=1)[0].bytes_used == 90, "what is there stays"
    refused(lambda: ns.append(b"/a/g", 1))
    ns.setattr(b"/a/g", size=5)


def test_the_root_may_have_one(ns: Namespace) -> None:
    ns.write(b"/f", 5)
    assert ns.set_quota(b"/", files_max=2) == [QuotaInfo(b"/", ANY, 2, 5, 1)]
    ns.mkdir(b"/d")
    refused(lambda: ns.mkdir(b"/d/e"))
    ns.set_quota(b"/d", bytes_max=0)
    ns.rmdir(b"/d")
    ns.set_quota(b"/")
    assert ns.quotas(b"/") == []


@pytest.mark.parametrize("nested", [False, True])
def test_trees_move_over_borders(q: Namespace, nested: bool) -> None:
    q.mkdir(b"/out/t/u", parents=True)
    q.write(b"/out/t/u/f", 60)
    q.write(b"/out/t/g", 40)
    if nested:
        q.set_quota(b"/out/t", bytes_max=500)
        q.set_quota(b"/out/t/u", bytes_max=500)
    q.rename(b"/out/t", b"/q/d/t")
    assert used(q, b"/q") == (200, 6)
    expected = [b"/q/d/t/u", b"/q/d/t", b"/q"] if nested else [b"/q"]
    assert [info.path for info in q.quotas(b"/q/d/t/u/f")] == expected
    q.write(b"/q/d/t/u/h", 1)
    assert used(q, b"/q") == (201, 7)
    q.rename(b"/q/d/t", b"/t")
    assert used(q, b"/q") == (100, 2)
    q.write(b"/t/u/i", 1)
    assert [info.path for info in q.quotas(b"/t/u")] == ([b"/t/u", b"/t"] if nested else [])


def test_an_empty_directory_is_replaced_by_a_tree(q: Namespace) -> None:
    q.set_quota(b"/q/d", bytes_max=5)
    q.mkdir(b"/out/t")
    q.write(b"/out/t/f", 60)
    q.rename(b"/out/t", b"/q/d")
    assert [info.path for info in q.quotas(b"/q/d/f")] == [b"/q"], "the quota went with it"
    assert used(q, b"/q") == (160, 3)


def test_clones_and_snapshots_count_as_what_they_are(q: Namespace) -> None:
    q.set_quota(b"/q", bytes_max=1_000, files_max=11)
    q.mkdir(b"/out/t/u", parents=True)
    q.write(b"/out/t/u/f", 60)
    q.clone(b"/out/t", b"/q/d/t")
    assert used(q, b"/q") == (160, 5)
    q.write(b"/q/d/t/u/g", 1)
    assert used(q, b"/q") == (161, 6)
    refused(lambda: q.clone(b"/out", b"/q/out"))
    q.snapshot(b"/q/d/t", b"now")  # .snapshots, now, u, and two files
    assert used(q, b"/q") == (222, 11)
    q.set_quota(b"/q")
    q.set_quota(b"/q", bytes_max=1_000)
    assert used(q, b"/q") == (222, 11), "counted again, snapshots too"
    q.remove_snapshot(b"/q/d/t", b"now")
    q.rmdir(b"/q/d", recursive=True)
    assert used(q, b"/q") == (100, 1)


def test_names_on_both_sides_of_a_border_are_refused(q: Namespace) -> None:
    with pytest.raises(QuotaBorderError):
        q.link(b"/out/big", b"/q/d/link")
    with pytest.raises(QuotaBorderError):
        q.link(b"/q/f", b"/out/link")
    q.link(b"/q/f", b"/q/d/link")
    for source, target in ((b"/q/f", b"/out/f"), (b"/q/d", b"/out/d")):
        with pytest.raises(QuotaBorderError):
            q.rename(source, target)
    with pytest.raises(QuotaBorderError):
        q.set_quota(b"/q/d", files_max=5)
    q.mkdir(b"/q/both")
    for name in (b"f", b"d/link"):
        q.rename(b"/q/" + name, b"/q/both/" + name.rpartition(b"/")[2])
    q.rename(b"/q/both", b"/out/both")
    assert used(q, b"/q") == (0, 1)
    q.set_quota(b"/out/both", files_max=5)


def test_who_may_and_on_what(q: Namespace) -> None:
    with pytest.raises(DirectoryExpectedError):
        q.set_quota(b"/q/f", files_max=5)
    with pytest.raises(NotFoundError):
        q.set_quota(b"/none", files_max=5)
    for bounds in ({"bytes_max": -2}, {"files_max": 1 << 63}):
        with pytest.raises(InvalidError):
            q.set_quota(b"/q", **bounds)
    q.caller = Caller(1_000, 1_000)
    with pytest.raises(AccessError):
        q.set_quota(b"/q", files_max=5)
    assert [info.path for info in q.quotas(b"/q")] == [b"/q"], "whoever may go there may know"


def test_without_quotas_no_statement_is_added(ns: Namespace) -> None:
    ns.mkdir(b"/a")
    paths = [b"/a/%d" % i for i in range(20)]

    def statements(names: list[bytes]) -> list[int]:
        counts = []
        with ns.statements() as said:
            sessions = [good(one) for one in ns.create(*names)]
            counts.append(len(said))
            ns.close_sessions(*(CloseEntry(session.session, 5) for session in sessions))
            counts.append(len(said))
            ns.stat_many(*names)
            counts.append(len(said))
        assert not any("quota_changes" in text for text in said)
        return [after - before for before, after in zip([0, *counts], counts, strict=False)]

    statements([b"/a/first"])  # which begins a lease
    none = statements(paths)
    ns.mkdir(b"/q")
    ns.set_quota(b"/q", files_max=5)
    elsewhere = statements([b"/a/x%d" % i for i in range(20)])
    assert elsewhere == [none[0] + 1, *none[1:]], "creating asks which directories have one"
