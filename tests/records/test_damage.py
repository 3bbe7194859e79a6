"""Files of records that are damaged, cut, or none at all: a typed error, or the right bytes."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import ffs.records
from ffs import _reader
from ffs.client.records import container
from ffs.errors import ChecksumError, FFSError, FormatError
from tests.records.samples import MIXED, ffrecord_file, payloads

LENGTHS = st.one_of(
    st.lists(st.integers(0, 300), max_size=30),
    st.builds(lambda length, count: [length] * count, st.integers(0, 300), st.integers(0, 30)),
)
ALIGNMENTS = st.sampled_from([1, 2, 64, 512])
one_directory = settings(
    max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def container_file(path: Path, pieces: list[list[bytes]], alignment: int = 1) -> bytes:
    with ffs.records.create(str(path), alignment=alignment):
        pass
    for samples in pieces:
        with ffs.records.create(str(path), mode="a") as writer:
            for sample in samples:
                writer.append(sample)
    return path.read_bytes()


def opened(path: Path, stored: bytes) -> list[bytes]:
    """Return all samples of a file with these bytes, checked; whatever is wrong raises."""
    path.write_bytes(stored)
    with ffs.records.open(str(path)) as records:
        records.validate()
        return [bytes(sample) for sample in records.read(np.arange(len(records)))]


@one_directory
@given(pieces=st.lists(LENGTHS, max_size=4), alignment=ALIGNMENTS, seed=st.integers(0, 99))
def test_any_samples_come_back_from_our_container(
    quick_path: Path, pieces: list[list[int]], alignment: int, seed: int
) -> None:
    samples = [payloads(lengths, seed + n) for n, lengths in enumerate(pieces)]
    stored = container_file(quick_path / "x", samples, alignment)
    assert opened(quick_path / "x", stored) == [s for piece in samples for s in piece]


@one_directory
@given(lengths=LENGTHS, seed=st.integers(0, 99), old=st.booleans())
def test_any_samples_come_back_from_ffrecord(
    quick_path: Path, lengths: list[int], seed: int, old: bool
) -> None:
    samples, path = payloads(lengths, seed), quick_path / "x"
    with ffs.records.create(str(path), count=len(samples), format="ffrecord") as writer:
        for sample in samples:
            writer.append(sample)
    assert path.read_bytes() == ffrecord_file(samples)
    assert opened(path, ffrecord_file(samples, old=old)) == samples


@one_directory
@given(stored=st.binary(max_size=300))
@example(b"")
@example(bytes(12))
@example(b"\x93FFSREC\n")
def test_garbage_is_no_file_of_records(quick_path: Path, stored: bytes) -> None:
    path = quick_path / "x"
    path.write_bytes(stored)
    count, size = struct.unpack("<q", stored[4:12].ljust(8, b"\1"))[0], len(stored)
    if (
        size == 12
        and count == 0
        and stored[:4] in (bytes(4), struct.pack("<I", zlib.crc32(bytes(8))))
    ):
        assert opened(path, stored) == []
        return
    with pytest.raises(FormatError, match="record"):
        ffs.records.open(str(path))


@one_directory
@given(data=st.data())
def test_a_changed_byte_is_found(quick_path: Path, data: st.DataObject) -> None:
    ours = data.draw(st.booleans())
    pieces = [MIXED[:4], payloads([9, 9, 9])]
    whole = [sample for piece in pieces for sample in piece]
    stored = bytearray(
        container_file(quick_path / "x", pieces, 8) if ours else ffrecord_file(whole)
    )
    at, bit = data.draw(st.integers(0, len(stored) - 1)), 1 << data.draw(st.integers(0, 7))
    stored[at] ^= bit
    try:
        # What nothing refers to any more, as footers before an append do, may change unseen.
        assert opened(quick_path / "x", bytes(stored)) == whole
        assert ours
    except (FormatError, ChecksumError):
        pass


@one_directory
@given(cut=st.integers(0, 2000), ours=st.booleans(), old=st.booleans())
def test_a_truncated_file_is_refused(quick_path: Path, cut: int, ours: bool, old: bool) -> None:
    samples = payloads([100, 0, 250, 7, 1])
    stored = (
        container_file(quick_path / "x", [samples]) if ours else ffrecord_file(samples, old=old)
    )
    stored = stored[: min(cut, len(stored) - 1)]
    with pytest.raises((FormatError, ChecksumError)):
        opened(quick_path / "x", stored)


def lie(stored: bytes, offset: int, form: str, value: int) -> bytes:
    """Return an FFRecord file with one field changed, its header's checksum made to fit."""
    (count,) = struct.unpack_from("<q", stored, 4)
    changed = bytearray(stored)
    struct.pack_into(form, changed, offset, value)
    struct.pack_into("<I", changed, 0, zlib.crc32(changed[4 : 12 + 12 * count]))
    return bytes(changed)


