"""From (file, offset, length) to the flat array of READ operations that the C engine runs.

Role, second hop of the read path: client/filesystem.py -> client/reader.py -> THIS (pure) and then
the reader hands the array to ffs._reader. Two ways to the same array: `plan_ranges` is the general
one, in Python; the plain cases (files of one segment, all ranges right) are planned in C.

Invariants: every range is checked before the first operation is made (InvalidError, nothing read);
ranges are packed back to back in `out` in the order given; an operation never crosses a chunk;
bytes of blob 0 are zeroed in `out` and make no operation.

Units: offsets and lengths in bytes; `tag` of an operation is the index of the range it serves.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ffs import _reader
from ffs.chains import NO_TARGET
from ffs.client.handles import HandleTable
from ffs.client.layouts import Content, Route
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

parse_ranges: Final = _reader.parse_ranges
PENDING: Final = _reader.STATUS_PENDING
assert OP.size == OP_DTYPE.itemsize == _reader.READ_OP_BYTES


class Plan:
    """The operations of one call, `packed` as the engine takes them; `content(tag)` names the file.

    A call that goes as planned needs no more than that: arrays over the operations are made when
    they are first asked for, since NumPy costs more than what else there is to do for a call.
    """

    __slots__ = ("_chains", "_ops", "_packed_chains", "content", "packed", "total", "zeros")

    def __init__(
        self,
        packed: bytearray,
        total: int,
        zeros: Sequence[tuple[int, int]],
        content: Callable[[int], Content],
        packed_chains: bytearray | None = None,
    ) -> None:
        self._ops: npt.NDArray[Any] | None = None
        self._chains: npt.NDArray[Any] | None = None
        self._packed_chains = packed_chains
        self.packed = packed
        self.total = total
        self.zeros = zeros
        self.content = content

    @property
    def ops(self) -> npt.NDArray[Any]:
        """The operations as an array of OP_DTYPE over `packed`."""
        if self._ops is None:
            self._ops = np.frombuffer(self.packed, dtype=OP_DTYPE)
        return self._ops

    @property
    def chains(self) -> npt.NDArray[Any]:
        """The chain of each operation; looked up unless planning knew it."""
        if self._chains is None and self._packed_chains is not None:
            self._chains = np.frombuffer(self._packed_chains, dtype=np.uint32)
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
    return Plan(packed, dest, zeros, contents.__getitem__)


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
    """Plan a structured array of ranges over handles.

    Shapes/units: ranges is (n,) of RANGE_DTYPE
    Raises:  InvalidError for the first range that is not inside its file; nothing was read
    """
    rows = ranges.tobytes()  # the caller's may change before a retry names its file
    plan = _plan_plain(
        rows, table.packed, table.numbers, route, lambda tag: table.content(_number(rows, tag))
    )
    if plan is not None:
        return plan
    array_of_rows = np.frombuffer(rows, dtype=RANGE_DTYPE)
    contents = [table.content(handle) for handle in array_of_rows["handle"].tolist()]
    return _plan_rows(array_of_rows, contents, route)


def plan_parsed(packed_rows: bytearray, files: Sequence[Content], route: Route) -> Plan:
    """Plan what `ffs._reader.parse_ranges` made: rows of (place in `files`, offset, length).

    Raises:  as plan_table
    """
    packed = [file.packed for file in files]
    plan = _plan_plain(
        packed_rows, packed, None, route, lambda tag: files[_number(packed_rows, tag)]
    )
    if plan is not None:
        return plan
    rows = np.frombuffer(packed_rows, dtype=RANGE_DTYPE)
    return _plan_rows(rows, [files[place] for place in rows["handle"].tolist()], route)


def _number(rows: bytes | bytearray, tag: int) -> int:
    """Return the first field of row `tag`: the handle of its file, or the place."""
    start = tag * RANGE_DTYPE.itemsize
    return int.from_bytes(rows[start : start + 8], "little")


def _plan_plain(
    rows: bytes | bytearray,
    packed: list[bytes | None],
    numbers: array[int] | None,
    route: Route,
    content: Callable[[int], Content],
) -> Plan | None:
    """Plan ranges of plain files, none of them empty, in C; None if that is not what they are."""
    planned = _reader.plan_ranges(
        rows, packed, numbers, route.chain_ids, route.chain_ops_target, route.sole_target
    )
    if planned is None:
        return None
    packed_ops, packed_chains, total = planned
    return Plan(packed_ops, total, (), content, packed_chains)


def _plan_rows(rows: npt.NDArray[Any], contents: list[Content], route: Route) -> Plan:
    return plan_ranges(contents, rows["offset"].tolist(), rows["length"].tolist(), route)


def scatter(plan: Plan, places: Sequence[int], lengths: Sequence[int]) -> Plan:
    """Move each range of a packed plan to its own place."""
    if not lengths:
        return plan
    starts = np.cumsum([0, *lengths[:-1]])
    shifts = np.array(places, dtype=np.int64) - starts
    plan.ops["dest_offset"] += shifts[plan.ops["tag"]].astype(np.uint64)
    of_zeros = np.searchsorted(starts, [start for start, _ in plan.zeros], side="right") - 1
    plan.zeros = [
        (start + int(shifts[i]), end + int(shifts[i]))
        for i, (start, end) in zip(of_zeros, plan.zeros, strict=True)
    ]
    return plan


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
