"""Tests of CUDA are collected where there is CUDA."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Take the files that pytest's own pattern leaves out, if they can run here."""
    if file_path.match("tests/torch/cuda_*.py") and torch.cuda.is_available():
        return pytest.Module.from_parent(parent, path=file_path)
    return None
