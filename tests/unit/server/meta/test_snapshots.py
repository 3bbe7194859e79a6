"""Snapshots and clones: trees that share content and nothing else, and that stay what they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ffs.errors import (
    AccessError,
    BadNameError,
    DirectoryExpectedError,
    ExistsError,
    FFSError,
    InvalidError,
    NotEmptyError,
    NotFoundError,
    ReadOnlyError,
    StillNeededError,
)
from ffs.server.meta.ops import clone as cloning
from ffs.server.meta.ops import storage
from ffs.server.meta.ops.access import Caller
from ffs.server.meta.schema import BlobState
from ffs.wire.messages import CloseEntry, CreateEntry, CreateMode
from tests.databases import new_database
from tests.namespace import SECOND_NS, Namespace, good, kind
from tests.unit.server.meta.seen import Seen, tree_of

V1 = b"/d/.snapshots/v1"


def make_tree(ns: Namespace) -> None:
    """A tree with one of everything that a tree can have."""
    ns.write(b"/d/a", 10, parents=True, mode=0o4750)
    ns.mkdir(b"/d/sub/deep", parents=True, mode=0o2770)
    ns.write(b"/d/sub/b", 20)
    ns.append(b"/d/sub/b", 5)
    ns.link(b"/d/sub/b", b"/d/sub/deep/again")
    ns.symlink(b"/d/sub/s", b"../a")
    ns.write(b"/d/empty", 0)
    ns.setattr(b"/d/empty", size=99)
    ns.copy(b"/d/a", b"/d/copy")
    ns.setattr(b"/d/sub", uid=7, gid=8, mtime_ns=5)
    ns.set_layout(b"/d/sub", chunk_size_bytes=1 << 16)


def outcome(action: Callable[[], Any]) -> type[FFSError] | None:
    """Return the class of an action's error, None if it has none."""
    try:
        found = action()
    except FFSError as error:
        return type(error)
    return kind(found[0]) if isinstance(found, list) else None


def test_a_snapshot_is_what_the_directory_was(ns: Namespace) -> None:
    make_tree(ns)
    before = tree_of(ns, b"/d")
    made = ns.now_ns = ns.now_ns + SECOND_NS
    reply = ns.snapshot(b"/d", b"v1")
    assert (reply.files, reply.directories, reply.symlinks) == (4, 3, 1)
    assert ns.stat(V1) == reply.attr and reply.attr.ctime_ns == made
    assert tree_of(ns, V1) == before
    ns.now_ns += SECOND_NS
    ns.remove(b"/d/a")
    ns.write(b"/d/copy", 33)
    ns.setattr(b"/d/sub/b", size=3, mode=0)
    ns.rmdir(b"/d/sub", recursive=True)
    ns.symlink(b"/d/sub", b"/elsewhere")
    assert tree_of(ns, V1) == before
    assert ns.names(b"/d/.snapshots") == [b"v1"]


def test_a_clone_goes_its_own_way(ns: Namespace) -> None:
    make_tree(ns)
    before = tree_of(ns, b"/d")
    reply = ns.clone(b"/d", b"/x/y", parents=True)
    assert tree_of(ns, b"/x/y") == before and reply.attr == ns.stat(b"/x/y")
    ns.write(b"/x/y/a", 7)
    ns.append(b"/x/y/sub/b", 8)
    ns.remove(b"/x/y/copy")
    assert tree_of(ns, b"/d") == before
    ns.rmdir(b"/d", recursive=True)
    assert ns.segments(b"/x/y/sub/deep/again") == ns.segments(b"/x/y/sub/b")
    assert len(ns.segments(b"/x/y/sub/b")) == 3


def test_a_clone_of_a_snapshot_and_into_its_own_source(ns: Namespace) -> None:
    make_tree(ns)
    before = tree_of(ns, b"/d")
    ns.snapshot(b"/d", b"v1")
    ns.remove(b"/d/a")
    ns.clone(V1, b"/restored")
    assert tree_of(ns, b"/restored") == before
    ns.clone(b"/restored", b"/restored/inside")
    assert tree_of(ns, b"/restored/inside") == before


def test_walks_leave_snapshots_out(ns: Namespace) -> None:
    make_tree(ns)
    usage, names = ns.usage(b"/d"), ns.names(b"/d")
    pinned = ns.pin(b"/d")
    for name in (b"v1", b"v2"):
        ns.snapshot(b"/d", name)
    assert (ns.usage(b"/d"), ns.names(b"/d")) == (usage, names)
    again = ns.pin(b"/d")
    assert (again.files, again.stored_bytes) == (pinned.files, pinned.stored_bytes)
    assert ns.clone(b"/d", b"/clone").files == usage.files
    assert ns.stat_many(b"/clone/.snapshots")[0] != ns.stat(b"/d/.snapshots")
    assert ns.usage(V1).size_bytes == usage.size_bytes


