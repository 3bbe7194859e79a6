"""Records in a real cluster and on this machine: written, read, appended to, shared."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ffs.records
from ffs.client.filesystem import FFSFileSystem
from ffs.errors import (
    ChecksumError,
    ClosedError,
    ExistsError,
    FormatError,
    InvalidError,
    NotFoundError,
    StaleFileError,
    VersionError,
)
from tests.harness import Cluster
from tests.records.samples import LISTS, MIXED, ffrecord_file, payloads

FORMATS = ("ffs", "ffrecord")


@pytest.fixture(params=["ffs", "local"])
def place(request: pytest.FixtureRequest, cluster: Cluster, fs_dir: str, tmp_path: Path) -> str:
    """A directory to write to, in the cluster or on this machine."""
    return f"{cluster.url}{fs_dir}" if request.param == "ffs" else str(tmp_path)


@pytest.fixture
def options(cluster: Cluster) -> dict[str, Any]:
    """Keywords that lead to the cluster."""
    return cluster.storage_options


def write(url: str, samples: list[bytes], options: dict[str, Any], **how: Any) -> None:
    count = len(samples) if how.get("format") == "ffrecord" else None
    with ffs.records.create(url, count=count, storage_options=options, **how) as writer:
        for number, sample in enumerate(samples):
            assert writer.append(sample) == number


def everything(records: ffs.records.Records) -> list[bytes]:
    return [bytes(sample) for sample in records.read(np.arange(len(records)))]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", LISTS)
def test_what_is_written_is_read_in_any_order(
    place: str, options: dict[str, Any], kind: str, name: str
) -> None:
    samples = LISTS[name]
    write(f"{place}/x.ffr", samples, options, format=kind)
    with ffs.records.open(f"{place}/x.ffr", verify="sample", storage_options=options) as records:
        assert len(records) == len(samples)
        lengths = {len(sample) for sample in samples}
        assert records.sample_bytes == (lengths.pop() if len(lengths) == 1 else None)
        random = np.random.default_rng(1)
        ids: list[int] = random.integers(0, max(len(samples), 1), 3 * len(samples)).tolist()
        out = bytearray(sum(len(samples[i]) for i in ids) + 7)
        offsets = records.read_into(ids, out)
        assert offsets.dtype == np.int64
        assert len(offsets) == len(ids) + 1
        assert records.lengths(ids).tolist() == np.diff(offsets).tolist()
        for number, begin, end in zip(ids, offsets[:-1], offsets[1:], strict=True):
            assert out[begin:end] == samples[number]
        assert everything(records) == samples
        records.validate()


@pytest.mark.parametrize("name", LISTS)
def test_ffrecord_is_written_byte_for_byte(fs: Any, fs_dir: str, name: str, tmp_path: Path) -> None:
    for mode in ("w", "x"):
        path = f"{fs_dir}/{mode}"
        with ffs.records.create(
            path,
            count=len(LISTS[name]),
            format="ffrecord",
            mode=mode,
            fs=fs,
            chunk_size_bytes=65536,
        ) as writer:
            for sample in LISTS[name]:
                writer.append(sample)
        assert fs.cat_file(path) == ffrecord_file(LISTS[name])
    write(f"{tmp_path}/x", LISTS[name], {}, format="ffrecord")
    assert (tmp_path / "x").read_bytes() == ffrecord_file(LISTS[name])


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", LISTS)
def test_ffrecord_of_other_writers_is_read(fs: Any, fs_dir: str, name: str, old: bool) -> None:
    fs.pipe_file(f"{fs_dir}/x", ffrecord_file(LISTS[name], old=old))
    with ffs.records.open(f"{fs_dir}/x", verify="sample", fs=fs) as records:
        assert everything(records) == LISTS[name]
        records.validate()


@pytest.mark.parametrize("alignment", [1, 8, 4096, 1 << 20])
def test_samples_are_aligned_in_the_file(fs: Any, fs_dir: str, alignment: int) -> None:
    for name in ("mixed", "one length"):
        samples = LISTS[name]
        path = f"{fs_dir}/x"
        write(path, samples, {}, fs=fs, alignment=alignment)
        with ffs.records.open(path, fs=fs, verify="sample") as records:
            assert everything(records) == samples
            places = records.index.locate(np.arange(len(samples)))
            assert (places.offsets % alignment == 0).all()
        stored = fs.cat_file(path)
        for sample, offset in zip(samples, places.offsets.tolist(), strict=True):
            assert stored[offset : offset + len(sample)] == sample


def test_samples_of_whole_blocks_lie_on_blocks(fs: Any, fs_dir: str) -> None:
    """Reading one must not read its neighbours' blocks, whose checksums it does not need."""
    path, block = f"{fs_dir}/blocks.ffr", 4096
    whole, odd = [bytes([i]) * block for i in range(3)], [b"x" * block, b"odd", b"y" * 9]
    write(path, whole, {}, fs=fs)
    with ffs.records.create(path, fs=fs, mode="a") as out:
        for sample in odd:
            out.append(sample)
    with ffs.records.open(path, fs=fs, verify="sample") as records:
        assert everything(records) == whole + odd
        assert (records.index.locate(np.arange(4)).offsets % block == 0).all()
        records.validate()


