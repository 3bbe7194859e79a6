"""Layouts of directories; how much a tree holds; how full the cluster is."""

from __future__ import annotations

from typing import Any

import pytest

from ffs.errors import DirectoryExpectedError, InvalidError, NotFoundError
from ffs.types import Layout
from ffs.wire.membership import TargetReport
from ffs.wire.messages import CloseEntry, LayoutReply, Usage
from tests.namespace import Namespace, good, kind
from tests.unit.server.meta.conftest import NewNamespace

KIB, MIB = 1 << 10, 1 << 20


def made_with(ns: Namespace, path: bytes, **fields: Any) -> tuple[int, int]:
    """Return the chunk size and stripe that a new file gets."""
    session = ns.open_session(path, **fields)
    ns.abort(session.session)
    return session.layout.chunk_size_bytes, session.layout.stripe


def test_the_nearest_directory_that_says_something_decides(new_ns: NewNamespace) -> None:
    ns = new_ns(4)
    ns.mkdir(b"/a/b/c", parents=True)
    assert made_with(ns, b"/a/b/c/f") == (MIB, 4)
    assert ns.layout(b"/a/b/c") == LayoutReply(MIB, 0, b"")
    assert ns.set_layout(b"/", stripe=3) == LayoutReply(MIB, 3, b"/")
    assert ns.set_layout(b"/a", chunk_size_bytes=64 * KIB) == LayoutReply(64 * KIB, 0, b"/a")
    assert made_with(ns, b"/a/b/c/f") == (64 * KIB, 4)
    assert made_with(ns, b"/f") == (MIB, 3)
    both = ns.set_layout(b"/a/b", chunk_size_bytes=2 * MIB, stripe=2)
    assert both == ns.layout(b"/a/b/c") == LayoutReply(2 * MIB, 2, b"/a/b")
    assert made_with(ns, b"/a/b/c/f") == made_with(ns, b"/a/b/f") == (2 * MIB, 2)
    assert made_with(ns, b"/a/b/c/f", stripe=1) == (2 * MIB, 1)
    assert made_with(ns, b"/a/b/c/f", chunk_size_bytes=128 * KIB, stripe=0) == (128 * KIB, 4)
    assert ns.set_layout(b"/a/b") == LayoutReply(64 * KIB, 0, b"/a"), "it says nothing any more"
    assert made_with(ns, b"/a/b/c/f") == (64 * KIB, 4)


def test_the_real_directories_count_and_new_ones_inherit(ns: Namespace) -> None:
    ns.mkdir(b"/real/below", parents=True)
    ns.mkdir(b"/elsewhere")
    ns.symlink(b"/elsewhere/link", b"../real/below")
    ns.set_layout(b"/elsewhere", chunk_size_bytes=64 * KIB)
    ns.set_layout(b"/real", chunk_size_bytes=4 * MIB)
    assert made_with(ns, b"/elsewhere/link/f")[0] == 4 * MIB
    assert ns.layout(b"/elsewhere/link").origin == b"/real"
    assert ns.set_layout(b"/elsewhere/link", stripe=1).origin == b"/real/below"
    assert made_with(ns, b"/real/x/y/f", parents=True)[0] == 4 * MIB
    ns.rename(b"/real", b"/moved")
    assert ns.layout(b"/moved/x").origin == b"/moved"
    ns.rmdir(b"/moved", recursive=True)
    assert len(ns.tx.rows("SELECT * FROM layouts")) == 1


def test_one_batch_asks_each_directory_once(new_ns: NewNamespace) -> None:
    ns = new_ns(2)
    for path, size in ((b"/a", 64 * KIB), (b"/b", 128 * KIB), (b"/c", 0)):
        ns.mkdir(path + b"/d", parents=True)
        if size:
            ns.set_layout(path, chunk_size_bytes=size)
    paths = [b"/%c/d/%d" % (c, i) for i in range(20) for c in b"abc"]
    with ns.statements() as statements:
        sessions = ns.create(*paths)
    sizes = [good(session).layout.chunk_size_bytes for session in sessions]
    assert sizes == [64 * KIB, 128 * KIB, MIB] * 20
    assert sum("layouts" in text for text in statements) == 1


