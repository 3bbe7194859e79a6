"""Appending: segments behind what a file holds, and the same bytes in fewer of them."""

from __future__ import annotations

from typing import Any

import pytest

from ffs.errors import BusyError, FFSError, FileExpectedError, InvalidError, VersionError
from ffs.limits import SEGMENTS_MAX
from ffs.server.meta.schema import BlobState
from ffs.types import ZERO_BLOB, Attr
from ffs.wire.messages import CloseEntry, CreateMode
from ffs.wire.method import Fault
from tests.namespace import SECOND_NS, Namespace, good, kind


def compact(ns: Namespace, path: bytes, last: int, length: int, **fields: Any) -> Attr | Fault:
    """Put a new blob in the place of a file's last segments, as this client read them."""
    attr = ns.stat(path)
    session = ns.open_session(path, create_mode=CreateMode.APPEND)
    wanted = {"version_expected": attr.version, "inode_expected": attr.inode, **fields}
    entry = CloseEntry(session.session, length, segments_replaced=last, **wanted)
    (closed,) = ns.close_sessions(entry)
    if isinstance(closed, Fault):
        ns.abort(session.session)
    return closed


def test_append_makes_a_file_and_then_adds_to_it(ns: Namespace) -> None:
    first = ns.append(b"/log", 10)
    assert (first.size, first.version, first.nlink) == (10, 1, 1)
    ns.now_ns += SECOND_NS
    second = ns.append(b"/log", 5)
    assert (second.inode, second.size, second.version) == (first.inode, 15, 2)
    assert second.mtime_ns == second.ctime_ns == ns.now_ns
    assert [length for _, length in ns.segments(b"/log")] == [10, 5]
    assert ns.append(b"/log", 1, mtime_ns=7).mtime_ns == 7


def test_appending_nothing_adds_nothing(ns: Namespace) -> None:
    assert ns.append(b"/new", 0).size == 0
    before = ns.write(b"/f")
    ns.now_ns += SECOND_NS
    assert ns.append(b"/f", 0) == before
    assert len(ns.segments(b"/f")) == 1
    assert ns.tx.rows("SELECT * FROM sessions") == []


def test_appends_come_behind_what_is_there_when_they_close(ns: Namespace) -> None:
    """Neither a replace, nor a cut, nor a removal meanwhile makes an append fail."""
    ns.write(b"/f", 100)
    sessions = [ns.open_session(b"/f", create_mode=CreateMode.APPEND) for _ in range(4)]
    ns.write(b"/f", 50)
    assert ns.publish(sessions[0], 1).size == 51
    ns.setattr(b"/f", size=20)
    assert ns.publish(sessions[1], 2).size == 22
    ns.setattr(b"/f", size=30)
    assert ns.publish(sessions[2], 3).size == 33
    assert [blob == ZERO_BLOB for blob, _ in ns.segments(b"/f")] == [False, False, True, False]
    ns.remove(b"/f")
    assert ns.publish(sessions[3], 4).size == 4


def test_appends_to_one_file_close_in_one_batch_in_order(ns: Namespace) -> None:
    ns.write(b"/f", 1)
    ns.link(b"/f", b"/g")
    sessions = [
        ns.open_session(path, create_mode=mode)
        for path, mode in (
            (b"/f", CreateMode.APPEND),
            (b"/g", CreateMode.APPEND),
            (b"/f", CreateMode.REPLACE),
            (b"/g", CreateMode.APPEND),
        )
    ]
    closed = ns.close_sessions(*(CloseEntry(s.session, n) for n, s in enumerate(sessions, 2)))
    assert [good(attr).size for attr in closed] == [3, 6, 4, 9]
    assert ns.segments(b"/f") == [(sessions[2].blob, 4), (sessions[3].blob, 5)]


def test_append_follows_links_and_refuses_directories(ns: Namespace) -> None:
    ns.mkdir(b"/d")
    ns.symlink(b"/link", b"d/log")
    assert ns.append(b"/link", 3) == ns.stat(b"/d/log")
    assert ns.append(b"/link", 3).size == 6
    with pytest.raises(FileExpectedError):
        ns.append(b"/d")


def test_compacting_keeps_bytes_and_times(ns: Namespace) -> None:
    for _ in range(5):
        ns.append(b"/f", 10)
    blobs = [blob for blob, _ in ns.segments(b"/f")]
    before = ns.stat(b"/f")
    ns.now_ns += SECOND_NS
    after = good(compact(ns, b"/f", 3, 30))
    assert (after.size, after.mtime_ns, after.ctime_ns) == (50, before.mtime_ns, before.ctime_ns)
    assert after.version == before.version + 1
    assert [length for _, length in ns.segments(b"/f")] == [10, 10, 30]
    assert [ns.blob_state(blob) for blob in blobs] == [BlobState.LIVE] * 2 + [BlobState.DEAD] * 3
    assert ns.append(b"/f", 1).size == 51
    assert good(compact(ns, b"/f", 4, 51)).size == 51
    assert len(ns.segments(b"/f")) == 1


