"""The reference for metadata rates on PostgreSQL: asyncpg in this process, the least that could do.

What `bare_sqlite` is for SQLite: the same tables and nothing else, the same transactions, a
statement for each table with the batch's columns as arrays, prepared once, on one connection over
the loopback. As durable as ours: every commit is synced before it is answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import asyncpg
import uvloop

_SCHEMA = """
CREATE TABLE inodes (
    inode BIGINT PRIMARY KEY, type BIGINT, mode BIGINT, uid BIGINT, gid BIGINT,
    nlink BIGINT, size BIGINT, version BIGINT, atime_ns BIGINT, mtime_ns BIGINT,
    ctime_ns BIGINT
);
CREATE TABLE dentries (
    parent BIGINT, name BYTEA, inode BIGINT, PRIMARY KEY (parent, name)
);
CREATE TABLE blobs (
    blob BIGINT PRIMARY KEY, state BIGINT, refs BIGINT, length BIGINT,
    chunk_size_bytes BIGINT, stripe BIGINT, chain_table BIGINT, seed BIGINT, changed_ns BIGINT
);
CREATE TABLE sessions (
    session BIGINT PRIMARY KEY, client BYTEA, blob BIGINT, parent BIGINT, name BYTEA
);
"""
_CHILD = "SELECT inode FROM dentries WHERE parent = $1 AND name = $2"
_ATTRS = """
SELECT w.place, i.* FROM unnest($1::int8[], $2::int8[], $3::bytea[]) AS w (place, parent, name)
JOIN dentries d ON d.parent = w.parent AND d.name = w.name
JOIN inodes i ON i.inode = d.inode
ORDER BY w.place
"""
# What is the same in all rows of a batch is sent once.
_INSERT_INODES = """
INSERT INTO inodes SELECT i, $2::int8, 420, 0, 0, 1, 0, 1, $3::int8, $3::int8, $3::int8
FROM unnest($1::int8[]) AS i
"""
_INSERT_BLOBS = """
INSERT INTO blobs SELECT i, 1, 0, 0, 1048576, 1, 1, i, 1700000000000000000
FROM unnest($1::int8[]) AS i
"""
_INSERT_SESSIONS = """
INSERT INTO sessions SELECT i, 'client', i, p, n FROM unnest($1::int8[], $2::int8[], $3::bytea[])
AS new(i, p, n)
"""
_INSERT_DENTRIES = "INSERT INTO dentries SELECT * FROM unnest($1::int8[], $2::bytea[], $3::int8[])"
_ROOT = 1
_NOW_NS = 1_700_000_000_000_000_000

Attr = tuple[int, ...]


class BarePostgres:
    """A namespace in a PostgreSQL database, with the methods of `BareSqlite`."""

    def __init__(self, url: str) -> None:
        self._loop = uvloop.new_event_loop()
        # Generic plans, and no full scans of tables that were empty when the plan was made.
        settings = {"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off"}
        settings |= {"enable_hashjoin": "off", "enable_mergejoin": "off", "jit": "off"}
        self._db: asyncpg.Connection[Any] = self._wait(
            asyncpg.connect(url, server_settings=settings)
        )
        self._wait(self._db.execute(_SCHEMA))
        self._next_inode = _ROOT + 1

    def _wait(self, awaitable: Any) -> Any:
        return self._loop.run_until_complete(awaitable)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._wait(self._db.close())
        self._loop.close()

    def make_directories(self, paths: Sequence[bytes]) -> None:
        """Make directories, each path after its parent."""
        for path in paths:
            parent, _, name = path.rpartition(b"/")
            self._wait(self._insert(parent, [name], file_type=2))

    def create_many(self, directory: bytes, names: Sequence[bytes]) -> None:
        """Make empty files in one directory: two rows each, one commit for all."""
        self._wait(self._insert(directory, names, file_type=1))

    def write_many(self, directory: bytes, names: Sequence[bytes]) -> None:
        """Make files as a write session must: six changes of rows each, two commits for all."""
        self._wait(self._write(directory, names))

    def stat_many(self, paths: Sequence[bytes]) -> list[Attr]:
        """Return (place, attributes ...) of paths; each directory is looked up once a call."""
        found: list[Attr] = self._wait(self._stat(paths))
        return found

    async def _stat(self, paths: Sequence[bytes]) -> list[Attr]:
        known: dict[bytes, int] = {}
        parents: list[int] = []
        names: list[bytes] = []
        for path in paths:
            parent, _, name = path.rpartition(b"/")
            parents.append(known.get(parent) or await self._directory(parent, known))
            names.append(name)
        rows: list[Attr] = await self._db.fetch(_ATTRS, range(len(paths)), parents, names)
        return rows

    async def _directory(self, path: bytes, known: dict[bytes, int]) -> int:
        if not path:
            return _ROOT
        parent, _, name = path.rpartition(b"/")
        above = known.get(parent) or await self._directory(parent, known)
        inode: int = await self._db.fetchval(_CHILD, above, name)
        known[path] = inode
        return inode

    async def _write(self, directory: bytes, names: Sequence[bytes]) -> None:
        parent = await self._directory(directory, {})
        count = len(names)
        ids = range(self._next_inode, self._next_inode + count)
        async with self._db.transaction():
            await self._db.execute(_INSERT_BLOBS, ids)
            await self._db.execute(_INSERT_SESSIONS, ids, [parent] * count, names)
        async with self._db.transaction():
            await self._insert_rows(parent, names, file_type=1)
            await self._db.execute("UPDATE blobs SET state = 3 WHERE blob = ANY($1)", ids)
            await self._db.execute("DELETE FROM sessions WHERE session = ANY($1)", ids)

    async def _insert(self, directory: bytes, names: Sequence[bytes], *, file_type: int) -> None:
        parent = await self._directory(directory, {})
        async with self._db.transaction():
            await self._insert_rows(parent, names, file_type=file_type)

    async def _insert_rows(self, parent: int, names: Sequence[bytes], *, file_type: int) -> None:
        count = len(names)
        inodes = range(self._next_inode, self._next_inode + count)
        self._next_inode += count
        await self._db.execute(_INSERT_INODES, inodes, file_type, _NOW_NS)
        await self._db.execute(_INSERT_DENTRIES, [parent] * count, names, inodes)
