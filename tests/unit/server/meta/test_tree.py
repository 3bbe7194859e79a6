"""Directories and names: mkdir, list, rename, remove_many, rmdir, with POSIX's choice of errors."""

from __future__ import annotations

import pytest

from ffs.errors import (
    DirectoryExpectedError,
    ExistsError,
    FileExpectedError,
    InvalidError,
    LeaseExpiredError,
    LoopError,
    NotEmptyError,
    NotFoundError,
)
from ffs.limits import LIST_PAGE_MAX
from ffs.server.meta.schema import BlobState
from ffs.types import FileType
from ffs.wire.messages import CloseEntry, CreateMode
from tests.namespace import SECOND_NS, Namespace, kind


@pytest.fixture
def tree(ns: Namespace) -> Namespace:
    """/d/{e/{},f,g/h}, /file, and an empty /empty."""
    for path in (b"/d/e", b"/d/g", b"/empty"):
        ns.mkdir(path, parents=True)
    for path in (b"/d/f", b"/d/g/h", b"/file"):
        ns.write(path)
    return ns


# --- mkdir ----------------------------------------------------------------------------------------


def test_mkdir_makes_a_directory(ns: Namespace) -> None:
    attr = ns.mkdir(b"/d", mode=0o1750)
    assert attr == ns.stat(b"/d")
    assert (attr.type, attr.mode, attr.nlink, attr.size) == (FileType.DIRECTORY, 0o1750, 2, 0)


def test_mkdir_counts_and_touches_in_the_parent(ns: Namespace) -> None:
    before = ns.stat(b"/")
    ns.now_ns += SECOND_NS
    ns.mkdir(b"/d")
    after = ns.stat(b"/")
    assert after.nlink == before.nlink + 1
    assert after.mtime_ns == after.ctime_ns == ns.now_ns


def test_mkdir_refuses_taken_names(tree: Namespace) -> None:
    for path in (b"/d", b"/file", b"/", b"/d/e/"):
        with pytest.raises(ExistsError):
            tree.mkdir(path)
    with pytest.raises(ExistsError):
        tree.mkdir(b"/file", exist_ok=True)
    with pytest.raises(DirectoryExpectedError):
        tree.mkdir(b"/file/x")
    with pytest.raises(NotFoundError):
        tree.mkdir(b"/none/x")
    assert tree.mkdir(b"/d", exist_ok=True) == tree.stat(b"/d")
    assert tree.mkdir(b"/", exist_ok=True) == tree.stat(b"/")


def test_mkdir_with_parents(tree: Namespace) -> None:
    tree.mkdir(b"/d/e/x/y/z", parents=True)
    assert tree.stat(b"/d/e/x").nlink == 3
    with pytest.raises(DirectoryExpectedError):
        tree.mkdir(b"/file/a/b", parents=True)
    assert tree.names(b"/") == [b"d", b"empty", b"file"]


# --- list -----------------------------------------------------------------------------------------


def test_list_gives_entries_in_name_order_with_attributes(tree: Namespace) -> None:
    page = tree.list(b"/d")
    assert [entry.name for entry in page.entries] == [b"e", b"f", b"g"]
    assert not page.more
    assert [entry.attr for entry in page.entries] == [
        tree.stat(b"/d/e"),
        tree.stat(b"/d/f"),
        tree.stat(b"/d/g"),
    ]


def test_list_pages(ns: Namespace) -> None:
    names = sorted(b"n%d" % i for i in range(25))
    for name in names:
        ns.mkdir(b"/" + name)
    seen: list[bytes] = []
    after, more = b"", True
    while more:
        page = ns.list(b"/", after=after, limit=10)
        assert 0 < len(page.entries) <= 10
        seen += [entry.name for entry in page.entries]
        after, more = seen[-1], page.more
    assert seen == names
    assert ns.list(b"/", after=names[-1]).entries == []
    assert [e.name for e in ns.list(b"/", after=b"n1z", limit=1).entries] == [b"n2"]


