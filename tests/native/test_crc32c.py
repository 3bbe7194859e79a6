"""CRC32C: published vectors, and each implementation this CPU has against plain Python."""

from __future__ import annotations

import functools
import itertools
import os
import random
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffs import _reader, layout
from ffs.types import BLOCK_BYTES

POLYNOMIAL = 0x82F63B78
NAMES = ("avx512", "sse42", "armv8", "software")


def _usable(name: str) -> bool:
    try:
        _reader.force_crc(name)
    except ValueError:
        return False
    finally:
        _reader.force_crc("auto")
    return True


AVAILABLE = [name for name in NAMES if _usable(name)]

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


def plain(data: bytes | memoryview, init: int = 0) -> int:
    """The definition, byte by byte."""
    table, crc = _table(), init ^ 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _cpu_flags() -> set[str]:
    """What the kernel says that programs may use: the registers it saves included."""
    with open("/proc/cpuinfo") as lines:
        return {f for line in lines if line.startswith(("flags", "Features")) for f in line.split()}


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
    for name in set(NAMES) - set(AVAILABLE):
        with pytest.raises(ValueError, match=name):
            _reader.force_crc(name)


def test_the_best_that_this_cpu_says_it_has_is_chosen() -> None:
    flags = _cpu_flags()
    expected = {
        "avx512": {"avx512f", "vpclmulqdq", "sse4_2"} <= flags,
        "sse42": "sse4_2" in flags,
        "armv8": "crc32" in flags,
        "software": True,
    }
    assert [name for name in NAMES if expected[name]] == AVAILABLE
    assert _reader.crc_implementation() == AVAILABLE[0]


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


@pytest.mark.usefixtures("implementation")
def test_every_length_around_the_strides_of_vectors() -> None:
    data = os.urandom(1100)
    for begin in range(3):
        for step in (64, 128, 192, 256, 512, 768, 1024):
            for length in (step - 1, step, step + 1, step + 7, step + 8, step + 63):
                part = memoryview(data)[begin : begin + length]
                assert _reader.crc32c(part, length) == plain(part, length)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, (1 << 32) - 1), begin=st.integers(0, 70), length=st.integers(0, 9000))
def test_implementations_agree_on_any_length_alignment_and_start(
    seed: int, begin: int, length: int
) -> None:
    data = memoryview(random.Random(seed).randbytes(begin + length))[begin:]
    found = set()
    for name in AVAILABLE:
        _reader.force_crc(name)
        found.add(_reader.crc32c(data, seed))
    _reader.force_crc("auto")
    assert found == {plain(data, seed)}


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
