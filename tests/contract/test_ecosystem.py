"""Programs that know only fsspec: pandas-like text, pyarrow, torch, asyncio, transactions."""

from __future__ import annotations

import asyncio
import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import torch

from tests.harness import Cluster


@pytest.fixture
def table() -> pa.Table:
    rows = 20_000
    return pa.table({"id": np.arange(rows), "name": [f"row {i}" for i in range(rows)]})


def test_parquet_by_file_object(fs: Any, fs_dir: str, table: pa.Table) -> None:
    path = f"{fs_dir}/new/dir/t.parquet"
    with fs.open(path, "wb") as file:
        pq.write_table(table, file)
    with fs.open(path, "rb") as file:
        assert pq.read_table(file).equals(table)


def test_arrow_dataset_by_url(
    cluster: Cluster, fs: Any, fs_dir: str, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    pads.write_dataset(table, f"{fs_dir}/set", filesystem=fs, format="parquet")
    url = f"fsspec+ffs://{fs_dir}/set"
    assert pads.dataset(url).to_table().sort_by("id").equals(table)
    assert pads.dataset(f"{fs_dir}/set", filesystem=fs).count_rows() == table.num_rows


def test_arrow_reads_buffers_without_a_copy(fs: Any, fs_dir: str) -> None:
    fs.pipe_file(f"{fs_dir}/x", b"abcdef" * 1000)
    with fs.open(f"{fs_dir}/x", "rb") as file:
        wrapped = pa.PythonFile(file, mode="r")
        buffer = wrapped.read_buffer(6000)
        assert buffer.to_pybytes() == b"abcdef" * 1000
        assert file.tell() == 6000


def test_torch_save_and_load(fs: Any, fs_dir: str) -> None:
    state = {"w": torch.arange(700_000, dtype=torch.float32), "n": torch.ones(3)}
    with fs.open(f"{fs_dir}/m.pt", "wb") as file:
        torch.save(state, file)
    with fs.open(f"{fs_dir}/m.pt", "rb") as file:
        loaded = torch.load(file, weights_only=True)
    assert all(torch.equal(state[k], loaded[k]) for k in state)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_distributed_checkpoint(
    cluster: Cluster, fs: Any, fs_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter
    from torch.distributed.checkpoint.state_dict_loader import load
    from torch.distributed.checkpoint.state_dict_saver import save

    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    state = {"w": torch.arange(300_000, dtype=torch.float32)}
    url = f"ffs://{fs_dir}/ckpt"
    writer, reader = FsspecWriter(url, sync_files=False), FsspecReader(url)
    save(state, storage_writer=writer, no_dist=True)
    target = {"w": torch.zeros(300_000)}
    load(target, storage_reader=reader, no_dist=True)
    assert torch.equal(target["w"], state["w"])


def test_text_lines_and_compression(fs: Any, fs_dir: str) -> None:
    lines = [f"line {i} äöü\n" for i in range(30_000)]
    with fs.open(f"{fs_dir}/a.txt", "w", encoding="utf-8") as file:
        file.writelines(lines)
    with fs.open(f"{fs_dir}/a.txt", "r", encoding="utf-8") as file:
        assert list(file) == lines
    with fs.open(f"{fs_dir}/a.txt", "rb") as file:
        assert [x.decode() for x in file] == lines
        file.seek(0)
        assert file.readline(4) == b"line"
        assert file.read(3) == b" 0 "
    with fs.open(f"{fs_dir}/a.gz", "wt", compression="infer", encoding="utf-8") as file:
        file.writelines(lines)
    with fs.open(f"{fs_dir}/a.gz", "rt", compression="infer", encoding="utf-8") as file:
        assert file.read() == "".join(lines)
    assert fs.read_text(f"{fs_dir}/a.txt", encoding="utf-8") == "".join(lines)


def test_zip_and_buffered_reader(fs: Any, fs_dir: str) -> None:
    with fs.open(f"{fs_dir}/z.zip", "wb") as raw, zipfile.ZipFile(raw, "w") as archive:
        archive.writestr("a", b"1" * 5000)
        archive.writestr("b", b"2" * 5000)
    with fs.open(f"{fs_dir}/z.zip", "rb") as raw, zipfile.ZipFile(raw) as archive:
        assert archive.read("b") == b"2" * 5000
    with io.BufferedReader(fs.open(f"{fs_dir}/z.zip", "rb"), 1000) as buffered:
        assert buffered.peek(4)[:2] == b"PK"
        assert buffered.read() == fs.cat_file(f"{fs_dir}/z.zip")


def test_json_and_pickle_of_the_file_system(fs: Any, fs_dir: str) -> None:
    fs.pipe_file(f"{fs_dir}/x", b"0123456789")
    again = pickle.loads(pickle.dumps(fs))
    assert again.cat_file(f"{fs_dir}/x") == b"0123456789"
    described = fsspec.AbstractFileSystem.from_json(fs.to_json())
    assert described.cat_file(f"{fs_dir}/x", 2, 4) == b"23"
    assert json.loads(fs.to_json())["protocol"] == "ffs"
    with fs.open(f"{fs_dir}/x", "rb") as file:
        file.seek(4)
        copy = pickle.loads(pickle.dumps(file))
        assert copy.read() == b"456789" and file.tell() == 4
    with fs.open(f"{fs_dir}/y", "wb") as file, pytest.raises(TypeError):
        pickle.dumps(file)


def test_transactions(fs: Any, fs_dir: str) -> None:
    with fs.transaction:
        for name in ("a", "b"):
            with fs.open(f"{fs_dir}/{name}", "wb") as file:
                file.write(b"x" * 10)
        assert not fs.exists(f"{fs_dir}/a")
    assert fs.cat(f"{fs_dir}/*") == {f"{fs_dir}/{n}": b"x" * 10 for n in ("a", "b")}

    def interrupted() -> None:
        with fs.transaction:
            with fs.open(f"{fs_dir}/c", "wb") as file:
                file.write(b"x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert not fs.exists(f"{fs_dir}/c")


def test_the_asynchronous_forms(fs: Any, fs_dir: str, tmp_path: Path) -> None:
    async def use() -> None:
        await fs._pipe_file(f"{fs_dir}/x", b"0123456789")
        assert await fs._cat_file(f"{fs_dir}/x", -3, None) == b"789"
        assert (await fs._info(f"{fs_dir}/x"))["size"] == 10
        parts = await asyncio.gather(*(fs._cat_file(f"{fs_dir}/x", i, i + 1) for i in range(10)))
        assert b"".join(parts) == b"0123456789"
        out = bytearray(4)
        assert await fs._readv_into([(f"{fs_dir}/x", 1, 4)], out) == 4 and out == b"1234"
        assert await fs._ls(fs_dir, detail=False) == [f"{fs_dir}/x"]
        assert await fs._exists(f"{fs_dir}/x") and not await fs._exists(f"{fs_dir}/y")
        assert await fs._glob(f"{fs_dir}/*") == [f"{fs_dir}/x"]
        await fs._cp_file(f"{fs_dir}/x", f"{fs_dir}/y")
        await fs._rm_file(f"{fs_dir}/x")
        assert await fs._find(fs_dir) == [f"{fs_dir}/y"]
        assert [root async for root, _, _ in fs._walk(fs_dir)] == [fs_dir]
        await fs._symlink("y", f"{fs_dir}/l")
        assert await fs._readlink(f"{fs_dir}/l") == "y" and await fs._islink(f"{fs_dir}/l")
        assert await fs._du(fs_dir) == 10 and (await fs._usage(fs_dir))["symlinks"] == 1
        await fs._pipe_file(f"{fs_dir}/l", b"!", mode="append")
        await fs._truncate(f"{fs_dir}/y", 12)
        assert await fs._cat_file(f"{fs_dir}/y", -3, None) == b"9!\0"
        await fs._copy(f"{fs_dir}/", f"{fs_dir}-2/", recursive=True)
        await fs._get(f"{fs_dir}-2/", f"{tmp_path}/", recursive=True)
        await fs._put(f"{tmp_path}/", f"{fs_dir}-3/", recursive=True)
        names = [f"{fs_dir}-3/l", f"{fs_dir}-3/y"]
        assert await fs._find(f"{fs_dir}-3") == names and (await fs._info(names[0]))["size"] == 12
        await fs._rm([f"{fs_dir}-2", f"{fs_dir}-3"], recursive=True)

    asyncio.run(use())


def test_url_openers(cluster: Cluster, fs: Any, fs_dir: str) -> None:
    options = {"key_file": str(cluster.key_file)}
    url = f"{cluster.url}{fs_dir}/by-url"
    with fsspec.open(url, "wb", **options) as file:
        file.write(b"hello")
    assert fs.cat_file(f"{fs_dir}/by-url") == b"hello"
    found, path = fsspec.url_to_fs(url, **options)
    assert found.unstrip_protocol(path) == url
    files = fsspec.open_files(f"{cluster.url}{fs_dir}/*", "rb", **options)
    assert [f.path for f in files] == [f"{fs_dir}/by-url"]
