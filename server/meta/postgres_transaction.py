"""`store.Transaction` over a PostgreSQL connection: the same statements, in this engine's words.

Previous hop: `postgres`, and operations through it. Next hop: asyncpg. Parameters are numbered, and
a batch of keys is one array for each column: any number of keys is one prepared statement, planned
once. A table that is searched by one column is searched by the array itself (`_SEARCHED`). Ids that
every writer needs come from sequences, which no transaction waits for; locks are PostgreSQL's
advisory ones, named by a hash.
Failure: what asyncpg raises passes through; `postgres` judges it.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from itertools import count
from typing import Any, Final

import asyncpg

from ffs.server.meta.schema import SEQUENCES
from ffs.server.meta.store import Row, varying

_TYPES: Final[dict[type, str]] = {bytes: "bytea", str: "text"}
_INTEGER: Final = "int8"
_LOCK_SPACE: Final = 0x46465300
"""What our advisory locks' first half is: other users of the database have others."""

_SEARCHED: Final = re.compile(r"IN \(SELECT \w+ FROM keys\)")
"""How a statement says that a column is one of the keys, which have one column.

Why: as a join the keys would be looked through for each row of a table that was thought to be empty
when the plan was made, as those are whose rows come and go (sessions, drops). Of an array the index
is searched for each value, in rising order, whatever the table's size.
"""

Wait = Callable[[Awaitable[Any]], Any]
Shape = tuple[str, ...]
"""The type of each column: of an array, or of the one value that the column has."""


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
        text = numbered(sql, _arrays(columns))
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
        return self._run(numbered(sql, _arrays(columns)), (*columns, *after))

    def insert(
        self,
        table: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        *,
        conflict: str = "",
    ) -> int:
        """See `Transaction.insert`."""
        return self.insert_columns(table, columns, list(zip(*rows, strict=True)), conflict=conflict)

    def insert_columns(
        self,
        table: str,
        columns: Sequence[str],
        values: Sequence[Sequence[object]],
        *,
        conflict: str = "",
    ) -> int:
        """See `Transaction.insert_columns`."""
        if not values or not values[0]:
            return 0
        shape, params = _packed(values)
        return self._run(_insert_text(table, tuple(columns), shape, conflict), params)

    def allocate(self, counter: str, count: int) -> Sequence[int]:
        """See `Transaction.allocate`. Ids of a transaction that does not commit are left out."""
        if counter in SEQUENCES:
            # A sequence gives in rising order to one caller, though others take from it meanwhile.
            text = f"SELECT array_agg(nextval('ids_{counter}')) FROM generate_series(1, ?)"
            numbers: list[int] = self.rows(text, (count,))[0][0] or []
            return numbers
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


def _arrays(columns: Sequence[Sequence[object]]) -> Shape:
    """Return the shape of keys that are sent as arrays, all of them.

    One value for a column would let a plan begin with all rows that have it, however many.
    """
    return tuple(_type_of(column) + "[]" for column in columns)


def _packed(columns: Sequence[Sequence[object]]) -> tuple[Shape, list[object]]:
    """Return columns to be entered as parameters, and what shape they have."""
    each = list(zip(columns, varying(columns), strict=True))
    shape = tuple(_type_of(column) + ("[]" if differs else "") for column, differs in each)
    return shape, [column if differs else column[0] for column, differs in each]


def _type_of(column: Sequence[object]) -> str:
    """Return a column's type, from its first value that is one."""
    first = column[0]
    if first is None:
        first = next((value for value in column if value is not None), None)
    return _TYPES.get(type(first), _INTEGER)


@cache
def _source(shape: Shape) -> str:
    """Return the query that makes rows of parameters of a shape again."""
    arrays = [(place, type_) for place, type_ in enumerate(shape, 1) if type_.endswith("]")]
    columns = ", ".join(
        f"u.c{place}" if type_.endswith("]") else f"${place}::{type_}"
        for place, type_ in enumerate(shape, 1)
    )
    values = ", ".join(f"${place}::{type_}" for place, type_ in arrays)
    names = ", ".join(f"c{place}" for place, _ in arrays)
    return f"SELECT {columns} FROM unnest({values}) AS u({names})"


@cache
def numbered(sql: str, shape: Shape) -> str:
    """Return a statement with numbered parameters, keys as parameters of a shape."""
    if len(shape) == 1:
        sql = _SEARCHED.sub(f"= ANY($1::{shape[0]})", sql)
    if shape:
        sql = sql.replace("(VALUES {keys})", f"({_source(shape)})")
    numbers = count(len(shape) + 1)
    head, *rest = sql.split("?")
    return head + "".join(f"${next(numbers)}{part}" for part in rest)


@cache
def _insert_text(table: str, columns: tuple[str, ...], shape: Shape, conflict: str) -> str:
    text = f"INSERT INTO {table} ({', '.join(columns)}) {_source(shape)}"
    return f"{text} ON CONFLICT {conflict}" if conflict else text


def _lock_key(name: str) -> tuple[int, int]:
    return _LOCK_SPACE, zlib.crc32(name.encode()) - (1 << 31)
