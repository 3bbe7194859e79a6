"""One transaction on a PostgreSQL database, for a backup or a restore.

Previous hop: `backup`. Next hop: a connection of the engine's own (`postgres`). Invariant: a backup
reads one snapshot, which holds no writer up; a restore is one transaction, so it is whole or absent
however it ends, and waits for no one since nobody else works on an empty database.
Failure: UnavailableError when the database cannot be reached or goes away; the engine's own for an
address that is none and for a database that holds something else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ffs.errors import ConfigError, FFSError, FormatError, UnavailableError
from ffs.server.meta.schema import POSTGRES, SCHEMA_VERSION
from ffs.server.meta.store import Transaction

T = TypeVar("T")


def read(url: str, operation: Callable[[Transaction], T]) -> T:
    """Run a reading operation on a database that has our schema."""

    def checked(tx: Transaction) -> T:
        tables = {name for (name,) in tx.rows(POSTGRES.tables)}
        row = None
        if "schema_version" in tables:
            row = tx.row("SELECT max(version) FROM schema_version")
        if row != (SCHEMA_VERSION,):
            raise FormatError(
                "database does not hold metadata of this program's version",
                hint="start its metadata server once, to make or upgrade it",
            )
        return operation(tx)

    return _transact(url, checked, writes=False)


def write(url: str, operation: Callable[[Transaction], T]) -> T:
    """Make our schema where there is none, then run an operation that is whole or nothing."""
    return _transact(url, operation, writes=True)


def _transact(url: str, operation: Callable[[Transaction], T], *, writes: bool) -> T:
    try:
        from ffs.server.meta.postgres import Connection
        from ffs.server.meta.postgres_connection import check_url, final_error, without_password
    except ImportError as error:
        raise ConfigError(
            f"this installation cannot use PostgreSQL: {error}",
            hint="pip install 'ffs[server,postgres]'",
        ) from error
    check_url(url)
    connection = Connection(url, writes=writes)
    try:
        if writes:
            connection.make_schema()
        return connection.transact(operation)
    except FFSError:
        raise
    except Exception as error:
        final = final_error(error)
        if isinstance(final, FFSError):
            raise final from error
        raise UnavailableError(
            f"the database did not do it: {error}",
            hint="is PostgreSQL running, and may this user change the database?",
            database=without_password(url),
        ) from error
    finally:
        connection.close()
