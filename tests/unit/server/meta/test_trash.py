"""The trash: what was removed is there, can come back, and goes when its time is over."""

from __future__ import annotations

import pytest

from ffs.errors import AccessError, InvalidError, NotEmptyError, NotFoundError, ReadOnlyError
from ffs.server.meta.ops import trash as trashing
from ffs.server.meta.ops.access import Caller
from ffs.server.meta.schema import BlobState
from tests.namespace import SECOND_NS, Namespace

USER = Caller(5, 6)
PAGE = 4


def restore(ns: Namespace, entry: bytes) -> bytes:
    """Do what clients do to restore an entry."""
    origin = ns.readlink(entry + b"/origin")
    ns.rename(entry + b"/content", origin, replace=False, parents=True)
    ns.rmdir(entry, recursive=True)
    return origin


def test_what_is_removed_can_come_back(ns: Namespace) -> None:
    ns.write(b"/d/sub/f", 10, parents=True)
    ns.symlink(b"/d/s", b"sub")
    before = {path: ns.stat(path, follow=False) for path in (b"/d/sub/f", b"/d/s", b"/d/sub")}
    file, link, tree = ns.trash(b"/d/sub/f"), ns.trash(b"/d/s"), ns.trash(b"/d")
    assert not ns.exists(b"/d")
    found = {one.entry: one for one in ns.trashed().entries}
    assert found.keys() == {file, link, tree}
    assert [found[e].origin for e in (file, link, tree)] == [b"/d/sub/f", b"/d/s", b"/d"]
    assert found[file].removed_ns == ns.now_ns and found[file].attr.size == 10
    assert restore(ns, file) == b"/d/sub/f", "its directories are made again"
    ns.rmdir(b"/d", recursive=True)
    for entry in (tree, link):
        restore(ns, entry)
    assert ns.stat(b"/d/s", follow=False).inode == before[b"/d/s"].inode
    assert ns.stat(b"/d/sub").inode == before[b"/d/sub"].inode
    assert ns.trashed().entries == []


def test_the_real_path_is_remembered(ns: Namespace) -> None:
    ns.write(b"/real/f", parents=True)
    ns.symlink(b"/way", b"/real")
    ns.trash(b"/way/f")
    (one,) = ns.trashed().entries
    assert one.origin == b"/real/f"


def test_what_cannot_be_trashed(ns: Namespace) -> None:
    ns.write(b"/d/f", parents=True)
    entry = ns.trash(b"/d/f")
    ns.snapshot(b"/d", b"v")
    for path, error in (
        (b"/none", NotFoundError),
        (b"/", InvalidError),
        (b"/.trash", InvalidError),
        (entry, InvalidError),
        (entry + b"/content", InvalidError),
        (b"/d", NotEmptyError),
        (b"/d/.snapshots/v", ReadOnlyError),
    ):
        with pytest.raises(error):
            ns.trash(path)
    with pytest.raises(InvalidError):
        ns.snapshot(entry, b"v")
    assert ns.names(b"/.trash/0") == [entry.rpartition(b"/")[2]]


def test_each_user_has_a_trash_of_his_own(ns: Namespace) -> None:
    ns.mkdir(b"/home", mode=0o777)
    ns.write(b"/home/root", mode=0o666)
    ns.write(b"/closed/f", parents=True)
    ns.caller = USER
    with pytest.raises(AccessError):
        ns.trash(b"/closed/f")
    assert not ns.exists(b"/.trash")
    ns.write(b"/home/mine")
    mine = ns.trash(b"/home/mine")
    assert mine.startswith(b"/.trash/5/")
    with pytest.raises(AccessError):
        ns.trashed(everyone=True)
    assert [one.entry for one in ns.trashed().entries] == [mine]
    ns.caller = Caller(6, 6)
    assert ns.trashed().entries == [] and not ns.exists(mine + b"/content")
    ns.caller = Caller(0, 0)
    theirs = ns.trash(b"/home/root")
    assert [one.entry for one in ns.trashed().entries] == [theirs]
    assert [one.entry for one in ns.trashed(everyone=True).entries] == [theirs, mine]
    ns.caller = USER
    restore(ns, mine)
    assert ns.stat(b"/home/mine").uid == 5


def test_what_is_old_goes(ns: Namespace) -> None:
    assert ns.reap_trash(ns.now_ns) == b""
    ns.write(b"/d/a", parents=True)
    ns.write(b"/d/b")
    ((blob, _),) = ns.segments(b"/d/a")
    ns.trash(b"/d/a")
    ns.now_ns += 10 * SECOND_NS
    ns.trash(b"/d")
    assert ns.reap_trash(ns.now_ns - 10 * SECOND_NS) == b""
    assert ns.reap_trash(ns.now_ns - 9 * SECOND_NS)
    assert ns.reap_trash(ns.now_ns - 9 * SECOND_NS) == b""
    assert ns.blob_state(blob) is BlobState.DEAD
    (left,) = ns.trashed().entries
    assert left.origin == b"/d"
    ns.now_ns += SECOND_NS
    assert ns.reap_trash(ns.now_ns) and ns.trashed().entries == []


def test_what_stands_in_the_trash_by_other_ways_does_no_harm(ns: Namespace) -> None:
    ns.write(b"/f")
    entry = ns.trash(b"/f")
    ns.write(b"/.trash/0/1-file")
    ns.write(b"/.trash/file")
    ns.mkdir(b"/.trash/0/zzz")
    ns.mkdir(b"/.trash/someone/x", parents=True)
    assert [one.entry for one in ns.trashed(everyone=True).entries] == [entry]
    assert ns.reap_trash(0) == b""
    ns.now_ns += SECOND_NS
    assert ns.reap_trash(ns.now_ns) == entry.rpartition(b"/")[2]
    assert ns.reap_trash(ns.now_ns) == b""


def test_trashed_page_max(ns: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trashing, "TRASHED_PAGE_MAX", PAGE)
    ns.mkdir(b"/d", mode=0o777)
    for caller in (Caller(0, 0), USER):
        ns.caller = caller
        for i in range(PAGE // 2 + 1):
            ns.write(b"/d/%d" % i, 0)
            ns.trash(b"/d/%d" % i)
    ns.caller = Caller(0, 0)
    first = ns.trashed(everyone=True)
    assert first.more and len(first.entries) == PAGE
    second = ns.trashed(after=first.entries[-1].entry, everyone=True)
    assert (len(second.entries), second.more) == (2, False)
    found = [one.entry for one in (*first.entries, *second.entries)]
    assert found == sorted({*found})
    mine = ns.trashed(after=first.entries[0].entry)
    assert [one.entry for one in mine.entries] == found[1 : PAGE // 2 + 1]
