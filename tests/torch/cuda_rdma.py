"""Reads straight into a GPU, where there is one, and a card that can. Collected by
tests/torch/conftest.py there only: elsewhere these are no tests, and none that are skipped.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from ffs.client.filesystem import FFSFileSystem
from ffs.client.torch.device import device_memory
from tests.harness import Cluster

SIZE = 9 << 20


def test_ranges_land_in_a_tensor(cluster: Cluster) -> None:
    options = {**cluster.storage_options, "transport": "rdma", "verify": False}
    fs: Any = FFSFileSystem(skip_instance_cache=True, **options)
    data = random.Random(7).randbytes(SIZE)
    fs.pipe_file("/to-a-gpu", data)
    dice = random.Random(8)
    for count in (1, 2, 100):
        ranges = [(dice.randrange(SIZE - 70_000), dice.randrange(1, 70_000)) for _ in range(count)]
        total = sum(length for _, length in ranges)
        tensor = torch.full((total + 200,), 0xA5, dtype=torch.uint8, device="cuda")
        out = device_memory(tensor[100 : 100 + total])
        assert fs.readv_into([("/to-a-gpu", *each) for each in ranges], out) == total
        got: Any = tensor.cpu().numpy()
        wanted = b"".join(data[at : at + length] for at, length in ranges)
        assert got[100:-100].tobytes() == wanted
        assert np.all(got[:100] == 0xA5) and np.all(got[-100:] == 0xA5)
    fs.close()
