"""`store.Transaction` over a PostgreSQL connection: the same statements, in this engine's words.

Previous hop: `postgres`, and operations through it. Next hop: asyncpg. Parameters are numbered, and
a batch of keys is one array for each column: any number of keys is one prepared statement, planned
once. Ids that every writer needs come from sequences, which no transaction waits for; locks are
PostgreSQL's advisory ones, named by a hash.
Failure: what asyncpg raises passes through; `postgres` judges it.
"""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from itertools import count
from typing import Any, Final

import asyncpg

from ffs.server.meta.schema import SEQUENCES
from ffs.server.meta.store import Row

_ARRAYS: Final[dict[type, str]] = {bytes: "bytea[]", str: "text[]"}
_INTEGERS: Final = "int8[]"
_LOCK_SPACE: Final = 0x46465300
"""What our advisory locks' first half is: other users of the database have others."""

Wait = Callable[[Awaitable[Any]], Any]


class PostgresTransaction:
    """`store.Transaction` over one connection.

    Args:    wait: drives the connection's event loop until something is done
    Threads: used by the thread that owns the connection. Copies: rows become tuples once.
    """

    __slots__ = ("_connection", "_wait")

    shared = True

    def __init__(self, connection: asyncpg.Connection[Any], wait: Wait) -> None:
        self._connection = connection
        self._wait = wait

    def rows(self, sql: str, params: Sequence[object] = ()) -> list[Row]:
        """See `Transaction.rows`."""
        found = self._wait(self._connection.fetch(numbered(sql, ()), *params))
        return list(map(tuple, found))

    def row(self, sql: str, params: Sequence[object] = ()) -> Row | None:
        """See `Transaction.row`."""
        found = self._wait(self._connection.fetchrow(numbered(sql, ()), *params))
        return None if found is None else tuple(found)

    def rows_for(
        self, sql: str, keys: Sequence[Sequence[object]], after: Sequence[object] = ()
    ) -> list[Row]:
        """See `Transaction.rows_for`."""
        if not keys:
            return []
        columns = list(zip(*keys, strict=True))
        text = numbered(sql, _types(columns))
        return list(map(tuple, self._wait(self._connection.fetch(text, *columns, *after))))

    def run(self, sql: str, params: Sequence[object] = ()) -> int:
        """See `Transaction.run`."""
        return self._run(numbered(sql, ()), params)

    def run_for(
        self, sql: str, keys: Sequence[Sequence[object]], after: Sequence[object] = ()
    ) -> int:
        """See `Transaction.run_for`."""
        if not keys:
            return 0
        columns = list(zip(*keys, strict=True))
        return self._run(numbered(sql, _types(columns)), (*columns, *after))

    def insert(
        self,
        table: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        *,
        conflict: str = "",
    ) -> int:
        """See `Transaction.insert`."""
        if not rows:
            return 0
        values = list(zip(*rows, strict=True))
        text = _insert_text(table, tuple(columns), _types(values), conflict)
        return self._run(text, values)

    def allocate(self, counter: str, count: int) -> Sequence[int]:
        """See `Transaction.allocate`. Ids of a transaction that does not commit are left out."""
        if counter in SEQUENCES:
            # A sequence gives in rising order to one caller, though others take from it meanwhile.
            text = f"SELECT nextval('ids_{counter}') FROM generate_series(1, ?)"
            return [number for (number,) in self.rows(text, (count,))]
        row = self.row(
            "UPDATE counters SET value = value + ? WHERE name = ? RETURNING value",
            (count, counter),
        )
        assert row is not None, f"counter {counter} is missing"
        after = int(row[0])
        return range(after - count + 1, after + 1)

    def highest(self, counter: str) -> int:
        """See `Transaction.highest`."""
        if counter in SEQUENCES:
            text = "SELECT last_value - CASE WHEN is_called THEN 0 ELSE 1 END FROM ids_" + counter
            row = self.row(text)
        else:
            row = self.row("SELECT value FROM counters WHERE name = ?", (counter,))
        assert row is not None, f"counter {counter} is missing"
        return int(row[0])

    def pass_id(self, counter: str, value: int) -> None:
        """See `Transaction.pass_id`. For a sequence: while nobody else takes ids from it."""
        if counter in SEQUENCES:
            if self.highest(counter) < value:
                self.row(f"SELECT setval('ids_{counter}', ?)", (value,))
        else:
            text = "UPDATE counters SET value = ? WHERE name = ? AND value < ?"
            self.run(text, (value, counter, value))

    def lock(self, name: str) -> None:
        """See `Transaction.lock`."""
        self.row("SELECT pg_advisory_xact_lock(?, ?)", _lock_key(name))

    def try_lock(self, name: str) -> bool:
        """See `Transaction.try_lock`."""
        row = self.row("SELECT pg_try_advisory_xact_lock(?, ?)", _lock_key(name))
        return row is not None and bool(row[0])

    def _run(self, text: str, params: Sequence[object]) -> int:
        status: str = self._wait(self._connection.execute(text, *params))
        changed = status.rpartition(" ")[2]
        return int(changed) if changed.isdigit() else 0


def _types(columns: Sequence[Sequence[object]]) -> tuple[str, ...]:
    """Return the array type of each column, from its first value that is one."""
    types = []
    for column in columns:
        first = column[0]
        if first is None:
            first = next((value for value in column if value is not None), None)
        types.append(_ARRAYS.get(type(first), _INTEGERS))
    return tuple(types)


@cache
def numbered(sql: str, types: tuple[str, ...]) -> str:
    """Return a statement with numbered parameters, keys as arrays of these types."""
    numbers = count(1)
    if types:
        arrays = ", ".join(f"${next(numbers)}::{type_}" for type_ in types)
        sql = sql.replace("(VALUES {keys})", f"(SELECT * FROM unnest({arrays}))")
    head, *rest = sql.split("?")
    return head + "".join(f"${next(numbers)}{part}" for part in rest)


@cache
def _insert_text(
    table: str, columns: tuple[str, ...], types: tuple[str, ...], conflict: str
) -> str:
    arrays = ", ".join(f"${place}::{type_}" for place, type_ in enumerate(types, 1))
    names = ", ".join(columns)
    text = f"INSERT INTO {table} ({names}) SELECT * FROM unnest({arrays})"
    return f"{text} ON CONFLICT {conflict}" if conflict else text


def _lock_key(name: str) -> tuple[int, int]:
    return _LOCK_SPACE, zlib.crc32(name.encode()) - (1 << 31)
