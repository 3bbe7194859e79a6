"""From (file, offset, length) to the flat array of READ operations that the C engine runs.

Role, second hop of the read path: client/filesystem.py -> client/reader.py -> THIS (pure) and then
the reader hands the array to ffs._reader. Two ways to the same array: `plan_ranges` packs with
struct and is quick for one range or a few; `plan_table` is NumPy throughout and quick for hundreds.

Invariants: every range is checked before the first operation is made (InvalidError, nothing read);
ranges are packed back to back in `out` in the order given; an operation never crosses a chunk;
bytes of blob 0 are zeroed in `out` and make no operation.

Units: offsets and lengths in bytes; `tag` of an operation is the index of the range it serves.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ffs import _reader
from ffs.client.handles import U64, HandleTable
from ffs.client.layouts import NO_TARGET, Content, Route
from ffs.errors import InvalidError, UnavailableError

OP: Final = struct.Struct("<QQIIIIHHI")
OP_STATUS: Final = 7
"""The place of `status` among what OP unpacks."""
OP_DTYPE: Final = np.dtype(
    [
        ("blob", "<u8"),
        ("dest_offset", "<u8"),
        ("chunk", "<u4"),
        ("target", "<u4"),
        ("offset", "<u4"),
        ("length", "<u4"),
        ("conn", "<u2"),
        ("status", "<u2"),
        ("tag", "<u4"),
    ]
)
RANGE_DTYPE: Final = np.dtype([("handle", "<u8"), ("offset", "<u8"), ("length", "<u8")])
"""One range of a structured array: a handle of `open_many`, an offset and a length."""

PENDING: Final = _reader.STATUS_PENDING
assert OP.size == OP_DTYPE.itemsize == _reader.READ_OP_BYTES


class Plan:
    """The operations of one call. `ops` is an array of OP_DTYPE; `content(tag)` names the file."""

    __slots__ = ("_chains", "content", "ops", "total", "zeros")

    def __init__(
        self,
        ops: npt.NDArray[Any],
        total: int,
        zeros: Sequence[tuple[int, int]],
        content: Callable[[int], Content],
        chains: npt.NDArray[Any] | None = None,
    ) -> None:
        self._chains = chains
        self.ops = ops
        self.total = total
        self.zeros = zeros
        self.content = content

    @property
    def chains(self) -> npt.NDArray[Any]:
        """The chain of each operation; found when first asked for, unless planning knew it."""
        if self._chains is None:
            rows = zip(*(self.ops[c].tolist() for c in ("tag", "blob", "chunk")), strict=True)
            chains = [chain_of(self.content(tag), blob, chunk) for tag, blob, chunk in rows]
            self._chains = np.array(chains, dtype=np.uint32)
        return self._chains


def check_range(content: Content, offset: int, length: int) -> None:
    """Refuse a range that is not wholly inside the file."""
    if offset < 0 or length < 0 or offset + length > content.size:
        raise InvalidError(
            "range is not inside the file",
            hint="offset and length count bytes and may not pass the end of file",
            path=content.path,
            offset=offset,
            length=length,
            size=content.size,
        )


def plan_one(
    content: Content,
    offset: int,
    length: int,
    route: Route,
    choose: Callable[[int, Route], int],
) -> tuple[int, int, bytearray] | None:
    """Plan a checked range that lies in one chunk of a plain file; None when it does not.

    Why: one small read is all there is on this path, and a NumPy array would cost more than it.
    Args:    choose: picks one of the targets that serve a chain
    Returns: the target, how many serve its chain, and the packed operation
    """
    piece = content.sole
    if piece is None or length == 0:
        return None
    chunk = offset >> piece.shift
    within = offset & piece.mask
    if within + length > piece.mask + 1:
        return None
    target, serving = route.sole_target, 1
    if target == NO_TARGET:
        chain = piece.chains[chunk % len(piece.chains)]
        target, serving = choose(chain, route), len(route.serving.get(chain, ()))
        if target == NO_TARGET:
            return None
    ops = bytearray(OP.size)
    OP.pack_into(ops, 0, piece.blob, 0, chunk, target, within, length, 0, PENDING, 0)
    return target, serving, ops


def plan_ranges(
    contents: Sequence[Content], offsets: Sequence[int], lengths: Sequence[int], route: Route
) -> Plan:
    """Plan ranges of files one after the other: the general form, linear in Python."""
    for content, offset, length in zip(contents, offsets, lengths, strict=True):
        check_range(content, offset, length)
    packed = bytearray()
    zeros: list[tuple[int, int]] = []
    dest = 0
    for tag, (content, offset, length) in enumerate(zip(contents, offsets, lengths, strict=True)):
        _pack_range(packed, zeros, content, (offset, offset + length), dest, tag, route)
        dest += length
    ops = np.frombuffer(packed, dtype=OP_DTYPE)
    return Plan(ops, dest, zeros, contents.__getitem__)


def _pack_range(
    packed: bytearray,
    zeros: list[tuple[int, int]],
    content: Content,
    span: tuple[int, int],
    dest: int,
    tag: int,
    route: Route,
) -> None:
    """Append the operations of one range [start, end) of one file to `packed`."""
    position, end = span
    for piece in content.pieces:
        if piece.end <= position:
            continue
        if position >= end:
            break
        stop = min(end, piece.end)
        if piece.blob == 0:
            zeros.append((dest, dest + stop - position))
            dest, position = dest + stop - position, stop
            continue
        while position < stop:
            inside = position - piece.start
            chunk, within = inside >> piece.shift, inside & piece.mask
            length = min(stop - position, piece.mask + 1 - within)
            target = route.sole_target or route.target(piece.chain(chunk))
            status = PENDING if target != NO_TARGET else UnavailableError.code
            packed += OP.pack(piece.blob, dest, chunk, target, within, length, 0, status, tag)
            dest, position = dest + length, position + length


def plan_table(ranges: npt.NDArray[Any], table: HandleTable, route: Route) -> Plan:
    """Plan a structured array of ranges over handles, in NumPy throughout.

    Shapes/units: ranges is (n,) of RANGE_DTYPE
    Raises:  InvalidError for the first range that is not inside its file; nothing was read
    """
    handles = np.ascontiguousarray(ranges["handle"])
    offsets = np.ascontiguousarray(ranges["offset"])
    lengths = np.ascontiguousarray(ranges["length"])
    while True:
        reuses = table.reuses
        plan = _plan_columns(handles, offsets, lengths, table, route)
        if table.reuses == reuses:
            return plan


def _plan_columns(
    handles: U64, offsets: U64, lengths: U64, table: HandleTable, route: Route
) -> Plan:
    slots = table.slots(handles)
    _check_table(handles, slots, offsets, lengths, table)
    if table.column("special", slots).any() or not lengths.all():
        contents = [table.content(int(h)) for h in handles]
        return plan_ranges(contents, offsets.tolist(), lengths.tolist(), route)
    ends = lengths.cumsum()
    shift = table.column("shift", slots)
    first = offsets >> shift
    within = offsets - (first << shift)
    if (within + lengths <= np.uint64(1) << shift).all():
        columns = (slots, first, within, lengths, ends - lengths)
        tags: npt.NDArray[Any] = np.arange(len(handles), dtype=np.uint32)
    else:
        columns, tags = _split(slots, offsets, lengths, ends, shift)
    ops, chains = _fill_ops(columns, tags, table, route)
    total = int(ends[-1]) if len(ends) else 0
    return Plan(ops, total, (), lambda tag: table.content(int(handles[tag])), chains)


def _check_table(handles: U64, slots: U64, offsets: U64, lengths: U64, table: HandleTable) -> None:
    if len(handles) == 0:
        return
    sizes = table.column("size", slots)
    # Written so that no sum can wrap: unsigned 64-bit offsets may be near the top.
    bad = (lengths > sizes) | (offsets > sizes - np.minimum(lengths, sizes))
    if bad.any():
        index = int(bad.argmax())
        content = table.content(int(handles[index]))
        check_range(content, int(offsets[index]), int(lengths[index]))


def _split(
    slots: U64, offsets: U64, lengths: U64, ends: U64, shift: U64
) -> tuple[tuple[U64, U64, U64, U64, U64], npt.NDArray[Any]]:
    """Cut ranges at chunk boundaries: one row for every chunk that a range touches."""
    first = offsets >> shift
    counts = ((offsets + lengths - np.uint64(1)) >> shift) - first + np.uint64(1)
    tags = np.repeat(np.arange(len(slots), dtype=np.uint32), counts.astype(np.int64))
    steps = np.arange(len(tags), dtype=np.uint64) - (counts.cumsum() - counts).take(tags)
    slots, shift = slots.take(tags), shift.take(tags)
    offsets, lengths, ends = offsets.take(tags), lengths.take(tags), ends.take(tags)
    chunks = first.take(tags) + steps
    chunk_start = chunks << shift
    start = np.maximum(offsets, chunk_start)
    stop = np.minimum(offsets + lengths, chunk_start + (np.uint64(1) << shift))
    dest = ends - lengths + (start - offsets)
    return (slots, chunks, start - chunk_start, stop - start, dest), tags


def _fill_ops(
    columns: tuple[U64, U64, U64, U64, U64],
    tags: npt.NDArray[Any],
    table: HandleTable,
    route: Route,
) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    slots, chunks, within, lengths, dest = columns
    ops = np.empty(len(tags), dtype=OP_DTYPE)
    ops["blob"] = table.column("blob", slots)
    ops["dest_offset"] = dest
    ops["chunk"] = chunks
    ops["offset"] = within
    ops["length"] = lengths
    ops["conn"] = 0
    ops["status"] = PENDING
    ops["tag"] = tags
    if route.sole_target:
        ops["target"] = route.sole_target
        return ops, None
    chains = table.chains(slots, chunks)
    places = np.searchsorted(route.chain_ids, chains)
    known = route.chain_ids.take(places, mode="clip") == chains
    targets = route.chain_ops_target.take(places, mode="clip") * known
    ops["target"] = targets
    ops["status"][targets == NO_TARGET] = UnavailableError.code
    return ops, chains


def zero_fill(out: memoryview, zeros: Sequence[tuple[int, int]]) -> None:
    """Clear the parts of `out` that blob 0 stands for."""
    for start, end in zeros:
        np.frombuffer(out[start:end], dtype=np.uint8)[:] = 0


def chain_of(content: Content, blob: int, chunk: int) -> int:
    """Return the chain that holds one chunk of one of a file's blobs."""
    for piece in content.pieces:
        if piece.blob == blob:
            # Pieces of one blob share its chain list but for its length; the longest one knows.
            best = max((p for p in content.pieces if p.blob == blob), key=lambda p: len(p.chains))
            return best.chain(chunk)
    raise AssertionError(f"blob {blob} is not part of {content.path}")
