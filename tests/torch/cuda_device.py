"""Tensors as memory that a card may write to, where there is CUDA. Collected by
tests/torch/conftest.py there only: elsewhere these are no tests, and none that are skipped.
"""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

from ffs.client.filesystem import FFSFileSystem
from ffs.client.torch.device import device_memory
from ffs.errors import InvalidError, TransportError
from tests.harness import Cluster


def test_a_tensor_is_a_part_of_a_dmabuf() -> None:
    tensor = torch.zeros(1 << 20, dtype=torch.uint8, device="cuda")
    memory = device_memory(tensor[100:])
    assert (memory.nbytes, memory.address) == ((1 << 20) - 100, tensor.data_ptr() + 100)


def test_the_tensor_lives_as_long() -> None:
    tensor = torch.zeros(1 << 20, dtype=torch.uint8, device="cuda")
    alive = weakref.ref(tensor)
    memory = device_memory(tensor)
    del tensor
    gc.collect()
    assert alive() is not None
    del memory
    assert alive() is None


def test_what_is_no_such_tensor_is_refused() -> None:
    on_gpu = torch.zeros((8, 8), device="cuda")
    for tensor in (torch.zeros(8), on_gpu.t()[1:], torch.zeros(0, device="cuda")):
        with pytest.raises(InvalidError):
            device_memory(tensor)


def test_without_a_card_it_is_a_typed_error(cluster: Cluster) -> None:
    options = {**cluster.storage_options, "transport": "tcp", "verify": False}
    fs: Any = FFSFileSystem(skip_instance_cache=True, **options)
    fs.pipe_file("/to-a-gpu", bytes(range(256)) * 100)
    tensor = torch.full((25_600,), 7, dtype=torch.uint8, device="cuda")
    with pytest.raises(TransportError, match="transport"):
        fs.readv_into([("/to-a-gpu", 0, 25_600)], device_memory(tensor))
    assert (tensor == 7).all()
    fs.close()