def changes_in(ns: Namespace, path: bytes) -> list[type[FFSError] | None]:
    """Try every change at a path and below it; return what became of each."""
    file, new = path + b"/a", path + b"/new"
    return [
        outcome(action)
        for action in (
            lambda: ns.create(file),
            lambda: ns.create(new),
            lambda: ns.create(CreateEntry(new, create_mode=CreateMode.EXCLUSIVE)),
            lambda: ns.create(CreateEntry(file, create_mode=CreateMode.APPEND)),
            lambda: ns.mkdir(new),
            lambda: ns.symlink(new, b"x"),
            lambda: ns.link(b"/other", new),
            lambda: ns.link(file, b"/outside"),
            lambda: ns.copy(b"/other", file),
            lambda: ns.copy(b"/other", new),
            lambda: ns.rename(file, b"/outside"),
            lambda: ns.rename(b"/other", file),
            lambda: ns.rename(b"/tree", new),
            lambda: ns.remove(file),
            lambda: ns.rmdir(path + b"/sub", recursive=True),
            lambda: ns.rmdir(path, recursive=True),
            lambda: ns.rename(path, b"/outside"),
            lambda: ns.setattr(file, size=0),
            lambda: ns.setattr(path, mode=0o777),
            lambda: ns.set_layout(path, stripe=1),
            lambda: ns.snapshot(path, b"nested"),
            lambda: ns.clone(b"/tree", new),
            lambda: ns.trash(file),
        )
    ]


def test_nothing_changes_a_snapshot(ns: Namespace) -> None:
    make_tree(ns)
    ns.write(b"/other")
    ns.mkdir(b"/tree")
    ns.snapshot(b"/d", b"v1")
    ns.symlink(b"/to", V1)
    ns.symlink(b"/file", V1 + b"/a")
    before = tree_of(ns, V1)
    assert {*changes_in(ns, V1)} == {ReadOnlyError}
    # Through a link the same, but that the link itself is no part of the snapshot.
    assert {*changes_in(ns, b"/to")[:15]} == {ReadOnlyError}
    for action in (
        lambda: ns.create(b"/file"),
        lambda: ns.setattr(b"/file", size=1),
        lambda: ns.copy(b"/other", b"/file"),
        lambda: ns.mkdir(b"/d/.snapshots/v2"),
        lambda: ns.mkdir(b"/tree/.snapshots"),
        lambda: ns.rename(b"/d/.snapshots", b"/d/shots"),
        lambda: ns.rename(b"/tree", b"/d/.snapshots"),
        lambda: ns.rmdir(b"/d/.snapshots", recursive=True),
        lambda: ns.write(b"/.snapshots"),
    ):
        assert outcome(action) is ReadOnlyError
    for made in (b"/tree/.snapshots/v/f", V1 + b"/new/f"):
        entry = CreateEntry(made, parents=True)
        assert kind(ns.create(entry)[0]) is NotFoundError
    assert tree_of(ns, V1) == before


def test_a_directory_with_snapshots_moves_and_stays(ns: Namespace) -> None:
    make_tree(ns)
    before = tree_of(ns, b"/d")
    ns.snapshot(b"/d", b"v1")
    ns.rename(b"/d", b"/top/e", parents=True)
    assert tree_of(ns, b"/top/e/.snapshots/v1") == before
    for action in (
        lambda: ns.rmdir(b"/top/e", recursive=True),
        lambda: ns.rmdir(b"/top", recursive=True),
        lambda: ns.trash(b"/top"),
    ):
        assert outcome(action) is NotEmptyError
    ns.remove_snapshot(b"/top/e", b"v1")
    ns.rmdir(b"/top", recursive=True)


def test_content_lives_as_long_as_a_snapshot_has_it(ns: Namespace) -> None:
    ns.write(b"/d/f", 10, parents=True)
    ((blob, _),) = ns.segments(b"/d/f")
    ns.snapshot(b"/d", b"v1")
    ns.snapshot(b"/d", b"v2")
    ns.remove(b"/d/f")
    assert ns.remove_snapshot(b"/d", b"v1") == 2
    ns.transact(lambda tx: storage.schedule_drops(tx, ns.now_ns, 10))
    assert ns.blob_state(blob) is BlobState.LIVE
    ns.remove_snapshot(b"/d", b"v2")
    assert ns.blob_state(blob) is BlobState.DEAD
    assert not ns.exists(b"/d/.snapshots")
    ns.rmdir(b"/d")


