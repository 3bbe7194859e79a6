"""What an engine must give: transactions with set-based statements, and who may run them when.

Previous hop: `service`. Next hop: an engine (`sqlite`, `postgres`). SQL is written once for both,
in words that both know: `?` for parameters, sums cast to BIGINT, and row locks as PostgreSQL writes
them at the end of a query (`FOR UPDATE OF d`), which an engine with one writer leaves out. A batch
never loops over single statements: it asks once with many keys (`rows_for`), changes once by many
keys (`run_for`) and enters many rows at once (`insert`).

Invariants: what `read` sees is committed, and one moment for the whole call. What `write` returns
is durable: its answer comes after the commit. A `write` that raises has changed nothing, and has
not touched what others in the same commit did. Where `shared` is true other transactions change
the database meanwhile, each statement sees what was committed before it, and an operation must hold
the rows that it decided by: directories first, then names, then inodes, then blobs, each in order
of their keys, so that no two wait for each other in a circle.
Failure: an engine that can no longer tell what is on its disk ends the process. An operation that
came second, or whose connection broke, is run again by the engine: it may run several times and
must have no effect but by its transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

Row = tuple[Any, ...]
T = TypeVar("T")


def varying(columns: Sequence[Sequence[object]]) -> list[bool]:
    """Return of each column whether its values differ.

    Why: most columns of a batch hold one value; it is sent once, which halves an insert's time.
    Of rows that are all the same the first column counts as differing.
    """
    varies = [
        column[0] != column[-1] or column.count(column[0]) != len(column) for column in columns
    ]
    if not any(varies):
        varies[0] = True
    return varies


class ConflictError(Exception):
    """Another transaction was first at a name or row; the engine runs the operation again."""


class Transaction(Protocol):
    """One transaction, used by one thread. Statements see what it did before."""

    shared: bool
    """Whether others change the database while this transaction runs."""

    def rows(self, sql: str, params: Sequence[object] = ()) -> list[Row]:
        """Return all rows of a query."""
        ...

    def row(self, sql: str, params: Sequence[object] = ()) -> Row | None:
        """Return the first row of a query, or None."""
        ...

    def rows_for(
        self, sql: str, keys: Sequence[Sequence[object]], after: Sequence[object] = ()
    ) -> list[Row]:
        """Return the rows of a query that reads its keys from `(VALUES {keys})`.

        Args:    sql: holds `{keys}` once; the engine puts as many rows of parameters there as it
                 needs, and may ask in several steps; keys: rows of equal width, order is free;
                 after: parameters that follow the keys in the text
        """
        ...

    def run(self, sql: str, params: Sequence[object] = ()) -> int:
        """Run a statement and return how many rows it changed."""
        ...

    def run_for(
        self, sql: str, keys: Sequence[Sequence[object]], after: Sequence[object] = ()
    ) -> int:
        """Run an UPDATE or DELETE that reads its keys from `(VALUES {keys})`, as `rows_for` does.

        Args:    keys: no two of them may change the same row
        Returns: how many rows it changed
        """
        ...

    def insert(
        self,
        table: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        *,
        conflict: str = "",
    ) -> int:
        """Enter rows in the order given and return how many were entered.

        Args:    conflict: what follows ON CONFLICT, for example "DO NOTHING"; without it a key
                 that is taken raises `ConflictError` where the database is shared
        """
        ...

    def insert_columns(
        self,
        table: str,
        columns: Sequence[str],
        values: Sequence[Sequence[object]],
        *,
        conflict: str = "",
    ) -> int:
        """Enter rows as `insert` does, given column by column, each with a value for every row."""
        ...

    def allocate(self, counter: str, count: int) -> Sequence[int]:
        """Take `count` ids, ascending, that were never given out and never will be again."""
        ...

    def highest(self, counter: str) -> int:
        """Return an id that no id given out so far is above; 0 while there is none."""
        ...

    def pass_id(self, counter: str, value: int) -> None:
        """Make a counter pass an id that came from outside, so that it is not given out again."""
        ...

    def lock(self, name: str) -> None:
        """Take a lock until the end of the transaction; waits for another that has it."""
        ...

    def try_lock(self, name: str) -> bool:
        """Take a lock until the end of the transaction, unless another transaction has it."""
        ...


class Store(Protocol):
    """A database that holds the schema of `schema`."""

    async def read(self, operation: Callable[[Transaction], T]) -> T:
        """Run `operation` on a snapshot of committed state, away from the event loop."""
        ...

    async def write(self, operation: Callable[[Transaction], T]) -> T:
        """Run `operation` in a transaction and return its value once that is durable.

        Its exception is raised here and leaves no trace in the database. A caller that gives up
        waiting does not undo it.
        """
        ...

    async def close(self) -> None:
        """Finish what was accepted, then release the database."""
        ...
