"""The writing thread: mutations that arrive together share one commit.

Previous hop: `sqlite.SqliteStore.write`. Next hop: the operation, then the engine's commit.

How a commit is shared: the thread takes a job, begins a transaction, runs the job inside a
savepoint, and goes on with what else has arrived, until nothing waits, or `window_ns` is over, or
`operations_max` jobs were run. Then it commits once and only then answers all of them. It never
waits for work that has not arrived: while one commit syncs, the next batch gathers by itself, so a
lone client pays no extra delay and many clients share the sync.
The log is bounded: the engine folds it into the database by itself, but not past what a reader
still needs, and readers that overlap all the time would let it grow for ever. So past
`LOG_BYTES_MAX` this thread folds it, after the answers have gone out, with readings held off. It
waits for no reader of another process: a backup may take its time.
Failure: a job that raises is rolled back to its savepoint; others stay. A full disk fails all jobs
of the commit and changes nothing. Any other I/O error, or corruption, ends the process: what the
disk holds is then not known, and a restart reads it anew.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final

from ffs.errors import ClosedError, NoSpaceError
from ffs.seams import Clock
from ffs.server.meta.jobs import Job, Outcome, deliver
from ffs.server.meta.readings import Readings
from ffs.server.meta.store import Transaction

log = logging.getLogger("ffs.meta.store")

Fatal = Callable[[str], None]

EXIT_STORE_FAILED: Final = 74
"""EX_IOERR of sysexits.h."""

LOG_BYTES_MAX: Final = 64 << 20

# Primary result codes after which the database file cannot be trusted or reached any more.
_FATAL_CODES: Final = frozenset(
    {
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_NOLFS,
    }
)


def exit_process(reason: str) -> None:
    """End this process at once, without any further write, and say why."""
    log.critical("store_failed", extra={"reason": reason, "exit_status": EXIT_STORE_FAILED})
    logging.shutdown()
    os._exit(EXIT_STORE_FAILED)


def why_fatal(error: BaseException) -> str | None:
    """Return the reason why the process must end after `error`, or None when it need not."""
    if not isinstance(error, sqlite3.Error):
        return None
    code = getattr(error, "sqlite_errorcode", None)
    # The file was moved or replaced under us; a plain SQLITE_READONLY is a reader that wrote: a bug
    # of ours, which does not end the process.
    moved = code == sqlite3.SQLITE_READONLY_DBMOVED
    if code is None or not (moved or (code & 0xFF) in _FATAL_CODES):
        return None
    return f"{error.sqlite_errorname}: {error}"


def is_full(error: BaseException) -> bool:
    """Return whether `error` says that the disk has no room."""
    code = getattr(error, "sqlite_errorcode", None)
    return (
        isinstance(error, sqlite3.Error)
        and code is not None
        and (code & 0xFF) == (sqlite3.SQLITE_FULL)
    )


class CommitThread(threading.Thread):
    """The one thread that changes the database.

    `commits` and `operations` count since start; both grow only, and are read from any thread.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        transaction: Transaction,
        *,
        log_path: Path,
        readings: Readings,
        clock: Clock,
        window_ns: int,
        operations_max: int,
        fatal: Fatal,
    ) -> None:
        super().__init__(name="ffs-meta-write", daemon=True)
        assert operations_max >= 1 and window_ns >= 0
        self._connection = connection
        self._transaction = transaction
        self._log_path = log_path
        self._readings = readings
        self._clock = clock
        self._window_ns = window_ns
        self._operations_max = operations_max
        self._fatal = fatal
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._ending = False
        self._log_kept = 0
        """How long the log was when it could not be folded."""
        self.commits = 0
        self.operations = 0

    def submit(self, job: Job) -> None:
        """Queue a job. Raises ClosedError after `stop`."""
        if self._ending:
            raise ClosedError("metadata store is closed")
        self._jobs.put(job)

    def stop(self) -> None:
        """Let the thread finish what was queued, fold the log and end."""
        self._ending = True
        self._jobs.put(None)

    def run(self) -> None:
        """Serve batches until the end mark."""
        try:
            while (job := self._jobs.get()) is not None:
                self._serve_batch(job)
            self._connection.close()
        except BaseException as error:
            # Without this thread every mutation would wait for ever.
            self._fatal(f"the writing thread ended: {error!r}")
            raise

    def _serve_batch(self, first: Job) -> None:
        outcomes: list[Outcome] = []
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._run_jobs(first, outcomes)
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            outcomes = self._abandon(outcomes or [(first, None, None)], error)
        else:
            self.commits += 1
            self.operations += len(outcomes)
        deliver(outcomes)
        self._bound_log()

    def _bound_log(self) -> None:
        """Fold a log that has become too long into the database, and empty its file."""
        size = self._log_path.stat().st_size
        if size <= LOG_BYTES_MAX + self._log_kept:
            return
        try:
            with self._readings.held_off():
                folded = self._fold_log()
            # Not folded: a reader of another process (a backup) needs it still. Tried again when
            # as much has been added, and not at each commit.
            self._log_kept = 0 if folded else size
        except sqlite3.Error as error:
            if not is_full(error):
                self._fatal(f"the log could not be folded: {why_fatal(error) or error}")
            log.error("store_full", extra={"log_bytes": self._log_path.stat().st_size})

    def _fold_log(self) -> bool:
        """Fold what can be folded, waiting for nobody; return whether that was all."""
        execute = self._connection.execute
        (timeout_ms,) = execute("PRAGMA busy_timeout").fetchone()
        execute("PRAGMA busy_timeout=0")
        try:
            (busy, _, _) = execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            execute(f"PRAGMA busy_timeout={timeout_ms}")
        return not busy

    def _run_jobs(self, first: Job, outcomes: list[Outcome]) -> None:
        deadline_ns = self._clock.monotonic_ns() + self._window_ns
        job: Job | None = first
        while job is not None:
            outcomes.append((job, None, None))
            outcomes[-1] = self._run_job(job)
            if len(outcomes) >= self._operations_max or self._clock.monotonic_ns() >= deadline_ns:
                return
            try:
                job = self._jobs.get_nowait()
            except Empty:
                return
        self._jobs.put(None)  # the end mark: finish this batch, then see it again

    def _run_job(self, job: Job) -> Outcome:
        execute = self._connection.execute
        execute("SAVEPOINT operation")
        try:
            value = job.operation(self._transaction)
        except Exception as error:  # handed to the caller, who raises it
            if why_fatal(error) is not None or is_full(error):
                raise
            execute("ROLLBACK TO operation")
            execute("RELEASE operation")
            return job, None, error
        execute("RELEASE operation")
        return job, value, None

    def _abandon(self, outcomes: list[Outcome], error: sqlite3.Error) -> list[Outcome]:
        """Undo the whole batch after an error of the engine itself."""
        if not is_full(error):
            self._fatal(f"commit failed: {why_fatal(error) or error}")
            return [(job, None, error) for job, _, _ in outcomes]
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        log.error("store_full", extra={"operations": len(outcomes)})
        full = NoSpaceError(
            "the metadata server's disk is full; nothing was changed",
            hint="free space in its --data directory",
        )
        # Refused ones too: they were judged by what others in this commit had done.
        return [(job, None, full) for job, _, _ in outcomes]
