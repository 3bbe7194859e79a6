"""Samples beyond 4 GiB, and many of them: sparse files, so that only what is touched is there."""

from __future__ import annotations

import mmap
import os
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ffs.records
from ffs import _reader
from ffs.client.records import container, ffrecord, pages
from ffs.client.records.index import EAGER_BYTES
from ffs.client.records.parts import Checksum, Part
from ffs.client.records.writer import FFRecordWriter
from ffs.errors import FormatError
from tests.records.samples import payloads

HUGE = (4 << 30) + 12_345
FIRST, LAST = payloads([1_000, 70_000])


def crc_of_zeros(length: int) -> int:
    piece, crc = bytes(64 << 20), 0
    while length:
        step = min(length, len(piece))
        crc, length = _reader.crc32(memoryview(piece)[:step], crc), length - step
    return crc


def huge_header(*, old: bool) -> bytes:
    """Return the header of an FFRecord file of FIRST, HUGE zeros, and LAST."""
    crcs = np.array([_reader.crc32(FIRST), crc_of_zeros(HUGE), _reader.crc32(LAST)], dtype="<u4")
    header = ffrecord.pack_header(crcs, np.array([len(FIRST), HUGE, len(LAST)]))
    return bytes(4) + header[4:] if old else header


def check_huge(records: ffs.records.Records) -> None:
    assert records.lengths([2, 1, 0]).tolist() == [len(LAST), HUGE, len(FIRST)]
    assert [bytes(sample) for sample in records.read([2, 0])] == [LAST, FIRST]
    assert records.sample_bytes is None


@pytest.mark.parametrize("old", [False, True])
def test_a_sample_beyond_4_gib_on_this_machine(tmp_path: Path, old: bool) -> None:
    path = tmp_path / "x.ffr"
    header = huge_header(old=old)
    with path.open("wb") as file:
        file.write(header + FIRST)
        file.seek(HUGE, os.SEEK_CUR)
        file.write(LAST)
    with ffs.records.open(str(path), verify="sample") as records:
        check_huge(records)


def test_a_sample_beyond_4_gib_in_a_cluster(fs: Any, fs_dir: str) -> None:
    path = f"{fs_dir}/x.ffr"
    front = huge_header(old=False) + FIRST
    fs.pipe_file(path, front)
    fs.truncate(path, len(front) + HUGE)
    with fs.open(path, "ab") as file:
        file.write(LAST)
    with ffs.records.open(path, fs=fs, verify="sample") as records:
        check_huge(records)
        records.validate()


class Heads:
    """A sink that keeps what `finish` brings and counts the rest."""

    def __init__(self) -> None:
        self.position, self.head = 0, b""

    def reserve(self, length: int) -> None:
        self.position = length

    def write(self, data: Any) -> None:
        self.position += len(data)

    def finish(self, head: bytes = b"") -> None:
        self.head = head

    def discard(self) -> None:
        raise AssertionError("nothing went wrong")


def test_a_header_that_is_written_for_a_sample_beyond_4_gib() -> None:
    sink = Heads()
    with (
        mmap.mmap(-1, HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as zeros,
        FFRecordWriter(sink, "x", 3) as writer,
    ):
        for sample in (FIRST, zeros, LAST):
            writer.append(sample)
    assert sink.head == huge_header(old=False)
    assert sink.position == len(sink.head) + len(FIRST) + HUGE + len(LAST)


class Counted:
    """Counts the bytes that an opened dataset has read."""

    def __init__(self, records: ffs.records.Records, patch: pytest.MonkeyPatch) -> None:
        files, self.bytes, self.calls = records.index.files, 0, 0
        read = files.readv_into

        def readv_into(ranges: Any, out: Any) -> int:
            self.bytes += int(ranges["length"].sum())
            self.calls += 1
            return read(ranges, out)

        patch.setattr(files, "readv_into", readv_into)


def many_ffrecord(path: Path, lengths: np.ndarray) -> bytes:
    """Write an FFRecord file with a hole where its samples are, and wrong checksums."""
    header = ffrecord.pack_header(np.zeros(len(lengths), dtype="<u4"), lengths)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + int(lengths.sum()))
    return header


