"""What an engine must give: transactions with set-based statements, and who may run them when.

Previous hop: `service`. Next hop: an engine (`sqlite`). SQL text is written for both engines with
`?` for parameters; a batch never loops over single statements: it asks once with many keys
(`rows_for`) and changes once with many rows (`run_each`).

Invariants: what `read` sees is committed, and one moment for the whole call. What `write` returns
is durable: its answer comes after the commit. A `write` that raises has changed nothing, and has
not touched what others in the same commit did.
Failure: an engine that can no longer tell what is on its disk ends the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

Row = tuple[Any, ...]
T = TypeVar("T")


class Transaction(Protocol):
    """One transaction, used by one thread. Statements see what it did before."""

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

    def run_each(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        """Run a statement once for each row of parameters, prepared once."""
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
