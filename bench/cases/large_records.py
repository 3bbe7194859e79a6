"""Large files of tiny records, made quickly: sample i is the number i, four bytes.

For bench/cases/records.py. Appending a hundred million samples one by one takes minutes; here their
bytes and checksums are made by NumPy and laid out as the writers do it, so that the result is a
file like any other: each sample has its CRC.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ffs import _reader
from ffs.client.filesystem import FFSFileSystem
from ffs.client.records import container, ffrecord
from ffs.client.records.parts import Checksum, Part

SAMPLE_BYTES = 4
_PIECE = 1 << 22
_CASTAGNOLI, _IEEE = 0x82F63B78, 0xEDB88320


def write_container(fs: FFSFileSystem, path: str, count: int) -> None:
    """Write `count` samples as a file of our own container."""
    begin = container.STRUCT_BYTES
    end = begin + count * SAMPLE_BYTES
    crcs = _crcs(count, _CASTAGNOLI)
    part = Part(
        file=0,
        count=count,
        checksum=Checksum.CRC32C,
        data_offset=begin,
        data_end=end,
        crcs_source=end,
        sample_bytes=SAMPLE_BYTES,
        crcs_crc=_reader.crc32c(crcs),
    )
    with fs.open(path, "wb") as out:
        out.write(container.pack_header(1))
        _write_samples(out, count)
        out.write(crcs)
        out.write(container.pack_footer([part], end + crcs.nbytes))


def write_ffrecord(fs: FFSFileSystem, path: str, count: int) -> None:
    """Write `count` samples as FFRecord."""
    lengths = np.full(count, SAMPLE_BYTES, dtype=np.int64)
    with fs.open(path, "wb") as out:
        out.write(ffrecord.pack_header(_crcs(count, _IEEE), lengths))
        _write_samples(out, count)


def _write_samples(out: Any, count: int) -> None:
    for first in range(0, count, _PIECE):
        out.write(np.arange(first, min(first + _PIECE, count), dtype="<u4"))


def _crcs(count: int, polynomial: int) -> npt.NDArray[np.uint32]:
    """Return the CRC of each sample: four steps of the table, for many samples at once."""
    table: npt.NDArray[np.uint32] = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> np.uint32(1)) ^ (table & np.uint32(1)) * np.uint32(polynomial)
    found = np.empty(count, dtype=np.uint32)
    for first in range(0, count, _PIECE):
        samples = np.arange(first, min(first + _PIECE, count), dtype=np.uint32)
        crc = np.full(len(samples), 0xFFFFFFFF, dtype=np.uint32)
        for shift in (0, 8, 16, 24):
            crc = table[(crc ^ (samples >> shift)) & 0xFF] ^ (crc >> 8)
        found[first : first + len(samples)] = ~crc
    return found