def test_list_bounds(tree: Namespace) -> None:
    with pytest.raises(DirectoryExpectedError):
        tree.list(b"/file")
    with pytest.raises(NotFoundError):
        tree.list(b"/none")
    for limit in (0, -1):
        with pytest.raises(InvalidError):
            tree.list(b"/", limit=limit)
    assert len(tree.list(b"/", limit=LIST_PAGE_MAX * 10).entries) == 3


# --- remove_many ----------------------------------------------------------------------------------


def test_remove_answers_path_by_path(tree: Namespace) -> None:
    ((blob, _),) = tree.segments(b"/file")
    removed = tree.remove(b"/file", b"/d", b"/none", b"/file", b"/file/x", b"/d/f", b"/")
    assert [kind(result) for result in removed] == [
        None,
        FileExpectedError,
        NotFoundError,
        NotFoundError,
        DirectoryExpectedError,
        None,
        FileExpectedError,
    ]
    assert tree.names(b"/") == [b"d", b"empty"]
    assert tree.names(b"/d") == [b"e", b"g"]
    assert tree.blob_state(blob) is BlobState.DEAD


def test_remove_touches_the_parent(tree: Namespace) -> None:
    tree.now_ns += SECOND_NS
    tree.remove(b"/d/f")
    assert tree.stat(b"/d").mtime_ns == tree.now_ns
    assert tree.stat(b"/").mtime_ns < tree.now_ns


# --- rmdir ----------------------------------------------------------------------------------------


def test_rmdir_of_an_empty_directory(tree: Namespace) -> None:
    links = tree.stat(b"/").nlink
    assert tree.rmdir(b"/empty") == 1
    assert not tree.exists(b"/empty")
    assert tree.stat(b"/").nlink == links - 1


def test_rmdir_refusals(tree: Namespace) -> None:
    with pytest.raises(NotEmptyError):
        tree.rmdir(b"/d")
    with pytest.raises(DirectoryExpectedError):
        tree.rmdir(b"/file")
    with pytest.raises(DirectoryExpectedError):
        tree.rmdir(b"/file", recursive=True)
    with pytest.raises(NotFoundError):
        tree.rmdir(b"/none", recursive=True)
    for recursive in (False, True):
        with pytest.raises(InvalidError, match="root"):
            tree.rmdir(b"/", recursive=recursive)
    assert tree.names(b"/") == [b"d", b"empty", b"file"]


def test_rmdir_recursive_takes_the_whole_tree_and_nothing_else(tree: Namespace) -> None:
    blobs = [tree.segments(path)[0][0] for path in (b"/d/f", b"/d/g/h")]
    ((kept, _),) = tree.segments(b"/file")
    tree.copy(b"/d/f", b"/shared")
    assert tree.rmdir(b"/d", recursive=True) == 5
    assert tree.names(b"/") == [b"empty", b"file", b"shared"]
    assert tree.blob_state(blobs[0]) is BlobState.LIVE
    assert tree.blob_state(blobs[1]) is BlobState.DEAD
    assert tree.blob_state(kept) is BlobState.LIVE
    assert tree.tx.rows("SELECT count(*) FROM inodes") == [(4,)]


def test_rmdir_ends_what_was_being_written_below(ns: Namespace) -> None:
    ns.mkdir(b"/d/e", parents=True)
    plain = ns.open_session(b"/d/e/f")
    holder = ns.open_session(b"/d/e/x", create_mode=CreateMode.EXCLUSIVE)
    assert ns.rmdir(b"/d", recursive=True) == 2
    for session in (plain, holder):
        assert kind(ns.close_sessions(CloseEntry(session.session, 1))[0]) is NotFoundError
    ns.abort(plain.session, holder.session)
    assert kind(ns.close_sessions(CloseEntry(plain.session, 1))[0]) is LeaseExpiredError


def test_rmdir_recursive_of_many_names_takes_few_statements(ns: Namespace) -> None:
    ns.create(b"/none")
    for d in range(5):
        ns.mkdir(b"/t/d%d" % d, parents=True)
        sessions = ns.create(*(b"/t/d%d/f%d" % (d, i) for i in range(200)))
        ns.close_sessions(*(CloseEntry(s.session, 1) for s in sessions))  # type: ignore[union-attr]
    with ns.statements() as statements:
        assert ns.rmdir(b"/t", recursive=True) == 1_006
    assert 0 < len(statements) < 40


