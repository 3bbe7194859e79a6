"""Backup and restore of the metadata: every row through one neutral file, whatever the engine.

Previous hop: `ffs meta backup|restore`, and `copies` for the hourly one. Next hop: `backup_file`,
and a database: a data directory of the embedded engine or the address of a PostgreSQL one. As the
file knows no engine, a backup of one restored into the other moves a cluster between them.

How a backup is taken: in one reading transaction, so that it is of one moment, in pages by primary
key, so that no table is ever held in memory. The embedded database is opened for reading only,
beside its server and without its lock. Changes of directories and quotas that were not folded yet
are folded on the way, since they have no key to page by.

How it is restored: the whole file is checked first; then one transaction fills an empty database,
upgrades it where the backup is of an older schema, and counts every table again. The embedded
engine's file gets its name last. So a restore that ends anywhere leaves all or nothing.
Invariant: no id that may have been given out after the backup is given out again. Every counter
passes far beyond, and the blobs in between are written down in `blob_gaps`: chunks of such blobs
may lie on targets, nobody can tell what they were, and they stay until an operator gives them up.
Chains' versions pass on as well: a daemon may have synced for one that was made after the backup.
Failure: FormatError for a file that is not to be trusted, ConfigError for a source or destination
that is none, LockedError for one in use; the destination is as it was.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from ffs.errors import ConfigError, ExistsError, FormatError, LockedError, NoSpaceError
from ffs.seams import Clock, SystemClock
from ffs.server.meta import backup_postgres
from ffs.server.meta.backup_file import (
    HEADING_OFFSET,
    BackupReader,
    BackupWriter,
    Heading,
    Table,
    sync_directory,
)
from ffs.server.meta.commit import is_full
from ffs.server.meta.schema import SCHEMA_VERSION, SQLITE, upgrade_statements
from ffs.server.meta.sqlite import (
    DATABASE_NAME,
    LOG_FILE_NAME,
    DirectoryLock,
    SqliteTransaction,
)
from ffs.server.meta.store import Transaction

IDS_SKIPPED: Final = 1 << 40
"""How far 64-bit ids pass on: more than a year gives out; there is room for 2^22 restores."""
SMALL_IDS_SKIPPED: Final = 1 << 16
"""The same for ids that have 32 bits elsewhere; far fewer of them are ever made."""
_SMALL: Final = frozenset({"node", "target", "chain", "chain_table"})

_ROWS_MIN, _ROWS_MAX = 16, 4_096
_PAGE_BYTES: Final = 1 << 20
_RESTORING_SUFFIX: Final = ".restoring"


@dataclass(frozen=True, slots=True)
class _Columns:
    """A table: the columns that make its key, the others, and what it is read from."""

    key: tuple[str, ...]
    others: tuple[str, ...] = ()
    source: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return self.key + self.others


_DIRECTORY_CHANGES: Final = """
(SELECT inode, CAST(max(changed_ns) AS BIGINT) AS changed_ns,
    CAST(sum(changes) AS BIGINT) AS changes,
    CAST(sum(subdirectories) AS BIGINT) AS subdirectories
 FROM directory_changes GROUP BY inode) AS folded
"""

_QUOTA_CHANGES: Final = """
(SELECT quota, CAST(sum(bytes) AS BIGINT) AS bytes, CAST(sum(files) AS BIGINT) AS files
 FROM quota_changes GROUP BY quota) AS folded
