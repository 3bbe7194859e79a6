"""The embedded engine: one SQLite file, one server, one writer thread, a few reader threads.

Previous hop: `service`, through `store.Store`. Next hop: the file `DIR/meta.sqlite`; the writing
thread itself is in `commit`.

Some facts about SQLite in WAL mode that this relies on: readers see the snapshot of their first
statement and never block the writer; with `synchronous=FULL` a commit returns after the log was
synced; a failed statement leaves the transaction open unless the error was I/O or a full disk; log
frames carry checksums, so a torn commit at power loss is absent as a whole. Memory-mapped reads are
off: a disk error would be a signal and not an error code.
Invariant: exactly one process has the database open, by a lock file that the kernel releases when
the process ends. Failure: an I/O or corruption error ends the process (see `commit.Fatal`); a full
disk fails the mutations of that commit with `NoSpaceError` and leaves the server reading.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import chain, compress, count
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

from ffs.errors import ConfigError, FFSError, FormatError, LockedError, NoSpaceError
from ffs.seams import Clock, SystemClock
from ffs.server.meta.commit import (
    LOG_BYTES_MAX,
    CommitThread,
    Fatal,
    exit_process,
    is_full,
    why_fatal,
)
from ffs.server.meta.jobs import Job, Outcome, deliver
from ffs.server.meta.readings import Readings
from ffs.server.meta.schema import SQLITE, ensure_schema, scratch_statements
from ffs.server.meta.store import Row, T, Transaction, varying

DATABASE_NAME: Final = "meta.sqlite"
LOG_FILE_NAME: Final = DATABASE_NAME + "-wal"
LOCK_NAME: Final = "meta.lock"

_KEYS_PER_STATEMENT_MAX: Final = 4_096
"""Times at most seven columns stays below SQLite's 32,766 parameters."""

_ROWS_PER_STATEMENT: Final = (256, 16, 1)
"""How many rows are entered at once: few sizes, so that few statements serve batches of any."""

_LOCKS: Final = re.compile(
    r"\s+FOR (?:NO KEY UPDATE|KEY SHARE|UPDATE|SHARE)(?: OF \w+)?(?: SKIP LOCKED)?"
)

_PRAGMAS: Final = (
    # Page 4 KiB: the file system's own; random inserts dirty less log than with larger ones.
    "PRAGMA page_size=4096",
    # No auto-vacuum: free pages are used again at once, and pointer pages would cost each write.
    "PRAGMA auto_vacuum=NONE",
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    # A checkpoint syncs the database file: once per 16 MiB of log, not per 4 MiB.
    "PRAGMA wal_autocheckpoint=4096",
    f"PRAGMA journal_size_limit={LOG_BYTES_MAX}",
    "PRAGMA cache_size=-65536",
    "PRAGMA temp_store=MEMORY",
    "PRAGMA mmap_size=0",
    "PRAGMA cell_size_check=ON",
    "PRAGMA busy_timeout=10000",
)


@cache
def without_locks(sql: str) -> str:
    """Return a statement without PostgreSQL's row locks, which one writer does not need."""
    return _LOCKS.sub("", sql)


@cache
def _insert_text(
    table: str, columns: tuple[str, ...], varies: tuple[bool, ...], rows: int, conflict: str
) -> str:
    """Return the statement that enters `rows` rows.

    Its parameters are the columns that have one value, then the others, column by column.
    """
    numbers, same = count(1), count(1)
    fields = ", ".join(
        f"v.column{next(numbers)}" if differs else f"?{next(same)}" for differs in varies
    )
    starts = range(len(varies) - sum(varies) + 1, len(varies) * rows + 1, rows)[: sum(varies)]
    values = ",".join(f"({','.join(f'?{start + row}' for start in starts)})" for row in range(rows))
    # Without a WHERE the parser would take ON for that of a join.
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) SELECT {fields}"
        f" FROM (VALUES {values}) AS v WHERE true"
        + (f" ON CONFLICT {conflict}" if conflict else "")
    )


