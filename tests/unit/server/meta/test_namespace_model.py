"""Random operations on a namespace and on a simple model of a POSIX tree, compared step by step.

The model knows nothing of SQL: directories are dictionaries, files lists of (blob, length). After
each step the answers agree (value, or class of error), and at the end of each run the whole trees,
the states of all blobs and the database's invariants are compared as well.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ffs.errors import (
    DirectoryExpectedError,
    ExistsError,
    FFSError,
    FileExpectedError,
    InvalidError,
    LeaseExpiredError,
    LoopError,
    NotEmptyError,
    NotFoundError,
)
from ffs.server.meta.schema import BlobState
from ffs.types import ZERO_BLOB, Attr, FileType
from ffs.wire.messages import CloseEntry, CreateEntry, CreateMode, WriteSession
from tests.databases import new_database
from tests.namespace import LEASE_NS, Namespace, kind

# --- the model ------------------------------------------------------------------------------------


@dataclass(eq=False)
class File:
    """Content as (blob, length) pieces, and how often it changed."""

    segments: list[tuple[int, int]] = field(default_factory=list)
    version: int = 1

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(length for _, length in self.segments)


@dataclass(eq=False)
class Directory:
    """Names."""

    names: dict[bytes, File | Directory] = field(default_factory=dict)
    removed: bool = False


@dataclass(eq=False)
class Session:
    """A write in progress: where it will appear."""

    directory: Directory
    name: bytes
    blob: int
    exclusive: bool


class Model:
    """What the namespace should be."""

    def __init__(self) -> None:
        self.root = Directory()
        self.sessions: dict[int, Session] = {}
        self.blobs: set[int] = set()

    def walk(self, path: bytes, *, make: bool = False) -> tuple[Directory, bytes, list[Directory]]:
        """Return the parent of a path, its last name, and the directories on the way."""
        *parents, name = path.split(b"/")[1:]
        trail = [self.root]
        for parent in parents:
            found = trail[-1].names.get(parent)
            if found is None and make:
                if self.is_reserved(trail[-1], parent):
                    raise ExistsError("reserved")
                found = trail[-1].names[parent] = Directory()
            if found is None:
                raise NotFoundError("parent")
            if isinstance(found, File):
                raise DirectoryExpectedError("parent")
            trail.append(found)
        return trail[-1], name, trail

    def find(self, path: bytes) -> File | Directory:
        """Return what a path stands for."""
        if path == b"/":
            return self.root
        directory, name, _ = self.walk(path)
        if name not in directory.names:
            raise NotFoundError("name")
        return directory.names[name]

    def find_directory(self, path: bytes) -> None:
        """Raise unless a path stands for a directory."""
        if isinstance(self.find(path), File):
            raise DirectoryExpectedError("file")

    def is_reserved(self, directory: Directory, name: bytes, but: Session | None = None) -> bool:
        """Whether an exclusive create in progress holds a name."""
        return any(
            s.exclusive and s is not but and s.directory is directory and s.name == name
            for s in self.sessions.values()
        )

    def check_create(self, path: bytes, *, exclusive: bool) -> tuple[Directory, bytes]:
        """Raise what creating would."""
        directory, name, _ = self.walk(path)
        found = directory.names.get(name)
        if (found is not None and exclusive) or self.is_reserved(directory, name):
            raise ExistsError("taken")
        if isinstance(found, Directory):
            raise FileExpectedError("directory")
        return directory, name

    def close(self, number: int, length: int) -> File:
        """Publish a session's blob."""
        session = self.sessions.get(number)
        if session is None:
            raise LeaseExpiredError("unknown")
        if session.directory.removed:
            raise NotFoundError("directory removed")
        if self.is_reserved(session.directory, session.name, but=session):
            raise ExistsError("reserved")
        found = session.directory.names.get(session.name)
        if isinstance(found, Directory):
            raise FileExpectedError("directory")
        if found is None:
            found = session.directory.names[session.name] = File(version=0)
        found.segments = [(session.blob, length)] if length else []
        found.version += 1
        del self.sessions[number]
        return found

    def mkdir(self, path: bytes, *, parents: bool, exist_ok: bool) -> None:
        """Make a directory."""
        directory, name, _ = self.walk(path, make=parents)
        found = directory.names.get(name)
        if found is not None:
            if exist_ok and isinstance(found, Directory):
                return
            raise ExistsError("taken")
        if self.is_reserved(directory, name):
            raise ExistsError("reserved")
        directory.names[name] = Directory()

    def rename(self, source: bytes, target: bytes, *, replace: bool) -> None:
        """Move a name."""
        directory, name, above = self.walk(source)
        if name not in directory.names:
            raise NotFoundError("source")
        moved = directory.names[name]
        goal, goal_name, trail = self.walk(target)
        if moved in trail:
            raise LoopError("into itself")
        found = goal.names.get(goal_name)
        if found is moved:
            return
        if found is not None:
            self._check_replace(moved, found, above, replace=replace)
        elif self.is_reserved(goal, goal_name):
            raise ExistsError("reserved")
        del directory.names[name]
        goal.names[goal_name] = moved
        if isinstance(found, Directory):
            found.removed = True

    @staticmethod
    def _check_replace(
        moved: File | Directory,
        found: File | Directory,
        above: list[Directory],
        *,
        replace: bool,
    ) -> None:
        if not replace:
            raise ExistsError("target")
        if found in above:
            raise NotEmptyError("target")
        if isinstance(found, Directory):
            if isinstance(moved, File):
                raise FileExpectedError("target")
            if found.names:
                raise NotEmptyError("target")
        elif isinstance(moved, Directory):
            raise DirectoryExpectedError("target")

    def remove_many(self, paths: list[bytes]) -> list[object]:
        """Remove files, all paths being resolved before the first goes."""
        outcomes: list[object] = []
        going: list[tuple[Directory, bytes]] = []
        for path in paths:
            expected = outcome(lambda p=path: self._removable(p))
            if isinstance(expected, tuple):
                outcomes.append(NotFoundError if expected in going else None)
                going.append(expected)
            else:
                outcomes.append(expected)
        for directory, name in going:
            directory.names.pop(name, None)
        return outcomes

    def _removable(self, path: bytes) -> tuple[Directory, bytes]:
        directory, name, _ = self.walk(path)
        found = directory.names.get(name)
        if found is None:
            raise NotFoundError("name")
        if isinstance(found, Directory):
            raise FileExpectedError("directory")
        return directory, name

    def rmdir(self, path: bytes, *, recursive: bool) -> int:
        """Remove a directory; return how many names went."""
        found = self.find(path)
        if isinstance(found, File):
            raise DirectoryExpectedError("file")
        if found is self.root:
            raise InvalidError("root")
        if found.names and not recursive:
            raise NotEmptyError("names")
        gone = 1 + sum(1 for _ in everything(found))
        for _, below in [(b"", found), *everything(found)]:
            if isinstance(below, Directory):
                below.removed = True
        directory, name, _ = self.walk(path)
        del directory.names[name]
        return gone

    def resize(self, path: bytes, size: int) -> File:
        """Cut or extend with zeros."""
        file = self.find(path)
        if isinstance(file, Directory):
            raise FileExpectedError("directory")
        kept: list[tuple[int, int]] = []
        for blob, length in file.segments:
            taken = min(length, size - sum(n for _, n in kept))
            if taken:
                kept.append((blob, taken))
        missing = size - sum(n for _, n in kept)
        if missing:
            before = kept.pop()[1] if kept and kept[-1][0] == ZERO_BLOB else 0
            kept.append((ZERO_BLOB, before + missing))
        file.segments = kept
        file.version += 1
        return file

    def copy(self, source: bytes, target: bytes, *, replace: bool) -> File:
        """Share content."""
        file = self.find(source)
        if isinstance(file, Directory):
            raise FileExpectedError("source")
        directory, name, _ = self.walk(target)
        found = directory.names.get(name)
        if isinstance(found, Directory):
            raise FileExpectedError("target")
        if found is None:
            if self.is_reserved(directory, name):
                raise ExistsError("reserved")
            found = directory.names[name] = File(version=0)
        elif not replace:
            raise ExistsError("target")
        elif found is file:
            return file
        found.segments = list(file.segments)
        found.version += 1
        return found

    def live_blobs(self) -> set[int]:
        """Blobs that files refer to."""
        files = (f for _, f in everything(self.root) if isinstance(f, File))
        return {blob for file in files for blob, _ in file.segments} - {ZERO_BLOB}


