"""Files of daemons on this host as memory: the form of a read that copies nothing at all.

Role: client/filesystem.py (`read_buffer` with `map`) -> client/reader.py -> THIS -> ffs._reader, by
connections of the mapping's own, which live as long as it does: they are what keeps the daemon from
freeing the extents (native/reader/mapped.c, native/storage/locate.c).

Invariants: every byte that a mapping shows was checked once, before it was handed out, unless the
client does not verify; it is never another one later.
Failure behaviour: whatever keeps a range from being mapped (a daemon elsewhere, zeros or several
segments between pages, a bound, damage) gives None, and the caller reads.

Copies: none that stays: checking goes through a window of memory; Threads: any;
Fork:   the child has neither the memory nor the connections; a new view raises BufferError there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ffs import _reader, limits
from ffs.client import _fork, planner, trace
from ffs.client.connections import Address, Connections
from ffs.client.layouts import Content, Route
from ffs.client.planner import PENDING
from ffs.client.settle import Settler

WINDOW_BYTES: Final = 4 << 20
"""Checked at once, unless one chunk is more: what fits a processor's cache is not copied to RAM."""


class _Lifelines:
    """The connections of a mapping: owned by the mapping, closed with the last view over it."""

    def __init__(self) -> None:
        self.places: dict[Address, int | None] = {}
        self.connections: list[_reader.Connection] = []
        _fork.register(self)

    def place(self, connections: Connections, address: Address, timeout_ms: int) -> int | None:
        """Return the number of the connection to a node; None if it is not on this host."""
        if address not in self.places:
            opened = connections.open_mapped(address, timeout_ms=timeout_ms)
            self.places[address] = len(self.connections) if opened else None
            if opened:
                self.connections.append(opened)
        return self.places[address]

    def after_fork_in_child(self) -> None:
        """Close the child's copies: they are the parent's pins and locks."""
        for connection in self.connections:
            connection.close()


def map_range(
    settler: Settler, content: Content, offset: int, length: int, *, deadline_ms: int, verify: bool
) -> memoryview | None:
    """Return a checked, not empty range of a file as read-only memory; None if it cannot be mapped.

    The memory is there until the last view over it is gone.
    """
    route = settler.route()
    plan = planner.plan_ranges((content,), (offset,), (length,), route)
    if plan.zeros or len(plan.ops) > limits.LOCATED_PER_CONNECTION_MAX:
        return None
    held = _Lifelines()
    if not _aim(plan.ops, plan.chains, route, held, settler.connections, deadline_ms):
        return None
    settler.show(held.connections, plan.ops)
    if not _locate(plan.ops, held.connections, deadline_ms=deadline_ms, verify=verify):
        return None
    mapping = _reader.map_located(tuple(held.connections), plan.ops.tobytes(), held)
    return None if mapping is None else memoryview(mapping)


def _aim(
    ops: npt.NDArray[Any],
    chains: npt.NDArray[Any],
    route: Route,
    held: _Lifelines,
    connections: Connections,
    deadline_ms: int,
) -> bool:
    """Find for each chunk a target on this host; return whether all have one."""
    found: dict[int, tuple[int, int]] = {}
    for chain in np.unique(chains).tolist():
        for target in route.serving.get(chain, ()):
            address = route.address(target)
            place = address and held.place(connections, address, deadline_ms)
            if place is not None:
                found[chain] = (target, place)
                break
        else:
            return False
    for index, chain in enumerate(chains.tolist()):
        ops["target"][index], ops["conn"][index] = found[chain]
    ops["status"] = PENDING
    return True


def _locate(
    ops: npt.NDArray[Any],
    connections: Sequence[_reader.Connection],
    *,
    deadline_ms: int,
    verify: bool,
) -> bool:
    """Have every range located and, by reading it once, checked; return whether all went well."""
    todo = ops.copy()
    if not verify:
        todo["length"] = 1
    lengths = todo["length"].astype(np.uint64)
    ends = np.cumsum(lengths)
    window = np.empty(max(WINDOW_BYTES, int(lengths.max())), dtype=np.uint8).data
    trace_id, first = trace.take(), 0
    while first < len(todo):
        start = int(ends[first] - lengths[first])
        last = int(np.searchsorted(ends, start + len(window), side="right"))
        part = todo[first:last]
        part["dest_offset"] = ends[first:last] - lengths[first:last] - np.uint64(start)
        done = _reader.read_batch(
            connections, part, window, deadline_ms=deadline_ms, verify=verify, trace_id=trace_id
        )
        if done < len(part):
            return False
        first = last
    return True
