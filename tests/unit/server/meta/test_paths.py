"""Paths: what is accepted, what each wrong one is called, and how a batch resolves."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffs.errors import (
    BadNameError,
    DirectoryExpectedError,
    FFSError,
    NameTooLongError,
    NotFoundError,
)
from ffs.limits import NAME_BYTES_MAX, PATH_BYTES_MAX
from ffs.server.meta.ops.paths import split_last, split_lasts, split_path
from ffs.types import ROOT_INODE, Attr
from tests.namespace import Namespace, kind

BAD_PATHS = [
    b"",
    b"relative",
    b"relative/name",
    b"/a/../b",
    b"/a/.",
    b"/..",
    b"/.",
    b"/a\0b",
    b"/" + b"n" * (NAME_BYTES_MAX + 1),
    b"/" + b"n" * (NAME_BYTES_MAX + 1) + b"/x",
    b"/a/" + b"n" * (NAME_BYTES_MAX + 1),
    b"/abc" * (PATH_BYTES_MAX // 4) + b"/x",
    b"/./x",
    b"/a\0/x",
]


@pytest.mark.parametrize("path", BAD_PATHS, ids=range(len(BAD_PATHS)))
def test_bad_paths_are_refused_by_reading_and_by_changing(ns: Namespace, path: bytes) -> None:
    error = NameTooLongError if len(path) > NAME_BYTES_MAX else BadNameError
    assert kind(ns.stat_many(path)[0]) is error
    assert kind(ns.open_many(path)[0]) is error
    assert kind(ns.create(path)[0]) is error
    assert kind(ns.remove(path)[0]) is error
    for change in (ns.mkdir, ns.rmdir, ns.list, ns.setattr):
        with pytest.raises(error):
            change(path)


def test_longest_names_and_paths_are_fine(ns: Namespace) -> None:
    name = b"n" * NAME_BYTES_MAX
    path = b"".join(b"/" + name for _ in range(PATH_BYTES_MAX // (NAME_BYTES_MAX + 1)))
    assert len(path) == PATH_BYTES_MAX
    ns.write(path, parents=True)
    assert ns.stat(path).size == 100


def test_any_byte_but_slash_and_nul_makes_a_name(ns: Namespace) -> None:
    names = [bytes([value]) + b"x" for value in range(1, 256) if value != ord("/")]
    for session in ns.create(*(b"/" + name for name in names)):
        assert kind(session) is None
    for name in names:
        ns.mkdir(b"/" + name)
    assert ns.names(b"/") == sorted(names)


def test_extra_slashes_collapse(ns: Namespace) -> None:
    ns.write(b"//a///b//c", parents=True)
    inode = ns.stat(b"/a/b/c").inode
    for path in (b"///a/b/c", b"/a//b/c"):
        assert ns.stat(path).inode == inode
    for path in (b"/a/b/c/", b"/a/b/c//"):
        assert kind(ns.stat_many(path)[0]) is DirectoryExpectedError, "it names a directory"
    assert ns.stat(b"/a/b//") == ns.stat(b"/a/b")
    for path in (b"/", b"//", b"///"):
        assert ns.stat(path).inode == ROOT_INODE


def test_split_forms_agree() -> None:
    for path in (b"/", b"/a", b"/a/b", b"//a//b/", b"/a/b/c///"):
        parent, name = split_last(path)
        names = split_path(parent) + [name] if parent else []
        assert names == split_path(path)


PIECES = st.sampled_from([b"/", b"/", b"a", b".", b"..", b"\0", b"n" * NAME_BYTES_MAX])
ODD_PATHS = st.lists(PIECES, max_size=7).map(b"".join)


@given(st.lists(st.sampled_from([b"/a/b", b"/c", b"/a//d"]) | ODD_PATHS, max_size=4))
def test_a_batch_is_split_as_its_paths_are(paths: list[bytes]) -> None:
    def told(answer: Any) -> Any:
        return str(answer) if isinstance(answer, FFSError) else answer

    parents, names = split_lasts(paths)
    expected: list[Any] = []
    for path in paths:
        try:
            expected.append(split_last(path))
        except FFSError as error:
            expected.append((b"", str(error)))
    assert [*zip(parents, map(told, names), strict=True)] == expected


@pytest.mark.parametrize("length", [PATH_BYTES_MAX, PATH_BYTES_MAX + 1])
def test_a_batch_bounds_paths_whole(length: int) -> None:
    path = (b"/aaaaaaa" * length)[: length - 2] + b"/a"
    _, names = split_lasts([b"/a", path])
    assert isinstance(names[1], FFSError) == (length > PATH_BYTES_MAX)


def test_a_batch_gives_each_path_its_own_answer(ns: Namespace) -> None:
    ns.write(b"/d/f", parents=True)
    found = ns.stat_many(b"/d/f", b"/none", b"/none/x", b"/d/f/x", b"/d", b"rel", b"/", b"/d/f")
    assert [kind(entry) for entry in found] == [
        None,
        NotFoundError,
        NotFoundError,
        DirectoryExpectedError,
        None,
        BadNameError,
        None,
        None,
    ]
    assert found[0] == found[-1]


def test_a_batch_larger_than_one_statement(ns: Namespace) -> None:
    paths = [b"/d%d/f%d" % (i % 7, i) for i in range(9_000)]
    for path in sorted({p.rpartition(b"/")[0] for p in paths}):
        ns.mkdir(path)
    sessions = ns.create(*paths)
    assert {kind(session) for session in sessions} == {None}
    assert {kind(entry) for entry in ns.stat_many(*paths)} == {NotFoundError}


def test_a_batch_costs_few_statements(ns: Namespace) -> None:
    paths = [b"/a/b/c/f%d" % i for i in range(500)]
    ns.mkdir(b"/a/b/c", parents=True)
    with ns.statements() as statements:
        ns.stat_many(*paths)
    assert 0 < len(statements) <= 5
    ns.create(*paths)


def test_deep_paths_resolve(ns: Namespace) -> None:
    depth = PATH_BYTES_MAX // 2
    ns.mkdir(b"/d" * depth, parents=True)
    assert isinstance(ns.stat_many(b"/d" * depth)[0], Attr)
    assert ns.rmdir(b"/d", recursive=True) == depth
