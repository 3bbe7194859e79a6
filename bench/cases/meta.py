"""`ffs-bench meta`: rates of batched metadata operations, beside bare loops on the same engine.

stat_many: random paths of depth 4, nothing remembered by the client. create_many: files, each
opened for writing and closed (two calls, both durable when answered). Both once with 1,000 entries
and one call at a time, and once with a long list, which the client sends as several requests: then
it encodes and decodes while the server works, and closes files of one batch while others are made.
The reference, `bare_sqlite` or `bare_postgres`, changes the same rows in the same transactions and
keeps its database on the same disk; it pays for no process of ours, no network to it and no
repeated request, so the ratio says what those cost together. PostgreSQL, where it is installed, is
started for the case, on the servers' CPU. There a second pair writes to one directory from four
processes at once and from one: what a file costs servers and database must stay the same.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Protocol, Self, TypeVar

import numpy as np

from ffs.bench import postgres
from ffs.bench.cases.bare_sqlite import BareSqlite
from ffs.bench.cases.common import SEED, Context, Outcome, figures, runs, take_turns
from ffs.bench.cluster import Servers, Work, metered, servers
from ffs.bench.machine import pinned
from ffs.bench.measure import Comparison, Runner, Sample, Series, by_operations
from ffs.bench.postgres import Database
from ffs.client.core import Core
from ffs.client.meta import MetaClient
from ffs.client.options import client_config
from ffs.client.paths import BATCH_ENTRIES, batches
from ffs.errors import FFSError
from ffs.wire.messages import CloseEntry, CreateEntry, WriteSession

T = TypeVar("T")

CALL_PATHS = 1_000
LIST_PATHS = 4 * BATCH_ENTRIES
"""What the client cuts into four calls."""
STAT_GOAL = 50_000
CREATE_GOAL = 10_000

SHARE_GOAL = 0.5
_STAT, _BARE_STAT = "stat_many", "bare, same paths"
_CREATE, _BARE_WRITE = "create_many + close_many", "bare, same rows"
_STATS, _CREATES = f"{_STAT}, long lists", f"{_CREATE}, long lists"
_BARE_CREATE = "bare, two rows a file"
_ONE, _FOUR = "one writer of a directory", "four writers of it"
WRITERS = 4
WRITERS_GOAL = 0.8


class Bare(Protocol):
    """A reference: the least SQL that could."""

    def make_directories(self, paths: Sequence[bytes]) -> None:
        """Make directories, each path after its parent."""
        ...

    def create_many(self, directory: bytes, names: Sequence[bytes]) -> None:
        """Make empty files: two rows each, one commit."""
        ...

    def write_many(self, directory: bytes, names: Sequence[bytes]) -> None:
        """Make files by way of blobs and sessions: six changes of rows each, two commits."""
        ...

    def stat_many(self, paths: Sequence[bytes]) -> list[tuple[int, ...]]:
        """Return (place, attributes ...) of each path."""
        ...


@dataclass(frozen=True, slots=True)
class Side:
    """One engine: our cluster on it, and its reference."""

    engine: str
    where: Servers
    bare: Bare
    client: MetaClient
    database: Database | None = None

    def ours(self, work: Work) -> Runner:
        """Charge our servers, and the database's."""
        more = self.database.cpu_seconds if self.database else lambda: 0.0
        return metered(work, self.where.pids, more)

    def reference(self, work: Work) -> Runner:
        """Charge this process, and the database's."""
        return metered(work, (), self.database.cpu_seconds if self.database else lambda: 0.0)

    def name(self, what: str) -> str:
        """Name a contestant."""
        return f"{self.engine}: {what}"


class Tree:
    """The namespace that both sides get: /ROOT/d?/e?/f???, so a file's path has depth 4."""

    def __init__(self, root: str, *, smoke: bool) -> None:
        directories, files = (2, 50) if smoke else (10, 100)
        self.root = f"/{root}"
        self.outer = [f"{self.root}/d{i:02}" for i in range(directories)]
        self.inner = [f"{outer}/e{i:02}" for outer in self.outer for i in range(directories)]
        self.names = [f"f{i:03}" for i in range(files)]
        self.files = [f"{inner}/{name}" for inner in self.inner for name in self.names]

    def calls(self, count: int = 64) -> list[list[str]]:
        """Return reproducible batches of random paths."""
        picks = np.random.default_rng(SEED).integers(0, len(self.files), (count, CALL_PATHS))
        return [[self.files[i] for i in row] for row in picks.tolist()]


