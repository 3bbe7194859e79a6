"""The engines' single steps: checksums and frame headers."""

from __future__ import annotations

import os

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from ffs import _reader
from ffs.wire.frame import Op


@pytest.mark.parametrize("size_bytes", [4096, 1 << 20])
def test_crc32c(benchmark: BenchmarkFixture, size_bytes: int) -> None:
    data = os.urandom(size_bytes)
    assert benchmark(_reader.crc32c, data) == _reader.crc32c(data)


def test_block_crcs_of_a_chunk(benchmark: BenchmarkFixture) -> None:
    chunk = os.urandom(1 << 20)
    assert len(benchmark(_reader.block_crcs, chunk, 7, 3)) == 4 * 256


def test_frame_header_round_trip(benchmark: BenchmarkFixture) -> None:
    def round_trip() -> int:
        return _reader.unpack_header(_reader.pack_header(op=int(Op.READ), request_id=9))["op"]

    assert benchmark(round_trip) == Op.READ
