"""FFRecord's layout, byte for byte: what its files are, without reading or writing one.

    u32 crc_meta | i64 count | u32 crc[count] | i64 offset[count] | samples back to back

All little-endian and packed; offsets are absolute, a sample ends where the next one begins and the
last one at the end of the file. crc[i] is zlib's CRC-32 of sample i; crc_meta is the CRC-32 of all
that follows it in the header, or 0 in files of the first writers, which checked nothing.

Some facts about it: there is no magic number, so a header is believed only if what it says fits the
file; the header comes first, so its length must be known before the first sample is written.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ffs import _reader
from ffs.client.records.parts import Checksum, Part
from ffs.errors import FormatError

HEAD: Final = struct.Struct("<Iq")
HEAD_BYTES: Final = HEAD.size
ENTRY_BYTES: Final = 12
"""A checksum and an offset."""
EMPTY_CRC: Final = _reader.crc32(bytes(8))
"""The checksum of the header of a file without samples."""
COUNT_MAX: Final = (1 << 63) // ENTRY_BYTES - 1


def header_bytes(count: int) -> int:
    """Return the length of the header of a file with so many samples."""
    return HEAD_BYTES + ENTRY_BYTES * count


def parse_head(head: bytes | memoryview, size: int, file: int, path: str) -> Part:
    """Return the only part of the file whose first bytes these are.

    Raises:  FormatError if the header does not fit into the file
    """
    if len(head) < HEAD_BYTES:
        raise FormatError(
            "not a file of records: it is shorter than any header",
            hint="an interrupted writer may have left it",
            path=path,
            size=size,
        )
    checksum, count = HEAD.unpack_from(head)
    if not 0 <= count <= COUNT_MAX or header_bytes(count) > size:
        raise FormatError(
            "not a file of records, or a truncated one: its header says more samples than fit",
            hint="write the file again",
            path=path,
            size=size,
            count=count,
        )
    empty = size == HEAD_BYTES and checksum in (0, EMPTY_CRC)
    if count == 0 and not empty:
        raise FormatError(
            "not a file of records: its header says none, but that is not what it holds",
            hint="a writer of FFRecord that was killed leaves such files; write it again",
            path=path,
            size=size,
        )
    data = header_bytes(count)
    return Part(
        file=file,
        count=count,
        checksum=Checksum.CRC32,
        data_offset=data,
        data_end=size,
        bounds_source=HEAD_BYTES + 4 * count,
        bounds_stored=count,
        crcs_source=HEAD_BYTES,
        index_crc=checksum,
    )


def crc_meta(count: int, crcs: npt.NDArray[Any], offsets: npt.NDArray[Any]) -> int:
    """Return the checksum of a header."""
    crc = _reader.crc32(struct.pack("<q", count))
    crc = _reader.crc32(np.ascontiguousarray(crcs, dtype="<u4"), crc)
    return _reader.crc32(np.ascontiguousarray(offsets, dtype="<i8"), crc)


def pack_header(crcs: npt.NDArray[Any], lengths: npt.NDArray[Any]) -> bytes:
    """Return the header of a file with these samples."""
    count = len(crcs)
    offsets = np.full(count, header_bytes(count), dtype="<i8")
    np.cumsum(lengths[:-1], out=offsets[1:])
    offsets[1:] += header_bytes(count)
    meta = crc_meta(count, crcs, offsets)
    return HEAD.pack(meta, count) + crcs.astype("<u4").tobytes() + offsets.tobytes()