"""

TABLES: Final = {
    "settings": _Columns(("name",), ("value",)),
    "counters": _Columns(("name",), ("value",)),
    "inodes": _Columns(
        ("inode",),
        ("type", "mode", "uid", "gid", "nlink", "size", "version")
        + ("atime_ns", "mtime_ns", "ctime_ns", "quota"),
    ),
    "dentries": _Columns(("parent", "name"), ("inode", "type")),
    "symlinks": _Columns(("inode",), ("target",)),
    "layouts": _Columns(("inode",), ("chunk_size_bytes", "stripe")),
    "directory_changes": _Columns(
        ("inode",), ("changed_ns", "changes", "subdirectories"), _DIRECTORY_CHANGES
    ),
    "quotas": _Columns(("inode",), ("above", "bytes_max", "files_max", "bytes", "files")),
    "quota_changes": _Columns(("quota",), ("bytes", "files"), _QUOTA_CHANGES),
    "blobs": _Columns(
        ("blob",),
        ("state", "refs", "length", "chunk_size_bytes", "stripe", "chain_table", "seed")
        + ("changed_ns",),
    ),
    "segments": _Columns(("inode", "place"), ("blob", "length")),
    "blob_gaps": _Columns(("first", "last")),
    "pins": _Columns(
        ("pin",), ("path", "owner", "created_ns", "expires_ns", "files", "stored_bytes")
    ),
    "pin_blobs": _Columns(("pin", "blob")),
    "leases": _Columns(("client",), ("expires_ns",)),
    "sessions": _Columns(("session",), ("client", "blob", "parent", "name", "create_mode", "mode")),
    "mutations": _Columns(("principal", "mutation"), ("request_hash", "recorded_ns", "result")),
    "nodes": _Columns(("node",), ("host", "port", "pid", "heard_ns", "counters")),
    "targets": _Columns(
        ("target",),
        ("node", "state", "label", "capacity_bytes", "used_bytes", "chunks", "disk", "since")
        + ("stopped", "synced", "damaged", "beside", "retiring", "health", "stored_bytes")
        + ("away_ms", "spare", "holds", "lacking", "compared"),
    ),
    "chains": _Columns(("chain",), ("version", "crowded", "doubtful")),
    "chain_targets": _Columns(("chain", "place"), ("target", "home", "moving")),
    "table_chains": _Columns(("chain_table", "place"), ("chain",)),
    "drops": _Columns(("target", "blob")),
    "meta_servers": _Columns(("address",), ("pid", "heard_ns")),
    "manager_leases": _Columns(("role",), ("term", "holder", "expires_ns")),
    "cluster_tasks": _Columns(("kind", "subject"), ("host", "began_ns", "total_bytes")),
    "removed_targets": _Columns(("target",)),
    "users": _Columns(("name",), ("uid", "gids")),
    "revocations": _Columns(
        ("revocation",), ("token_id", "user_name", "issued_until_ms", "expires_ms")
    ),
}
"""Every table of the schema but `schema_version`, which is in the heading."""


@dataclass(frozen=True, slots=True)
class BackupInfo:
    """What a backup holds."""

    path: Path
    size_bytes: int
    heading: Heading
    rows: dict[str, int]


def backup(source: str, path: Path, clock: Clock | None = None) -> BackupInfo:
    """Write all metadata of a data directory or a database's address to a new file `path`.

    Threads: blocks; a server may go on with the database meanwhile
    Raises:  ConfigError, FormatError for what is no database of ours, NoSpaceError
    """
    now_ns = (clock or SystemClock()).wall_ns()
    if is_postgres(source):
        return backup_postgres.read(source, lambda tx: dump(tx, path, now_ns))
    with _reading(Path(source)) as tx:
        return dump(tx, path, now_ns)


def restore(path: Path, destination: str) -> BackupInfo:
    """Fill an empty data directory or database from a backup, whole or not at all.

    Raises:  FormatError: the file is damaged, foreign or newer; ExistsError: something is there;
             LockedError: a server runs there; ConfigError
    """
    info = inspect(path)
    if not is_postgres(destination):
        _restore_directory(path, Path(destination), info)
    elif info.heading.schema_version == SCHEMA_VERSION:
        backup_postgres.write(destination, lambda tx: load(tx, path, info))
    else:
        _restore_upgraded(path, destination)
    return info


def inspect(path: Path) -> BackupInfo:
    """Check a backup from end to end and say what it holds. Raises FormatError."""
    with BackupReader(path) as reader:
        heading = reader.heading
        if not 0 < heading.schema_version <= SCHEMA_VERSION:
            raise FormatError(
                f"backup has schema version {heading.schema_version},"
                f" this program knows {SCHEMA_VERSION}",
                hint="restore it with the program version that wrote it, or a newer one",
                path=os.fspath(path),
                offset=HEADING_OFFSET,
            )
        reader.check()
        return BackupInfo(path, reader.size_bytes, heading, dict(reader.rows))


def is_postgres(address: str) -> bool:
    """Whether a source or destination is a database's address and not a directory."""
    return address.startswith(("postgres://", "postgresql://"))