def measure(context: Context) -> Outcome:
    """Build the same tree on all sides, then let the contestants take turns."""
    tree = Tree(f"ffs-bench-{os.getpid()}", smoke=context.plan.smoke)
    with ExitStack() as stack:
        sides = _sides(stack, context)
        contestants: dict[str, Runner] = {}
        for side in sides:
            _build(side.client, side.bare, tree)
            stack.callback(side.client.rmdir, tree.root, recursive=True)
            contestants |= _contestants(stack, side, tree)
        series = take_turns(context, contestants)
    return Outcome(
        command="meta",
        conditions=context.conditions(
            call=f"{CALL_PATHS} entries, one call at a time; long lists: {LIST_PATHS}, cut in four",
            tree=f"{len(tree.files)} files in {len(tree.inner)} directories, depth 4",
            durability="every commit synced, on both sides",
        ),
        figures=figures(series, list(contestants)),
        comparisons=[one for side in sides for one in _comparisons(series, side)],
        runs=runs(series),
        notes=[*sides[0].where.notes, *_notes(sides)],
    )


def _sides(stack: ExitStack, context: Context) -> list[Side]:
    """Start what is measured: SQLite always, PostgreSQL where it is installed."""
    where = stack.enter_context(servers(context))
    bare = stack.enter_context(BareSqlite(context.directory / "bare.sqlite"))
    sides = [Side("SQLite", where, bare, _client(stack, where))]
    binaries = postgres.installed()
    if binaries is None or context.url:
        return sides
    from ffs.bench.cases.bare_postgres import BarePostgres

    with pinned({context.placement.server_cpu}):
        database = stack.enter_context(postgres.running(context.directory, binaries))
    settings = {"meta.database": database.create("ours")}
    where = stack.enter_context(servers(context, settings=settings, name="shared"))
    reference = stack.enter_context(BarePostgres(database.create("bare")))
    return [*sides, Side("PostgreSQL", where, reference, _client(stack, where), database)]


def _client(stack: ExitStack, where: Servers) -> MetaClient:
    core = Core(client_config({**where.options, "attr_ttl_ms": 0}))
    stack.callback(core.close)
    return core.meta


def _contestants(stack: ExitStack, side: Side, tree: Tree) -> dict[str, Runner]:
    found = {
        side.name(_STAT): side.ours(_stat(side.client, tree, CALL_PATHS)),
        side.name(_STATS): side.ours(_stat(side.client, tree, LIST_PATHS)),
        side.name(_BARE_STAT): side.reference(_bare_stat(side.bare, tree)),
        side.name(_CREATE): side.ours(_create(side.client, tree, CALL_PATHS)),
        side.name(_CREATES): side.ours(_create(side.client, tree, LIST_PATHS)),
        side.name(_BARE_WRITE): side.reference(_bare_create(side.bare.write_many, tree)),
        side.name(_BARE_CREATE): side.reference(_bare_create(side.bare.create_many, tree)),
    }
    if side.database is not None:
        for count, name in ((1, _ONE), (WRITERS, _FOUR)):
            writers = stack.enter_context(Writers(count, side.where.options, tree.outer[1]))
            found[side.name(name)] = side.ours(writers.work)
    return found


def _comparisons(series: Series, side: Side) -> list[Comparison]:
    def compare(ours: str, reference: str, goal: float | None = None) -> Comparison:
        names = side.name(ours), side.name(reference)
        return series.compare(f"{names[0]} / {reference}", *names, by_operations, goal=goal)

    found = [
        compare(_STATS, _BARE_STAT, SHARE_GOAL),
        compare(_CREATES, _BARE_WRITE, SHARE_GOAL),
        compare(_STAT, _BARE_STAT),
        compare(_CREATE, _BARE_WRITE),
        compare(_CREATE, _BARE_CREATE),
    ]
    if side.database is None:
        for name, goal in ((_STAT, STAT_GOAL), (_CREATE, CREATE_GOAL)):
            title = f"{name}, /s of {goal:,}"
            found.append(series.reach(title, side.name(name), by_operations, goal))
        return found
    four, one = side.name(_FOUR), side.name(_ONE)
    return [
        *found,
        series.compare(f"{four} / one, per second", four, one, by_operations, goal=WRITERS_GOAL),
        series.compare(f"{four} / one, per CPU-s", four, one, per_server_cpu, goal=WRITERS_GOAL),
    ]


def per_server_cpu(sample: Sample) -> float:
    """Operations for each CPU second of servers and database."""
    return sample.operations / (sample.server_cpu_s or 1e-9)


def _notes(sides: Sequence[Side]) -> list[str]:
    if len(sides) > 1:
        return []
    return ["PostgreSQL is not installed, or a running cluster is measured: SQLite alone"]


