"""A torch Dataset over `readv_into`: a batch is one native call into the batch's own tensor.

Read path: DataLoader -> THIS -> ffs.client.filesystem -> ... -> C, which receives every sample at
its final address.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import Dataset

from ffs.demo.corpus import SAMPLE_BYTES, digest


class CorruptSampleError(Exception):
    """A sample that was read is not the one that was stored."""


@dataclass(slots=True)
class Meter:
    """What reading took."""

    samples: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Batch:
    """Samples as rows, and which ones they are."""

    indices: list[int]
    tokens: torch.Tensor


@dataclass
class SampleDataset(Dataset[Any]):
    """Samples of equal length in files of equal length (but the last).

    Copies: 0 in user space; every sample lands in the tensor that the training loop gets.
    """

    fs: Any
    paths: Sequence[str]
    samples_per_file: int
    count: int
    meter: Meter = field(default_factory=Meter)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        tokens = torch.empty((len(indices), SAMPLE_BYTES), dtype=torch.uint8)
        ranges = [
            (
                self.paths[i // self.samples_per_file],
                i % self.samples_per_file * SAMPLE_BYTES,
                SAMPLE_BYTES,
            )
            for i in indices
        ]
        started = time.perf_counter()
        self.fs.readv_into(ranges, tokens.numpy())
        self.meter.seconds += time.perf_counter() - started
        self.meter.samples += len(indices)
        return Batch(indices, tokens)


def as_it_is(batch: Any) -> Any:
    """The collate function of a dataset that makes whole batches."""
    return batch


def verify(batch: Batch, digests: Sequence[bytes]) -> None:
    """Hold every sample of a batch against the digest it had before it was stored."""
    rows = batch.tokens.numpy()
    for row, index in enumerate(batch.indices):
        found = digest(rows[row].data)
        if found != digests[index]:
            raise CorruptSampleError(f"sample {index} is {found.hex()}, not {digests[index].hex()}")
