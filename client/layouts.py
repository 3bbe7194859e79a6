"""The routing table and a file's content, in the form the planner wants them.

Role: client/meta.py makes a `Route` from each routing reply and a `Content` from each opened file;
client/planner.py reads both. All objects here are immutable once made, so threads share them freely
and a forked child keeps them.

Invariant: a chunk's chain follows from the file's segments and an immutable chain table alone, so a
`Content` stays right when the routing changes; which target of the chain answers is the `Route`'s.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ffs import chains, layout
from ffs.chains import NO_TARGET
from ffs.errors import StaleLayoutError
from ffs.types import Attr, ChainInfo, Routing, Segment
from ffs.wire.messages import OpenFile


class Route:
    """Who serves which chain, as of one routing version."""

    __slots__ = (
        "address_of_node",
        "chain_ids",
        "chain_ops_target",
        "chains",
        "min_replicas",
        "node_of_target",
        "nodes",
        "replica_counts",
        "replica_nodes",
        "replica_targets",
        "replicated",
        "replicated_everywhere",
        "serving",
        "sole_address",
        "sole_target",
        "tables",
        "version",
    )

    def __init__(self, routing: Routing) -> None:
        states = chains.target_states(routing)
        self.version = routing.version
        self.min_replicas = routing.min_replicas
        self.tables: dict[int, list[int]] = {t.table: t.chains for t in routing.tables}
        self.chains: dict[int, ChainInfo] = {c.chain: c for c in routing.chains}
        self.node_of_target: dict[int, int] = {t.target: t.node for t in routing.targets}
        self.address_of_node: dict[int, tuple[str, int]] = {
            n.node: (n.host, n.port) for n in routing.nodes
        }
        self.serving: dict[int, tuple[int, ...]] = {
            c.chain: chains.serving(c, states) for c in routing.chains
        }
        counts = [len(targets) for targets in self.serving.values()]
        self.replicated = max(counts, default=0) > 1
        self.replicated_everywhere = min(counts, default=0) > 1
        self.chain_ids: npt.NDArray[Any] = np.array(sorted(self.chains), dtype=np.uint32)
        self.chain_ops_target: npt.NDArray[Any] = np.array(
            [self.target(int(c)) for c in self.chain_ids], dtype=np.uint32
        )
        self._index_replicas()
        # Set only when every chain is served by one and the same target: then no lookup is needed.
        choices = set(self.serving.values())
        only = choices.pop() if len(choices) == 1 else ()
        self.sole_target = only[0] if len(only) == 1 else NO_TARGET
        self.sole_address = self.address(self.sole_target)

    def _index_replicas(self) -> None:
        """Lay out who serves as arrays, a row for each of `chain_ids` and a last one for chains
        that are not there: targets, and the place in `nodes` of each one's node."""
        rows = [self.serving[int(c)] for c in self.chain_ids] + [()]
        width = max(1, *(len(row) for row in rows))
        self.nodes = sorted(self.address_of_node)
        place = {node: index for index, node in enumerate(self.nodes)}
        self.replica_counts: npt.NDArray[Any] = np.array([len(r) for r in rows], dtype=np.intp)
        self.replica_targets: npt.NDArray[Any] = np.zeros((len(rows), width), dtype=np.uint32)
        self.replica_nodes: npt.NDArray[Any] = np.full(
            self.replica_targets.shape, len(self.nodes), dtype=np.intp
        )
        for index, row in enumerate(rows):
            nodes = [place.get(self.node_of_target[t], len(self.nodes)) for t in row]
            self.replica_targets[index, : len(row)] = row
            self.replica_nodes[index, : len(row)] = nodes

    def places(self, chains: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the row of each chain in the arrays of replicas."""
        places = np.searchsorted(self.chain_ids, chains)
        known = self.chain_ids.take(places, mode="clip") == chains if len(self.chain_ids) else False
        return np.where(known, places, len(self.chain_ids))

    def address(self, target: int) -> tuple[str, int] | None:
        """Return where the node of a target is, None when nobody knows."""
        return self.address_of_node.get(self.node_of_target.get(target, -1))

    def target(self, chain: int) -> int:
        """Return the head of `chain`, where writes go, NO_TARGET when nobody serves."""
        serving = self.serving.get(chain, ())
        return serving[0] if serving else NO_TARGET

    def members(self, chain: int) -> int:
        """Return how many targets the chain has, serving or not."""
        info = self.chains.get(chain)
        return len(info.targets) if info else 0


class Piece:
    """A segment at its place in the file, with the chain of each of its chunks.

    Chunk i lives on `chains[i % len(chains)]`; `blob` 0 is zeros and has no chains.
    """

    __slots__ = ("blob", "chains", "end", "mask", "shift", "start")

    def __init__(self, start: int, segment: Segment, chains: tuple[int, ...]) -> None:
        self.start = start
        self.end = start + segment.length
        self.blob = segment.blob
        self.shift = segment.layout.chunk_size_bytes.bit_length() - 1
        self.mask = (1 << self.shift) - 1
        self.chains = chains

    def chain(self, chunk: int) -> int:
        """Return the chain that holds chunk `chunk` of this blob."""
        return self.chains[chunk % len(self.chains)]

    def pack(self) -> bytes:
        """Return a file that is this piece alone, as `ffs._reader.plan_ranges` takes it."""
        count = len(self.chains)
        return struct.pack(f"<QQII{count}I", self.end, self.blob, self.shift, count, *self.chains)


class Content:
    """A file's bytes at one moment: what a plan needs, and what an error message names.

    `sole` is the only piece of a file that has one and is not zeros: the fast paths' case; `packed`
    is the same for `ffs._reader.plan_ranges`.
    """

    __slots__ = ("attr", "packed", "path", "pieces", "segments", "size", "sole")

    def __init__(self, path: str, opened: OpenFile, tables: dict[int, list[int]]) -> None:
        self.path = path
        self.attr: Attr = opened.attr
        self.segments: Sequence[Segment] = opened.segments
        self.size = opened.attr.size
        self.pieces = _pieces(opened.segments, tables)
        single = len(self.pieces) == 1 and self.pieces[0].blob != 0
        self.sole: Piece | None = self.pieces[0] if single else None
        self.packed: bytes | None = self.sole.pack() if self.sole else None

    def same_bytes(self, other: Content) -> bool:
        """Return whether both stand for the same blobs."""
        return list(self.segments) == list(other.segments)


def _pieces(segments: Sequence[Segment], tables: dict[int, list[int]]) -> tuple[Piece, ...]:
    pieces: list[Piece] = []
    start = 0
    for segment in segments:
        if segment.length == 0:
            continue
        pieces.append(Piece(start, segment, _chains(segment, tables)))
        start = pieces[-1].end
    return tuple(pieces)


def _chains(segment: Segment, tables: dict[int, list[int]]) -> tuple[int, ...]:
    """Return the chains of a segment's chunks in order, no more of them than it has chunks."""
    if segment.blob == 0:
        return ()
    how = segment.layout
    table = tables.get(how.table)
    if not table:
        raise StaleLayoutError(
            "file refers to a chain table that this client has not heard of",
            hint="the routing is refreshed and the call repeated",
            table=how.table,
            blob=segment.blob,
        )
    width = min(how.stripe, len(table)) if how.stripe else len(table)
    count = min(width, layout.chunk_count(segment.length, how.chunk_size_bytes))
    # The first places of a permutation do not depend on how many are drawn (ffs/layout.py).
    return tuple(table[p] for p in layout.stripe_places(len(table), count, how.seed))
