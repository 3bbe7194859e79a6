"""`ffs-bench snapshot`: files a second of snapshots, beside bare INSERT ... SELECT on both engines.

A directory of 20,000 files in 200 directories, each file with content of its own. One run makes one
snapshot; removing it again is not timed. The reference has the same rows in the same four tables
and copies them by an INSERT ... SELECT each, in one transaction that is synced, with new ids by
adding to the old ones: it walks no tree, asks for no permission and holds nothing, so it is the
least that copying these rows costs.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Final, Protocol

from ffs.bench import postgres
from ffs.bench.cases.common import Context, Outcome, figures, runs, take_turns
from ffs.bench.cluster import Servers, servers
from ffs.bench.machine import pinned, process_cpu_seconds
from ffs.bench.measure import Runner, Sample, by_operations
from ffs.client.core import Core
from ffs.client.meta import MetaClient
from ffs.client.options import client_config
from ffs.errors import FFSError
from ffs.wire.messages import CloseEntry, CreateEntry, WriteSession

GOAL: Final = 20_000
LIMIT_GOAL: Final = 0.5
FILES_PER_DIRECTORY: Final = 100
_OURS, _BARE = "snapshot", "bare INSERT ... SELECT"
_SCHEMA: Final = (
    """
    CREATE TABLE inodes (inode {key} PRIMARY KEY, type {number}, mode {number}, uid {number},
    gid {number}, nlink {number}, size {number}, version {number}, atime_ns {number},
    mtime_ns {number}, ctime_ns {number})""",
    """
    CREATE TABLE dentries (parent {number}, name {octets}, inode {number}, type {number},
    PRIMARY KEY (parent, name)) {clustered}""",
    "CREATE TABLE blobs (blob {key} PRIMARY KEY, state {number}, refs {number}, length {number})",
    """
    CREATE TABLE segments (inode {number}, place {number}, blob {number}, length {number},
    PRIMARY KEY (inode, place)) {clustered}""",
)
_SQLITE: Final = {"key": "INTEGER", "number": "INTEGER", "octets": "BLOB"}
_POSTGRES: Final = {"key": "BIGINT", "number": "BIGINT", "octets": "BYTEA", "clustered": ""}
_COPY: Final = (
    """
    INSERT INTO inodes SELECT inode + {more}, type, mode, uid, gid, nlink, size, version,
    atime_ns, mtime_ns, 1 FROM inodes WHERE inode BETWEEN 1 AND {last}""",
    """
    INSERT INTO dentries SELECT parent + {more}, name, inode + {more}, type FROM dentries
    WHERE parent BETWEEN 1 AND {last}""",
    """
    INSERT INTO segments SELECT inode + {more}, place, blob, length FROM segments
    WHERE inode BETWEEN 1 AND {last}""",
    "UPDATE blobs SET refs = refs + 1 WHERE blob BETWEEN 1 AND {last}",
)
_UNDO: Final = (
    "DELETE FROM inodes WHERE inode > {last}",
    "DELETE FROM dentries WHERE parent > {last}",
    "DELETE FROM segments WHERE inode > {last}",
    "UPDATE blobs SET refs = refs - 1 WHERE blob BETWEEN 1 AND {last}",
)


class Bare(Protocol):
    """A reference database."""

    def run(self, statements: Sequence[str]) -> None:
        """Run statements in one transaction, synced."""
        ...

    def insert(self, table: str, rows: Sequence[tuple[object, ...]]) -> None:
        """Enter rows."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class BareSqlite:
    """SQLite in this process, as durable as ours."""

    def __init__(self, path: str) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "cache_size=-65536"):
            self._db.execute(f"PRAGMA {pragma}")
        self.run([text.format(**_SQLITE, clustered="WITHOUT ROWID") for text in _SCHEMA])

    def run(self, statements: Sequence[str]) -> None:
        """See `Bare.run`."""
        self._db.execute("BEGIN IMMEDIATE")
        for statement in statements:
            self._db.execute(statement)
        self._db.execute("COMMIT")

    def insert(self, table: str, rows: Sequence[tuple[object, ...]]) -> None:
        """See `Bare.insert`."""
        self._db.execute("BEGIN IMMEDIATE")
        places = ",".join("?" * len(rows[0]))
        self._db.executemany(f"INSERT INTO {table} VALUES ({places})", rows)
        self._db.execute("COMMIT")

    def close(self) -> None:
        """See `Bare.close`."""
        self._db.close()