def test_a_files_own_layout_is_that_of_its_blob(ns: Namespace) -> None:
    ns.mkdir(b"/d")
    ns.write(b"/d/f", chunk_size_bytes=64 * KIB)
    ns.write(b"/d/empty", 0)
    ns.symlink(b"/link", b"d/f")
    ns.set_layout(b"/d", chunk_size_bytes=8 * MIB)
    assert ns.layout(b"/d/f") == ns.layout(b"/link") == LayoutReply(64 * KIB, 1, b"/d/f")
    assert ns.layout(b"/d/empty") == LayoutReply(8 * MIB, 0, b"/d")
    layout = good(ns.open_many(b"/d/f")[0]).segments[0].layout
    assert isinstance(layout, Layout) and layout.chunk_size_bytes == 64 * KIB


def test_layout_bounds(ns: Namespace) -> None:
    ns.write(b"/f")
    with pytest.raises(DirectoryExpectedError):
        ns.set_layout(b"/f", stripe=1)
    with pytest.raises(NotFoundError):
        ns.set_layout(b"/none", stripe=1)
    for size in (1, 32 * KIB, 3 * MIB, 128 * MIB, -MIB):
        with pytest.raises(InvalidError):
            ns.set_layout(b"/", chunk_size_bytes=size)
    for stripe in (-2, 1 << 40):
        with pytest.raises(InvalidError):
            ns.set_layout(b"/", stripe=stripe)
        with pytest.raises(InvalidError):
            ns.open_session(b"/new", stripe=stripe)


# --- usage ----------------------------------------------------------------------------------------


def test_usage_counts_each_inode_and_each_blob_once(ns: Namespace) -> None:
    ns.write(b"/d/e/f", 10, parents=True)
    ns.link(b"/d/e/f", b"/d/second")
    ns.copy(b"/d/e/f", b"/d/copy")
    ns.symlink(b"/d/s", b"e/f")
    ns.write(b"/d/zeros", 0)
    ns.setattr(b"/d/zeros", size=1_000)
    ns.write(b"/outside", 5)
    ns.symlink(b"/link", b"d")
    ns.open_session(b"/d/being-written")
    whole, below, file, link, missing, same = ns.usage_many(
        b"/d", b"/d/e", b"/d/copy", b"/link", b"/none", b"/d"
    )
    assert whole == same == Usage(3, 2, 1, 1_020, 10)
    assert below == Usage(1, 1, 0, 10, 10)
    assert file == Usage(1, 0, 0, 10, 10)
    assert link == Usage(0, 0, 1, 0, 0)
    assert kind(missing) is NotFoundError
    assert ns.usage(b"/") == Usage(4, 3, 2, 1_025, 15)


def test_usage_of_a_cut_file_counts_its_whole_blob(ns: Namespace) -> None:
    ns.write(b"/f", 100)
    ns.setattr(b"/f", size=1)
    assert ns.usage(b"/f") == Usage(1, 0, 0, 1, 100)


def test_usage_of_many_files_takes_few_statements(ns: Namespace) -> None:
    for d in range(5):
        ns.mkdir(b"/t/%d" % d, parents=True)
        sessions = ns.create(*(b"/t/%d/%d" % (d, i) for i in range(100)))
        ns.close_sessions(*(CloseEntry(good(s).session, 2) for s in sessions))
    with ns.statements() as statements:
        assert ns.usage(b"/t") == Usage(500, 6, 0, 1_000, 1_000)
    assert len(statements) < 8


# --- statfs ---------------------------------------------------------------------------------------


def test_statfs_counts_a_disk_once_and_room_where_chunks_are_taken(ns: Namespace) -> None:
    ns.mkdir(b"/d")
    found = ns.statfs(
        TargetReport("a", 1, 1_000, 400, 0, False, "disk"),
        TargetReport("b", 2, 1_000, 400, 0, False, "disk"),
        TargetReport("c", 3, 500, 100, 0, True),
        TargetReport("d", 4, 100, 200, 0, False),
    )
    assert (found.capacity_bytes, found.used_bytes, found.available_bytes) == (1_600, 700, 600)
    assert (found.inodes, found.replicas) == (2, 1)
    assert ns.statfs().capacity_bytes == 0