def everything(directory: Directory, path: bytes = b"") -> Iterator[tuple[bytes, File | Directory]]:
    """(path, what it stands for) of all names below a directory."""
    for name, found in directory.names.items():
        yield path + b"/" + name, found
        if isinstance(found, Directory):
            yield from everything(found, path + b"/" + name)


# --- the comparison -------------------------------------------------------------------------------

NAMES = st.sampled_from([b"a", b"b", b"c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(lambda names: b"/" + b"/".join(names))
SIZES = st.integers(0, 5)
BOOLS = st.booleans()


def outcome(action: Callable[[], object]) -> object:
    """Return an action's value, or the class of its typed error."""
    try:
        return action()
    except FFSError as error:
        return type(error)


class NamespaceMachine(RuleBasedStateMachine):
    """Does everything twice."""

    engine = "sqlite"

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.ns = Namespace(new_database(self.engine, Path(self.directory.name)))
        self.model = Model()

    def teardown(self) -> None:
        """Compare the whole, then clean up."""
        self.compare_trees()
        self.compare_blobs()
        self.ns.check()
        self.ns.close()
        self.directory.cleanup()

    def agree(self, real: Callable[[], object], model: Callable[[], object]) -> None:
        """Run both and compare what came out."""
        expected = outcome(model)
        found = outcome(real)
        if isinstance(expected, File):
            assert isinstance(found, Attr), found
            assert (found.size, found.version) == (expected.size, expected.version)
        elif isinstance(expected, type) or expected is not None:
            assert found == expected
        else:
            assert not isinstance(found, type), found

    # writing

    @rule(path=PATHS, exclusive=BOOLS)
    def create(self, path: bytes, exclusive: bool) -> None:
        """Open a session."""
        mode = CreateMode.EXCLUSIVE if exclusive else CreateMode.REPLACE
        (session,) = self.ns.create(CreateEntry(path, mode))
        expected = outcome(lambda: self.model.check_create(path, exclusive=exclusive))
        if isinstance(expected, tuple):
            assert isinstance(session, WriteSession), session
            assert session.blob not in self.model.blobs
            self.model.blobs.add(session.blob)
            where, name = expected
            self.model.sessions[session.session] = Session(where, name, session.blob, exclusive)
        else:
            assert kind(session) is expected

    @rule(data=st.data(), sizes=st.lists(SIZES, min_size=1, max_size=3))
    def close(self, data: st.DataObject, sizes: list[int]) -> None:
        """Close sessions in one batch, unknown ones among them."""
        numbers = st.sampled_from([*sorted(self.model.sessions), 10_000])
        entries = [CloseEntry(data.draw(numbers), size) for size in sizes]
        closed = self.ns.close_sessions(*entries)
        for entry, attr in zip(entries, closed, strict=True):
            expected = outcome(lambda e=entry: self.model.close(e.session, e.length))
            if isinstance(expected, File):
                assert isinstance(attr, Attr), attr
                assert attr.size == entry.length
            else:
                assert kind(attr) is expected

    @rule(path=PATHS, size=SIZES)
    def write(self, path: bytes, size: int) -> None:
        """Create and close at once."""

        def real() -> object:
            return self.ns.write(path, size)

        def model() -> object:
            where = self.model.check_create(path, exclusive=False)
            number = -1
            blob = self.ns.tx.highest("blob")
            self.model.sessions[number] = Session(*where, blob, False)
            self.model.blobs.add(blob)
            return self.model.close(number, size)

        found = outcome(real)
        self.agree(lambda: found if not isinstance(found, type) else _raise(found), model)

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        """Give up a session."""
        number = data.draw(st.sampled_from([*sorted(self.model.sessions), 10_000]))
        self.ns.abort(number)
        self.model.sessions.pop(number, None)

    @rule()
    def reap(self) -> None:
        """The client was silent for too long."""
        self.ns.now_ns += LEASE_NS + 1
        assert self.ns.reap() == len(self.model.sessions)
        self.model.sessions.clear()

    # names

    @rule(path=PATHS, parents=BOOLS, exist_ok=BOOLS)
    def mkdir(self, path: bytes, parents: bool, exist_ok: bool) -> None:
        """Make a directory; a failed attempt with parents leaves none behind."""
        if parents and isinstance(outcome(lambda: self._dry_mkdir(path)), type):
            parents = False
        self.agree(
            lambda: self.ns.mkdir(path, parents=parents, exist_ok=exist_ok) and None,
            lambda: self.model.mkdir(path, parents=parents, exist_ok=exist_ok),
        )

    def _dry_mkdir(self, path: bytes) -> None:
        """Raise if a parent of `path` cannot be made."""
        directory = self.model.root
        for name in path.split(b"/")[1:]:
            found = directory.names.get(name)
            if found is None and self.model.is_reserved(directory, name):
                raise ExistsError("reserved")
            if not isinstance(found, Directory):
                return
            directory = found

    @rule(source=PATHS, goal=PATHS, replace=BOOLS)
    def rename(self, source: bytes, goal: bytes, replace: bool) -> None:
        """Move."""
        self.agree(
            lambda: self.ns.rename(source, goal, replace=replace),
            lambda: self.model.rename(source, goal, replace=replace),
        )

    @rule(paths=st.lists(PATHS, min_size=1, max_size=4))
    def remove(self, paths: list[bytes]) -> None:
        """Remove a batch; each path on its own."""
        removed = [kind(result) for result in self.ns.remove(*paths)]
        assert removed == self.model.remove_many(paths)

    @rule(path=PATHS, recursive=BOOLS)
    def rmdir(self, path: bytes, recursive: bool) -> None:
        """Remove a directory or a tree."""
        self.agree(
            lambda: self.ns.rmdir(path, recursive=recursive),
            lambda: self.model.rmdir(path, recursive=recursive),
        )

    # content

    @rule(path=PATHS, size=SIZES)
    def resize(self, path: bytes, size: int) -> None:
        """Cut or extend."""
        self.agree(lambda: self.ns.setattr(path, size=size), lambda: self.model.resize(path, size))

    @rule(source=PATHS, goal=PATHS, replace=BOOLS)
    def copy(self, source: bytes, goal: bytes, replace: bool) -> None:
        """Share content."""
        self.agree(
            lambda: self.ns.copy(source, goal, replace=replace),
            lambda: self.model.copy(source, goal, replace=replace),
        )

    # quotas

    @rule(path=PATHS, bounded=BOOLS)
    def set_quota(self, path: bytes, bounded: bool) -> None:
        """Count what is below a directory, or no longer: `check` counts again."""
        most = 1 << 40 if bounded else -1
        self.agree(
            lambda: self.ns.set_quota(path, bytes_max=most) and None,
            lambda: self.model.find_directory(path),
        )

    # looking

    @rule(paths=st.lists(PATHS, min_size=1, max_size=5))
    def stat_and_open(self, paths: list[bytes]) -> None:
        """Look at a batch."""
        opened = self.ns.open_many(*paths)
        for path, attr, file in zip(paths, self.ns.stat_many(*paths), opened, strict=True):
            expected = outcome(lambda p=path: self.model.find(p))
            if isinstance(expected, File):
                assert isinstance(attr, Attr) and not kind(file)
                assert (attr.type, attr.size) == (FileType.FILE, expected.size)
                assert self.ns.segments(path) == expected.segments
            elif isinstance(expected, Directory):
                assert isinstance(attr, Attr) and attr.type == FileType.DIRECTORY
                assert kind(file) is FileExpectedError
            else:
                assert kind(attr) is kind(file) is expected

    @invariant()
    def names_of_the_root_agree(self) -> None:
        """A cheap look after each step."""
        assert self.ns.names(b"/") == sorted(self.model.root.names)

    def compare_trees(self) -> None:
        """Every name, size, content and link count."""
        expected = dict(everything(self.model.root))
        found: dict[bytes, Attr] = {}
        pending = [b""]
        while pending:
            path = pending.pop()
            for entry in self.ns.list(path or b"/", limit=4_096).entries:
                below = path + b"/" + entry.name
                found[below] = entry.attr
                if entry.attr.type == FileType.DIRECTORY:
                    pending.append(below)
        assert found.keys() == expected.keys()
        for path, what in expected.items():
            if isinstance(what, File):
                assert (found[path].size, found[path].nlink) == (what.size, 1)
                assert self.ns.segments(path) == what.segments
            else:
                inner = sum(isinstance(below, Directory) for below in what.names.values())
                assert found[path].nlink == 2 + inner

    def compare_blobs(self) -> None:
        """Every blob ever made is live, being written, or dead."""
        writing = {session.blob for session in self.model.sessions.values()}
        live = self.model.live_blobs()
        for blob in self.model.blobs:
            wanted = (
                BlobState.WRITING
                if blob in writing
                else BlobState.LIVE
                if blob in live
                else BlobState.DEAD
            )
            assert self.ns.blob_state(blob) is wanted


def _raise(error: type[FFSError]) -> object:
    raise error("seen before")


class PostgresMachine(NamespaceMachine):
    """Does everything twice, on the shared engine."""

    engine = "postgres"


def _settings(max_examples: int) -> settings:
    return settings(
        max_examples=max_examples,
        stateful_step_count=40,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


TestNamespaceModel = NamespaceMachine.TestCase
TestNamespaceModel.settings = _settings(100)
TestNamespaceModelOnPostgres = PostgresMachine.TestCase
TestNamespaceModelOnPostgres.settings = _settings(40)