def test_a_file_is_appended_to(place: str, options: dict[str, Any]) -> None:
    url = f"{place}/x.ffr"
    expected: list[bytes] = []
    write(url, [], options, alignment=16)
    for name in ("mixed", "one length", "none", "one empty", "over chunks", "one length"):
        with ffs.records.create(url, mode="a", storage_options=options) as writer:
            for sample in LISTS[name]:
                assert writer.append(sample) == len(expected)
                expected.append(sample)
        with ffs.records.open(url, verify="sample", storage_options=options) as records:
            assert everything(records) == expected
            records.validate()


def write_and_stop(url: str, options: dict[str, Any]) -> None:
    with ffs.records.create(url, mode="a", storage_options=options) as writer:
        writer.append(b"half")
        raise KeyboardInterrupt


def test_an_interrupted_append_leaves_the_old_content(place: str, options: dict[str, Any]) -> None:
    url = f"{place}/x.ffr"
    write(url, MIXED, options)
    with pytest.raises(KeyboardInterrupt):
        write_and_stop(url, options)
    with ffs.records.open(url, storage_options=options) as records:
        assert everything(records) == MIXED
        records.validate()
    if place.startswith("/"):
        assert os.listdir(place) == ["x.ffr"]


def test_of_two_appenders_the_later_one_is_told(fs: Any, fs_dir: str) -> None:
    path = f"{fs_dir}/x"
    write(path, MIXED, {}, fs=fs)
    first = ffs.records.create(path, mode="a", fs=fs)
    second = ffs.records.create(path, mode="a", fs=fs)
    first.append(b"first")
    second.append(b"second")
    first.close()
    with pytest.raises(VersionError):
        second.close()
    with ffs.records.open(path, fs=fs) as records:
        assert everything(records) == [*MIXED, b"first"]


def test_lists_and_directories_are_one_dataset(place: str, options: dict[str, Any]) -> None:
    lists = [LISTS[name] for name in ("mixed", "none", "one length", "over chunks", "one empty")]
    urls = [f"{place}/{number}.ffr" for number in range(len(lists))]
    for number, (url, samples) in enumerate(zip(urls, lists, strict=True)):
        write(url, samples, options, format=FORMATS[number % 2])
    write(f"{place}/other.txt", [b"not this one"], options)
    whole = [sample for samples in lists for sample in samples]
    for source in (urls, place, f"{place}/"):
        with ffs.records.open(source, verify="sample", storage_options=options) as records:
            assert everything(records) == whole
            records.validate()
            assert [path[-5:] for path in records.paths] == [url[-5:] for url in urls]
    with ffs.records.open(urls[::-1], storage_options=options) as records:
        assert everything(records) == [s for samples in lists[::-1] for s in samples]


def test_numbers_out_of_bounds_are_index_errors(place: str, options: dict[str, Any]) -> None:
    write(f"{place}/x.ffr", MIXED, options)
    with ffs.records.open(f"{place}/x.ffr", storage_options=options) as records:
        for wrong in (-1, -len(MIXED), len(MIXED), 2**63 - 1, -(2**63), 2**70):
            with pytest.raises(IndexError, match="no sample"):
                records[wrong]
        for numbers in ([0, -1], [6], [1, 2**63 - 1], np.array([2**64 - 1], dtype=np.uint64)):
            with pytest.raises(IndexError, match="no sample"):
                records.read_into(numbers, bytearray(1 << 20))
            with pytest.raises(IndexError, match="no sample"):
                records.lengths(numbers)
        assert bytes(records[np.int64(2)]) == MIXED[2]
        assert records.read([]) == []
        assert [bytes(sample) for sample in records] == MIXED  # type: ignore[attr-defined]
        for odd in ([[0]], [0.5], ["a"], 3):
            with pytest.raises(InvalidError, match="sample numbers"):
                records.read(odd)


def test_memory_that_is_too_small_is_refused(place: str, options: dict[str, Any]) -> None:
    write(f"{place}/x.ffr", MIXED, options)
    with ffs.records.open(f"{place}/x.ffr", storage_options=options) as records:
        with pytest.raises(InvalidError, match="the samples need 70000"):
            records.read_into([4], bytearray(69_999))
        with pytest.raises(InvalidError, match="read-only"):
            records.read_into([4], bytes(70_000))
    with pytest.raises(ClosedError):
        records.read([0])