# --- rename ---------------------------------------------------------------------------------------


def test_rename_moves_a_file_across_directories(tree: Namespace) -> None:
    inode = tree.stat(b"/d/f").inode
    tree.now_ns += SECOND_NS
    tree.rename(b"/d/f", b"/d/g/moved")
    assert not tree.exists(b"/d/f")
    assert tree.stat(b"/d/g/moved").inode == inode
    assert tree.stat(b"/d").mtime_ns == tree.stat(b"/d/g").mtime_ns == tree.now_ns


def test_rename_moves_a_directory_with_all_below(tree: Namespace) -> None:
    tree.rename(b"/d", b"/empty/d2")
    assert tree.names(b"/empty/d2") == [b"e", b"f", b"g"]
    assert tree.exists(b"/empty/d2/g/h")
    assert tree.stat(b"/empty").nlink == 3


def test_rename_replaces_a_file(tree: Namespace) -> None:
    ((old, _),) = tree.segments(b"/file")
    ((new, _),) = tree.segments(b"/d/f")
    tree.rename(b"/d/f", b"/file")
    assert tree.segments(b"/file")[0][0] == new
    assert tree.blob_state(old) is BlobState.DEAD


def test_rename_replaces_an_empty_directory(tree: Namespace) -> None:
    links = tree.stat(b"/").nlink
    tree.rename(b"/d", b"/empty")
    assert tree.names(b"/empty") == [b"e", b"f", b"g"]
    assert tree.stat(b"/").nlink == links - 1


def test_rename_refusals(tree: Namespace) -> None:
    cases: list[tuple[bytes, bytes, type[Exception]]] = [
        (b"/none", b"/x", NotFoundError),
        (b"/file", b"/none/x", NotFoundError),
        (b"/file", b"/d/f/x", DirectoryExpectedError),
        (b"/file/x", b"/y", DirectoryExpectedError),
        (b"/file", b"/empty", FileExpectedError),
        (b"/empty", b"/file", DirectoryExpectedError),
        (b"/empty", b"/d", NotEmptyError),
        (b"/d", b"/d/e/x", LoopError),
        (b"/d", b"/d/x", LoopError),
        (b"/d/e", b"/d", NotEmptyError),
        (b"/", b"/x", InvalidError),
        (b"/d", b"/", InvalidError),
    ]
    for source, target, error in cases:
        with pytest.raises(error):
            tree.rename(source, target)
    assert tree.names(b"/") == [b"d", b"empty", b"file"]


def test_rename_without_replace(tree: Namespace) -> None:
    with pytest.raises(ExistsError):
        tree.rename(b"/d/f", b"/file", replace=False)
    with pytest.raises(ExistsError):
        tree.rename(b"/d", b"/empty", replace=False)
    tree.rename(b"/d/f", b"/fresh", replace=False)


def test_rename_onto_itself_changes_nothing(tree: Namespace) -> None:
    before = (tree.stat(b"/d"), tree.stat(b"/file"))
    tree.now_ns += SECOND_NS
    tree.rename(b"/file", b"/file")
    tree.rename(b"/d", b"//d/")
    tree.rename(b"/file", b"/file", replace=False)
    assert (tree.stat(b"/d"), tree.stat(b"/file")) == before


def test_rename_makes_parents_or_nothing(tree: Namespace) -> None:
    tree.rename(b"/file", b"/new/deep/file", parents=True)
    assert tree.exists(b"/new/deep/file")
    with pytest.raises(LoopError):
        tree.rename(b"/d", b"/d/q/r", parents=True)
    assert not tree.exists(b"/d/q"), "a refused rename leaves no directory behind"


def test_rename_within_a_directory_keeps_its_links(tree: Namespace) -> None:
    links = tree.stat(b"/d").nlink
    tree.rename(b"/d/e", b"/d/e2")
    assert tree.stat(b"/d").nlink == links
