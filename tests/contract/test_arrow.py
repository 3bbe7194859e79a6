"""Arrow files, streams, data sets and parquet over FFS: right, and without a copy where said."""

from __future__ import annotations

import asyncio
import builtins
import io
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

import ffs.arrow
from ffs import _reader
from ffs.client import arrow, arrow_layout, mapped
from ffs.client.filesystem import FFSFileSystem
from ffs.errors import ConfigError, InvalidError, NotFoundError
from tests.harness import Cluster

ROWS = 30_000
BATCH_ROWS = 4_000


def columns() -> dict[str, Any]:
    """A column of nearly every type whose buffers can be counted, and of some where not."""
    dice = np.random.default_rng(1)
    numbers = dice.integers(0, 1 << 40, ROWS)
    return {
        "number": numbers,
        "small": pa.array(numbers % 100, mask=numbers % 7 == 0).cast(pa.uint8()),
        "text": [f"row {n}" for n in numbers],
        "flag": numbers % 2 == 0,
        "nothing": pa.nulls(ROWS),
        "list": pa.array([list(range(n % 4)) for n in numbers.tolist()], pa.large_list(pa.int16())),
        "pair": pa.array(dice.random(ROWS * 2), pa.float64()).cast(pa.float32()).to_numpy(),
        "record": pa.array([{"a": n, "b": str(n)} for n in numbers.tolist()]),
        "map": pa.array([[("k", n)] for n in numbers.tolist()], pa.map_(pa.string(), pa.int64())),
        "kind": pa.array([f"kind {n % 5}" for n in numbers]).dictionary_encode(),
        "when": pa.array(numbers, pa.timestamp("us", tz="UTC")),
        "money": pa.array(numbers, pa.int64()).cast(pa.decimal128(38, 2)),
        "fixed": pa.array([n.to_bytes(16, "big") for n in numbers.tolist()], pa.binary(16)),
        "uuid": pa.ExtensionArray.from_storage(
            pa.uuid(), pa.array([n.to_bytes(16, "big") for n in numbers.tolist()], pa.binary(16))
        ),
    }


@pytest.fixture(scope="module")
def table() -> pa.Table:
    found = columns()
    values = pa.array(found.pop("pair"))
    found["pair"] = pa.FixedSizeListArray.from_arrays(values, 2)
    return pa.table(found)


def serialized(table: pa.Table, *, stream: bool = False, compression: str | None = None) -> bytes:
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=BATCH_ROWS)
    return sink.getvalue()


@pytest.fixture
def stored(fs: Any, fs_dir: str, table: pa.Table) -> str:
    path = f"{fs_dir}/t.arrow"
    fs.pipe_file(path, serialized(table), chunk_size_bytes=1 << 16)
    return path


def buffers(array: pa.Array) -> list[pa.Buffer]:
    own = array.indices if pa.types.is_dictionary(array.type) else array
    return [b for b in own.buffers() if b is not None and b.size]