def test_a_pinned_snapshot_is_not_removed(ns: Namespace) -> None:
    make_tree(ns)
    for name in (b"v1", b"v10"):
        ns.snapshot(b"/d", name)
    pins = [ns.pin(V1, owner="run 7"), ns.pin(V1 + b"/sub")]
    for pin in pins:
        with pytest.raises(StillNeededError):
            ns.remove_snapshot(b"/d", b"v1")
        ns.unpin(pin.pin)
    ns.pin(b"/d/.snapshots/v10")
    ns.remove_snapshot(b"/d", b"v1")


def test_names_that_snapshots_and_clones_cannot_have(ns: Namespace) -> None:
    make_tree(ns)
    ns.snapshot(b"/d", b"v1")
    session = ns.open_session(b"/reserved", create_mode=CreateMode.EXCLUSIVE)
    refused: dict[type[FFSError], list[Callable[[], Any]]] = {
        ExistsError: [
            lambda: ns.snapshot(b"/d", b"v1"),
            lambda: ns.clone(b"/d", b"/d/a"),
            lambda: ns.clone(b"/d", b"/"),
            lambda: ns.clone(b"/d", b"/reserved"),
        ],
        BadNameError: [lambda: ns.snapshot(b"/d", b""), lambda: ns.snapshot(b"/d", b"a/b")],
        NotFoundError: [
            lambda: ns.snapshot(b"/none", b"v"),
            lambda: ns.clone(b"/none", b"/x"),
            lambda: ns.clone(b"/d", b"/no/x"),
            lambda: ns.remove_snapshot(b"/none", b"v1"),
            lambda: ns.remove_snapshot(b"/d", b"v2"),
            lambda: ns.remove_snapshot(b"/d/sub", b"v1"),
        ],
        DirectoryExpectedError: [
            lambda: ns.snapshot(b"/d/a", b"v"),
            lambda: ns.clone(b"/d/a", b"/x"),
            lambda: ns.remove_snapshot(b"/d/a", b"v1"),
        ],
    }
    for error, actions in refused.items():
        assert [outcome(action) for action in actions] == [error] * len(actions)
    ns.abort(session.session)


def test_reserved_names_and_sessions_are_not_cloned(ns: Namespace) -> None:
    make_tree(ns)
    reserved = ns.open_session(b"/d/new", create_mode=CreateMode.EXCLUSIVE)
    other = ns.open_session(b"/d/a")
    ns.snapshot(b"/d", b"v1")
    before = tree_of(ns, V1)
    assert b"/new" not in before
    ns.publish(reserved, 5)
    ns.publish(other, 6)
    assert tree_of(ns, V1) == before


def test_the_root_has_snapshots_too(ns: Namespace) -> None:
    make_tree(ns)
    ns.snapshot(b"/", b"all")
    assert ns.exists(b"/.snapshots/all/d/sub/b") and b".snapshots" not in ns.names(b"/")
    ns.remove_snapshot(b"/", b"all")


def test_whoever_owns_a_directory_makes_its_snapshots(ns: Namespace) -> None:
    make_tree(ns)
    ns.setattr(b"/d", uid=5, gid=6, mode=0o555)
    before = tree_of(ns, b"/d")
    ns.caller = Caller(9, 9)
    for action in (lambda: ns.snapshot(b"/d", b"v1"), lambda: ns.remove_snapshot(b"/d", b"v1")):
        assert outcome(action) is AccessError
    ns.caller = Caller(5, 6)
    ns.snapshot(b"/d", b"v1")
    ns.caller = Caller(0, 0)
    assert tree_of(ns, V1) == before
    ns.caller = Caller(5, 6)
    ns.remove_snapshot(b"/d", b"v1")


def test_a_user_clones_what_he_may_read_and_owns_it(ns: Namespace) -> None:
    ns.write(b"/d/open", 10, parents=True, mode=0o4644)
    ns.write(b"/d/in/secret", 10, parents=True, mode=0o600)
    ns.mkdir(b"/home", mode=0o777)
    ns.mkdir(b"/closed")
    ns.caller = Caller(5, 6)
    assert outcome(lambda: ns.clone(b"/d", b"/home/x")) is AccessError
    ns.caller = Caller(0, 0)
    ns.setattr(b"/d/in/secret", mode=0o604)
    ns.setattr(b"/d/in", mode=0o700)
    ns.caller = Caller(5, 6)
    assert outcome(lambda: ns.clone(b"/d", b"/home/x")) is AccessError
    ns.caller = Caller(0, 0)
    ns.setattr(b"/d/in", mode=0o755)
    ns.caller = Caller(5, 6)
    assert outcome(lambda: ns.clone(b"/d", b"/closed/x")) is AccessError
    ns.clone(b"/d", b"/home/x")
    found = tree_of(ns, b"/home/x")
    assert {seen.owner for seen in found.values()} == {(5, 6)}
    assert found[b"/open"].mode == 0o644


