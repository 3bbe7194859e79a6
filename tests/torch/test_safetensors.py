"""Safetensors files against the format's own library, both ways, and against damage."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from ffs.client.checkpoint.memory import DTYPES
from ffs.errors import InvalidError
from ffs.torch import load_safetensors, save_safetensors
from tests.harness import Cluster


def some_tensors() -> dict[str, torch.Tensor]:
    """One of each element type, and of each unusual shape."""
    generator = torch.Generator().manual_seed(7)
    noise = torch.randint(0, 2, (5, 7, 8), generator=generator, dtype=torch.uint8)
    tensors = {
        name: noise.flatten().clone().view(dtype).reshape(5, -1) for name, dtype in DTYPES.items()
    }
    tensors |= {
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "wide": torch.arange(1_500_000, dtype=torch.float32),
        "ünïcode": torch.ones(3, dtype=torch.bfloat16),
    }
    return tensors


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether names, types, shapes and bits agree."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].reshape(-1).view(torch.uint8).equal(other[name].reshape(-1).view(torch.uint8))
        for name in one
    )


def test_what_the_library_saves_is_loaded(
    cluster: Cluster, fs: Any, fs_dir: str, tmp_path: Path
) -> None:
    tensors = some_tensors()
    safetensors.torch.save_file(tensors, tmp_path / "s", metadata={"format": "pt"})
    fs.put_file(str(tmp_path / "s"), f"{fs_dir}/s")
    loaded = load_safetensors(f"ffs://{fs_dir}/s", storage_options=cluster.storage_options)
    assert same(tensors, loaded)
    some = load_safetensors(
        f"{cluster.url}{fs_dir}/s",
        names=["wide", "scalar"],
        storage_options={"key_file": str(cluster.key_file)},
    )
    assert same({name: tensors[name] for name in ("wide", "scalar")}, some)


def test_what_is_saved_the_library_loads(
    cluster: Cluster, fs: Any, fs_dir: str, tmp_path: Path
) -> None:
    tensors = some_tensors()
    turned = {**tensors, "turned": torch.arange(12.0).reshape(3, 4).t()}
    save_safetensors(
        turned,
        f"ffs://{fs_dir}/s",
        metadata={"step": "7"},
        storage_options=cluster.storage_options,
    )
    fs.get_file(f"{fs_dir}/s", str(tmp_path / "s"))
    assert same(turned, safetensors.torch.load_file(tmp_path / "s"))
    with safetensors.safe_open(tmp_path / "s", "pt") as file:
        assert file.metadata() == {"step": "7"}
    assert same(
        turned, load_safetensors(f"ffs://{fs_dir}/s", storage_options=cluster.storage_options)
    )


def packed(header: Any, body: bytes) -> bytes:
    """A file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(start: int, end: int, shape: list[Any], dtype: str = "U8") -> dict[str, Any]:
    """What a header says of a tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


DAMAGED = {
    "short": b"\x08\0\0",
    "long header": struct.pack("<Q", 1 << 40) + b"{}",
    "no json": packed(b"{nothing", b""),
    "a list": packed([], b""),
    "a type": packed({"a": entry(0, 4, [4], "F5")}, bytes(4)),
    "no places": packed({"a": {"dtype": "U8", "shape": [4]}}, bytes(4)),
    "a shape": packed({"a": entry(0, 4, [5])}, bytes(4)),
    "a negative shape": packed({"a": entry(0, 4, [-2, -2])}, bytes(4)),
    "a shape of fractions": packed({"a": entry(0, 4, [4.5])}, bytes(4)),
    "an infinite shape": packed({"a": entry(0, 0, [float("inf")])}, b""),
    "more than torch takes": packed({"a": entry(0, 0, [1 << 40, 1 << 40, 0])}, b""),
    "many dimensions": packed({"a": entry(0, 4, [1] * 500 + [4])}, bytes(4)),
    "deep": packed(b"[" * 50_000, b""),
    "a gap": packed({"a": entry(0, 4, [4]), "b": entry(5, 8, [3])}, bytes(8)),
    "an overlap": packed({"a": entry(0, 4, [4]), "b": entry(2, 6, [4])}, bytes(6)),
    "past the end": packed({"a": entry(0, 4, [4])}, bytes(3)),
    "left over": packed({"a": entry(0, 4, [4])}, bytes(5)),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_files_are_refused(cluster: Cluster, fs: Any, fs_dir: str, what: str) -> None:
    fs.pipe_file(f"{fs_dir}/s", DAMAGED[what])
    with pytest.raises(InvalidError, match="no safetensors file"):
        load_safetensors(f"{fs_dir}/s", storage_options=cluster.storage_options)


def test_what_the_format_has_not_is_refused(cluster: Cluster, fs: Any, fs_dir: str) -> None:
    options = cluster.storage_options
    with pytest.raises(InvalidError, match="complex128"):
        save_safetensors(
            {"a": torch.zeros(1, dtype=torch.complex128)}, f"{fs_dir}/s", storage_options=options
        )
    with pytest.raises(InvalidError, match="layout"):
        save_safetensors({"a": torch.eye(3).to_sparse()}, f"{fs_dir}/s", storage_options=options)
    assert not fs.exists(f"{fs_dir}/s")
    save_safetensors({"a": torch.zeros(1)}, f"{fs_dir}/s", storage_options=options)
    with pytest.raises(InvalidError, match="no tensor 'b'"):
        load_safetensors(f"{fs_dir}/s", names=["b"], storage_options=options)
    with pytest.raises(InvalidError, match="no place in FFS"):
        load_safetensors("s3://bucket/s")