def test_batches_of_a_mapped_file_are_views_of_it(
    fs: FFSFileSystem, stored: str, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    views: list[memoryview] = []

    def keep(*args: Any, **options: Any) -> memoryview | None:
        view = map_range(*args, **options)
        assert view is not None
        views.append(view)
        return view

    map_range = mapped.map_range
    monkeypatch.setattr(mapped, "map_range", keep)
    for names in (None, ["text", "number"]):
        with ffs.arrow.open_file(stored, fs=fs, columns=names, map=True) as file:
            held = pa.total_allocated_bytes()
            batches = file.get_batches(range(len(file)))
            kept = pa.total_allocated_bytes() - held
        view = views.pop()
        start = np.frombuffer(view, np.uint8).__array_interface__["data"][0]
        for batch in batches:
            for buffer in (b for column in batch.columns for b in buffers(column)):
                assert start <= buffer.address < buffer.address + buffer.size <= start + len(view)
        assert kept < 1 << 16
        wanted = table if names is None else table.select(names)
        assert pa.Table.from_batches(batches).equals(wanted)


def test_a_forked_child_reads_what_the_parent_has_mapped(
    fs: FFSFileSystem, stored: str, table: pa.Table
) -> None:
    file = ffs.arrow.open_file(stored, fs=fs, map=True)
    first = file.get_batch(0)
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if file.get_batch(1).equals(batch_of(table, 1)) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert first.equals(batch_of(table, 0))


def batch_of(table: pa.Table, i: int) -> pa.RecordBatch:
    (batch,) = table.slice(i * BATCH_ROWS, BATCH_ROWS).combine_chunks().to_batches()
    return batch


# --- read_buffer ---------------------------------------------------------------------------------


def test_read_buffer(fs: Any, fs_dir: str) -> None:
    data = np.random.default_rng(2).bytes(300_001)
    fs.pipe_file(f"{fs_dir}/x", data, chunk_size_bytes=1 << 16)
    before = _reader.counters()["copied_bytes"]
    for offset, length in [(0, None), (1, 10), (65_535, 2), (5, 200_000), (300_001, None), (7, 0)]:
        view = fs.read_buffer(f"{fs_dir}/x", offset, length)
        end = None if length is None else offset + length
        assert view == data[offset:end]
        assert len(view) == 0 or pa.py_buffer(view).address % 64 == 0
    assert asyncio.run(fs._read_buffer(f"{fs_dir}/x", 3, 4)) == data[3:7]
    assert _reader.counters()["copied_bytes"] == before
    for offset, length in [(-1, 2), (0, 300_002), (300_002, None), (5, -1)]:
        with pytest.raises(InvalidError):
            fs.read_buffer(f"{fs_dir}/x", offset, length)
    with pytest.raises(NotFoundError):
        fs.read_buffer(f"{fs_dir}/none")


def test_read_buffer_of_zeros_and_segments(fs: Any, fs_dir: str) -> None:
    path = f"{fs_dir}/x"
    fs.pipe_file(path, b"ab" * 5)
    fs.truncate(path, 100_000)
    with fs.open(path, "ab") as file:
        file.write(b"end")
    assert fs.read_buffer(path) == b"ab" * 5 + bytes(99_990) + b"end"
    out = bytearray(b"." * 40)
    with fs.open(path) as file:
        file.read_scattered((99_998, 4, 50), (5, 8, 3), (30, 20, 2), memoryview(out))
        with pytest.raises(InvalidError):
            file.read_scattered((0,), (5,), (36,), memoryview(out))
    assert out == b"..\0\0\0" + b"." * 15 + b"ababab\0\0" + b".." + b"\0\0end" + b"." * 5


# --- files ---------------------------------------------------------------------------------------


def test_batches_by_index(fs: Any, stored: str, table: pa.Table) -> None:
    with ffs.arrow.open_file(stored, fs=fs) as file:
        assert file.schema == table.schema
        assert len(file) == file.num_record_batches == -(-ROWS // BATCH_ROWS)
        assert file.get_batch(3).equals(table[3 * BATCH_ROWS : 4 * BATCH_ROWS].to_batches()[0])
        assert [b.num_rows for b in file.get_batches([7, 0])] == [ROWS % BATCH_ROWS, BATCH_ROWS]
        assert pa.Table.from_batches(iter(file)).equals(table)
        assert file.read_all().equals(table) and file.get_batches([]) == []
        for bad in (-1, 8):
            with pytest.raises(InvalidError, match="no record batch"):
                file.get_batch(bad)


def test_batches_lie_where_the_read_path_put_them(fs: Any, stored: str) -> None:
    file = ffs.arrow.open_file(stored, fs=fs)
    file.get_batch(0)  # dictionaries
    allocated, copied = pa.total_allocated_bytes(), _reader.counters()["copied_bytes"]
    for batches in (file.get_batches([1, 2, 5]), [file.get_batch(6)]):
        block_bytes = sum(file._blocks[i].length for i in ((1, 2, 5) if len(batches) > 1 else (6,)))
        places = sorted(
            (b.address, b.address + b.size)
            for batch in batches
            for column in batch.columns
            for b in buffers(column)
        )
        assert places[-1][1] - places[0][0] <= block_bytes + 64 * len(batches)
        assert min(a for a, _ in places) % 8 == 0
    assert pa.total_allocated_bytes() == allocated, "pyarrow has taken memory of its own"
    assert _reader.counters()["copied_bytes"] == copied


def test_a_body_starts_aligned(fs: Any, fs_dir: str) -> None:
    plain = pa.table({"x": np.arange(100_000)})
    fs.pipe_file(f"{fs_dir}/p", serialized(plain))
    for batch in ffs.arrow.open_file(f"{fs_dir}/p", fs=fs).get_batches(range(25)):
        (buffer,) = buffers(batch.column(0))
        assert buffer.address % 64 == 0


def test_columns_are_all_that_is_read(fs: Any, stored: str, table: pa.Table) -> None:
    for names in (["number"], ["money", "text"], ["kind", "list"], ["uuid", "record", "map"]):
        with ffs.arrow.open_file(stored, fs=fs, columns=names) as file:
            assert file.schema == table.select(names).schema
            assert file.read_all().equals(table.select(names))
            assert file.get_batch(7).equals(table.select(names)[7 * BATCH_ROWS :].to_batches()[0])
    for name in table.column_names:
        with ffs.arrow.open_file(stored, fs=fs, columns=[name]) as file:
            assert file.get_batch(1).equals(
                table.select([name])[BATCH_ROWS : 2 * BATCH_ROWS].to_batches()[0]
            ), name
            file.get_batch(1).validate(full=True)
    file = ffs.arrow.open_file(stored, fs=fs, columns=["number"])
    allocated, before = pa.total_allocated_bytes(), _reader.counters()["payload_bytes"]
    batch = file.get_batch(2)
    read = _reader.counters()["payload_bytes"] - before
    assert 8 * BATCH_ROWS <= read <= 8 * BATCH_ROWS + 4 * arrow.GAP_BYTES + 8_000
    assert pa.total_allocated_bytes() == allocated and batch.num_rows == BATCH_ROWS
    with pytest.raises(InvalidError, match="nope"):
        ffs.arrow.open_file(stored, fs=fs, columns=["nope"])


def test_types_whose_buffers_cannot_be_counted_are_read_whole(fs: Any, fs_dir: str) -> None:
    strange = pa.table(
        {
            "view": pa.array([f"a rather long string {i}" for i in range(5_000)], pa.string_view()),
            "union": pa.UnionArray.from_sparse(
                pa.array(np.arange(5_000) % 2, pa.int8()),
                [pa.array(np.arange(5_000)), pa.array([str(i) for i in range(5_000)])],
            ),
            "ends": pa.RunEndEncodedArray.from_arrays(pa.array([4_000, 5_000]), pa.array([1, 2])),
            "number": np.arange(5_000),
        }
    )
    fs.pipe_file(f"{fs_dir}/s", serialized(strange))
    for names in (None, ["number"], ["union", "view"], ["ends"]):
        found = ffs.arrow.open_file(f"{fs_dir}/s", fs=fs, columns=names).read_all()
        assert found.equals(strange if names is None else strange.select(names))


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compressed_files(fs: Any, fs_dir: str, table: pa.Table, codec: str) -> None:
    fs.pipe_file(f"{fs_dir}/z", serialized(table, compression=codec))
    assert ffs.arrow.open_file(f"{fs_dir}/z", fs=fs).read_all().equals(table)
    names = ["text", "number", "kind"]
    before = _reader.counters()["payload_bytes"]
    found = ffs.arrow.open_file(f"{fs_dir}/z", fs=fs, columns=names).read_all()
    assert found.equals(table.select(names))
    assert _reader.counters()["payload_bytes"] - before < fs.info(f"{fs_dir}/z")["size"] // 2
    feather.write_feather(table.select(names), (sink := io.BytesIO()), compression=codec)
    fs.pipe_file(f"{fs_dir}/f", sink.getvalue())
    assert ffs.arrow.open_file(f"{fs_dir}/f", fs=fs).read_all().equals(table.select(names))


def test_by_url_and_across_threads(
    cluster: Cluster, fs: Any, stored: str, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    file = ffs.arrow.open_file(f"ffs://{stored}", columns=["number", "kind"])
    expected, failures = table.select(["number", "kind"]), list[BaseException]()

    def work(turn: int) -> None:
        try:
            for i in range(turn, turn + 20):
                rows = slice(i % 8 * BATCH_ROWS, (i % 8 + 1) * BATCH_ROWS)
                assert file.get_batch(i % 8).equals(expected[rows].combine_chunks().to_batches()[0])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(turn,)) for turn in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_empty_files_large_footers_and_what_is_no_arrow_file(fs: Any, fs_dir: str) -> None:
    empty = pa.table({"x": pa.array([], pa.int64())})
    fs.pipe_file(f"{fs_dir}/e", serialized(empty))
    assert ffs.arrow.open_file(f"{fs_dir}/e", fs=fs).read_all().equals(empty)
    many = pa.table({"x": np.arange(6_000)})
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, many.schema) as writer:
        writer.write_table(many, max_chunksize=1)
    assert arrow.TAIL_BYTES < 24 * 6_000
    fs.pipe_file(f"{fs_dir}/m", sink.getvalue())
    file = ffs.arrow.open_file(f"{fs_dir}/m", fs=fs, columns=["x"])
    assert [b.column(0)[0].as_py() for b in file.get_batches([0, 5_999, 77])] == [0, 5_999, 77]
    good = serialized(many)
    for index, bad in enumerate([b"", b"ARROW1", b"x" * 5_000, good[:-9], good[:-1], good[900:]]):
        fs.pipe_file(f"{fs_dir}/bad{index}", bad)
        with pytest.raises((pa.ArrowInvalid, OSError)):
            ffs.arrow.open_file(f"{fs_dir}/bad{index}", fs=fs).read_all()


def test_damaged_metadata_is_pyarrow_s_to_report(fs: Any, fs_dir: str) -> None:
    """Whatever one byte of the metadata says, nothing but an error or other values comes of it."""
    small = pa.table({"x": np.arange(50), "y": [str(i) for i in range(50)]})
    data = serialized(small)
    dice = np.random.default_rng(5)
    for _ in range(60):
        bad = bytearray(data)
        bad[int(dice.integers(0, len(bad)))] ^= int(dice.integers(1, 256))
        fs.pipe_file(f"{fs_dir}/d", bytes(bad))
        try:
            found = ffs.arrow.open_file(f"{fs_dir}/d", fs=fs, columns=["y"]).read_all()
            found.validate()
        except (pa.ArrowException, OSError, InvalidError):
            continue


@pytest.mark.parametrize("data", [b"", b"\0" * 8, b"\xff" * 64, b"\x10\0\0\0" + b"\x7f" * 60])
def test_layouts_of_strange_bytes(data: bytes) -> None:
    import struct

    with pytest.raises((struct.error, arrow_layout.LayoutError)):
        arrow_layout.batch_layout(data, 1_000)


# --- streams, data sets, parquet -----------------------------------------------------------------


@pytest.mark.parametrize("codec", [None, "zstd"])
def test_streams(fs: Any, fs_dir: str, table: pa.Table, codec: str | None) -> None:
    fs.pipe_file(f"{fs_dir}/s", serialized(table, stream=True, compression=codec))
    before = _reader.counters()["copied_bytes"]
    reader = ffs.arrow.open_stream(f"{fs_dir}/s", fs=fs)
    first = reader.read_next_batch()
    allocated = pa.total_allocated_bytes()
    second = reader.read_next_batch()
    assert (pa.total_allocated_bytes() == allocated) == (codec is None)
    rest = pa.Table.from_batches([first, second, *reader])
    assert rest.equals(table) and _reader.counters()["copied_bytes"] == before


def test_data_sets_by_url(
    cluster: Cluster, fs: Any, fs_dir: str, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    plain = table.select(["number", "text", "flag"])
    for kind in ("parquet", "ipc"):
        pads.write_dataset(plain, f"{fs_dir}/{kind}", filesystem=fs, format=kind)
        found = pads.dataset(f"fsspec+ffs://{fs_dir}/{kind}", format=kind)
        wanted = found.to_table(columns=["number"], filter=pads.field("flag"))
        expected = plain.filter(pads.field("flag")).select(["number"])
        assert wanted.sort_by("number").equals(expected.sort_by("number"))


@pytest.mark.parametrize("pre_buffer", [False, True])
def test_parquet(fs: Any, fs_dir: str, table: pa.Table, pre_buffer: bool) -> None:
    plain = table.select(["number", "text", "flag", "list"])
    with fs.open(f"{fs_dir}/p", "wb") as file:
        pq.write_table(plain, file, row_group_size=5_000)
    assert pq.read_table(f"{fs_dir}/p", filesystem=fs, pre_buffer=pre_buffer).equals(plain)
    with fs.open(f"{fs_dir}/p") as file:
        opened = pq.ParquetFile(file, pre_buffer=pre_buffer)
        assert opened.read_row_group(2, columns=["text"]).equals(
            plain.select(["text"])[10_000:15_000]
        )


# --- what it needs -------------------------------------------------------------------------------


def test_without_pyarrow_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError("No module named 'pyarrow'")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", absent)
    for open_one in (ffs.arrow.open_file, ffs.arrow.open_stream):
        with pytest.raises(ConfigError) as caught:
            open_one("ffs:///x")
        assert "ffs[arrow]" in caught.value.hint


def test_importing_does_not_import_pyarrow() -> None:
    code = "import sys, ffs.arrow; sys.exit('pyarrow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_another_file_system_is_refused(fs: FFSFileSystem) -> None:
    import fsspec

    with pytest.raises(InvalidError, match="MemoryFileSystem"):
        ffs.arrow.open_file("/x", fs=fsspec.filesystem("memory"))  # type: ignore[arg-type]
