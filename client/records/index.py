"""Where each sample of a dataset lies: one table for all of its files, shared by all workers.

Role: records.py asks THIS for a batch's places; next hops are pages.py, for what is not here yet,
and shared.py, for the memory. All maths is on whole batches, in NumPy.

The memory holds, in this order: numbers, identities of files, parts, marks of loaded pages of
bounds and of checksums, bounds, checksums. Samples of one length have no bounds: an index of any
number of them takes their checksums' space in the file and none in memory.
Invariants: a place that leaves THIS lies inside its file, behind its header.
Failure behaviour: FormatError names the file; StaleFileError when a file is not the one that the
process which made the index has opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ffs import _reader
from ffs.client.records import ffrecord
from ffs.client.records.files import Files, Identity
from ffs.client.records.pages import I64, PAGE, PagedArray, Places, page_count
from ffs.client.records.parts import VARIES, Checksum, Part
from ffs.client.records.shared import SharedMemory
from ffs.errors import FormatError, StaleFileError

EAGER_BYTES: Final = 4 << 20
"""An index up to this size is read and checked when the dataset is opened."""
MEMORY_ALIGNMENT: Final = 4_096

_PART_FIELDS: Final = (
    "start",
    "count",
    "file",
    "checksum",
    "data_offset",
    "data_end",
    "bounds_source",
    "bounds_stored",
    "crcs_source",
    "sample_bytes",
    "stride",
    "alignment",
    "index_crc",
    "bounds_crc",
    "crcs_crc",
    "bounds_at",
    "crcs_at",
)
_NUMBERS: Final = 4
"""Parts, files, pages of bounds, pages of checksums."""


class Places64(NamedTuple):
    """Where the samples of a batch lie: number of the file, offset and length of each."""

    files: I64
    offsets: I64
    lengths: I64


class Plain(NamedTuple):
    """One file of samples of one length, not 0: sample i lies at first + i * stride."""

    file: int
    first: int
    stride: int
    sample_bytes: int


class _Shape:
    """How the memory is divided; all of it follows from four numbers."""

    def __init__(self, parts: int, files: int, bounds_pages: int, crcs_pages: int) -> None:
        self.numbers = (parts, files, bounds_pages, crcs_pages)
        self.identities = 8 * _NUMBERS
        self.parts = self.identities + 8 * len(Identity._fields) * files
        self.bounds_marks = self.parts + 8 * len(_PART_FIELDS) * parts
        self.crcs_marks = self.bounds_marks + bounds_pages
        end = self.crcs_marks + crcs_pages
        self.bounds = -(-end // MEMORY_ALIGNMENT) * MEMORY_ALIGNMENT
        self.crcs = self.bounds + 8 * PAGE * bounds_pages
        self.size = self.crcs + 4 * PAGE * crcs_pages


class Index:
    """The parts of a dataset as columns, its bounds and checksums as paged arrays.

    Threads: any; Fork: the child shares the memory; Copies: no payload
    """

    def __init__(self, memory: SharedMemory, files: Files) -> None:
        numbers = memory.bytes[: 8 * _NUMBERS].view(np.int64).tolist()
        shape = _Shape(*numbers)
        self.memory = memory
        self.files = files
        self._columns = _columns(memory, shape)
        column = self._columns
        self._starts, self._file = column["start"], column["file"]
        self._sample_bytes = column["sample_bytes"]
        self.varies: bool = bool((self._sample_bytes == VARIES).any())
        self._all_vary: bool = bool((self._sample_bytes == VARIES).all())
        self._aligned: bool = bool((column["alignment"] > 1).any())
        counts = column["count"]
        self.count = int(counts.sum())
        self._uniform: tuple[int | None] | None = None
        self.plain = self._find_plain()
        at, pages = memory.bytes, shape.numbers[2:]
        self._bounds = PagedArray(
            at[shape.bounds : shape.crcs].view("<i8"),
            at[shape.bounds_marks : shape.bounds_marks + pages[0]],
            Places(
                self._file,
                column["bounds_source"],
                column["bounds_stored"],
                column["bounds_at"] // PAGE,
            ),
            files,
            overlap=1,
            check=self._check_bounds,
        )
        self._crcs = PagedArray(
            at[shape.crcs : shape.size].view("<u4"),
            at[shape.crcs_marks : shape.crcs_marks + pages[1]],
            Places(self._file, column["crcs_source"], counts, column["crcs_at"] // PAGE),
            files,
            overlap=0,
            check=lambda part, first, last: None,
        )

    @classmethod
    def build(cls, files: Files, parts: Sequence[Part]) -> Index:
        """Make the index of opened files; read and check it now if it is a small one."""
        parts = [part for part in parts if part.count]
        bounds_pages = [page_count(p.count + 1) if p.sample_bytes == VARIES else 0 for p in parts]
        crcs_pages = [page_count(p.count) for p in parts]
        shape = _Shape(len(parts), len(files.paths), sum(bounds_pages), sum(crcs_pages))
        memory = SharedMemory.create(shape.size)
        memory.bytes[: 8 * _NUMBERS].view(np.int64)[:] = shape.numbers
        _identities(memory, shape)[:] = files.identities
        columns = _columns(memory, shape)
        for name in _PART_FIELDS[1:-2]:
            columns[name][:] = [getattr(part, name) for part in parts]
        for name, pages in (("bounds_at", bounds_pages), ("crcs_at", crcs_pages)):
            columns[name][:] = PAGE * _before(pages)
        columns["start"][:] = _before([part.count for part in parts])
        index = cls(memory, files)
        if sum(12 * p.count for p in parts if p.sample_bytes == VARIES) <= EAGER_BYTES:
            index._load_varying()
        return index

    @classmethod
    def attach(cls, memory: SharedMemory, files: Files) -> Index:
        """Use an index that another process has made of the same files."""
        shape = _Shape(*memory.bytes[: 8 * _NUMBERS].view(np.int64).tolist())
        known = [Identity(*row) for row in _identities(memory, shape).tolist()]
        for path, was, now in zip(files.paths, known, files.identities, strict=False):
            if was != now:
                raise StaleFileError(
                    "the file was replaced since the dataset was opened",
                    hint="open the dataset again in the process that starts the workers",
                    path=path,
                )
        if len(known) != len(files.identities):
            raise StaleFileError("the dataset has other files than when it was opened")
        return cls(memory, files)

    def after_fork_in_child(self) -> None:
        """Take new locks."""
        self._bounds.after_fork_in_child()
        self._crcs.after_fork_in_child()

    # --- a batch ----------------------------------------------------------------------------------

    def locate(self, ids: I64) -> Places64:
        """Return where samples lie whose numbers are in range."""
        parts, local = self._parts_of(ids)
        column = self._columns
        if self._all_vary:
            offsets, lengths = self._bounded(parts, local)
        else:
            offsets = column["data_offset"][parts] + local * column["stride"][parts]
            lengths = self._sample_bytes[parts]
            if self.varies:
                some = np.flatnonzero(lengths == VARIES)
                if len(some):
                    offsets[some], lengths[some] = self._bounded(parts[some], local[some])
        return Places64(self._file[parts], offsets, lengths)

    def checksums(self, ids: I64) -> tuple[npt.NDArray[np.uint32], I64]:
        """Return each sample's checksum, and which kind it is."""
        parts, local = self._parts_of(ids)
        places = self._columns["crcs_at"][parts] + local
        self._crcs.need(places)
        return self._crcs.entries[places], self._columns["checksum"][parts]

    def _find_plain(self) -> Plain | None:
        """Return the rule that all samples lie by, if that is as simple as can be."""
        if len(self._starts) != 1 or self._sample_bytes[0] in (0, VARIES):
            return None
        names = ("file", "data_offset", "stride", "sample_bytes")
        return Plain(*(int(self._columns[name][0]) for name in names))

    def uniform(self) -> int | None:
        """Return the one length of all samples; None if they differ, or there are none.

        Why: FFRecord does not say that its samples have one length; where that may be, all bounds
        are read to find out, once.
        """
        if self._uniform is None:
            self._uniform = (self._find_uniform(),)
        return self._uniform[0]

    def _find_uniform(self) -> int | None:
        if not self.count:
            return None
        length = int(self.locate(np.zeros(1, dtype=np.int64)).lengths[0])
        column = self._columns
        fixed = self._sample_bytes != VARIES
        if (self._sample_bytes[fixed] != length).any():
            return None
        spans = column["data_end"] - column["data_offset"]
        stride = -(-length // column["alignment"]) * column["alignment"]
        varying = np.flatnonzero(~fixed)
        if (spans != (column["count"] - 1) * stride + length)[varying].any():
            return None
        if len(varying):
            self._bounds.need_all()
        for part in varying.tolist():
            first, count = int(column["bounds_at"][part]), int(column["count"][part])
            ends = self._bounds.entries[first : first + count + 1]
            begins = _align_up(ends[:-1], int(column["alignment"][part]))
            if (ends[1:] - begins != length).any():
                return None
        return length

    def _parts_of(self, ids: I64) -> tuple[I64, I64]:
        if len(self._starts) == 1:
            return np.zeros(len(ids), dtype=np.int64), ids
        parts = np.searchsorted(self._starts, ids, side="right") - 1
        return parts, ids - self._starts[parts]

    def _bounded(self, parts: I64, local: I64) -> tuple[I64, I64]:
        column = self._columns
        places = column["bounds_at"][parts] + local
        self._bounds.need(places)
        bounds = self._bounds.entries
        offsets = bounds[places]
        if self._aligned:
            offsets = _align_up(offsets, column["alignment"][parts])
        return offsets, bounds[places + 1] - offsets

    # --- checking ---------------------------------------------------------------------------------

    def check(self) -> None:
        """Read all of the index and hold it against its checksums.

        Raises:  FormatError for the first file whose index is damaged
        """
        self._load_varying()
        self._crcs.need_all()
        for part in range(len(self._starts)):
            self._check_part(part)

    def _load_varying(self) -> None:
        """Read the index of all parts whose samples differ in length, and check it."""
        varying = np.flatnonzero(self._sample_bytes == VARIES).tolist()
        if not varying:
            return
        self._bounds.need_all()
        columns = self._columns
        for part in varying:
            at, count = int(columns["crcs_at"][part]), int(columns["count"][part])
            self._crcs.need(np.arange(at, at + count, PAGE))
            self._check_part(part)

    def _check_part(self, part: int) -> None:
        column = {name: int(values[part]) for name, values in self._columns.items()}
        count, at = column["count"], column["crcs_at"]
        crcs = self._crcs.entries[at : at + count]
        at, stored = column["bounds_at"], column["bounds_stored"]
        bounds = self._bounds.entries[at : at + stored]
        if column["checksum"] == Checksum.CRC32:
            wanted = column["index_crc"]
            right = wanted in (0, ffrecord.crc_meta(count, crcs, bounds))
        else:
            right = _reader.crc32c(crcs) == column["crcs_crc"]
            right = right and (not stored or _reader.crc32c(bounds) == column["bounds_crc"])
        if not right:
            self._damaged(part, "its index does not match its checksum")

    def _check_bounds(self, part: int, first: int, last: int) -> None:
        """Hold entries `first` .. `last` - 1 of a part's bounds against the file and each other."""
        column = self._columns
        count, stored = int(column["count"][part]), int(column["bounds_stored"][part])
        at, end = int(column["bounds_at"][part]), int(column["data_end"][part])
        entries = self._bounds.entries
        if last >= stored == count:  # FFRecord: the last one is the end of the file
            entries[at + count] = end
            last = count + 1
        bounds, begin = entries[at + first : at + last], int(column["data_offset"][part])
        if first == 0 and bounds[0] != begin:
            self._damaged(part, "its first sample is not where its header ends")
        if last == count + 1 and bounds[-1] != end:
            self._damaged(part, "its last sample does not end where its samples end")
        if ((bounds < begin) | (bounds > end)).any():
            self._damaged(part, "a sample lies outside of it")
        if (_align_up(bounds[:-1], int(column["alignment"][part])) > bounds[1:]).any():
            self._damaged(part, "a sample ends before it begins")

    def _damaged(self, part: int, what: str) -> None:
        raise FormatError(
            f"the file of records is damaged: {what}",
            hint="write it again",
            path=self.files.paths[int(self._file[part])],
        )


def _align_up(offsets: I64, alignment: I64 | int) -> I64:
    aligned: I64 = (offsets + (alignment - 1)) & -alignment
    return aligned


def _before(counts: Sequence[int]) -> I64:
    """Return the sum of what comes before each."""
    sums = np.zeros(len(counts), dtype=np.int64)
    np.cumsum(np.array(counts[:-1], dtype=np.int64), out=sums[1:])
    return sums


def _identities(memory: SharedMemory, shape: _Shape) -> I64:
    flat = memory.bytes[shape.identities : shape.parts].view(np.int64)
    return flat.reshape(-1, len(Identity._fields))


def _columns(memory: SharedMemory, shape: _Shape) -> dict[str, I64]:
    flat = memory.bytes[shape.parts : shape.bounds_marks].view(np.int64)
    return dict(zip(_PART_FIELDS, flat.reshape(len(_PART_FIELDS), -1), strict=True))
