"""Tests of CUDA are collected where there is CUDA, and those of GPUDirect where a card is, too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

_CARDS = Path("/sys/class/infiniband")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Take the files that pytest's own pattern leaves out, if they can run here."""
    if not file_path.match("tests/torch/cuda_*.py") or not torch.cuda.is_available():
        return None
    if file_path.name == "cuda_rdma.py" and not (_CARDS.is_dir() and any(_CARDS.iterdir())):
        return None
    return pytest.Module.from_parent(parent, path=file_path)
