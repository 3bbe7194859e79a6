"""Every format becomes records, and itself again; what is there is not made again."""

from __future__ import annotations

import io
import json
import os
import random
import tarfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ffs.records
from ffs.client.parallel import Stop
from ffs.client.records.pack.job import Conversion
from ffs.client.records.pack.places import Place
from ffs.errors import BadNameError
from tests.records.samples import MIXED, ffrecord_file, payloads


class Silent:
    """Nobody watches."""

    def __init__(self) -> None:
        self.done = 0

    def advance(self, count: int) -> None:
        self.done += count


def convert(source: str, target: str, **how: Any) -> tuple[Any, int, int]:
    """Convert between two places of this machine; returns the report, and both sizes."""
    job = Conversion(Place(None, source), Place(None, target), **how)
    size, progress = job.prepare(), Silent()
    return job.run(progress, Stop()), size, progress.done


def tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def make_directory(path: Path) -> None:
    for number, data in enumerate(MIXED):
        inner = path / f"class-{number % 2}" / f"{number}.bin"
        inner.parent.mkdir(parents=True, exist_ok=True)
        inner.write_bytes(data)


def make_lines(path: Path) -> None:
    path.mkdir()
    source = random.Random(0)
    for name in "ab":
        lines = [json.dumps({"n": n, "text": "x" * source.randrange(300)}) for n in range(200)]
        (path / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))


def make_tar(path: Path) -> None:
    path.mkdir()
    for name in "ab":
        with tarfile.open(path / f"{name}.tar", "w") as tar:
            for number in range(20):
                for field, data in (("bin", payloads([50 * number])[0]), ("cls", b"%d" % number)):
                    member = tarfile.TarInfo(f"dir/{name}{number:03d}.{field}")
                    member.size, member.mode = len(data), 0o644
                    tar.addfile(member, io.BytesIO(data))


def make_mds(path: Path) -> None:
    """Two shards by the format's rules: a number, text, and bytes of any and of one length."""
    path.mkdir()
    shards = []
    for shard in range(2):
        samples = []
        for number in range(15):
            text, data = f"sample {number}".encode(), payloads([number * 7])[0]
            sizes = len(data).to_bytes(4, "little") + len(text).to_bytes(4, "little")
            label, vector = number.to_bytes(8, "little", signed=True), payloads([6], number)[0]
            samples.append(sizes + data + label + text + vector)
        config = {
            "column_encodings": ["jpeg", "int", "str", "ndarray:float16:3"],
            "column_names": ["data", "label", "text", "vector"],
            "column_sizes": [None, 8, None, 6],
            "compression": None,
            "format": "mds",
            "hashes": [],
            "size_limit": 1 << 26,
            "version": 2,
        }
        packed = json.dumps(config, sort_keys=True).encode()
        ends = [4 + 4 * (len(samples) + 1) + len(packed)]
        for sample in samples:
            ends.append(ends[-1] + len(sample))
        name = f"shard.{shard:05d}.mds"
        stored = len(samples).to_bytes(4, "little")
        stored += b"".join(end.to_bytes(4, "little") for end in ends)
        (path / name).write_bytes(stored + packed + b"".join(samples))
        raw = {"basename": name, "bytes": ends[-1], "hashes": {}}
        shards.append(config | {"raw_data": raw, "zip_data": None, "samples": len(samples)})
    (path / "index.json").write_text(json.dumps({"shards": shards, "version": 2}))


ROWS = {
    "id": list(range(3_000)),
    "text": [f"row {n}" for n in range(3_000)],
    "blob": payloads([n % 40 for n in range(3_000)]),
    "vector": [[n / 3, None] for n in range(3_000)],
}


def make_parquet(path: Path) -> None:
    path.mkdir()
    schema = pa.schema(
        {
            "id": pa.int32(),
            "text": pa.string(),
            "blob": pa.binary(),
            "vector": pa.list_(pa.float32()),
        }
    )
    pq.write_table(pa.table(ROWS, schema=schema), path / "t.parquet", row_group_size=500)