def test_compacting_takes_zeros_too(ns: Namespace) -> None:
    ns.append(b"/f", 10)
    ns.setattr(b"/f", size=25)
    assert good(compact(ns, b"/f", 2, 25)).size == 25
    assert [blob == ZERO_BLOB for blob, _ in ns.segments(b"/f")] == [False]


@pytest.mark.parametrize(
    ("last", "length", "fields", "problem"),
    [
        (2, 19, {}, InvalidError),
        (2, 21, {}, InvalidError),
        (3, 30, {}, InvalidError),
        (-1, 10, {}, InvalidError),
        (2, 20, {"version_expected": 1}, VersionError),
        (2, 20, {"version_expected": 0}, InvalidError),
        (2, 20, {"inode_expected": 0}, InvalidError),
        (2, 20, {"inode_expected": 12345}, VersionError),
    ],
)
def test_compacting_refusals(
    ns: Namespace, last: int, length: int, fields: dict[str, int], problem: type[FFSError]
) -> None:
    for _ in range(2):
        ns.append(b"/f", 10)
    assert kind(compact(ns, b"/f", last, length, **fields)) is problem
    assert [size for _, size in ns.segments(b"/f")] == [10, 10]


def test_only_appending_sessions_compact(ns: Namespace) -> None:
    attr = ns.append(b"/f", 10)
    session = ns.open_session(b"/f")
    entry = CloseEntry(session.session, 10, 0, 1, attr.version, attr.inode)
    assert kind(ns.close_sessions(entry)[0]) is InvalidError


def test_a_compaction_that_was_overtaken_changes_nothing(ns: Namespace) -> None:
    for _ in range(2):
        ns.append(b"/f", 10)
    seen = ns.stat(b"/f")
    ns.append(b"/f", 10)
    fields = {"version_expected": seen.version, "inode_expected": seen.inode}
    assert kind(compact(ns, b"/f", 2, 20, **fields)) is VersionError
    # Another file of the same version and the same lengths is still another one.
    for _ in range(2):
        ns.append(b"/other", 10)
    ns.rename(b"/other", b"/f")
    assert ns.stat(b"/f").version == seen.version
    assert kind(compact(ns, b"/f", 2, 20, **fields)) is VersionError
    ns.remove(b"/f")
    session = ns.open_session(b"/f", create_mode=CreateMode.APPEND)
    entry = CloseEntry(session.session, 20, 0, 2, seen.version, seen.inode)
    assert kind(ns.close_sessions(entry)[0]) is VersionError


def test_a_replace_may_expect_a_version_too(ns: Namespace) -> None:
    seen = ns.write(b"/f")
    first, second = ns.open_session(b"/f"), ns.open_session(b"/f")
    closed = ns.close_sessions(
        CloseEntry(first.session, 1, version_expected=seen.version),
        CloseEntry(second.session, 2, version_expected=seen.version),
    )
    assert [kind(attr) for attr in closed] == [None, VersionError]
    assert ns.stat(b"/f").size == 1


def test_segments_max(ns: Namespace) -> None:
    attr = ns.write(b"/f", 1)
    ((blob, _),) = ns.segments(b"/f")
    more = [(attr.inode, place, blob, 1) for place in range(1, SEGMENTS_MAX)]

    def grow(tx: Any) -> None:
        tx.insert("segments", ("inode", "place", "blob", "length"), more)
        tx.run("UPDATE inodes SET size = ? WHERE inode = ?", (SEGMENTS_MAX, attr.inode))
        tx.run("UPDATE blobs SET refs = ? WHERE blob = ?", (SEGMENTS_MAX, blob))

    ns.transact(grow)
    with pytest.raises(BusyError):
        ns.append(b"/f", 1)
    with pytest.raises(BusyError):
        ns.setattr(b"/f", size=SEGMENTS_MAX + 1)
    assert ns.append(b"/f", 0).size == SEGMENTS_MAX
    assert good(compact(ns, b"/f", 1_000, 1_000)).size == SEGMENTS_MAX
    assert ns.append(b"/f", 1).size == SEGMENTS_MAX + 1
    assert len(ns.segments(b"/f")) == SEGMENTS_MAX - 1_000 + 2


def test_a_reaped_appending_session_leaves_the_file_alone(ns: Namespace) -> None:
    ns.append(b"/f", 10)
    session = ns.open_session(b"/f", create_mode=CreateMode.APPEND)
    ns.abort(session.session)
    assert ns.blob_state(session.blob) is BlobState.DEAD
    assert ns.stat(b"/f").size == 10