class BarePostgres:
    """PostgreSQL by asyncpg, on one connection over the loopback."""

    def __init__(self, url: str) -> None:
        import asyncpg
        import uvloop

        self._loop = uvloop.new_event_loop()
        self._db: Any = self._loop.run_until_complete(asyncpg.connect(url))
        self.run([text.format(**_POSTGRES) for text in _SCHEMA])

    def run(self, statements: Sequence[str]) -> None:
        """See `Bare.run`."""
        text = ";".join(["BEGIN", *statements, "COMMIT"])
        self._loop.run_until_complete(self._db.execute(text))

    def insert(self, table: str, rows: Sequence[tuple[object, ...]]) -> None:
        """See `Bare.insert`."""
        self._loop.run_until_complete(self._db.copy_records_to_table(table, records=rows))

    def close(self) -> None:
        """See `Bare.close`."""
        self._loop.run_until_complete(self._db.close())
        self._loop.close()


class Side:
    """One engine: our cluster on it, and its reference."""

    def __init__(
        self,
        engine: str,
        where: Servers,
        client: MetaClient,
        bare: Bare,
        database_cpu: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.engine, self.where, self.client, self.bare = engine, where, client, bare
        self._database_cpu = database_cpu

    def name(self, what: str) -> str:
        """Name a contestant."""
        return f"{self.engine}: {what}"

    def timed(self, files: int, make: Callable[[], None], undo: Callable[[], None]) -> Runner:
        """Return a contestant that makes one snapshot a run, and charges all that serve it."""

        def run(seconds: float) -> Sample:
            server = process_cpu_seconds(self.where.pids or ()) + self._database_cpu()
            client, start = time.process_time(), time.perf_counter()
            make()
            passed = time.perf_counter() - start
            client = time.process_time() - client
            server = process_cpu_seconds(self.where.pids or ()) + self._database_cpu() - server
            undo()
            return Sample(passed, 0, files, client, server)

        return run


def measure(context: Context) -> Outcome:
    """Build the same tree on all sides, then let the contestants take turns."""
    directories = 2 if context.plan.smoke else 200
    files = directories * FILES_PER_DIRECTORY
    with ExitStack() as stack:
        sides = _sides(stack, context)
        contestants: dict[str, Runner] = {}
        for side in sides:
            contestants |= _contestants(stack, side, directories)
        series = take_turns(context, contestants)
    comparisons = []
    for side in sides:
        ours, bare = side.name(_OURS), side.name(_BARE)
        comparisons.append(series.reach(f"{ours}, files/s", ours, by_operations, GOAL))
        comparisons.append(
            series.compare(f"{ours} / {bare}", ours, bare, by_operations, goal=LIMIT_GOAL)
        )
    return Outcome(
        command="snapshot",
        conditions=context.conditions(
            tree=f"{files} files with content, {FILES_PER_DIRECTORY} a directory",
            durability="every commit synced, on both sides",
        ),
        figures=figures(series, list(contestants)),
        comparisons=comparisons,
        runs=runs(series),
        notes=[*sides[0].where.notes, *_notes(sides)],
    )


def _notes(sides: Sequence[Side]) -> list[str]:
    if len(sides) > 1:
        return []
    return ["PostgreSQL is not installed, or a running cluster is measured: SQLite alone"]


def _sides(stack: ExitStack, context: Context) -> list[Side]:
    """Start what is measured: SQLite always, PostgreSQL where it is installed."""
    where = stack.enter_context(servers(context))
    bare = BareSqlite(str(context.directory / "bare.sqlite"))
    stack.callback(bare.close)
    sides = [Side("SQLite", where, _client(stack, where), bare)]
    binaries = postgres.installed()
    if binaries is None or context.url:
        return sides
    with pinned({context.placement.server_cpu}):
        database = stack.enter_context(postgres.running(context.directory, binaries))
    settings = {"meta.database": database.create("ours")}
    where = stack.enter_context(servers(context, settings=settings, name="shared"))
    reference = BarePostgres(database.create("bare"))
    stack.callback(reference.close)
    client = _client(stack, where)
    return [*sides, Side("PostgreSQL", where, client, reference, database.cpu_seconds)]


def _client(stack: ExitStack, where: Servers) -> MetaClient:
    core = Core(client_config({**where.options, "attr_ttl_ms": 0}))
    stack.callback(core.close)
    return core.meta


def _contestants(stack: ExitStack, side: Side, directories: int) -> dict[str, Runner]:
    top = f"/ffs-bench-snapshot-{os.getpid()}"
    _build(side.client, top, directories)
    stack.callback(side.client.rmdir, top, recursive=True)
    files = directories * FILES_PER_DIRECTORY
    last = _build_bare(side.bare, directories)
    numbers = itertools.count()
    name = ""

    def snapshot() -> None:
        nonlocal name
        name = f"v{next(numbers)}"
        made = side.client.snapshot(top, name)
        assert made.files == files

    def remove() -> None:
        side.client.remove_snapshot(top, name)

    copy = [text.format(more=last, last=last) for text in _COPY]
    undo = [text.format(last=last) for text in _UNDO]
    return {
        side.name(_OURS): side.timed(files, snapshot, remove),
        side.name(_BARE): side.timed(
            files, lambda: side.bare.run(copy), lambda: side.bare.run(undo)
        ),
    }


def _build(client: MetaClient, top: str, directories: int) -> None:
    """Make the tree. What the files hold is never read: their chunks need not be stored."""
    for number in range(directories):
        inside = f"{top}/d{number:03}"
        client.mkdir(inside, mode=0o755, parents=True, exist_ok=False)
        entries = [
            CreateEntry(os.fsencode(f"{inside}/f{i:03}")) for i in range(FILES_PER_DIRECTORY)
        ]
        for opened in client.create_each([entries]):
            sessions = [one for one in opened if isinstance(one, WriteSession)]
            closing = [CloseEntry(one.session, 4_096) for one in sessions]
            for closed in client.close_each([([os.fsdecode(e.path) for e in entries], closing)]):
                assert not any(isinstance(one, FFSError) for one in closed)


def _build_bare(bare: Bare, directories: int) -> int:
    """Enter the same rows; return the highest id."""
    inodes: list[tuple[object, ...]] = [(1, 2, 493, 0, 0, 2 + directories, 0, 1, 1, 1, 1)]
    dentries: list[tuple[object, ...]] = []
    inode = 1
    contents: list[int] = []
    for number in range(directories):
        inode += 1
        directory = inode
        inodes.append((directory, 2, 493, 0, 0, 2, 0, 1, 1, 1, 1))
        dentries.append((1, b"d%03d" % number, directory, 2))
        for place in range(FILES_PER_DIRECTORY):
            inode += 1
            inodes.append((inode, 1, 420, 0, 0, 1, 4_096, 1, 1, 1, 1))
            dentries.append((directory, b"f%03d" % place, inode, 1))
            contents.append(inode)
    bare.insert("inodes", inodes)
    bare.insert("dentries", dentries)
    bare.insert("blobs", [(inode, 2, 1, 4_096) for inode in contents])
    bare.insert("segments", [(inode, 0, inode, 4_096) for inode in contents])
    return inode
