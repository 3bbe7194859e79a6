"""Content by reference: setattr with sizes, copies, and when a blob dies."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ffs.errors import (
    DirectoryExpectedError,
    ExistsError,
    FileExpectedError,
    InvalidError,
    NotFoundError,
)
from ffs.server.meta.schema import BlobState
from ffs.types import ZERO_BLOB
from tests.namespace import SECOND_NS, Namespace, good


def test_setattr_changes_what_is_given(ns: Namespace) -> None:
    before = ns.write(b"/f")
    ns.now_ns += SECOND_NS
    attr = ns.setattr(b"/f", mode=0o100_600, uid=7, gid=8, atime_ns=9, mtime_ns=10)
    assert attr == ns.stat(b"/f")
    assert (attr.mode, attr.uid, attr.gid, attr.atime_ns, attr.mtime_ns) == (0o600, 7, 8, 9, 10)
    assert (attr.ctime_ns, attr.version, attr.size) == (ns.now_ns, before.version, before.size)
    assert ns.setattr(b"/f").mode == 0o600


def test_setattr_of_directories_and_the_root(ns: Namespace) -> None:
    ns.mkdir(b"/d")
    assert ns.setattr(b"/d", mode=0o700).mode == 0o700
    assert ns.setattr(b"/", mtime_ns=5).mtime_ns == 5
    with pytest.raises(FileExpectedError):
        ns.setattr(b"/d", size=0)


def test_setattr_refusals(ns: Namespace) -> None:
    ns.write(b"/f")
    with pytest.raises(NotFoundError):
        ns.setattr(b"/none", mode=0)
    with pytest.raises(DirectoryExpectedError):
        ns.setattr(b"/f/x", mode=0)
    for field in ("size", "mode", "uid", "gid", "atime_ns", "mtime_ns"):
        for value in (-1, 1 << 63):
            with pytest.raises(InvalidError, match=field):
                ns.setattr(b"/f", **{field: value})


def test_shrinking_cuts_and_growing_adds_zeros(ns: Namespace) -> None:
    before = ns.write(b"/f", 100)
    ((blob, _),) = ns.segments(b"/f")
    ns.now_ns += SECOND_NS
    attr = ns.setattr(b"/f", size=40)
    assert (attr.size, attr.version, attr.mtime_ns) == (40, before.version + 1, ns.now_ns)
    assert ns.segments(b"/f") == [(blob, 40)]
    ns.setattr(b"/f", size=50)
    ns.setattr(b"/f", size=70)
    assert ns.segments(b"/f") == [(blob, 40), (ZERO_BLOB, 30)]
    ns.setattr(b"/f", size=60)
    assert ns.segments(b"/f") == [(blob, 40), (ZERO_BLOB, 20)]
    ns.setattr(b"/f", size=40)
    assert ns.segments(b"/f") == [(blob, 40)]
    assert ns.blob_state(blob) is BlobState.LIVE
    ns.setattr(b"/f", size=0)
    assert ns.segments(b"/f") == []
    assert ns.blob_state(blob) is BlobState.DEAD
    ns.setattr(b"/f", size=5)
    assert ns.segments(b"/f") == [(ZERO_BLOB, 5)]


def test_zero_segments_open_with_a_layout(ns: Namespace) -> None:
    ns.write(b"/f", 0)
    ns.setattr(b"/f", size=1 << 40)
    (segment,) = good(ns.open_many(b"/f")[0]).segments
    assert (segment.blob, segment.length) == (ZERO_BLOB, 1 << 40)
    assert segment.layout.chunk_size_bytes & (segment.layout.chunk_size_bytes - 1) == 0


def test_the_same_size_changes_no_segment(ns: Namespace) -> None:
    ns.write(b"/f", 10)
    before = ns.segments(b"/f")
    ns.setattr(b"/f", size=10)
    assert ns.segments(b"/f") == before


def test_copy_shares_the_blob(ns: Namespace) -> None:
    source = ns.write(b"/f", 10, mode=0o711)
    ns.now_ns += SECOND_NS
    attr = ns.copy(b"/f", b"/g")
    assert attr == ns.stat(b"/g")
    assert attr.inode != source.inode
    assert (attr.size, attr.mode, attr.nlink, attr.version) == (10, 0o711, 1, 1)
    assert attr.mtime_ns == ns.now_ns
    ((blob, _),) = ns.segments(b"/f")
    assert ns.segments(b"/g") == [(blob, 10)]
    ns.remove(b"/f")
    assert ns.blob_state(blob) is BlobState.LIVE
    ns.remove(b"/g")
    assert ns.blob_state(blob) is BlobState.DEAD


def test_copy_over_a_file_replaces_its_content(ns: Namespace) -> None:
    ns.write(b"/f", 10)
    target = ns.write(b"/g", 20, mode=0o600)
    ((old, _),) = ns.segments(b"/g")
    attr = ns.copy(b"/f", b"/g")
    assert (attr.inode, attr.mode, attr.size) == (target.inode, 0o600, 10)
    assert attr.version == target.version + 1
    assert ns.segments(b"/g") == ns.segments(b"/f")
    assert ns.blob_state(old) is BlobState.DEAD


def test_copy_over_a_file_with_the_same_blob_keeps_it(ns: Namespace) -> None:
    ns.write(b"/f", 10)
    ns.copy(b"/f", b"/g")
    ns.setattr(b"/g", size=4)
    ns.copy(b"/f", b"/g")
    assert ns.segments(b"/g") == ns.segments(b"/f")


def test_copies_are_cut_apart(ns: Namespace) -> None:
    ns.write(b"/f", 10)
    ns.copy(b"/f", b"/g")
    ns.setattr(b"/g", size=3)
    ((blob, length),) = ns.segments(b"/f")
    assert length == 10
    assert ns.segments(b"/g") == [(blob, 3)]


def test_copy_refusals(ns: Namespace) -> None:
    ns.mkdir(b"/d")
    ns.write(b"/f")
    ns.write(b"/g")
    cases: list[tuple[Callable[[], object], type[Exception]]] = [
        (lambda: ns.copy(b"/none", b"/x"), NotFoundError),
        (lambda: ns.copy(b"/f", b"/none/x"), NotFoundError),
        (lambda: ns.copy(b"/d", b"/x"), FileExpectedError),
        (lambda: ns.copy(b"/", b"/x"), FileExpectedError),
        (lambda: ns.copy(b"/f", b"/d"), FileExpectedError),
        (lambda: ns.copy(b"/f", b"/g/x"), DirectoryExpectedError),
        (lambda: ns.copy(b"/f", b"/g", replace=False), ExistsError),
        (lambda: ns.copy(b"/f", b"/f", replace=False), ExistsError),
    ]
    for attempt, error in cases:
        with pytest.raises(error):
            attempt()
    before = ns.stat(b"/f")
    assert ns.copy(b"/f", b"/f") == before
    ns.copy(b"/f", b"/a/b/c", parents=True)
    assert ns.stat(b"/a/b/c").size == before.size


def test_open_many_answers_path_by_path(ns: Namespace) -> None:
    ns.mkdir(b"/d")
    ns.write(b"/f", 10)
    ns.write(b"/empty", 0)
    opened = ns.open_many(b"/f", b"/d", b"/none", b"/empty", b"/f/x", b"/f")
    assert good(opened[0]) == good(opened[5])
    assert good(opened[0]).attr == ns.stat(b"/f")
    assert good(opened[3]).segments == []
    for place, error in ((1, FileExpectedError), (2, NotFoundError), (4, DirectoryExpectedError)):
        with pytest.raises(error):
            good(opened[place])
