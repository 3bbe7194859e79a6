"""Connections to PostgreSQL: how they are opened, set up and judged when something fails.

Previous hop: `postgres`, from its threads. Next hop: asyncpg, the tables.

Settings and why: every statement joins a set of keys with a table by its index, and is to be
planned once for ever: so generic plans, and neither full scans nor joins that need them (a plan
made while a table was empty would be kept while it grows), nor bitmaps, which would lock rows in
another order than that of their keys. Replies that the ledger keeps are compressed by LZ4 where the
server has it, in a fifth of the time that its own way takes. A server that stops in the middle of a
transaction must not hold its locks for ever: idle transactions end, and so do peers that are gone.
Invariant: a connection that is handed out has our schema, commits durably, and speaks to a server
that takes writes. Failure: what cannot be mended by trying again is a ConfigError or FormatError.
"""

from __future__ import annotations

import logging
import socket
import urllib.parse
from typing import Any, Final

import asyncpg
from asyncpg import exceptions as pg

from ffs.errors import ConfigError, FFSError, FormatError, NoSpaceError
from ffs.server.meta.postgres_transaction import PostgresTransaction, Wait
from ffs.server.meta.schema import POSTGRES, ensure_schema, scratch_statements
from ffs.server.meta.store import ConflictError

log = logging.getLogger("ffs.meta.store")

CONNECT_S_MAX: Final = 5.0
_STATEMENTS_MAX: Final = 1_000
_SETTINGS: Final = {
    "application_name": "ffs-meta",
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
    "idle_in_transaction_session_timeout": "15s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}

_SOCKET: Final = {
    socket.TCP_KEEPIDLE: 5,
    socket.TCP_KEEPINTVL: 2,
    socket.TCP_KEEPCNT: 3,
    socket.TCP_USER_TIMEOUT: 11_000,
}

_BEATEN: Final = (
    ConflictError,
    pg.UniqueViolationError,
    pg.DeadlockDetectedError,
    pg.SerializationError,
    pg.InvalidCachedStatementError,
    pg.OutdatedSchemaCacheError,
)
_LOST: Final = (
    OSError,
    asyncpg.InterfaceError,
    pg.PostgresConnectionError,
    pg.OperatorInterventionError,
    pg.TooManyConnectionsError,
    pg.IdleInTransactionSessionTimeoutError,
    pg.InternalClientError,
)
_HOPELESS: Final = (
    pg.InvalidAuthorizationSpecificationError,
    pg.InvalidCatalogNameError,
    pg.InsufficientPrivilegeError,
    asyncpg.ClientConfigurationError,
)


def is_beaten(error: BaseException) -> bool:
    """Return whether another transaction was first, and ours would do better a second time."""
    return isinstance(error, _BEATEN)


def is_lost(error: BaseException, *, writes: bool) -> bool:
    """Return whether the connection, or the server behind it, is gone for now."""
    if writes and isinstance(error, pg.ReadOnlySQLTransactionError):
        # A server that was made read-only is a standby now; its successor may answer next time.
        return True
    return isinstance(error, _LOST)


def final_error(error: BaseException) -> BaseException:
    """Return what the caller of an operation gets for an error that no repetition mends."""
    if isinstance(error, pg.DiskFullError):
        return NoSpaceError(
            "the metadata database's disk is full; nothing was changed",
            hint="free space where PostgreSQL keeps its data",
        )
    if isinstance(error, pg.UndefinedTableError):
        return ConfigError(
            "the metadata database has lost its tables",
            hint="stop all metadata servers, restore a backup, and start them again",
        )
    return error


def without_password(url: str) -> str:
    """Return a database's URL as it may be shown and logged."""
    parts = urllib.parse.urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    query = urllib.parse.urlencode(
        [(k, v) for k, v in urllib.parse.parse_qsl(parts.query) if k != "password"]
    )
    netloc = user.partition(":")[0] + at + host
    return urllib.parse.urlunsplit((parts.scheme, netloc, parts.path, query, ""))


def check_url(url: str) -> None:
    """Raise ConfigError unless `url` names a PostgreSQL database."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("postgres", "postgresql") or not parts.path.strip("/"):
        raise ConfigError(
            "meta.database names no PostgreSQL database",
            hint="for example postgres://user@host:5432/name",
            database=without_password(url),
        )


async def connect(url: str) -> asyncpg.Connection[Any]:
    """Open a connection with our settings. Raises what asyncpg raises, or ConfigError."""
    try:
        connection = await asyncpg.connect(
            url,
            timeout=CONNECT_S_MAX,
            statement_cache_size=_STATEMENTS_MAX,
            max_cached_statement_lifetime=0,
            server_settings=_SETTINGS,
        )
    except (*_HOPELESS, ValueError) as error:
        raise ConfigError(
            f"metadata database refuses us: {error}", database=without_password(url)
        ) from None
    _notice_death(connection)
    await connection.execute(
        "SELECT set_config('synchronous_commit', 'on', false)"
        " WHERE current_setting('synchronous_commit') = 'off'"
    )
    await connection.execute(
        "SELECT set_config(name, 'lz4', false) FROM pg_settings"
        " WHERE name = 'default_toast_compression' AND 'lz4' = ANY(enumvals)"
    )
    return connection


def _notice_death(connection: asyncpg.Connection[Any]) -> None:
    """Let the kernel end a connection whose other machine says nothing any more.

    Why: without it a thread would wait for a quarter of an hour, or for ever, for a database whose
    machine lost its power or its network. A database that only thinks for long is not meant: its
    kernel answers for it. asyncpg has no public way to its socket.
    """
    sock = connection._transport.get_extra_info("socket")
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _SOCKET.items():
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


async def prepare_writer(connection: asyncpg.Connection[Any]) -> None:
    """Make the private tables that operations which change something use."""
    for statement in scratch_statements(POSTGRES):
        await connection.execute(statement)


def open_database(connection: asyncpg.Connection[Any], wait: Wait, url: str) -> None:
    """Make or upgrade the schema, one server at a time. Raises FormatError."""
    tx = PostgresTransaction(connection, wait)
    wait(connection.execute("BEGIN"))
    try:
        tx.lock("schema")
        ensure_schema(tx, POSTGRES)
    except FFSError as error:
        wait(connection.execute("ROLLBACK"))
        raise type(error)(error.message, hint=error.hint, database=without_password(url)) from None
    wait(connection.execute("COMMIT"))
    if tx.row("SHOW fsync") == ("off",):
        log.warning(
            "database_not_durable",
            extra={"database": without_password(url), "reason": "fsync is off"},
        )
    if tx.row("SHOW server_encoding") != ("UTF8",):
        raise FormatError("metadata database is not encoded in UTF8")
