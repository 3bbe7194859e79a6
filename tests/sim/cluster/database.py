"""The database that all simulated metadata servers share: the real schema and the real SQL.

It lies in memory in one SQLite connection, and says of itself that it is shared, so that the
servers do what they do over PostgreSQL: compare times by the database's clock, write down each
heartbeat, and hold every mutation against what others did. Transactions run one at a time, each at
one moment: what overlapping ones do to each other is the matter of `several_servers`.

What an engine promises and no more: an operation may be run again, after its commit too, when the
connection broke under it; an answer may never come back to a server that died; while the database
is away, operations wait for a while and then fail with UnavailableError.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from functools import cache
from typing import Final, TypeVar

from ffs.errors import UnavailableError
from ffs.server.meta.manager import Chore
from ffs.server.meta.ops import servers
from ffs.server.meta.schema import SQLITE, ensure_schema, scratch_statements
from ffs.server.meta.sqlite import SqliteTransaction
from ffs.server.meta.store import ConflictError, Row, Transaction
from tests.sim.cluster.fabric import Host
from tests.sim.world import MS, SECOND, World

T = TypeVar("T")

NAME: Final = "database"
WAIT_NS: Final = 1 * SECOND
"""How long an operation waits for a database that is away."""
RETRY_NS: Final = 50 * MS


class SharedSql(SqliteTransaction):
    """A transaction of a database that several servers share."""

    __slots__ = ("_world",)
    shared = True

    def __init__(self, connection: sqlite3.Connection, world: World) -> None:
        super().__init__(connection)
        self._world = world

    def row(self, sql: str, params: Sequence[object] = ()) -> Row | None:
        """See `Transaction.row`; the database's clock is the world's."""
        if sql == servers._CLOCK:
            return (self._world.clock.wall_ns() // 1_000,)
        return super().row(sql, params)

    def try_lock(self, name: str) -> bool:
        """See `Transaction.try_lock`. Only PostgreSQL has the words that folding needs; what it
        would fold are times of directories, which nobody looks at here."""
        return name != Chore.FOLD_CHANGES.value

    def insert(
        self,
        table: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        *,
        conflict: str = "",
    ) -> int:
        """See `Transaction.insert`."""
        try:
            return super().insert(table, columns, rows, conflict=conflict)
        except sqlite3.IntegrityError as error:
            raise ConflictError(str(error)) from error


@cache
def _empty() -> bytes:
    """Return an empty database with the schema, made once in a process."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("BEGIN")
    ensure_schema(SqliteTransaction(connection), SQLITE)
    connection.execute("COMMIT")
    image = connection.serialize()
    connection.close()
    return image


class Database:
    """The one database. `after_commit` is called after each transaction that changed something."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.away = False
        self.after_commit: Callable[[Transaction], None] = lambda tx: None
        self._connection = sqlite3.connect(":memory:", isolation_level=None, cached_statements=512)
        self._connection.deserialize(_empty())
        self._prepare()
        self.tx = SharedSql(self._connection, world)

    def run(self, operation: Callable[[Transaction], T], *, keep: bool = True) -> T:
        """Run an operation in a transaction, and commit it if it is to be kept."""
        execute = self._connection.execute
        before = self._connection.total_changes
        execute("BEGIN")
        try:
            value = operation(self.tx)
        except BaseException:
            execute("ROLLBACK")
            raise
        if not keep:
            execute("ROLLBACK")
            return value
        execute("COMMIT")
        if self._connection.total_changes != before:
            self.after_commit(self.tx)
        return value

    def restore(self, load: Callable[[Transaction], None]) -> None:
        """Lose everything; then have an empty database filled."""
        self._connection.deserialize(_empty())
        self._prepare()
        execute = self._connection.execute
        execute("BEGIN")
        load(self.tx)
        execute("COMMIT")

    def _prepare(self) -> None:
        self._connection.execute("PRAGMA journal_mode=MEMORY")
        for statement in scratch_statements(SQLITE):
            self._connection.execute(statement)

    def close(self) -> None:
        """End it."""
        self._connection.close()


class ServerStore:
    """The `Store` that one server has of the database."""

    def __init__(self, host: Host, database: Database) -> None:
        self._host = host
        self._database = database
        self._chance = host.world.random

    async def read(self, operation: Callable[[Transaction], T]) -> T:
        """See `Store.read`."""
        await self._reach()
        return operation(self._database.tx)  # nothing else happens meanwhile

    async def write(self, operation: Callable[[Transaction], T]) -> T:
        """See `Store.write`."""
        while True:
            await self._reach()
            await self._travel()
            broken = self._chance.random()
            try:
                value = self._database.run(operation, keep=broken >= 0.01)
            except ConflictError:
                continue
            if broken < 0.02:  # before or after the commit: the engine cannot tell, and runs again
                continue
            if broken < 0.5:  # or the answer comes at once
                await self._travel()
            return value

    async def close(self) -> None:
        """See `Store.close`."""

    async def _travel(self) -> None:
        await asyncio.sleep(0.0001 + self._chance.random() * 0.002)

    async def _reach(self) -> None:
        """Come to the database. Raises UnavailableError when it has been away for too long."""
        give_up_ns = self._host.world.now_ns + WAIT_NS
        while self._database.away or not self._host.fabric.connected(self._host.name, NAME):
            if self._host.world.now_ns >= give_up_ns:
                raise UnavailableError("the database cannot be reached")
            await asyncio.sleep(RETRY_NS / SECOND)