def test_a_large_index_comes_by_pages(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = np.random.default_rng(0).integers(0, 50, 1_000_003)
    header = many_ffrecord(quick_path / "x.ffr", lengths)
    assert len(header) > EAGER_BYTES
    with ffs.records.open(str(quick_path / "x.ffr")) as records:
        counted = Counted(records, monkeypatch)
        ids = np.array([999_999, 4_095, 4_096, 1_000_002, 0])
        assert records.lengths(ids).tolist() == lengths[ids].tolist()
        assert 0 < counted.bytes <= 4 * 8 * (pages.PAGE + 1)
        assert counted.calls == 1
        before = counted.bytes
        assert (
            records.lengths(ids - (ids > 4_096)).tolist() == lengths[ids - (ids > 4_096)].tolist()
        )
        assert counted.bytes == before  # what is there is not fetched again
        assert records.sample_bytes is None
        assert records.lengths(np.arange(len(records))).tolist() == lengths.tolist()
        whole = counted.bytes
        assert whole - len(header) < len(header) / 100
        records.lengths(np.arange(len(records)))
        assert counted.bytes == whole


def test_samples_of_one_length_are_noticed_in_a_large_index(quick_path: Path) -> None:
    lengths = np.full(500_000, 3)
    many_ffrecord(quick_path / "x.ffr", lengths)
    with ffs.records.open(str(quick_path / "x.ffr")) as records:
        assert records.sample_bytes == 3
    lengths[77], lengths[78] = 2, 4
    many_ffrecord(quick_path / "x.ffr", lengths)
    with ffs.records.open(str(quick_path / "x.ffr")) as records:
        assert records.sample_bytes is None


def test_a_page_that_lies_is_found_when_it_is_needed(quick_path: Path) -> None:
    path, lengths = quick_path / "x.ffr", np.full(500_000, 3)
    many_ffrecord(path, lengths)
    at = 12 + 4 * len(lengths) + 8 * 300_000
    with path.open("r+b") as file:
        file.seek(at)
        file.write(struct.pack("<q", 1 << 50))
    with ffs.records.open(str(path)) as records:
        assert records.lengths([1, 499_999]).tolist() == [3, 3]
        for _ in range(2):
            with pytest.raises(FormatError, match="outside of it"):
                records.lengths([300_001])
        with pytest.raises(FormatError):
            records.validate()


def test_threads_share_the_fetching(quick_path: Path) -> None:
    lengths = np.random.default_rng(1).integers(0, 9, 500_000)
    many_ffrecord(quick_path / "x.ffr", lengths)
    wrong: list[str] = []
    with ffs.records.open(str(quick_path / "x.ffr")) as records:

        def work(seed: int) -> None:
            for _ in range(30):
                ids = np.random.default_rng(seed).integers(0, len(lengths), 64)
                if records.lengths(ids).tolist() != lengths[ids].tolist():
                    wrong.append(str(seed))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_100_million_samples_of_one_length_need_no_index(
    fs: Any, fs_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a cluster: header and footer are there, what is between them is zeros."""
    path, count, length = f"{fs_dir}/x.ffr", 100_000_000, 4_000
    part = Part(
        file=0,
        count=count,
        checksum=Checksum.CRC32C,
        data_offset=4_096,
        data_end=4_096 + (count - 1) * 4_096 + length,
        crcs_source=4_096 * (count + 1),
        sample_bytes=length,
        alignment=4_096,
    )
    fs.pipe_file(path, container.pack_header(4_096))
    end = part.crcs_source + 4 * count
    fs.truncate(path, end)
    with fs.open(path, "ab") as file:
        file.write(container.pack_footer([part], end))
    with ffs.records.open(path, fs=fs) as records:
        counted = Counted(records, monkeypatch)
        assert len(records) == count
        assert records.sample_bytes == length
        assert records.lengths([0, count - 1]).tolist() == [length, length]
        assert (counted.bytes, counted.calls) == (0, 0)
        out = np.full(2 * length, 7, dtype=np.uint8)
        assert records.read_into([count - 1, 0], out).tolist() == [0, length, 2 * length]
        assert not out.any()
        assert counted.calls == 1
