"""The shared engine: a PostgreSQL database that any number of metadata servers work on.

Previous hop: `service`, through `store.Store`. Next hop: one connection for each of the store's
threads. An operation is a plain function that asks for one statement after the other; so it runs
on a thread, which drives the loop of its own connection while it waits.

Writes run READ COMMITTED and hold the rows they decide by (`ops/names.py`); each is a transaction
of its own, and PostgreSQL lets those that commit together share a sync. Reads are REPEATABLE READ.
An operation that was beaten by another, or whose connection broke, is run again until
`RERUN_S_MAX` has gone by. That is safe even where the first attempt's commit may have succeeded: a
mutation finds itself in the ledger, and what does not pass the ledger may happen twice.
Invariant: an operation is answered after its commit. Failure: UnavailableError when the database
cannot be reached for that long; a full disk is a NoSpaceError. What is on the disk is for
PostgreSQL to know; only a thread of ours that ends before its time ends the process.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, Final

import asyncpg
import uvloop

from ffs.errors import ClosedError, FFSError, UnavailableError
from ffs.seams import Clock, Randomness, SystemClock, SystemRandomness
from ffs.server.meta.commit import Fatal, exit_process
from ffs.server.meta.jobs import Job, Outcome, deliver
from ffs.server.meta.postgres_connection import (
    check_url,
    connect,
    final_error,
    is_beaten,
    is_lost,
    open_database,
    prepare_writer,
    without_password,
)
from ffs.server.meta.postgres_transaction import PostgresTransaction
from ffs.server.meta.store import T, Transaction

log = logging.getLogger("ffs.meta.store")

RERUN_S_MAX: Final = 8.0
"""Shorter than a third of `client.meta_deadline_ms`, so that a client hears the reason."""
_BEATEN_PAUSE_S_MAX: Final = 0.1
_LOST_PAUSE_S: Final = 0.05
_NANO: Final = 1_000_000_000

_BEGIN_READ: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_BEGIN_WRITE: Final = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"


class Connection:
    """One connection, opened when it is first needed and again when it was lost.

    Threads: one. It has an event loop of its own, which runs only inside its methods.
    """

    def __init__(self, url: str, *, writes: bool) -> None:
        self._url = url
        self.writes = writes
        self._loop = uvloop.new_event_loop()
        self._connection: asyncpg.Connection[Any] | None = None
        self._transaction: PostgresTransaction | None = None

    def transact(self, operation: Callable[[Transaction], T]) -> T:
        """Run an operation once in a transaction; undone whole if it raises."""
        transaction = self.open()
        connection, wait = self._connection, self._loop.run_until_complete
        assert connection is not None
        wait(connection.execute(_BEGIN_WRITE if self.writes else _BEGIN_READ))
        try:
            value = operation(transaction)
        except BaseException:
            self._undo(connection)
            raise
        wait(connection.execute("COMMIT"))
        return value

    def make_schema(self) -> None:
        """Connect, and make the database ours. Raises what `open_database` raises."""
        self.open()
        assert self._connection is not None
        open_database(self._connection, self._loop.run_until_complete, self._url)

    def drop(self) -> None:
        """Let go of a connection that is lost, without a word to the server."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = self._transaction = None

    def close(self) -> None:
        """End the connection and its loop."""
        if self._connection is not None and not self._connection.is_closed():
            try:
                self._loop.run_until_complete(self._connection.close(timeout=1))
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                self.drop()
        self._loop.close()

    def open(self) -> PostgresTransaction:
        """Connect unless connected; return what runs statements outside of `transact`."""
        if self._connection is not None and self._connection.is_closed():
            self.drop()
        if self._connection is None or self._transaction is None:
            wait = self._loop.run_until_complete
            connection = wait(connect(self._url))
            if self.writes:
                wait(prepare_writer(connection))
            self._connection = connection
            self._transaction = PostgresTransaction(connection, wait)
        return self._transaction

    def _undo(self, connection: asyncpg.Connection[Any]) -> None:
        try:
            self._loop.run_until_complete(connection.execute("ROLLBACK"))
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self.drop()  # the server undoes it when it finds the connection gone