# --- rows out -------------------------------------------------------------------------------------


def dump(tx: Transaction, path: Path, now_ns: int) -> BackupInfo:
    """Write every row that a transaction sees."""
    heading = Heading(SCHEMA_VERSION, _cluster_id(tx), now_ns)
    with BackupWriter(path, heading) as writer:
        for name, columns in TABLES.items():
            writer.table(name, columns.names)
            if name == "counters":
                # Not the table: where the database is shared some of them are sequences.
                names = tx.rows("SELECT name FROM counters ORDER BY name")
                writer.add([(counter, tx.highest(counter)) for (counter,) in names])
            else:
                _dump_table(tx, writer, columns.source or name, columns)
        size = writer.finish()
        return BackupInfo(path, size, heading, writer.rows)


def _dump_table(tx: Transaction, writer: BackupWriter, source: str, columns: _Columns) -> None:
    """Write a table in pages by its key; a page's rows adapt to how long they are."""
    keys = ", ".join(columns.key)
    marks = ", ".join("?" * len(columns.key))
    first = f"SELECT {', '.join(columns.names)} FROM {source}"
    order = f" ORDER BY {keys} LIMIT ?"
    limit, width = _ROWS_MIN, len(columns.key)
    rows = tx.rows(first + order, (limit,))
    while rows:
        size = writer.add(rows)
        if len(rows) < limit:
            return
        limit = max(_ROWS_MIN, min(_ROWS_MAX, limit * 2, limit * _PAGE_BYTES // size))
        after = rows[-1][:width]
        rows = tx.rows(f"{first} WHERE ({keys}) > ({marks}){order}", (*after, limit))


def _cluster_id(tx: Transaction) -> bytes:
    row = tx.row("SELECT value FROM settings WHERE name = 'cluster_id'")
    if row is None:
        raise FormatError("database holds no cluster", hint="start its server once")
    return bytes(row[0])


@contextmanager
def _reading(directory: Path) -> Iterator[Transaction]:
    """Open a snapshot of an embedded database for reading, beside a server that may run."""
    path = directory / DATABASE_NAME
    if not path.is_file():
        raise ConfigError(
            "there is no metadata database",
            hint="name the server's --data directory, which has meta.sqlite in it",
            path=os.fspath(path),
        )
    try:
        connection = sqlite3.connect(
            f"file:{quote(os.fspath(path.absolute()))}?mode=ro", uri=True, isolation_level=None
        )
        try:
            connection.execute("PRAGMA busy_timeout=10000")
            connection.execute("BEGIN")
            (version,) = connection.execute("SELECT max(version) FROM schema_version").fetchone()
            _check_version(version, path)
            yield SqliteTransaction(connection)
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        raise FormatError(
            f"metadata database cannot be read: {error}", path=os.fspath(path)
        ) from error


def _check_version(version: int, path: Path) -> None:
    if version != SCHEMA_VERSION:
        raise FormatError(
            f"metadata schema has version {version}, this program knows {SCHEMA_VERSION}",
            hint="use the program version of its server, or start that server once to upgrade it",
            path=os.fspath(path),
        )


# --- rows in --------------------------------------------------------------------------------------


def load(tx: Transaction, path: Path, info: BackupInfo) -> None:
    """Fill an empty database of the current schema, and keep its ids apart from lost ones."""
    tx.lock("initialise")  # as a server does that finds the database empty
    if tx.row("SELECT 1 FROM settings") or tx.row("SELECT 1 FROM inodes"):
        raise ExistsError(
            "the destination holds a cluster already",
            hint="restore into an empty database, or remove the old one first",
        )
    _load(tx, path)
    _check_counts(tx, info)
    _skip_ids(tx)


def _load(tx: Transaction, path: Path) -> None:
    with BackupReader(path) as reader:
        table: Table | None = None
        for item in reader.items():
            if isinstance(item, Table):
                table = item
                continue
            assert table is not None, "the reader gives a table before its rows"
            if any(len(row) != len(table.columns) for row in item):
                raise FormatError(
                    f"rows of {table.name} do not have the columns that the backup says",
                    path=os.fspath(path),
                )
            tx.insert(table.name, table.columns, item)


def _check_counts(tx: Transaction, info: BackupInfo) -> None:
    for table, expected in info.rows.items():
        row = tx.row(f"SELECT count(*) FROM {table}")
        if row is None or row[0] != expected:
            raise FormatError(f"{table} has {row} rows after the restore, the backup {expected}")


def _skip_ids(tx: Transaction) -> None:
    """Pass every counter and version on, and write down which blobs are neither known nor unknown
    now."""
    row = tx.row("SELECT value FROM counters WHERE name = 'blob'")
    if row is None:
        raise FormatError("backup holds no counters", hint="use another backup")
    tx.insert("blob_gaps", ("first", "last"), [(row[0] + 1, row[0] + IDS_SKIPPED)])
    for counter, value in tx.rows("SELECT name, value FROM counters"):
        skipped = SMALL_IDS_SKIPPED if counter in _SMALL else IDS_SKIPPED
        tx.pass_id(counter, value + skipped)
    tx.run("UPDATE chains SET version = version + ?", (SMALL_IDS_SKIPPED,))


def _restore_directory(path: Path, directory: Path, info: BackupInfo) -> None:
    """Make a database file beside its place, check it, and give it its name."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = DirectoryLock(directory)
    except LockedError:
        raise
    except OSError as error:
        raise ConfigError(
            f"data directory cannot be used: {error.strerror}", path=os.fspath(directory)
        ) from error
    try:
        for name in (DATABASE_NAME, LOG_FILE_NAME):
            if (directory / name).exists():
                raise ExistsError(
                    "the destination holds a database already",
                    hint="restore into an empty directory, or move the old files away first",
                    path=os.fspath(directory / name),
                )
        draft = directory / (DATABASE_NAME + _RESTORING_SUFFIX)
        draft.unlink(missing_ok=True)
        try:
            _fill(draft, path, info)
            draft.rename(directory / DATABASE_NAME)
            sync_directory(directory)
        finally:
            draft.unlink(missing_ok=True)
    finally:
        lock.release()


def _restore_upgraded(path: Path, url: str) -> None:
    """Upgrade an older backup on the way: only the embedded engine ever had older schemas."""
    with tempfile.TemporaryDirectory(prefix="ffs-restore-") as name:
        restore(path, name)
        upgraded = Path(name) / "upgraded.ffsbackup"
        backup(name, upgraded)
        restore(upgraded, url)


def _fill(draft: Path, path: Path, info: BackupInfo) -> None:
    """Build a database of the backup's schema version, fill it, and upgrade it to ours."""
    connection = sqlite3.connect(draft, isolation_level=None)
    try:
        # No journal: a draft that was not finished is thrown away.
        for pragma in ("page_size=4096", "journal_mode=OFF", "synchronous=OFF"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("BEGIN")
        for statement in upgrade_statements(SQLITE, 0, info.heading.schema_version):
            connection.execute(statement)
        tx = SqliteTransaction(connection)
        _load(tx, path)
        _check_counts(tx, info)
        for statement in upgrade_statements(SQLITE, info.heading.schema_version):
            connection.execute(statement)
        _skip_ids(tx)
        connection.execute("COMMIT")
        problems = connection.execute("PRAGMA quick_check(1)").fetchall()
        if problems != [("ok",)]:
            raise FormatError(f"the restored database is damaged: {problems[0][0]}")
    except sqlite3.DatabaseError as error:
        if is_full(error):
            raise NoSpaceError(
                "no room for the restored database",
                hint="free space there",
                path=os.fspath(draft.parent),
            ) from error
        raise FormatError(
            f"backup does not fit its schema version: {error}", path=os.fspath(path)
        ) from error
    finally:
        connection.close()
    descriptor = os.open(draft, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
