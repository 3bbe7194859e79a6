"""Opens a dataset's files and finds out what each one is, by its bytes.

Role: records.py -> THIS -> files.py (bytes), container.py and ffrecord.py (what they mean).
However many files there are, they are looked at in two or three calls of the engine.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import numpy as np

from ffs.client.planner import RANGE_DTYPE
from ffs.client.records import container, ffrecord
from ffs.client.records.files import Files
from ffs.client.records.parts import Checksum, Part
from ffs.errors import FormatError

HEAD_BYTES: Final = container.STRUCT_BYTES
END_BYTES: Final = 4_096
"""What is read of a file's end: the tail, and the section table unless it is a long one."""


def read_pieces(files: Files, pieces: Sequence[tuple[int, int, int]]) -> list[memoryview]:
    """Return (file, offset, length) pieces of files, read in one call."""
    rows = np.array(pieces, dtype=np.int64).reshape(-1, 3)
    ranges = np.empty(len(rows), dtype=RANGE_DTYPE)
    ranges["handle"] = files.handles[rows[:, 0]]
    ranges["offset"], ranges["length"] = rows[:, 1], rows[:, 2]
    buffer = memoryview(bytearray(int(rows[:, 2].sum())))
    files.readv_into(ranges[rows[:, 2] > 0], buffer)
    ends = np.cumsum(rows[:, 2]).tolist()
    return [buffer[end - piece[2] : end] for end, piece in zip(ends, pieces, strict=True)]


def parse_files(files: Files) -> list[Part]:
    """Return the parts of all files, in order.

    Raises:  FormatError for the first file that is not one of records, or is damaged
    """
    sizes = [identity.size for identity in files.identities]
    ends = [min(size, END_BYTES) for size in sizes]
    heads = [(file, 0, min(size, HEAD_BYTES)) for file, size in enumerate(sizes)]
    tails = [
        (file, size - end, end) for file, (size, end) in enumerate(zip(sizes, ends, strict=True))
    ]
    read = read_pieces(files, heads + tails)
    found: dict[int, list[Part]] = {}
    tables: dict[int, tuple[int, container.Tail]] = {}
    for file, (head, end) in enumerate(zip(read[: len(sizes)], read[len(sizes) :], strict=True)):
        path, size = files.paths[file], sizes[file]
        if not container.is_ours(head):
            found[file] = [ffrecord.parse_head(head, size, file, path)]
            continue
        alignment = container.parse_header(head, path)
        tail = container.parse_tail(end[-container.STRUCT_BYTES :], size, path)
        place = tail.table_offset - (size - len(end))
        if place >= 0:
            table = end[place : len(end) - container.STRUCT_BYTES]
            found[file] = container.parse_table(table, tail, alignment, file, path)
        else:
            tables[file] = alignment, tail
    _read_tables(files, tables, found)
    _check_first_offsets(files, found)
    return [part for file in range(len(sizes)) for part in found[file]]


def _read_tables(
    files: Files, tables: dict[int, tuple[int, container.Tail]], found: dict[int, list[Part]]
) -> None:
    """Read the section tables that did not come with the ends of their files."""
    if not tables:
        return
    pieces = [
        (file, tail.table_offset, tail.sections * container.STRUCT_BYTES)
        for file, (_, tail) in tables.items()
    ]
    for (file, (alignment, tail)), table in zip(
        tables.items(), read_pieces(files, pieces), strict=True
    ):
        found[file] = container.parse_table(table, tail, alignment, file, files.paths[file])


def _check_first_offsets(files: Files, found: dict[int, list[Part]]) -> None:
    """Refuse what only looks like an FFRecord header: the first sample begins behind the header."""
    parts = [p for (p, *_) in filter(None, found.values()) if p.checksum is Checksum.CRC32]
    parts = [part for part in parts if part.count]
    if not parts:
        return
    pieces = [(part.file, part.bounds_source, 8) for part in parts]
    for part, first in zip(parts, read_pieces(files, pieces), strict=True):
        if struct.unpack("<q", first)[0] != part.data_offset:
            raise FormatError(
                "not a file of records: its first bytes are neither our header nor FFRecord's",
                hint="an interrupted writer may have left it",
                path=files.paths[part.file],
            )
