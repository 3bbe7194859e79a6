"""A part: a run of samples that one rule tells where to find. What both formats are parsed into.

An FFRecord file is one part; a file of our own container is one for each time it was written to.
A part whose samples have one length needs no index; of others the `bounds` say where each one ends.

Shapes/units: bytes, absolute in the file; ends are exclusive.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

VARIES: Final = -1
"""`sample_bytes` of a part whose samples differ in length."""


class Checksum(IntEnum):
    """What a sample's checksum is; the names are those of `ffs._reader.check_samples`."""

    CRC32 = 0
    CRC32C = 1

    @property
    def code(self) -> str:
        """The name for the C engine."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Part:
    """A run of samples.

    Sample i lies from align_up(bounds[i]) to bounds[i + 1]; of `bounds` the file has
    `bounds_stored` at `bounds_source`: all count + 1, or count, and `data_end` is the last one.
    `index_crc` is over all of an FFRecord header; of ours `bounds_crc` and `crcs_crc` are.
    """

    file: int
    count: int
    checksum: Checksum
    data_offset: int
    data_end: int
    bounds_source: int = 0
    bounds_stored: int = 0
    crcs_source: int = 0
    sample_bytes: int = VARIES
    alignment: int = 1
    index_crc: int = 0
    bounds_crc: int = 0
    crcs_crc: int = 0

    @property
    def stride(self) -> int:
        """How far apart samples of one length begin."""
        return align_up(max(self.sample_bytes, 0), self.alignment)


def align_up(offset: int, alignment: int) -> int:
    """Return the first multiple of `alignment`, a power of two, from `offset` on."""
    return (offset + alignment - 1) & -alignment