def _build(client: MetaClient, bare: Bare, tree: Tree) -> None:
    """Make the tree on both sides and compare what both then say about it."""
    for directory in (tree.root, *tree.outer, *tree.inner):
        client.mkdir(directory, mode=0o755, parents=True, exist_ok=False)
    _make_files(client, tree.files, CALL_PATHS)
    bare.make_directories([p.encode() for p in (tree.root, *tree.outer, *tree.inner)])
    for inner in tree.inner:
        bare.create_many(inner.encode(), [name.encode() for name in tree.names])
    part = tree.calls(1)[0]
    ours = _checked(client.stat_many(part))
    theirs = bare.stat_many([path.encode() for path in part])
    assert [attr.size for attr in ours] == [row[7] for row in theirs]
    assert len({attr.inode for attr in ours}) == len({row[1] for row in theirs}) == len(set(part))


def _checked(answers: Sequence[T | FFSError]) -> list[T]:
    good = [answer for answer in answers if not isinstance(answer, FFSError)]
    if len(good) != len(answers):
        raise next(answer for answer in answers if isinstance(answer, FFSError))
    return good


def _make_files(client: MetaClient, paths: Sequence[str], at_once: int) -> None:
    """Make files, `at_once` by a list; of a longer one each batch is closed while others are made,
    as `ffs.client.bulk` does it."""
    for start in range(0, len(paths), at_once):
        parts = batches(paths[start : start + at_once])
        creations = ([CreateEntry(os.fsencode(path)) for path in part] for part in parts)
        opened = zip(parts, client.create_each(creations), strict=True)
        for closed in client.close_each((part, _closes(one)) for part, one in opened):
            _checked(closed)


def _closes(opened: Sequence[WriteSession | FFSError]) -> list[CloseEntry]:
    sessions: list[WriteSession] = _checked(opened)
    return [CloseEntry(session.session, 0) for session in sessions]


def _stat(client: MetaClient, tree: Tree, at_once: int) -> Work:
    paths = [path for call in tree.calls() for path in call]
    batches = itertools.cycle([paths[i : i + at_once] for i in range(0, len(paths), at_once)])

    def work(until: float) -> tuple[int, int, dict[str, float]]:
        done = 0
        while time.perf_counter() < until:
            answers = client.stat_many(next(batches))
            assert not isinstance(answers[0], FFSError)
            done += len(answers)
        return 0, done, {}

    return work


def _bare_stat(bare: Bare, tree: Tree) -> Work:
    batches = itertools.cycle([[path.encode() for path in call] for call in tree.calls()])

    def work(until: float) -> tuple[int, int, dict[str, float]]:
        done = 0
        while time.perf_counter() < until:
            done += len(bare.stat_many(next(batches)))
        return 0, done, {}

    return work


def _create(client: MetaClient, tree: Tree, at_once: int) -> Work:
    numbers = itertools.count()
    prefix = f"{tree.outer[0]}/n{at_once}"

    def work(until: float) -> tuple[int, int, dict[str, float]]:
        done = 0
        while time.perf_counter() < until:
            number = next(numbers)
            _make_files(client, [f"{prefix}-{number}-{i}" for i in range(at_once)], at_once)
            done += at_once
        return 0, done, {}

    return work


def _bare_create(make: Callable[[bytes, Sequence[bytes]], None], tree: Tree) -> Work:
    numbers = itertools.count()
    directory = tree.outer[0].encode()
    tag = make.__name__.encode()

    def work(until: float) -> tuple[int, int, dict[str, float]]:
        done = 0
        while time.perf_counter() < until:
            number = next(numbers)
            make(directory, [b"%s%d-%d" % (tag, number, i) for i in range(CALL_PATHS)])
            done += CALL_PATHS
        return 0, done, {}

    return work


# --- several writers of one directory -------------------------------------------------------------


class Writers:
    """Processes that make files in one directory, all while `work` runs.

    A refused entry or a failed call ends the measurement: writers must not be told of each other.
    """

    def __init__(self, count: int, options: Mapping[str, str], directory: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection[float | None, int]] = []
        self._processes = []
        for number in range(count):
            ours, theirs = context.Pipe()
            name = f"{directory}/w{count}-{number}"
            process = context.Process(target=_write, args=(theirs, dict(options), name))
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            with contextlib.suppress(OSError):
                pipe.send(None)
            process.join()

    def work(self, until: float) -> tuple[int, int, dict[str, float]]:
        """Let all of them write until a time of time.perf_counter(), which they share."""
        for pipe in self._pipes:
            pipe.send(until)
        return 0, sum(pipe.recv() for pipe in self._pipes), {}


def _write(pipe: Connection[int, float | None], options: dict[str, str], prefix: str) -> None:
    """Make files whenever told to, and tell how many; a process of its own."""
    numbers = itertools.count()
    with contextlib.closing(Core(client_config({**options, "attr_ttl_ms": 0}))) as core:
        while (until := pipe.recv()) is not None:
            done = 0
            while time.perf_counter() < until:
                number = next(numbers)
                _make_files(
                    core.meta, [f"{prefix}-{number}-{i}" for i in range(CALL_PATHS)], CALL_PATHS
                )
                done += CALL_PATHS
            pipe.send(done)