def test_records_may_be_closed_after_their_file_system(cluster: Cluster, fs_dir: str) -> None:
    fs = FFSFileSystem(skip_instance_cache=True, **cluster.storage_options)
    write(f"{fs_dir}/x", MIXED, {}, fs=fs)
    records = ffs.records.open(f"{fs_dir}/x", fs=fs)
    assert everything(records) == MIXED
    fs.close()
    with pytest.raises(ClosedError):
        records.read([1])
    records.close()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_sample_that_was_changed_is_found(fs: Any, fs_dir: str, kind: str) -> None:
    samples = payloads([500] * 20)
    write(f"{fs_dir}/a.ffr", samples, {}, fs=fs, format=kind)
    write(f"{fs_dir}/b.ffr", samples, {}, fs=fs, format=FORMATS[kind == "ffs"])
    stored = bytearray(fs.cat_file(f"{fs_dir}/a.ffr"))
    stored[stored.index(samples[7]) + 3] ^= 1
    fs.pipe_file(f"{fs_dir}/a.ffr", bytes(stored))
    with ffs.records.open(fs_dir, fs=fs) as records:
        assert everything(records)[20:] == samples
        with pytest.raises(ChecksumError, match="sample=7 "):
            records.validate()
    with ffs.records.open(fs_dir, fs=fs, verify="sample") as records:
        assert bytes(records[8]) == samples[8]
        with pytest.raises(ChecksumError, match="sample=7 "):
            records.read([30, 7, 8])


def test_a_writer_is_held_to_its_count(fs: Any, fs_dir: str) -> None:
    path = f"{fs_dir}/x"
    few = ffs.records.create(path, count=2, format="ffrecord", fs=fs)
    few.append(b"a")
    with pytest.raises(InvalidError, match="created for 2 samples, and got 1"):
        few.close()
    with ffs.records.create(path, count=1, format="ffrecord", fs=fs) as writer:
        writer.append(b"a")
        with pytest.raises(InvalidError, match="created for 1 samples, and has them"):
            writer.append(b"b")
        writer.discard()
    assert not fs.exists(path)


def test_wrong_arguments_are_refused(fs: Any, fs_dir: str, place: str, options: Any) -> None:
    path = f"{fs_dir}/x"
    for wrong in (
        {"format": "ffrecord"},
        {"format": "ffrecord", "count": -1},
        {"format": "ffrecord", "count": 1, "mode": "a"},
        {"format": "ffrecord", "count": 1, "alignment": 8},
        {"format": "tar"},
        {"mode": "r"},
        {"alignment": 3},
        {"alignment": 0},
        {"alignment": 2 << 20},
    ):
        with pytest.raises(InvalidError):
            ffs.records.create(path, fs=fs, **wrong)
    with pytest.raises(InvalidError):
        ffs.records.open([], fs=fs)
    with pytest.raises(InvalidError):
        ffs.records.open(path, fs=fs, verify="block")  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match="different places"):
        ffs.records.open(["ffs://a:1/x", "ffs://b:1/x"])
    with pytest.raises(InvalidError, match="s3"):
        ffs.records.open("s3://bucket/x")
    with pytest.raises(NotFoundError):
        ffs.records.open(f"{place}/nothing.ffr", storage_options=options)
    with pytest.raises(NotFoundError):
        ffs.records.create(f"{place}/nothing.ffr", mode="a", storage_options=options)
    write(f"{place}/there.ffr", [], options, mode="x")
    with pytest.raises(ExistsError):
        ffs.records.create(f"{place}/there.ffr", mode="x", storage_options=options)
    write(f"{place}/old.ffr", [], options, format="ffrecord")
    with pytest.raises(FormatError, match="appended"):
        ffs.records.create(f"{place}/old.ffr", mode="a", storage_options=options)
    write(f"{place}/wide.ffr", [b"x"], options, alignment=64)
    with pytest.raises(InvalidError, match="aligned to 64"):
        ffs.records.create(f"{place}/wide.ffr", mode="a", alignment=8, storage_options=options)


# --- other processes ------------------------------------------------------------------------------


def _child(records: ffs.records.Records, pipe: Any) -> None:
    try:
        token = records.index.memory.token
        pipe.send((everything(records), token))
    except BaseException as error:
        pipe.send((error, None))


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_a_worker_shares_the_index(
    place: str, options: dict[str, Any], start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(f"{place}/x.ffr", MIXED, options)
    context: Any = multiprocessing.get_context(start)
    with ffs.records.open(f"{place}/x.ffr", storage_options=options) as records:
        ours, theirs = context.Pipe()
        child = context.Process(target=_child, args=(records, theirs))
        child.start()
        found, token = ours.recv()
        child.join()
        assert found == MIXED
        assert token == records.index.memory.token
        assert everything(records) == MIXED


def test_a_pickle_is_configuration(place: str, options: dict[str, Any]) -> None:
    records = ffs.records.Records(f"{place}/x.ffr", verify="sample", storage_options=options)
    early = pickle.dumps(records)
    write(f"{place}/x.ffr", MIXED, options)
    assert everything(pickle.loads(early)) == MIXED
    assert everything(records) == MIXED
    late = pickle.dumps(records)
    records.close()
    alone = pickle.loads(late)
    assert everything(alone) == MIXED
    assert alone.verify == "sample"


def test_a_copy_does_not_mix_what_was_replaced(place: str, options: dict[str, Any]) -> None:
    write(f"{place}/x.ffr", MIXED, options)
    with ffs.records.open(f"{place}/x.ffr", storage_options=options) as records:
        write(f"{place}/x.ffr", MIXED[::-1], options)
        with pytest.raises(StaleFileError, match="replaced"):
            pickle.loads(pickle.dumps(records)).read([0])
        assert everything(records) == MIXED
