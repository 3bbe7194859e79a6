"""The reference for metadata rates: SQLite in this process, the least SQL that could do the job.

No network, no identities of mutations, no reservations, leases or times of directories, no look at
what stands at a name before it is made, no index of sessions by client or of dead blobs: only the
rows without which a path would not resolve or a written chunk would belong to nobody, a batch a
transaction, as durable as ours (WAL, synchronous=FULL). Whoever asks SQLite for a thousand paths by
hand does about this. It is a lower bound and no server: docs/decisions/0008-metadata-rates.md says
how much of the difference is what.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_SCHEMA = """
PRAGMA journal_mode=WAL;
PRAGMA synchronous=FULL;
PRAGMA cache_size=-65536;
PRAGMA wal_autocheckpoint=4096;
CREATE TABLE inodes (
    inode INTEGER PRIMARY KEY, type INTEGER, mode INTEGER, uid INTEGER, gid INTEGER,
    nlink INTEGER, size INTEGER, version INTEGER, atime_ns INTEGER, mtime_ns INTEGER,
    ctime_ns INTEGER
);
CREATE TABLE dentries (
    parent INTEGER, name BLOB, inode INTEGER, PRIMARY KEY (parent, name)
) WITHOUT ROWID;
CREATE TABLE blobs (
    blob INTEGER PRIMARY KEY, state INTEGER, refs INTEGER, length INTEGER,
    chunk_size_bytes INTEGER, stripe INTEGER, chain_table INTEGER, seed INTEGER,
    changed_ns INTEGER
);
CREATE TABLE sessions (
    session INTEGER PRIMARY KEY, client BLOB, blob INTEGER, parent INTEGER, name BLOB
);
"""
_CHILD = "SELECT inode FROM dentries WHERE parent = ? AND name = ?"
# One statement for a thousand paths: a loop of single SELECTs was measured at half its speed.
_ATTRS = """
WITH wanted (place, parent, name) AS (VALUES {})
SELECT w.place, i.* FROM wanted w
JOIN dentries d ON d.parent = w.parent AND d.name = w.name
JOIN inodes i ON i.inode = d.inode
ORDER BY w.place
"""
_ROOT = 1
_NOW_NS = 1_700_000_000_000_000_000

Attr = tuple[int, ...]


class BareSqlite:
    """A namespace in a SQLite file. `create_many` writes two rows a file and `write_many` six."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript(_SCHEMA)
        self._next_inode = _ROOT + 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._db.close()

    def make_directories(self, paths: Sequence[bytes]) -> None:
        """Make directories, each path after its parent."""
        for path in paths:
            parent, _, name = path.rpartition(b"/")
            self._insert(self._directory(parent, {}), [name], file_type=2)

    def create_many(self, directory: bytes, names: Sequence[bytes]) -> None:
        """Make empty files in one directory: two rows each, one commit for all."""
        self._insert(self._directory(directory, {}), names, file_type=1)

    def write_many(self, directory: bytes, names: Sequence[bytes]) -> None:
        """Make files as a write session must: six changes of rows each, two commits for all.

        A chunk may be stored only under a blob that is in the database, and a dead writer's only
        be found by its session; both are durable before a byte moves, and settled afterwards.
        """
        parent = self._directory(directory, {})
        first = self._next_inode
        ids = range(first, first + len(names))
        blobs = [(i, 1, 0, 0, 1 << 20, 1, 1, i, _NOW_NS) for i in ids]
        sessions = [(i, b"client", i, parent, name) for i, name in zip(ids, names, strict=True)]
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany("INSERT INTO blobs VALUES (?,?,?,?,?,?,?,?,?)", blobs)
        self._db.executemany("INSERT INTO sessions VALUES (?,?,?,?,?)", sessions)
        self._db.execute("COMMIT")
        self._db.execute("BEGIN IMMEDIATE")
        self._insert_rows(parent, names, file_type=1)
        self._db.executemany("UPDATE blobs SET state = 3 WHERE blob = ?", [(i,) for i in ids])
        self._db.executemany("DELETE FROM sessions WHERE session = ?", [(i,) for i in ids])
        self._db.execute("COMMIT")

    def stat_many(self, paths: Sequence[bytes]) -> list[Attr]:
        """Return (place, attributes ...) of paths; each directory is looked up once a call."""
        known: dict[bytes, int] = {}
        wanted: list[int | bytes] = []
        for place, path in enumerate(paths):
            parent, _, name = path.rpartition(b"/")
            wanted += (place, known.get(parent) or self._directory(parent, known), name)
        statement = _ATTRS.format(",".join(["(?,?,?)"] * len(paths)))
        return self._db.execute(statement, wanted).fetchall()

    def _directory(self, path: bytes, known: dict[bytes, int]) -> int:
        if not path:
            return _ROOT
        parent, _, name = path.rpartition(b"/")
        above = known.get(parent) or self._directory(parent, known)
        row: tuple[int] = self._db.execute(_CHILD, (above, name)).fetchone()
        known[path] = row[0]
        return row[0]

    def _insert(self, parent: int, names: Sequence[bytes], *, file_type: int) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        self._insert_rows(parent, names, file_type=file_type)
        self._db.execute("COMMIT")

    def _insert_rows(self, parent: int, names: Sequence[bytes], *, file_type: int) -> None:
        first = self._next_inode
        self._next_inode += len(names)
        now = _NOW_NS
        inodes = [
            (first + i, file_type, 0o644, 0, 0, 1, 0, 1, now, now, now) for i in range(len(names))
        ]
        dentries = [(parent, name, first + i) for i, name in enumerate(names)]
        self._db.executemany("INSERT INTO inodes VALUES (?,?,?,?,?,?,?,?,?,?,?)", inodes)
        self._db.executemany("INSERT INTO dentries VALUES (?,?,?)", dentries)