def test_many_files_take_few_statements(ns: Namespace) -> None:
    ns.mkdir(b"/t/d", parents=True)
    sessions = ns.create(*(b"/t/d/%d" % i for i in range(500)))
    ns.close_sessions(*(CloseEntry(good(s).session, 1) for s in sessions))
    with ns.statements() as cloned:
        assert ns.clone(b"/t", b"/u").files == 500
    with ns.statements() as taken:
        ns.snapshot(b"/t", b"v")
    assert len(cloned) < 35 and len(taken) < 40


def test_clone_inodes_max(ns: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(ns)
    monkeypatch.setattr(cloning, "CLONE_INODES_MAX", 8)
    ns.clone(b"/d", b"/exactly")
    ns.write(b"/d/more", 1)
    before = ns.names(b"/")
    for action in (lambda: ns.clone(b"/d", b"/x"), lambda: ns.snapshot(b"/d", b"v")):
        assert outcome(action) is InvalidError
    assert ns.names(b"/") == before and not ns.exists(b"/d/.snapshots")


# --- against a copy -------------------------------------------------------------------------------

NAMES = st.sampled_from([b"a", b"b", b"c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(lambda names: b"/d/" + b"/".join(names))
STEPS = st.one_of(
    st.tuples(st.just("write"), PATHS, st.integers(0, 50)),
    st.tuples(st.just("append"), PATHS, st.integers(1, 50)),
    st.tuples(st.just("truncate"), PATHS, st.integers(0, 60)),
    st.tuples(st.just("mkdir"), PATHS),
    st.tuples(st.just("remove"), PATHS),
    st.tuples(st.just("rmdir"), PATHS),
    st.tuples(st.just("rename"), PATHS, PATHS),
    st.tuples(st.just("link"), PATHS, PATHS),
    st.tuples(st.just("symlink"), PATHS, PATHS),
    st.tuples(st.just("copy"), PATHS, PATHS),
    st.tuples(st.just("snapshot"), NAMES),
    st.tuples(st.just("remove_snapshot"), NAMES),
)


class Kept:
    """A namespace under random changes, and what each of its snapshots was when it was made."""

    def __init__(self, ns: Namespace) -> None:
        self.ns = ns
        self.kept: dict[bytes, dict[bytes, Seen]] = {}
        ns.mkdir(b"/d")

    def step(self, word: str, *args: Any) -> None:
        """Make one change, as far as it can be made."""
        self.ns.now_ns += 1
        assert outcome(lambda: getattr(self, f"_{word}")(*args)) is not ReadOnlyError

    def _write(self, path: bytes, length: int) -> None:
        self.ns.write(path, length)

    def _append(self, path: bytes, length: int) -> None:
        self.ns.append(path, length)

    def _truncate(self, path: bytes, size: int) -> None:
        self.ns.setattr(path, size=size)

    def _mkdir(self, path: bytes) -> None:
        self.ns.mkdir(path)

    def _remove(self, path: bytes) -> None:
        self.ns.remove(path)

    def _rmdir(self, path: bytes) -> None:
        self.ns.rmdir(path, recursive=True)

    def _rename(self, source: bytes, target: bytes) -> None:
        self.ns.rename(source, target)

    def _link(self, source: bytes, target: bytes) -> None:
        self.ns.link(source, target)

    def _symlink(self, path: bytes, target: bytes) -> None:
        self.ns.symlink(path, target)

    def _copy(self, source: bytes, target: bytes) -> None:
        self.ns.copy(source, target)

    def _snapshot(self, name: bytes) -> None:
        before = tree_of(self.ns, b"/d")
        self.ns.snapshot(b"/d", name)
        self.kept[name] = before

    def _remove_snapshot(self, name: bytes) -> None:
        self.ns.remove_snapshot(b"/d", name)
        del self.kept[name]

    def check(self) -> None:
        """Hold every snapshot against what it must be, and the database against its invariants."""
        for name, before in self.kept.items():
            assert tree_of(self.ns, b"/d/.snapshots/" + name) == before
        self.ns.check()


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(STEPS, min_size=5, max_size=40))
def test_snapshots_stay_whatever_happens(tmp_path: Any, steps: list[tuple[Any, ...]]) -> None:
    directory = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
    directory.mkdir()
    namespace = Namespace(new_database("sqlite", directory))
    kept = Kept(namespace)
    for step in steps:
        kept.step(*step)
    kept.check()
    namespace.close()
