"""Which engine keeps the metadata: what the configuration says, opened.

Previous hop: the server process. Next hop: `sqlite` (the default, one server) or `postgres` (any
number of servers over one database). Failure: ConfigError where the configuration names no engine,
or one whose library is not installed; and what the engine raises when it opens its database.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ffs.config import MetaConfig
from ffs.errors import ConfigError
from ffs.server.meta.sqlite import SqliteStore
from ffs.server.meta.store import Store

_WILDCARDS: Final = ("0.0.0.0", "::", "")


def check_config(config: MetaConfig) -> None:
    """Raise ConfigError unless it is clear where the metadata is, and where this server is."""
    if not config.data_dir and not config.database:
        raise ConfigError("no data directory", hint="give one with --data, or --database URL")
    if config.database and config.host in _WILDCARDS and not config.advertise_host:
        raise ConfigError(
            f"meta.host is {config.host!r}, which tells clients of other servers no address",
            hint="set meta.advertise_host to a name of this host",
        )


def open_store(config: MetaConfig) -> Store:
    """Open the configured database, which may take seconds if it is just starting."""
    check_config(config)
    if config.database:
        return _open_postgres(config.database)
    return SqliteStore(
        Path(config.data_dir),
        commit_window_ms=config.commit_window_ms,
        commit_operations_max=config.commit_operations_max,
    )


def _open_postgres(url: str) -> Store:
    try:
        from ffs.server.meta.postgres import PostgresStore
    except ImportError as error:
        raise ConfigError(
            f"this installation cannot use PostgreSQL: {error}",
            hint="pip install 'ffs[server,postgres]'",
        ) from error
    return PostgresStore(url)
