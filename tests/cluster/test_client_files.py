"""Files through the client and a real cluster: what is written is read, whole or in ranges."""

from __future__ import annotations

import hashlib
import io
import random
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.callbacks import Callback
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ffs.client.filesystem import RANGE_DTYPE, FFSFileSystem
from ffs.errors import (
    BadNameError,
    ClosedError,
    ExistsError,
    FileExpectedError,
    InvalidError,
    NotFoundError,
)
from tests.harness import Cluster

CHUNK = 64 << 10
MIB = 1 << 20


def payload(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


# --- ranges ------------------------------------------------------------------------------------


class Library:
    """Files of every shape, and their bytes: several chunks, cut, grown by zeros, empty."""

    def __init__(self, fs: FFSFileSystem) -> None:
        self.fs = fs
        self.files: dict[str, bytes] = {}
        root = f"/library-{uuid.uuid4().hex}"
        for index, size in enumerate((0, 1, 4095, 4096, CHUNK - 1, CHUNK, 5 * CHUNK + 777)):
            self._add(f"{root}/plain-{index}", payload(size, index))
        data = payload(3 * CHUNK + 100, 50)
        self._resize(f"{root}/cut", data, [CHUNK + 5])
        self._resize(f"{root}/grown", data, [len(data) + 2 * CHUNK + 3])
        self._resize(f"{root}/cut-and-grown", data, [CHUNK + 5, 3 * CHUNK, CHUNK + 900])
        self.paths = sorted(self.files)
        self.handles = fs.open_many(self.paths)

    def _add(self, path: str, data: bytes) -> None:
        self.fs.pipe_file(path, data, chunk_size_bytes=CHUNK)
        self.files[path] = data

    def _resize(self, path: str, data: bytes, sizes: list[int]) -> None:
        self._add(path, data)
        for size in sizes:
            self.fs.core.meta.setattr(path, size=size)
            data = data[:size] + bytes(max(0, size - len(data)))
        self.files[path] = data


@pytest.fixture(scope="module")
def library(cluster: Cluster) -> Library:
    return Library(FFSFileSystem(**cluster.storage_options))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_readv_into_is_the_files(library: Library, data: st.DataObject) -> None:
    edges = st.sampled_from([0, 1, 4095, 4096, 4097, CHUNK - 1, CHUNK, CHUNK + 1])
    ranges = []
    for _ in range(data.draw(st.integers(0, 12))):
        index = data.draw(st.integers(0, len(library.paths) - 1))
        size = len(library.files[library.paths[index]])
        offset = min(data.draw(edges | st.integers(0, 6 * CHUNK)), size)
        length = min(data.draw(edges | st.integers(0, 3 * CHUNK)), size - offset)
        ranges.append((index, offset, length))
    expected = b"".join(library.files[library.paths[i]][o : o + n] for i, o, n in ranges)
    shift, slack = data.draw(st.integers(0, 9)), data.draw(st.integers(0, 9))
    form = data.draw(st.sampled_from(["paths", "handles", "table"]))
    wanted: Any = [(library.paths[i], o, n) for i, o, n in ranges]
    if form != "paths":
        wanted = [(int(library.handles[i]), o, n) for i, o, n in ranges]
    if form == "table":
        wanted = np.array(wanted, dtype=RANGE_DTYPE)
    out = bytearray(b"\xa5" * (shift + len(expected) + slack))
    view = memoryview(out)[shift:]
    assert library.fs.readv_into(wanted, view) == len(expected)
    assert out[shift : shift + len(expected)] == expected
    assert out[:shift] == b"\xa5" * shift and out[shift + len(expected) :] == b"\xa5" * slack


def test_slices_mean_what_python_s_mean(library: Library) -> None:
    path = next(p for p in library.paths if p.endswith("cut-and-grown"))
    data, fs = library.files[path], library.fs
    for start, end in [(None, None), (5, None), (-7, None), (None, -7), (CHUNK - 3, CHUNK + 9)]:
        assert fs.cat_file(path, start, end) == data[start:end]
    assert fs.cat_file(path, 10, 5) == b"" and fs.cat_file(path, 1 << 40, None) == b""
    assert fs.cat_file(path, 0, 1 << 40) == data
    assert fs.head(path, 9) == data[:9] and fs.tail(path, 9) == data[-9:]
    assert fs.read_block(path, 3, 12) == data[3:15]


def test_what_is_asked_wrong_is_refused_before_anything_is_read(library: Library) -> None:
    fs, path = library.fs, library.paths[-1]
    size = len(library.files[path])
    out = bytearray(b"\xa5" * 10)
    wrong: list[tuple[Any, Any]] = [
        ([(path, 0, 5), (path, size - 4, 5)], out),
        ([(path, -1, 5)], out),
        ([(path, 0, -5)], out),
        ([(path, 0, 11)], out),
        ([(path, 0, 5)], bytes(10)),
        ([(path, 0, 5)], np.zeros((10, 2), dtype=np.uint8)[:, 0]),
        ([(path, 0, 5)], "text"),
        (np.zeros(1, dtype=np.uint64), out),
        ([(999_999, 0, 1)], out),
        ("abc", out),
        ([(path, 0)], out),
        ([(None, 0, 1)], out),
        ([(path, 0.5, 1)], out),
        (5, out),
    ]
    for ranges, buffer in wrong:
        with pytest.raises(InvalidError):
            fs.readv_into(ranges, buffer)
    assert out == b"\xa5" * 10
    with pytest.raises(NotFoundError):
        fs.readv_into([(path, 0, 5), ("/nowhere", 0, 1)], out)
    assert out == b"\xa5" * 10


def test_empty_arrays_are_buffers(fs: Any, fs_dir: str) -> None:
    path, empty = f"{fs_dir}/x", np.zeros((0, 3))
    with fs.open(path, "wb") as file:
        assert file.write(empty) == 0
    fs.pipe({path: empty})
    fs.pipe_file(path, empty)
    assert fs.readv_into([(path, 0, 0)], empty) == 0
    with fs.open(path, "rb") as file:
        assert file.readinto(empty) == 0


def test_numbers_of_numpy_do_not_wrap(fs: Any, fs_dir: str) -> None:
    data = payload(300)
    fs.pipe_file(f"{fs_dir}/x", data)
    out = bytearray(300)
    ranges = [(f"{fs_dir}/x", np.uint8(100 * i), np.uint8(100)) for i in range(3)]
    assert type(fs.readv_into(ranges, out)) is int
    assert out == data[:200] + data[200:300]


def test_any_buffer_will_do(library: Library) -> None:
    path = next(p for p in library.paths if p.endswith("plain-6"))
    expected = library.files[path][100 : 100 + 4000]
    buffers: list[Any] = [
        bytearray(4000),
        np.zeros(4000, dtype=np.uint8),
        np.zeros((10, 100), dtype=np.float32),
        memoryview(bytearray(4000)).cast("I"),
    ]
    for out in buffers:
        assert library.fs.readv_into([(path, 100, 4000)], out) == 4000
        assert bytes(memoryview(out).cast("B")) == expected


def test_cat_ranges(library: Library) -> None:
    fs, a, b = library.fs, library.paths[-1], library.paths[0]
    da, db = library.files[a], library.files[b]
    got = fs.cat_ranges([a, b, a, "/nowhere"], [0, 5, -9, 0], [10, None, None, 4])
    assert got[:3] == [da[:10], db[5:], da[-9:]] and isinstance(got[3], NotFoundError)
    with pytest.raises(NotFoundError):
        fs.cat_ranges([a, "/nowhere"], 0, 1, on_error="raise")
    assert fs.cat_ranges([], [], []) == []
    with pytest.raises(ValueError, match="same length"):
        fs.cat_ranges([a, b], [1], [2])


def test_handles_are_let_go(library: Library) -> None:
    fs = library.fs
    (handle,) = fs.open_many(library.paths[:1])
    fs.close_handles([handle])
    with pytest.raises(InvalidError, match="no such handle"):
        fs.readv_into([(int(handle), 0, 0)], bytearray(1))
    with pytest.raises(NotFoundError):
        fs.open_many([library.paths[0], "/nowhere"])


# --- whole files -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 4096, MIB - 1, MIB, MIB + 1, 20 * MIB + 5])
def test_whole_files(fs: Any, fs_dir: str, size: int) -> None:
    data = payload(size, size)
    fs.pipe_file(f"{fs_dir}/x", data)
    assert fs.cat_file(f"{fs_dir}/x") == data
    info = fs.info(f"{fs_dir}/x")
    assert info["size"] == size and info["type"] == "file" and info["nlink"] == 1
    assert size == 0 or info["chunk_size"] == MIB


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    sizes=st.lists(
        st.sampled_from([0, 1, 100, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
        | st.integers(0, 10 * MIB),
        max_size=8,
    ),
    flush=st.booleans(),
)
def test_any_cut_of_writes_gives_the_same_file(
    library: Library, sizes: list[int], flush: bool
) -> None:
    path = library.paths[0].rpartition("/")[0] + "/written"
    data = payload(sum(sizes), 3)
    with library.fs.open(path, "wb", chunk_size_bytes=CHUNK) as file:
        start = 0
        for size in sizes:
            assert file.write(data[start : start + size]) == size
            start += size
            assert file.tell() == start
            if flush:
                file.flush()
    assert library.fs.cat_file(path) == data


def test_many_small_files_at_once(fs: Any, fs_dir: str) -> None:
    files = {f"{fs_dir}/d{i % 7}/f{i}": payload(i * 13 % 5000, i) for i in range(3000)}
    files[f"{fs_dir}/large"] = payload(6 * MIB, 1)
    fs.pipe(files)
    assert fs.cat(sorted(files)) == files
    assert fs.find(fs_dir) == sorted(files)
    assert sum(fs.du(fs_dir, total=False).values()) == sum(map(len, files.values()))
    fs.rm(fs_dir, recursive=True)
    assert not fs.exists(fs_dir)


def test_a_bad_batch_leaves_nothing(fs: Any, fs_dir: str) -> None:
    fs.mkdir(f"{fs_dir}/taken")
    with pytest.raises(FileExpectedError):
        fs.pipe({f"{fs_dir}/a": b"1", f"{fs_dir}/taken": b"2", f"{fs_dir}/c": b"3"})
    assert not fs.isfile(f"{fs_dir}/taken")


class Counting(Callback):  # type: ignore[misc]  # fsspec is untyped
    """What a progress bar hears."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = 0

    def relative_update(self, inc: int = 1) -> None:
        self.moved += inc


def test_copies_in_and_out_report_progress(fs: Any, fs_dir: str, tmp_path: Path) -> None:
    data = payload(40 * MIB + 17, 2)
    (tmp_path / "in").write_bytes(data)
    up, down = Counting(), Counting()
    fs.put_file(str(tmp_path / "in"), f"{fs_dir}/x/y", callback=up)
    fs.get_file(f"{fs_dir}/x/y", str(tmp_path / "new" / "out"), callback=down)
    assert up.size == up.moved == down.size == down.moved == len(data)
    assert (tmp_path / "new" / "out").read_bytes() == data
    sink = io.BytesIO()
    fs.get_file(f"{fs_dir}/x/y", sink)
    assert hashlib.sha256(sink.getvalue()).digest() == hashlib.sha256(data).digest()
    with pytest.raises(NotFoundError):
        fs.get_file(f"{fs_dir}/nowhere", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


# --- file objects ------------------------------------------------------------------------------


def test_positions(fs: Any, fs_dir: str) -> None:
    data = payload(3 * MIB, 4)
    fs.pipe_file(f"{fs_dir}/x", data)
    with fs.open(f"{fs_dir}/x", "rb") as file:
        assert file.seekable() and file.readable() and not file.writable()
        assert file.size == len(data) and file.name == f"{fs_dir}/x"
        assert file.seek(-10, 2) == len(data) - 10 and file.read() == data[-10:]
        assert file.read() == b"" and file.read(5) == b""
        assert file.seek(MIB - 3) == MIB - 3 and file.read(6) == data[MIB - 3 : MIB + 3]
        assert file.seek(-6, 1) == MIB - 3
        out = bytearray(9)
        assert file.readinto(out) == 9 and out == data[MIB - 3 : MIB + 6]
        assert file.readinto1(out) == 9 and file.tell() == MIB + 15
        buffer = file.read_buffer(100)
        assert isinstance(buffer, memoryview) and buffer == data[MIB + 15 : MIB + 115]
        file.seek(len(data) - 4)
        assert file.readinto(out) == 4 and out[:4] == data[-4:]
        file.seek(len(data) + 100)
        assert file.read(10) == b"" and file.readinto(out) == 0
        with pytest.raises(io.UnsupportedOperation):
            file.fileno()
        with pytest.raises(io.UnsupportedOperation):
            file.write(b"x")
        with pytest.raises(InvalidError):
            file.seek(-1)
    with pytest.raises(ValueError, match="closed"):
        file.read()


def test_a_file_appears_at_close_and_not_before(fs: Any, fs_dir: str) -> None:
    path = f"{fs_dir}/x"
    fs.pipe_file(path, b"old")
    with fs.open(path, "wb") as file:
        file.write(b"new" * MIB)
        file.flush()
        assert fs.cat_file(path) == b"old"
        with pytest.raises(io.UnsupportedOperation):
            file.read()
    assert fs.cat_file(path) == b"new" * MIB
    file.close()
    with pytest.raises(ClosedError):
        file.write(b"x")


def test_an_exception_discards(fs: Any, fs_dir: str) -> None:
    def write(mode: str, data: Any, compression: str | None) -> None:
        with fs.open(f"{fs_dir}/x", mode, compression=compression) as file:
            file.write(data)
            raise KeyError

    for mode, data in (("wb", b"x" * 3 * MIB), ("w", "text")):
        for compression in (None, "gzip", "xz"):
            with pytest.raises(KeyError):
                write(mode, data, compression)
    assert fs.ls(fs_dir) == []


def test_a_dropped_file_discards_and_says_so(fs: Any, fs_dir: str) -> None:
    file = fs.open(f"{fs_dir}/x", "wb")
    file.write(b"x")
    with pytest.warns(ResourceWarning, match="was not closed"):
        del file
    assert not fs.exists(f"{fs_dir}/x")


def test_exclusive_files_are_reserved_at_open(fs: Any, fs_dir: str) -> None:
    path = f"{fs_dir}/x"
    with fs.open(path, "xb") as first:
        with pytest.raises(ExistsError):
            fs.open(path, "xb")
        assert not fs.exists(path)
        first.write(b"1")
    with pytest.raises(FileExistsError):
        fs.open(path, "xb")
    with pytest.raises(FileExistsError):
        fs.pipe_file(path, b"2", mode="create")
    with pytest.raises(FileExistsError):
        fs.pipe({path: b"2"}, mode="create")
    assert fs.cat_file(path) == b"1"


def test_modes_that_do_not_exist(fs: Any, fs_dir: str) -> None:
    with pytest.raises(InvalidError, match="mode"):
        fs.open(f"{fs_dir}/x", "r+b")
    with pytest.raises(FileNotFoundError):
        fs.open(f"{fs_dir}/x", "rb")
    with pytest.raises(IsADirectoryError):
        fs.open(fs_dir, "rb")


# --- names -------------------------------------------------------------------------------------


def test_moves_are_renames(fs: Any, fs_dir: str) -> None:
    fs.pipe_file(f"{fs_dir}/a", b"1")
    fs.pipe_file(f"{fs_dir}/b", b"2")
    inode = fs.info(f"{fs_dir}/a")["ino"]
    fs.mv(f"{fs_dir}/a", f"{fs_dir}/b")
    assert fs.cat_file(f"{fs_dir}/b") == b"1" and fs.info(f"{fs_dir}/b")["ino"] == inode
    fs.mv(f"{fs_dir}/b", f"{fs_dir}/new/deep/c")
    fs.mkdir(f"{fs_dir}/into")
    fs.mv(f"{fs_dir}/new", f"{fs_dir}/into", recursive=True)
    assert fs.find(fs_dir) == [f"{fs_dir}/into/new/deep/c"]
    fs.mv(f"{fs_dir}/into/new/deep/c", f"{fs_dir}/fresh/")
    assert fs.find(fs_dir) == [f"{fs_dir}/fresh/c"]
    with pytest.raises(FileNotFoundError):
        fs.mv(f"{fs_dir}/nowhere", f"{fs_dir}/x")


def test_copies_share_bytes_and_then_differ(fs: Any, fs_dir: str) -> None:
    data = payload(3 * MIB, 5)
    fs.pipe_file(f"{fs_dir}/a", data)
    fs.cp_file(f"{fs_dir}/a", f"{fs_dir}/d/b")
    fs.pipe_file(f"{fs_dir}/a", b"other")
    assert fs.cat_file(f"{fs_dir}/d/b") == data and fs.cat_file(f"{fs_dir}/a") == b"other"
    fs.rm_file(f"{fs_dir}/a")
    assert fs.cat_file(f"{fs_dir}/d/b") == data


def test_times_and_keys(fs: Any, fs_dir: str) -> None:
    path = f"{fs_dir}/x"
    fs.touch(path)
    assert fs.cat_file(path) == b""
    key, modified = fs.ukey(path), fs.modified(path)
    fs.pipe_file(path, b"1")
    assert fs.ukey(path) != key and fs.modified(path) > modified
    assert fs.created(path).tzinfo is not None
    fs.touch(path, truncate=False)
    assert fs.cat_file(path) == b"1" and fs.modified(path) > modified
    assert fs.lexists(path) and fs.size(path) == 1 and fs.isfile(path) and fs.isdir(fs_dir)


def test_names_of_any_bytes(fs: Any, fs_dir: str) -> None:
    for name in ("ü", "a b", "\udcff\udcfe", "%41", "x" * 255, "*?["):
        fs.pipe_file(f"{fs_dir}/{name}", name.encode("utf-8", "surrogateescape"))
        assert fs.cat_file(f"{fs_dir}/{name}") == name.encode("utf-8", "surrogateescape")
        assert f"{fs_dir}/{name}" in fs.ls(fs_dir, detail=False)
    with pytest.raises(OSError, match="name"):
        fs.pipe_file(f"{fs_dir}/{'x' * 256}", b"")


@pytest.mark.parametrize("name", ["a[b]", "a*", "a?", "a[b"])
def test_a_name_like_a_pattern_means_itself(fs: Any, fs_dir: str, name: str) -> None:
    fs.pipe({f"{fs_dir}/{name}": b"named", f"{fs_dir}/ab": b"other"})
    fs.mv(f"{fs_dir}/{name}", f"{fs_dir}/moved")
    assert fs.ls(fs_dir, detail=False) == [f"{fs_dir}/ab", f"{fs_dir}/moved"]
    fs.pipe_file(f"{fs_dir}/{name}", b"again")
    fs.rm(f"{fs_dir}/{name}")
    assert fs.ls(fs_dir, detail=False) == [f"{fs_dir}/ab", f"{fs_dir}/moved"]


def test_a_pattern_moves_what_matches(fs: Any, fs_dir: str) -> None:
    fs.pipe({f"{fs_dir}/{name}": b"" for name in ("ab", "ac", "bb")})
    fs.mv(f"{fs_dir}/a*", f"{fs_dir}/into")
    assert fs.find(fs_dir) == [f"{fs_dir}/bb", f"{fs_dir}/into/ab", f"{fs_dir}/into/ac"]
    for pattern in ("zz*", "z[z"):
        with pytest.raises(NotFoundError):
            fs.mv(f"{fs_dir}/{pattern}", f"{fs_dir}/into")
        with pytest.raises(NotFoundError):
            fs.rm(f"{fs_dir}/{pattern}")


def test_a_path_that_is_no_text_is_refused(fs: Any) -> None:
    with pytest.raises(BadNameError, match="no text"):
        fs.info("/\ud800")


def test_two_clients_see_each_other_s_files_in_time(cluster: Cluster, fs: Any, fs_dir: str) -> None:
    other = FFSFileSystem(skip_instance_cache=True, attr_ttl_ms=0, **cluster.storage_options)
    fs.pipe_file(f"{fs_dir}/x", b"1")
    assert other.cat_file(f"{fs_dir}/x") == b"1"
    fs.pipe_file(f"{fs_dir}/x", b"22")
    assert other.cat_file(f"{fs_dir}/x") == b"22" and other.info(f"{fs_dir}/x")["size"] == 2
    with other.open(f"{fs_dir}/x", "rb") as opened:
        fs.pipe_file(f"{fs_dir}/x", b"333")
        assert opened.read() == b"22", "an open file keeps its content"
    assert fs.cat_file(f"{fs_dir}/x") == b"333", "own changes are seen at once"
    other.close()
    with pytest.raises(ClosedError):
        other.ls("/")
