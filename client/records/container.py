"""Our own container's layout: header, samples, index, footer. docs/records.md has the tables.

    header | samples | bounds, checksums | (samples | bounds, checksums)... | section table, tail

The tail ends the file and leads to everything, so a file is written from front to back and may be
appended to: new samples go behind the old tail, and the new tail's table names the old sections as
well. Nothing that was written before is touched.

Invariants: every structure carries a CRC32C of itself; what a table says is held against the file's
size before it is believed.
Failure behaviour: FormatError, which names the file and what does not fit.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ffs import _reader
from ffs.client.records.parts import VARIES, Checksum, Part, align_up
from ffs.errors import FormatError

MAGIC: Final = b"\x93FFSREC\n"
TAIL_MAGIC: Final = b"\x93FFSEND\n"
VERSION: Final = 1
STRUCT_BYTES: Final = 64
"""Header, section and tail have 64 bytes each."""
HEADER: Final = struct.Struct("<8sIIQ36xI")
SECTION: Final = struct.Struct("<QQQqQQIIQ")
TAIL: Final = struct.Struct("<8sIIQQQI16xI")
SECTIONS_MAX: Final = 65_536
ALIGNMENT_MAX: Final = 1 << 20
assert HEADER.size == SECTION.size == TAIL.size == STRUCT_BYTES


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a file: where its section table is."""

    sections: int
    count: int
    table_offset: int
    file_bytes: int
    table_crc: int


def is_ours(head: bytes | memoryview) -> bool:
    """Return whether a file that begins so is of our container."""
    return bytes(head[: len(MAGIC)]) == MAGIC


def pack_header(alignment: int) -> bytes:
    """Return the first bytes of a file."""
    return _seal(HEADER.pack(MAGIC, VERSION, 0, alignment, 0))


def parse_header(head: bytes | memoryview, path: str) -> int:
    """Return the alignment of a file's samples."""
    if len(head) < STRUCT_BYTES:
        raise _damaged("it ends inside its header", path)
    _, version, flags, alignment, crc = HEADER.unpack_from(head)
    if version > VERSION or flags:
        raise FormatError(
            "the file of records was written by a newer program",
            hint="read it with that version of FFS",
            path=path,
            version=version,
            flags=flags,
        )
    if crc != _crc(head):
        raise _damaged("its header does not match its checksum", path)
    if not 0 < alignment <= ALIGNMENT_MAX or alignment & (alignment - 1):
        raise _damaged("its alignment is no power of two within bounds", path, alignment=alignment)
    return int(alignment)


def pack_footer(parts: Sequence[Part], offset: int) -> bytes:
    """Return section table and tail, which lie at `offset`."""
    table = b"".join(
        SECTION.pack(
            p.count,
            p.data_offset,
            p.data_end,
            p.sample_bytes,
            p.bounds_source,
            p.crcs_source,
            p.bounds_crc,
            p.crcs_crc,
            0,
        )
        for p in parts
    )
    count, size = sum(p.count for p in parts), offset + len(table) + STRUCT_BYTES
    crc = _reader.crc32c(table)
    tail = TAIL.pack(TAIL_MAGIC, VERSION, len(parts), count, offset, size, crc, 0)
    return table + _seal(tail)


def parse_tail(tail: bytes | memoryview, size: int, path: str) -> Tail:
    """Return what the last bytes of a file of `size` bytes say."""
    if len(tail) < STRUCT_BYTES or size < 2 * STRUCT_BYTES:
        raise _damaged("it ends inside its header", path, size=size)
    magic, version, sections, count, offset, file_bytes, table_crc, crc = TAIL.unpack_from(tail)
    if magic != TAIL_MAGIC or crc != _crc(tail) or version > VERSION:
        raise _damaged("it does not end in a footer: it was cut, or never closed", path, size=size)
    if (
        file_bytes != size
        or sections > SECTIONS_MAX
        or offset + sections * STRUCT_BYTES + STRUCT_BYTES != size
    ):
        raise _damaged("its footer is of a file of another length", path, size=size)
    return Tail(sections, count, offset, file_bytes, table_crc)


def parse_table(
    table: bytes | memoryview, tail: Tail, alignment: int, file: int, path: str
) -> list[Part]:
    """Return the parts of a file; each one is held against the file's size."""
    if _reader.crc32c(table) != tail.table_crc:
        raise _damaged("its section table does not match its checksum", path)
    parts = [_part(row, alignment, file) for row in SECTION.iter_unpack(table)]
    end = STRUCT_BYTES
    for part in parts:
        if part.data_offset < end or not _fits(part, tail.table_offset):
            raise _damaged("a section of it is out of bounds", path, offset=part.data_offset)
        end = part.crcs_source + 4 * part.count
    if sum(p.count for p in parts) != tail.count:
        raise _damaged("its sections have not as many samples as its footer says", path)
    return parts


def _part(row: tuple[int, ...], alignment: int, file: int) -> Part:
    count, data, end, sample_bytes, bounds, crcs, bounds_crc, crcs_crc, _ = row
    return Part(
        file=file,
        count=count,
        checksum=Checksum.CRC32C,
        data_offset=data,
        data_end=end,
        bounds_source=bounds,
        bounds_stored=count + 1 if sample_bytes == VARIES else 0,
        crcs_source=crcs,
        sample_bytes=sample_bytes,
        alignment=alignment,
        bounds_crc=bounds_crc,
        crcs_crc=crcs_crc,
    )


def _fits(part: Part, limit: int) -> bool:
    """Return whether a section lies where it may, before the table at `limit`."""
    if not part.data_offset <= part.data_end <= limit:
        return False
    if part.data_offset % part.alignment or part.sample_bytes < VARIES or part.count < 1:
        return False
    if not _within(part.crcs_source, 4 * part.count, part.data_end, limit):
        return False
    if part.sample_bytes == VARIES:
        return _within(part.bounds_source, 8 * part.bounds_stored, part.data_end, limit)
    used = (part.count - 1) * part.stride + part.sample_bytes
    return part.data_end - part.data_offset == used and part.bounds_source == 0


def _within(offset: int, length: int, first: int, limit: int) -> bool:
    return first <= offset and offset + length <= limit


def samples_begin(position: int, alignment: int) -> int:
    """Return where the first sample of a section begins that is written from `position` on."""
    return align_up(position, alignment)


def _seal(packed: bytes) -> bytes:
    """Return a structure with its checksum in its last four bytes."""
    return packed[:-4] + struct.pack("<I", _reader.crc32c(packed[:-4]))


def _crc(packed: bytes | memoryview) -> int:
    return _reader.crc32c(packed[: STRUCT_BYTES - 4])


def _damaged(what: str, path: str, **where: int) -> FormatError:
    return FormatError(
        f"the file of records is damaged: {what}", hint="write it again", path=path, **where
    )
