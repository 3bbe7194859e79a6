"""What tests of records share: FFRecord by its layout's rules alone, and lists of samples."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Sequence


def ffrecord_file(samples: Sequence[bytes], *, old: bool = False) -> bytes:
    """Return the file that the format's own rules make of samples; `old`: no header checksum."""
    count = len(samples)
    offsets, end = [], 12 + 12 * count
    for sample in samples:
        offsets.append(end)
        end += len(sample)
    crcs = [zlib.crc32(sample) for sample in samples]
    meta = struct.pack(f"<q{count}I{count}q", count, *crcs, *offsets)
    return struct.pack("<I", 0 if old else zlib.crc32(meta)) + meta + b"".join(samples)


def payloads(lengths: Sequence[int], seed: int = 0) -> list[bytes]:
    """Return samples of these lengths."""
    source = random.Random(seed)
    return [source.randbytes(length) for length in lengths]


MIXED = payloads([0, 1, 5, 4096, 70_000, 3])
"""Lengths around nothing, a block, and a chunk's neighbours."""
LISTS = {
    "none": [],
    "one empty": [b""],
    "all empty": [b"", b"", b""],
    "mixed": MIXED,
    "one length": payloads([1000] * 40, 1),
    "over chunks": payloads([300_000] * 9, 2),
}
