"""CRC-32 of samples: each implementation this CPU has against zlib; and a batch held at once."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffs import _reader

NAMES = ("pclmul", "armv8", "software")


def _usable(name: str) -> bool:
    try:
        _reader.force_crc32(name)
    except ValueError:
        return False
    finally:
        _reader.force_crc32("auto")
    return True


AVAILABLE = [name for name in NAMES if _usable(name)]


@pytest.fixture(params=AVAILABLE)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each implementation in turn; the best one again afterwards."""
    _reader.force_crc32(request.param)
    yield request.param
    _reader.force_crc32("auto")


def test_the_best_implementation_is_chosen(implementation: str) -> None:
    assert _reader.crc32_implementation() == implementation
    _reader.force_crc32("auto")
    assert _reader.crc32_implementation() == AVAILABLE[0]
    with open("/proc/cpuinfo") as lines:
        flags = {
            f for line in lines if line.startswith(("flags", "Features")) for f in line.split()
        }
    hardware = {"pclmulqdq": "pclmul", "crc32": "armv8"}
    assert AVAILABLE[:-1] == [name for flag, name in hardware.items() if flag in flags]


def test_an_unknown_implementation_is_refused() -> None:
    with pytest.raises(ValueError, match="no CRC implementation crc64"):
        _reader.force_crc32("crc64")


@pytest.mark.usefixtures("implementation")
def test_the_check_value_of_catalogues() -> None:
    assert _reader.crc32(b"123456789") == 0xCBF43926


@pytest.mark.usefixtures("implementation")
def test_every_short_length_and_alignment() -> None:
    data = os.urandom(230)
    for begin in range(17):
        for end in range(begin, len(data)):
            part = memoryview(data)[begin:end]
            assert _reader.crc32(part, end) == zlib.crc32(part, end)


@pytest.mark.usefixtures("implementation")
def test_a_length_that_gives_up_the_interpreters_lock() -> None:
    data = os.urandom((64 << 10) + 77)
    assert _reader.crc32(data) == zlib.crc32(data)


@given(data=st.binary(max_size=2000), cut=st.integers(0, 2000), name=st.sampled_from(AVAILABLE))
def test_a_crc_continues_after_any_split(data: bytes, cut: int, name: str) -> None:
    _reader.force_crc32(name)
    try:
        assert _reader.crc32(data[cut:], _reader.crc32(data[:cut])) == zlib.crc32(data)
    finally:
        _reader.force_crc32("auto")


def _batch(cuts: list[int], checksum: str) -> tuple[bytes, list[np.ndarray]]:
    edges = sorted({0, *cuts})
    data = os.urandom(edges[-1])
    crc = _reader.crc32 if checksum == "crc32" else _reader.crc32c
    spans = list(pairwise(edges))
    return data, [
        np.array([a for a, _ in spans], dtype=np.uint64),
        np.array([b - a for a, b in spans], dtype=np.uint64),
        np.array([crc(data[a:b]) for a, b in spans], dtype=np.uint32),
    ]


@given(
    cuts=st.lists(st.integers(0, 5000), max_size=9),
    flip=st.integers(0, 4999),
    checksum=st.sampled_from(["crc32", "crc32c"]),
)
def test_a_batch_tells_its_first_bad_sample(cuts: list[int], flip: int, checksum: str) -> None:
    data, (offsets, lengths, crcs) = _batch(cuts, checksum)
    assert _reader.check_samples(data, offsets, lengths, crcs, checksum) == len(offsets)
    if flip < len(data):
        damaged = bytearray(data)
        damaged[flip] ^= 0x10
        hit = int(np.searchsorted(offsets, flip, side="right")) - 1
        assert _reader.check_samples(damaged, offsets, lengths, crcs, checksum) == hit


def test_samples_outside_of_the_data_are_refused() -> None:
    data, (offsets, lengths, crcs) = _batch([10, 100], "crc32")
    for bad in ([0, 91], [10, 91], [0, 2**64 - 5]):
        wrong = np.array(bad, dtype=np.uint64)
        with pytest.raises(ValueError, match="outside"):
            _reader.check_samples(data, wrong, lengths, crcs, "crc32")
        with pytest.raises(ValueError, match="outside"):
            _reader.check_samples(data, offsets + np.uint64(1), wrong, crcs, "crc32")
    with pytest.raises(ValueError, match="outside"):
        _reader.check_samples(data, offsets[:1], lengths, crcs, "crc32")
    with pytest.raises(ValueError, match="no checksum md5"):
        _reader.check_samples(data, offsets, lengths, crcs, "md5")
