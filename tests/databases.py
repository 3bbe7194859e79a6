"""Real databases of both engines for tests that run operations directly: made, emptied, counted.

Used by `tests.namespace`. A SQLite database is a new file each time. On PostgreSQL one database of
the tests' own server serves one test after the other in a process: emptying it takes milliseconds,
making one a tenth of a second. `FFS_TEST_ENGINES` (for example `sqlite`) narrows a run down.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ffs.server.meta.postgres import Connection
from ffs.server.meta.schema import POSTGRES, SEQUENCES
from ffs.server.meta.sqlite import SqliteTransaction, open_database
from ffs.server.meta.store import Transaction
from tests.postgres import Postgres

T = TypeVar("T")

ENGINES = os.environ.get("FFS_TEST_ENGINES", "sqlite,postgres").split(",")


class Database(Protocol):
    """A database with our schema and nothing in it."""

    @property
    def tx(self) -> Transaction:
        """What runs single statements, each a transaction of its own."""
        ...

    def transact(self, operation: Callable[[Transaction], T]) -> T:
        """Run in a transaction; undone whole if it raises."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class SqliteDatabase:
    """A file."""

    def __init__(self, path: Path) -> None:
        self.connection = open_database(path)
        self.tx: Transaction = SqliteTransaction(self.connection)

    def transact(self, operation: Callable[[Transaction], T]) -> T:
        """See `Database.transact`."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            value = operation(self.tx)
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")
        return value

    def close(self) -> None:
        """See `Database.close`."""
        self.connection.close()


class PostgresDatabase:
    """One connection to a database that others may be connected to as well."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connection = Connection(url, writes=True)
        self._connection.make_schema()
        self.tx: Transaction = self._connection.open()

    def transact(self, operation: Callable[[Transaction], T]) -> T:
        """See `Database.transact`."""
        return self._connection.transact(operation)

    def empty(self) -> None:
        """Leave the schema and nothing else.

        In one statement, and by rows: truncating makes new files for all tables and their indexes,
        which takes 15 times as long as to delete what a test leaves.
        """
        tables = [name for (name,) in self.tx.rows(POSTGRES.tables) if name != "schema_version"]
        steps = [f"DELETE FROM {name};" for name in sorted(tables)]
        steps += [
            f"PERFORM setval(sequencename::regclass, start_value, false)"
            f" FROM pg_sequences WHERE sequencename = 'ids_{name}';"
            for name in SEQUENCES
        ]
        self.tx.run(f"DO $do$ BEGIN {' '.join(steps)} END $do$")

    def close(self) -> None:
        """See `Database.close`: the next test takes it over."""

    def disconnect(self) -> None:
        """End the connection."""
        self._connection.close()


@cache
def server() -> Postgres:
    """The process's own PostgreSQL server, started when it is first needed."""
    running = Postgres().start()
    atexit.register(running.close)
    return running


@cache
def _postgres_database() -> PostgresDatabase:
    database = PostgresDatabase(server().url())
    atexit.register(database.disconnect)
    return database


def new_database(engine: str, directory: Path) -> Database:
    """Return an empty database of an engine."""
    if engine == "sqlite":
        return SqliteDatabase(directory / "meta.sqlite")
    database = _postgres_database()
    database.empty()
    return database


class _Noting:
    """A transaction that writes down what it is asked."""

    def __init__(self, tx: Transaction, statements: list[str]) -> None:
        self._tx = tx
        self._statements = statements

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._tx, name)
        if not callable(found):
            return found

        def noting(*args: Any, **kwargs: Any) -> Any:
            self._statements.append(f"{name} {args[0]}")
            return found(*args, **kwargs)

        return noting


@contextlib.contextmanager
def noting(database: Database) -> Iterator[list[str]]:
    """Collect what is asked of a database meanwhile: the call and its first argument."""
    statements: list[str] = []
    with contextlib.ExitStack() as stack:
        tx, transact = database.tx, database.transact
        watched: Any = _Noting(tx, statements)

        def watching(operation: Callable[[Transaction], T]) -> T:
            return transact(lambda inner: operation(watched))

        for name, value in (("tx", watched), ("transact", watching)):
            stack.callback(setattr, database, name, getattr(database, name))
            setattr(database, name, value)
        yield statements


class _UndoneError(Exception):
    """Ends a transaction that is to leave nothing behind."""


def undone(database: Database, action: Callable[[], T]) -> T:
    """Run an action whose transactions are parts of one, and take back what they changed."""
    values: list[T] = []

    def whole(tx: Transaction) -> None:
        def part(operation: Callable[[Transaction], Any]) -> Any:
            tx.run("SAVEPOINT part")
            try:
                value = operation(tx)
            except BaseException:
                tx.run("ROLLBACK TO SAVEPOINT part")
                raise
            tx.run("RELEASE SAVEPOINT part")
            return value

        with contextlib.ExitStack() as stack:
            stack.callback(setattr, database, "transact", database.transact)
            database.transact = part  # type: ignore[method-assign]
            values.append(action())
        raise _UndoneError

    with contextlib.suppress(_UndoneError):
        database.transact(whole)
    return values[-1]