class SqliteTransaction:
    """`store.Transaction` over one connection.

    Threads: used by the thread that owns the connection. Copies: parameters and rows are bound by
    the sqlite3 module, without text.
    """

    __slots__ = ("_connection", "_execute", "_texts")

    shared = False

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._execute = connection.execute
        self._texts: dict[tuple[str, int, int], str] = {}

    def rows(self, sql: str, params: Sequence[object] = ()) -> list[Row]:
        """See `Transaction.rows`."""
        return self._execute(without_locks(sql), params).fetchall()

    def row(self, sql: str, params: Sequence[object] = ()) -> Row | None:
        """See `Transaction.row`."""
        found: Row | None = self._execute(without_locks(sql), params).fetchone()
        return found

    def rows_for(
        self, sql: str, keys: Sequence[Sequence[object]], after: Sequence[object] = ()
    ) -> list[Row]:
        """See `Transaction.rows_for`."""
        found: list[Row] = []
        for text, params in self._parts(sql, keys, after):
            found += self._execute(text, params).fetchall()
        return found

    def run(self, sql: str, params: Sequence[object] = ()) -> int:
        """See `Transaction.run`."""
        before = self._connection.total_changes
        self._execute(without_locks(sql), params)
        return self._connection.total_changes - before

    def run_for(
        self, sql: str, keys: Sequence[Sequence[object]], after: Sequence[object] = ()
    ) -> int:
        """See `Transaction.run_for`."""
        # Not the cursor's count: that knows nothing of statements that begin with WITH.
        before = self._connection.total_changes
        for text, params in self._parts(sql, keys, after):
            self._execute(text, params)
        return self._connection.total_changes - before

    def insert(
        self,
        table: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        *,
        conflict: str = "",
    ) -> int:
        """See `Transaction.insert`."""
        return self.insert_columns(table, columns, list(zip(*rows, strict=True)), conflict=conflict)

    def insert_columns(
        self,
        table: str,
        columns: Sequence[str],
        values: Sequence[Sequence[object]],
        *,
        conflict: str = "",
    ) -> int:
        """See `Transaction.insert_columns`."""
        if not values or not values[0]:
            return 0
        before, rows = self._connection.total_changes, len(values[0])
        varies = varying(values)
        shape = tuple(varies)
        same = [column[0] for column, differs in zip(values, varies, strict=True) if not differs]
        different = list(compress(values, varies))
        start = 0
        for size in _ROWS_PER_STATEMENT:
            while rows - start >= size:
                text = _insert_text(table, tuple(columns), shape, size, conflict)
                parts = [column[start : start + size] for column in different]
                self._execute(text, [*same, *chain.from_iterable(parts)])
                start += size
        return self._connection.total_changes - before

    def allocate(self, counter: str, count: int) -> range:
        """See `Transaction.allocate`."""
        row = self.row(
            "UPDATE counters SET value = value + ? WHERE name = ? RETURNING value",
            (count, counter),
        )
        assert row is not None, f"counter {counter} is missing"
        after = int(row[0])
        return range(after - count + 1, after + 1)

    def highest(self, counter: str) -> int:
        """See `Transaction.highest`."""
        row = self.row("SELECT value FROM counters WHERE name = ?", (counter,))
        assert row is not None, f"counter {counter} is missing"
        return int(row[0])

    def pass_id(self, counter: str, value: int) -> None:
        """See `Transaction.pass_id`."""
        self._execute(
            "UPDATE counters SET value = ? WHERE name = ? AND value < ?", (value, counter, value)
        )

    def lock(self, name: str) -> None:
        """See `Transaction.lock`: there is one writer."""

    def try_lock(self, name: str) -> bool:
        """See `Transaction.try_lock`: there is one writer."""
        return True

    def _parts(
        self, sql: str, keys: Sequence[Sequence[object]], after: Sequence[object]
    ) -> Iterator[tuple[str, list[object]]]:
        """Yield (text, parameters) for as many keys as one statement takes.

        The keys are padded with NULL rows, which join nothing, up to a power of two: so a few
        prepared statements serve batches of any size.
        """
        for start in range(0, len(keys), _KEYS_PER_STATEMENT_MAX):
            part = keys[start : start + _KEYS_PER_STATEMENT_MAX]
            width = len(part[0])
            count = 1 << (len(part) - 1).bit_length()
            params = [*chain.from_iterable(part), *([None] * (width * (count - len(part)))), *after]
            yield self._keyed(sql, width, count), params

    def _keyed(self, sql: str, width: int, count: int) -> str:
        text = self._texts.get((sql, width, count))
        if text is None:
            row = "(" + ",".join("?" * width) + ")"
            text = without_locks(sql).replace("{keys}", ",".join([row] * count))
            self._texts[(sql, width, count)] = text
        return text


def connect(path: Path) -> sqlite3.Connection:
    """Open a connection with our settings; transactions are begun and ended by text."""
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, cached_statements=512
    )
    for pragma in _PRAGMAS:
        connection.execute(pragma)
    return connection


def open_database(path: Path) -> sqlite3.Connection:
    """Open the database for writing, make or upgrade its schema, refuse one we do not know.

    Raises:  FormatError: not a database, not ours, or written by a newer program; NoSpaceError;
             ConfigError: the file cannot be opened
    """
    try:
        connection = connect(path)
        _ensure_schema(connection, path)
    except sqlite3.DatabaseError as error:
        raise _unusable(path, error) from error
    for statement in scratch_statements(SQLITE):
        connection.execute(statement)
    return connection


