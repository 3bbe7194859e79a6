"""A data set of fixed-size samples in one file, for tests of loaders in spawned workers too."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ffs.client.filesystem import FFSFileSystem
from ffs.client.torch.batch import Form
from ffs.client.torch.landing import Bytes
from ffs.client.torch.source import BatchSource, Ids

SAMPLE = 4096


class FileSamples(BatchSource):
    """Samples of 4 KiB, back to back in a file."""

    def __init__(self, fs: FFSFileSystem, path: str, count: int, *, vary: bool = False) -> None:
        super().__init__(Form(torch.uint8, None if vary else (SAMPLE,)))
        self.fs = fs
        self.path = path
        self.count = count

    def __len__(self) -> int:
        return self.count

    def lengths(self, ids: Ids) -> Ids:
        """Sample i has 1 + i * 7 % SAMPLE bytes."""
        return 1 + ids * 7 % SAMPLE

    def fill(self, ids: Ids, out: Bytes) -> None:
        """One native call."""
        if len(ids) and not (ids.min() >= 0 and ids.max() < self.count):
            raise IndexError("no such sample")
        fixed = self.form.shape is not None
        lengths = np.full(len(ids), SAMPLE) if fixed else self.lengths(ids)
        ranges: list[Any] = [
            (self.path, int(i) * SAMPLE, int(n)) for i, n in zip(ids, lengths, strict=True)
        ]
        self.fs.readv_into(ranges, out)