def make_arrow(path: Path) -> None:
    path.mkdir()
    table = pa.table(ROWS)
    with pa.ipc.new_file(str(path / "t.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=700)
    with pa.ipc.new_stream(str(path / "u.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=700)


def make_ffrecord(path: Path) -> None:
    path.mkdir()
    for number in range(3):
        (path / f"{number}.ffr").write_bytes(ffrecord_file(MIXED[number:]))


MAKE: dict[str, Callable[[Path], None]] = {
    "dir": make_directory,
    "jsonl": make_lines,
    "tar": make_tar,
    "mds": make_mds,
    "parquet": make_parquet,
    "arrow": make_arrow,
    "ffrecord": make_ffrecord,
}


def meaning(kind: str, path: Path) -> Any:
    """What a dataset says, however it is cut into files."""
    files = tree(path)
    if kind == "dir":
        return files
    if kind == "jsonl":
        return b"".join(files[name] for name in sorted(files)).splitlines()
    if kind == "tar":
        found = []
        for name in sorted(files):
            with tarfile.open(fileobj=io.BytesIO(files[name])) as tar:
                found += [(m.name, tar.extractfile(m).read()) for m in tar if m.isfile()]  # type: ignore[union-attr]
        return found
    if kind == "mds":
        index = json.loads(files["index.json"])["shards"]
        plain = {key: index[0][key] for key in ("column_encodings", "column_names", "column_sizes")}
        return plain, [shard["samples"] for shard in index], _mds_samples(files, index)
    if kind in ("parquet", "arrow"):
        return pa.concat_tables([_table(path / n) for n in sorted(files) if n != "pack.json"])
    with ffs.records.open(str(path)) as records:
        return [bytes(sample) for sample in records.read(range(len(records)))]


def _table(path: Path) -> Any:
    if path.suffix == ".parquet":
        return pq.read_table(path)
    try:
        return pa.ipc.open_file(str(path)).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_stream(str(path)).read_all()


def _mds_samples(files: dict[str, bytes], index: list[dict[str, Any]]) -> list[bytes]:
    found = []
    for shard in index:
        data = files[shard["raw_data"]["basename"]]
        assert len(data) == shard["raw_data"]["bytes"]
        ends = memoryview(data)[4 : 8 + 4 * shard["samples"]].cast("I").tolist()
        found += [data[a:b] for a, b in pairwise(ends)]
    return found


@pytest.mark.parametrize("through", ["ffs", "ffrecord"])
@pytest.mark.parametrize("kind", MAKE)
def test_a_dataset_becomes_records_and_is_itself_again(
    tmp_path: Path, kind: str, through: str
) -> None:
    MAKE[kind](tmp_path / "source")
    report, size, done = convert(
        *map(str, (tmp_path / "source", tmp_path / "packed")),
        target_kind=through,
        shard_bytes=20_000,
    )
    assert size == done
    assert report.source == ("records" if kind == "ffrecord" else kind)
    assert report.shards > 1
    with ffs.records.open(str(tmp_path / "packed"), verify="sample") as records:
        assert len(records) == report.samples
        records.validate()
    back, *_ = convert(*map(str, (tmp_path / "packed", tmp_path / "back")), target_kind=kind)
    assert back.samples == report.samples
    (tmp_path / "back" / "pack.json").unlink(missing_ok=True)
    was, now = (meaning(kind, tmp_path / name) for name in ("source", "back"))
    assert now == was


def test_the_column_of_a_table_becomes_samples(tmp_path: Path) -> None:
    make_parquet(tmp_path / "source")
    convert(str(tmp_path / "source"), str(tmp_path / "packed"), column="blob")
    assert meaning("ffs", tmp_path / "packed") == ROWS["blob"]
    convert(str(tmp_path / "packed"), str(tmp_path / "back"), target_kind="parquet")
    table = pq.read_table(tmp_path / "back" / "part-00000.parquet")
    assert table.column_names == ["blob"]
    assert table["blob"].to_pylist() == ROWS["blob"]


def test_lines_are_cut_into_shards_anywhere(tmp_path: Path) -> None:
    make_lines(tmp_path / "source")
    expected = meaning("jsonl", tmp_path / "source")
    for shard_bytes in (301, 1_001, 1 << 20):
        where = str(tmp_path / "source"), str(tmp_path / f"{shard_bytes}")
        convert(*where, shard_bytes=shard_bytes, jobs=2)
        assert meaning("ffs", tmp_path / f"{shard_bytes}") == expected


def test_a_finished_shard_is_not_made_again(tmp_path: Path) -> None:
    make_lines(tmp_path / "source")
    where = str(tmp_path / "source"), str(tmp_path / "packed")
    first, *_ = convert(*where, shard_bytes=10_000)
    before = {name: os.stat(tmp_path / "packed" / name) for name in tree(tmp_path / "packed")}
    lost = tmp_path / "packed" / "part-00001.ffr"
    lost.unlink()
    (tmp_path / "packed" / "part-00001.ffr.0123456789ab.partial").write_bytes(b"half")
    second, size, done = convert(*where, shard_bytes=10_000)
    assert (second.shards, second.skipped, size) == (1, first.shards - 1, done)
    after = tree(tmp_path / "packed")
    assert sorted(after) == sorted(before)
    for name, stat in before.items():
        now = os.stat(tmp_path / "packed" / name)  # a new file may have got the lost one's inode
        kept = (now.st_ino, now.st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)
        assert kept == (name not in (lost.name, "pack.json"))
    assert meaning("ffs", tmp_path / "packed") == meaning("jsonl", tmp_path / "source")


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x"])
def test_a_key_does_not_lead_out_of_the_target(tmp_path: Path, name: str) -> None:
    (tmp_path / "source").mkdir()
    with tarfile.open(tmp_path / "source" / "a.tar", "w") as tar:
        member = tarfile.TarInfo(f"{name}.bin")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(BadNameError, match="no relative path"):
        convert(f"{tmp_path}/source", f"{tmp_path}/t/inner", target_kind="dir")
    assert os.listdir(tmp_path) == ["source"]