def _unusable(path: Path, error: sqlite3.DatabaseError) -> FFSError:
    """Return why a database does not open. Only a damaged or foreign one is to be replaced."""
    if is_full(error):
        return NoSpaceError(
            "the metadata server's disk is full",
            hint="free space in its --data directory",
            path=os.fspath(path),
        )
    if isinstance(error, sqlite3.OperationalError):
        return ConfigError(
            f"metadata database cannot be opened: {error}",
            hint="check the disk, its free space and the permissions of the file",
            path=os.fspath(path),
        )
    return FormatError(
        f"metadata database cannot be used: {error}",
        hint="restore it from a backup, or give another --data directory",
        path=os.fspath(path),
    )


def _ensure_schema(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("BEGIN")
    try:
        ensure_schema(SqliteTransaction(connection), SQLITE)
    except FormatError as error:
        connection.execute("ROLLBACK")
        raise FormatError(error.message, hint=error.hint, path=os.fspath(path)) from None
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


class DirectoryLock:
    """The right to be the one server of a data directory, until released or the process ends."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / LOCK_NAME
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            raise LockedError(
                "metadata directory is in use by another server",
                hint="stop that server first, or give another --data directory",
                path=os.fspath(directory),
                pid=holder or "unknown",
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        """Let another server have the directory."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class _ReaderThread(threading.Thread):
    """Runs read operations, each on a snapshot of its own."""

    def __init__(
        self, path: Path, jobs: SimpleQueue[Job | None], readings: Readings, fatal: Fatal
    ) -> None:
        super().__init__(name="ffs-meta-read", daemon=True)
        self._connection = connect(path)
        self._connection.execute("PRAGMA query_only=ON")
        self._transaction = SqliteTransaction(self._connection)
        self._jobs = jobs
        self._readings = readings
        self._fatal = fatal

    def run(self) -> None:
        """Serve until the end mark; pass it on to the other readers."""
        try:
            while (job := self._jobs.get()) is not None:
                with self._readings.one():
                    outcome = self._serve(job)
                deliver([outcome])
            self._jobs.put(None)
            self._connection.close()
        except BaseException as error:
            self._fatal(f"a reading thread ended: {error!r}")
            raise

    def _serve(self, job: Job) -> Outcome:
        value: Any = None
        error: BaseException | None = None
        try:
            self._connection.execute("BEGIN")
            value = job.operation(self._transaction)
        except Exception as caught:  # noqa: BLE001  # handed to the caller, who raises it
            error = caught
            if (reason := why_fatal(caught)) is not None:
                self._fatal(f"read failed: {reason}")
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        return job, value, error


class SqliteStore:
    """`store.Store` over `DIR/meta.sqlite`.

    Threads: `read` and `write` are awaited on event loops; operations run on the store's threads,
    writes on one, in the order of arrival. Fork: not after fork.
    """

    def __init__(
        self,
        directory: Path,
        *,
        clock: Clock | None = None,
        commit_window_ms: int = 2,
        commit_operations_max: int = 1_000,
        readers: int = 2,
        fatal: Fatal = exit_process,
    ) -> None:
        self.path = directory / DATABASE_NAME
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.lock = DirectoryLock(directory)
        except LockedError:
            raise
        except OSError as error:
            raise ConfigError(
                f"data directory cannot be used: {error.strerror}", path=os.fspath(directory)
            ) from error
        try:
            connection = open_database(self.path)
        except BaseException:
            self.lock.release()
            raise
        readings = Readings()
        self.writer = CommitThread(
            connection,
            SqliteTransaction(connection),
            log_path=self.path.with_name(LOG_FILE_NAME),
            readings=readings,
            clock=clock or SystemClock(),
            window_ns=commit_window_ms * 1_000_000,
            operations_max=commit_operations_max,
            fatal=fatal,
        )
        self._reads: SimpleQueue[Job | None] = SimpleQueue()
        self._readers = [
            _ReaderThread(self.path, self._reads, readings, fatal) for _ in range(readers)
        ]
        for thread in (self.writer, *self._readers):
            thread.start()

    async def read(self, operation: Callable[[Transaction], T]) -> T:
        """See `Store.read`."""
        job = Job(operation, asyncio.get_running_loop())
        self._reads.put(job)
        value: T = await job.future
        return value

    async def write(self, operation: Callable[[Transaction], T]) -> T:
        """See `Store.write`."""
        job = Job(operation, asyncio.get_running_loop())
        self.writer.submit(job)
        value: T = await job.future
        return value

    async def close(self) -> None:
        """See `Store.close`. The last connection to close folds the log into the database."""
        await asyncio.get_running_loop().run_in_executor(None, self._close)

    def _close(self) -> None:
        self._reads.put(None)
        for reader in self._readers:
            reader.join()
        self.writer.stop()
        self.writer.join()
        self.lock.release()
