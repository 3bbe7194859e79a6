"""CRC32C: published vectors, and each implementation this CPU has against plain Python."""

from __future__ import annotations

import functools
import itertools
import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffs import _reader, layout
from ffs.types import BLOCK_BYTES

POLYNOMIAL = 0x82F63B78
AVAILABLE = sorted({"software", _reader.crc_implementation()})

# RFC 3720 appendix B.4, and the check value that catalogues list.
VECTORS = [
    (b"", 0x00000000),
    (b"123456789", 0xE3069283),
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
]


@functools.cache
def _table() -> list[int]:
    table = []
    for value in range(256):
        for _bit in range(8):
            value = value >> 1 ^ (POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


def plain(data: bytes, init: int = 0) -> int:
    """The definition, byte by byte."""
    table, crc = _table(), init ^ 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


@pytest.fixture(params=AVAILABLE)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each implementation in turn; the best one again afterwards."""
    _reader.force_crc(request.param)
    yield request.param
    _reader.force_crc("auto")


def test_force_selects_and_refuses(implementation: str) -> None:
    assert _reader.crc_implementation() == implementation
    with pytest.raises(ValueError, match="no CRC implementation crc64"):
        _reader.force_crc("crc64")
    absent = {"sse42", "armv8"} - set(AVAILABLE)
    for name in absent:
        with pytest.raises(ValueError, match=name):
            _reader.force_crc(name)


@pytest.mark.parametrize(("data", "expected"), VECTORS)
def test_published_vectors(implementation: str, data: bytes, expected: int) -> None:
    assert _reader.crc32c(data) == expected
    assert plain(data) == expected


@pytest.mark.usefixtures("implementation")
def test_every_short_length_and_alignment() -> None:
    data = os.urandom(80)
    for begin in range(9):
        for end in range(begin, len(data)):
            assert _reader.crc32c(memoryview(data)[begin:end]) == plain(data[begin:end])


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=3000), cuts=st.lists(st.integers(0, 3000), max_size=4))
def test_implementations_agree_on_any_split(data: bytes, cuts: list[int]) -> None:
    expected = plain(data)
    edges = sorted({0, len(data), *(c for c in cuts if c < len(data))})
    for name in AVAILABLE:
        _reader.force_crc(name)
        crc = 0
        for begin, end in itertools.pairwise(edges):
            crc = _reader.crc32c(data[begin:end], crc)
        assert crc == expected
    _reader.force_crc("auto")


@pytest.mark.parametrize("length", [1, 4095, 4096, 4097, 4 * 4096, 9 * 4096 + 17, 66 * 4096 + 1])
@pytest.mark.usefixtures("implementation")
def test_block_crcs_start_from_the_block_seed(length: int) -> None:
    data, blob, chunk, first = os.urandom(length), (1 << 63) + 12345, 7, 3
    expected = [
        plain(data[at : at + BLOCK_BYTES], layout.block_seed(blob, chunk, first + n))
        for n, at in enumerate(range(0, length, BLOCK_BYTES))
    ]
    found = _reader.block_crcs(data, blob, chunk, first)
    assert list(struct.unpack(f"<{len(found) // 4}I", found)) == expected


@settings(max_examples=200, deadline=None)
@given(
    blob=st.integers(0, (1 << 64) - 1),
    chunk=st.integers(0, (1 << 32) - 1),
    block=st.integers(0, (1 << 32) - 1),
)
def test_block_seed_is_the_one_of_layout(blob: int, chunk: int, block: int) -> None:
    assert _reader.block_seed(blob, chunk, block) == layout.block_seed(blob, chunk, block)


def test_block_crcs_are_bounded() -> None:
    assert _reader.block_crcs(b"", 1, 1) == b""
    with pytest.raises(ValueError, match="largest chunk"):
        _reader.block_crcs(bytearray((64 << 20) + 1), 1, 1)
