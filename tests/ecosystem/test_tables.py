"""Tables: pandas by URL, pyarrow datasets in several files, Hugging Face `datasets`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from fsspec.core import url_to_fs

ROWS = 5_000


@pytest.fixture
def frame() -> pd.DataFrame:
    """Numbers, text, times, and missing values."""
    count = range(ROWS)
    return pd.DataFrame(
        {
            "id": count,
            "name": [f"näme {i}" if i % 7 else None for i in count],
            "share": [i + 0.5 for i in count],
            "day": pd.date_range("2026-01-01", periods=ROWS, freq="h"),
        }
    )


def test_pandas_parquet(url: str, options: dict[str, Any], frame: pd.DataFrame) -> None:
    frame.to_parquet(f"{url}/new/f.parquet", storage_options=options)
    again = pd.read_parquet(f"{url}/new/f.parquet", storage_options=options)
    pd.testing.assert_frame_equal(again, frame)
    some = pd.read_parquet(
        f"{url}/new", columns=["id"], filters=[("id", "<", 10)], storage_options=options
    )
    assert list(some["id"]) == list(range(10))


@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
def test_pandas_csv(url: str, options: dict[str, Any], frame: pd.DataFrame, ending: str) -> None:
    frame.to_csv(f"{url}/new/f.{ending}", index=False, storage_options=options)
    again = pd.read_csv(f"{url}/new/f.{ending}", parse_dates=["day"], storage_options=options)
    pd.testing.assert_frame_equal(again, frame, check_dtype=False)
    pieces = pd.read_csv(f"{url}/new/f.{ending}", chunksize=1_000, storage_options=options)
    assert [len(piece) for piece in pieces] == [1_000] * 5


def test_pandas_json_lines(url: str, options: dict[str, Any], frame: pd.DataFrame) -> None:
    path = f"{url}/f.jsonl"
    frame[["id", "name"]].to_json(path, orient="records", lines=True, storage_options=options)
    again = pd.read_json(path, lines=True, storage_options=options)
    pd.testing.assert_frame_equal(again, frame[["id", "name"]], check_dtype=False)


@pytest.mark.parametrize("form", ["parquet", "feather", "csv"])
def test_arrow_dataset_in_parts(
    url: str, options: dict[str, Any], frame: pd.DataFrame, form: str
) -> None:
    fs, path = url_to_fs(url, **options)
    frame["part"] = frame["id"] % 3
    table = pa.Table.from_pandas(frame[["id", "share", "part"]], preserve_index=False)
    keys = pads.partitioning(pa.schema([("part", pa.int64())]), flavor="hive")
    where = {"filesystem": fs, "format": form, "partitioning": keys}
    for _ in range(2):
        pads.write_dataset(table, path, existing_data_behavior="delete_matching", **where)
    found = pads.dataset(path, **where)
    assert len(found.files) == 3
    assert found.to_table().sort_by("id").select(table.column_names).equals(table)
    assert found.count_rows(filter=pads.field("part") == 2) == ROWS // 3
    assert found.head(10, columns=["share"]).num_rows == 10


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where `datasets` may keep copies; nothing may be asked of the hub."""
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
    return str(tmp_path / "cache")


def test_datasets_load_and_stream(
    url: str, options: dict[str, Any], frame: pd.DataFrame, cache: str
) -> None:
    plain = frame[["id", "name"]]
    for part in range(2):
        half = plain.iloc[part * ROWS // 2 : (part + 1) * ROWS // 2]
        half.to_parquet(f"{url}/part-{part}.parquet", storage_options=options)
    files = {"data_files": f"{url}/*.parquet", "storage_options": options, "cache_dir": cache}
    loaded = datasets.load_dataset("parquet", split="train", **files)
    assert loaded.to_pandas().equals(plain)
    stream = datasets.load_dataset("parquet", split="train", streaming=True, **files)
    assert [row["id"] for row in stream] == list(range(ROWS))
    assert stream.num_shards == 2
    assert next(iter(stream.skip(ROWS - 1)))["name"] == plain["name"].iloc[-1]


def test_datasets_stream_of_lines(
    url: str, options: dict[str, Any], frame: pd.DataFrame, cache: str
) -> None:
    path = f"{url}/f.jsonl"
    frame[["id"]].to_json(path, orient="records", lines=True, storage_options=options)
    stream = datasets.load_dataset(
        "json",
        data_files=path,
        split="train",
        streaming=True,
        storage_options=options,
        cache_dir=cache,
    )
    assert sum(row["id"] for row in stream) == ROWS * (ROWS - 1) // 2


def test_datasets_save_and_load(url: str, options: dict[str, Any], frame: pd.DataFrame) -> None:
    made = datasets.Dataset.from_pandas(frame[["id", "name"]])
    made.save_to_disk(f"{url}/saved", num_shards=3, storage_options=options)
    again = datasets.load_from_disk(f"{url}/saved", storage_options=options)
    assert again.to_dict() == made.to_dict()
    both = datasets.DatasetDict({"train": made, "test": made.select(range(10))})
    both.save_to_disk(f"{url}/both", storage_options=options)
    loaded = datasets.load_from_disk(f"{url}/both", storage_options=options)
    assert {name: len(each) for name, each in loaded.items()} == {"train": ROWS, "test": 10}


def test_datasets_to_parquet(url: str, options: dict[str, Any], frame: pd.DataFrame) -> None:
    made = datasets.Dataset.from_pandas(frame[["id"]])
    made.to_parquet(f"{url}/f.parquet", storage_options=options)
    assert pd.read_parquet(f"{url}/f.parquet", storage_options=options).equals(frame[["id"]])