class Worker(threading.Thread):
    """Runs operations on a connection of its own, each until it is done or must be given up."""

    def __init__(
        self,
        name: str,
        connection: Connection,
        jobs: SimpleQueue[Job | None],
        clock: Clock,
        randomness: Randomness,
        fatal: Fatal,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._connection = connection
        self._jobs = jobs
        self._clock = clock
        self._randomness = randomness
        self._fatal = fatal
        self._closing = threading.Event()
        self.operations = 0
        self.beaten = 0
        """How often another transaction was first."""
        self.lost = 0
        """How often the connection broke."""

    def run(self) -> None:
        """Serve until the end mark."""
        try:
            while (job := self._jobs.get()) is not None:
                deliver([self._serve(job)])
            self._connection.close()
        except BaseException as error:
            # Without its threads the store would accept operations and never answer them.
            self._connection.close()
            self._fatal(f"a database thread ended: {error!r}")
            raise

    def hurry(self) -> None:
        """Give up at the next failure instead of trying again: the store is closing."""
        self._closing.set()

    def _serve(self, job: Job) -> Outcome:
        give_up_ns = self._clock.monotonic_ns() + int(RERUN_S_MAX * _NANO)
        attempt = 0
        while True:
            try:
                value = self._connection.transact(job.operation)
            except FFSError as error:
                return job, None, error
            except Exception as error:  # noqa: BLE001  # judged; the caller raises it
                again = self._again(error, attempt)
                if not again:
                    return job, None, final_error(error)
                if self._closing.is_set() or self._clock.monotonic_ns() >= give_up_ns:
                    return job, None, _unavailable(error)
            else:
                self.operations += 1
                return job, value, None
            attempt += 1

    def _again(self, error: Exception, attempt: int) -> bool:
        """Return whether to run an operation again after a failure; pauses before."""
        if is_lost(error, writes=self._connection.writes):
            self.lost += 1
            self._connection.drop()
            pause_s = _LOST_PAUSE_S
        elif is_beaten(error):
            self.beaten += 1
            pause_s = min(0.001 * (1 << min(attempt, 10)), _BEATEN_PAUSE_S_MAX)
        else:
            return False
        log.debug("operation_again", extra={"reason": str(error), "attempt": attempt})
        self._closing.wait(pause_s * (500 + self._randomness.below(1_000)) / 1_000)
        return True


def _unavailable(error: Exception) -> UnavailableError:
    return UnavailableError(
        f"metadata database does not do it now: {error}", hint="is PostgreSQL running?"
    )


class PostgresStore:
    """`store.Store` over a PostgreSQL database.

    Args:    url: postgres://user@host:port/name, or with ?host=/path for a socket of this machine
    Threads: `read` and `write` are awaited on event loops; operations run on the store's threads,
             several at a time. Fork: not after fork.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Clock | None = None,
        writers: int = 8,
        readers: int = 4,
        fatal: Fatal = exit_process,
    ) -> None:
        check_url(url)
        self.url = url
        clock, chance = clock or SystemClock(), SystemRandomness()
        with ThreadPoolExecutor(1) as elsewhere:  # here a loop may be running
            elsewhere.submit(_make_schema, url, clock).result()
        self._writes: SimpleQueue[Job | None] = SimpleQueue()
        self._reads: SimpleQueue[Job | None] = SimpleQueue()
        self._closed = False

        def worker(kind: str, number: int) -> Worker:
            writes = kind == "write"
            jobs = self._writes if writes else self._reads
            connection = Connection(url, writes=writes)
            name = f"ffs-meta-{kind}-{number}"
            return Worker(name, connection, jobs, clock, chance, fatal)

        self.workers = [worker("write", number) for number in range(writers)]
        self._readers = [worker("read", number) for number in range(readers)]
        for each in (*self.workers, *self._readers):
            each.start()

    async def read(self, operation: Callable[[Transaction], T]) -> T:
        """See `Store.read`."""
        return await self._submit(self._reads, operation)

    async def write(self, operation: Callable[[Transaction], T]) -> T:
        """See `Store.write`."""
        return await self._submit(self._writes, operation)

    async def _submit(
        self, jobs: SimpleQueue[Job | None], operation: Callable[[Transaction], T]
    ) -> T:
        if self._closed:
            raise ClosedError("metadata store is closed")
        job = Job(operation, asyncio.get_running_loop())
        jobs.put(job)
        value: T = await job.future
        return value

    async def close(self) -> None:
        """See `Store.close`."""
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(None, self._close)

    def _close(self) -> None:
        for jobs, workers in ((self._writes, self.workers), (self._reads, self._readers)):
            for worker in workers:
                worker.hurry()
                jobs.put(None)
        for worker in (*self.workers, *self._readers):
            worker.join()


def _make_schema(url: str, clock: Clock) -> None:
    """Make or upgrade the schema; waits a while for a database that is just starting."""
    connection = Connection(url, writes=True)
    give_up_ns = clock.monotonic_ns() + int(RERUN_S_MAX * _NANO)
    pause = threading.Event()
    waiting = False
    try:
        while True:
            try:
                connection.make_schema()
                return
            except FFSError:
                raise
            except Exception as error:
                if not (is_lost(error, writes=True) or is_beaten(error)):
                    raise
                if clock.monotonic_ns() >= give_up_ns:
                    raise UnavailableError(
                        f"metadata database does not answer: {error}",
                        hint="start PostgreSQL, or correct meta.database",
                        database=without_password(url),
                    ) from error
                if not waiting:
                    facts = {"database": without_password(url), "reason": str(error)}
                    log.warning("waiting_for_database", extra=facts)
                waiting = True
                connection.drop()
                pause.wait(0.2)
    finally:
        connection.close()
