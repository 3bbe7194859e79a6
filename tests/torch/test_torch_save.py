"""torch.save and torch.load on files of FFS: bytes land in the tensors' memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ffs.client.file import FFSFile


def test_loading_reads_into_the_tensors(
    fs: Any, fs_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"w": torch.randn(500_000), "b": torch.arange(70_000, dtype=torch.int16)}
    with fs.open(f"{fs_dir}/m.pt", "wb") as file:
        torch.save(state, file)
    landed: list[tuple[int, int]] = []
    readinto = FFSFile.readinto

    def spy(self: FFSFile, out: Any, /) -> int:
        with memoryview(out) as view:
            landed.append((torch.frombuffer(view, dtype=torch.uint8).data_ptr(), view.nbytes))
        return readinto(self, out)

    monkeypatch.setattr(FFSFile, "readinto", spy)
    with fs.open(f"{fs_dir}/m.pt", "rb") as file:
        loaded = torch.load(file, weights_only=True)
    assert all(torch.equal(state[name], loaded[name]) for name in state)
    places = {tensor.data_ptr(): tensor.nbytes for tensor in loaded.values()}
    assert places.items() <= dict(landed).items(), "each tensor in one piece, where it stays"


def test_an_interrupted_save_leaves_the_old_file(fs: Any, fs_dir: str) -> None:
    class Broken:
        def __reduce__(self) -> tuple[Any, ...]:
            raise RuntimeError("cannot be saved")

    path = f"{fs_dir}/m.pt"
    with fs.open(path, "wb") as file:
        torch.save({"w": torch.ones(3)}, file)
    with pytest.raises(RuntimeError, match="cannot be saved"), fs.open(path, "wb") as file:
        torch.save({"w": torch.zeros(2_000_000), "x": Broken()}, file)
    with fs.open(path, "rb") as file:
        assert torch.load(file, weights_only=True)["w"].equal(torch.ones(3))
