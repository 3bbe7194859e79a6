"""Which cells of the manager's table of states a simulated cluster has come through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from ffs.server.meta.cluster import evaluate
from ffs.server.meta.cluster.states import CELLS, Chain, Event, Facts, Step, step
from ffs.types import TargetState

Cell = tuple[TargetState, Event]

IMPOSSIBLE: Final[Mapping[Cell, str]] = {
    (state, Event.SYNCED): "a target syncs only while it is SYNCING"
    for state in TargetState
    if state != TargetState.SYNCING
} | {
    (state, Event.EMPTIED): "what one that does not serve holds is of no account"
    for state in (TargetState.SYNCING, TargetState.WAITING, TargetState.OFFLINE)
}
"""The cells that no member can come to, and why; the table has all others."""
RESTORED: Final = tuple(cell for cell in CELLS if cell[1] is Event.EMPTIED)
"""Cells for which a database has to be restored from a backup."""


@contextmanager
def observed(cells: Counter[Cell]) -> Iterator[None]:
    """Count the cells of each step that a manager takes."""

    def counted(chain: Chain, facts: Mapping[int, Facts], *, loss_accepted: bool) -> Step:
        taken = step(chain, facts, loss_accepted=loss_accepted)
        cells.update(taken.cells)
        return taken

    setattr(evaluate, "step", counted)  # noqa: B010  # it is put back below
    try:
        yield
    finally:
        setattr(evaluate, "step", step)  # noqa: B010


def as_text(cells: Counter[Cell]) -> str:
    """Return a line for each cell of the table."""
    lines = [f"{cells[cell]:9d}  {cell[0].name} {cell[1].value}" for cell in CELLS]
    lines += [f"{'never':>9}  {s.name} {e.value}: {why}" for (s, e), why in IMPOSSIBLE.items()]
    return "\n".join(lines)


def missing(cells: Counter[Cell], *, restored: bool = False) -> list[str]:
    """Return the cells of the table that were not come through: those that need no database to be
    restored, or those that do."""
    wanted = [cell for cell in CELLS if (cell in RESTORED) == restored]
    return [f"{state.name} {event.value}" for state, event in wanted if not cells[state, event]]