@pytest.mark.parametrize("value", [-1, 1 << 62, (1 << 63) - 1, 7, 100_000, -(1 << 63)])
def test_a_count_that_lies_is_refused(quick_path: Path, value: int) -> None:
    stored = bytearray(ffrecord_file(MIXED))
    struct.pack_into("<q", stored, 4, value)
    with pytest.raises(FormatError):
        opened(quick_path / "x", bytes(stored))


@pytest.mark.parametrize("sample", range(len(MIXED)))
@pytest.mark.parametrize("value", [-1, 0, 83, 1 << 40, (1 << 63) - 1, -(1 << 63)])
def test_an_offset_that_lies_is_refused(quick_path: Path, sample: int, value: int) -> None:
    at = 12 + 4 * len(MIXED) + 8 * sample
    with pytest.raises(FormatError):
        opened(quick_path / "x", lie(ffrecord_file(MIXED), at, "<q", value))


FIELDS = {
    "count": (0, [0, 1, 3, 1 << 40, (1 << 64) - 1]),
    "data_offset": (8, [0, 63, 65, 1 << 62, (1 << 64) - 1]),
    "data_end": (16, [0, 1 << 62, (1 << 64) - 1]),
    "sample_bytes": (24, [0, 1 << 62, (1 << 64) - 2, (1 << 64) - 1, 1 << 63]),
    "bounds_source": (32, [0, 1 << 62, (1 << 64) - 8]),
    "crcs_source": (40, [0, 1 << 62, (1 << 64) - 4]),
}


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize(
    ("field", "value"), [(f, value) for f, (_, values) in FIELDS.items() for value in values]
)
def test_a_section_that_lies_is_refused(
    quick_path: Path, varying: bool, field: str, value: int
) -> None:
    """Each field of a section in turn, the table's checksum made to fit."""
    samples = payloads([16, 17] if varying else [16, 16])
    stored = container_file(quick_path / "x", [samples])
    tail = container.parse_tail(stored[-64:], len(stored), "x")
    table = bytearray(stored[tail.table_offset : -64])
    where = FIELDS[field][0]
    if struct.unpack_from("<Q", table, where)[0] == value:
        value ^= 2
    struct.pack_into("<Q", table, where, value)
    count = struct.unpack_from("<Q", table)[0]
    changed = with_table(stored, bytes(table), count)
    with pytest.raises((FormatError, ChecksumError)):
        opened(quick_path / "x", changed)


def with_table(stored: bytes, table: bytes, count: int) -> bytes:
    """Return a container with another section table, whatever checks it made to fit."""
    offset = container.parse_tail(stored[-64:], len(stored), "x").table_offset
    tail = container.TAIL.pack(
        *(container.TAIL_MAGIC, 1, len(table) // 64, count, offset, offset + len(table) + 64),
        *(_reader.crc32c(table), 0),
    )
    return stored[:offset] + table + tail[:-4] + struct.pack("<I", _reader.crc32c(tail[:-4]))


def test_sections_that_overlap_are_refused(quick_path: Path) -> None:
    """Else a short table could claim any number of samples."""
    stored = container_file(quick_path / "x", [[b"abcd"], [b"efg"]])
    offset = container.parse_tail(stored[-64:], len(stored), "x").table_offset
    one, other = stored[offset : offset + 64], stored[offset + 64 : offset + 128]
    assert opened(quick_path / "x", with_table(stored, one + other, 2)) == [b"abcd", b"efg"]
    assert opened(quick_path / "x", with_table(stored, other, 1)) == [b"efg"]
    for table in (one + one, other + one, one + other + other):
        with pytest.raises(FormatError, match="out of bounds"):
            opened(quick_path / "x", with_table(stored, table, len(table) // 64))


def test_a_newer_version_is_refused(quick_path: Path) -> None:
    stored = bytearray(container_file(quick_path / "x", [MIXED]))
    struct.pack_into("<I", stored, 8, 2)
    struct.pack_into("<I", stored, 60, _reader.crc32c(stored[:60]))
    with pytest.raises(FormatError, match="newer program"):
        opened(quick_path / "x", bytes(stored))


def test_every_error_names_its_file(quick_path: Path) -> None:
    for number in range(3):
        (quick_path / f"{number}.ffr").write_bytes(ffrecord_file(MIXED))
    bad = quick_path / "1.ffr"
    os.truncate(bad, 100)
    with pytest.raises(FFSError) as caught:
        ffs.records.open(str(quick_path))
    assert caught.value.where["path"] == str(bad)
