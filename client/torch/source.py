"""What all data sets here have in common: a batch is one call that fills memory.

Role: torch's DataLoader calls `__getitems__` -> THIS -> `fill` of client/torch/dataset.py and
client/torch/mixing.py. With a loader of ours the batch lands in its ring and stays one piece; any
other caller gets a list of samples, which are views of one piece of memory, as torch expects.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from ffs.client.torch import landing
from ffs.client.torch.batch import Batch, Form, Lengths
from ffs.client.torch.landing import Bytes

Ids = npt.NDArray[np.int64]

_LOOKED_AT: Final = 4096
"""Samples whose lengths say how large a batch of samples of different lengths gets."""


class BatchSource(Dataset[Any]):
    """A map-style data set that reads whole batches.

    Args:    form: what a sample's bytes mean
    """

    def __init__(self, form: Form) -> None:
        self.form = form

    def __len__(self) -> int:
        raise NotImplementedError

    def lengths(self, ids: Ids) -> Ids:
        """Return the bytes of each sample; IndexError for one that is not there."""
        raise NotImplementedError

    def fill(self, ids: Ids, out: Bytes) -> None:
        """Read samples back to back into `out`, which is as long as they are, in one call."""
        raise NotImplementedError

    def batch_bytes(self, count: int) -> int:
        """Return the memory that a batch of `count` samples takes: of samples of different lengths,
        what all but a few take."""
        fixed = self.form.sample_bytes
        if fixed is not None:
            return fixed * count
        total = len(self)
        if not total:
            return 0
        seen = np.linspace(0, total - 1, min(total, _LOOKED_AT)).astype(np.int64)
        lengths = self.lengths(seen)
        usual = count * lengths.mean() + 4 * np.sqrt(count) * lengths.std()
        return int(min(usual, count * lengths.max())) + 1

    def read(self, ids: Sequence[int] | Ids) -> Batch:
        """Read samples to where this thread's loader wants them.

        Copies: 0 in user space; Threads: any, the GIL is released; Fork: safe
        """
        wanted = np.asarray(ids, dtype=np.int64)
        lengths, total = self._lengths(wanted)
        place = landing.take(total)
        self.fill(wanted, place.memory)
        wishes = landing.current()
        return Batch(self.form, place, lengths, away=wishes is not None and wishes.away)

    def _lengths(self, ids: Ids) -> tuple[Lengths, int]:
        fixed = self.form.sample_bytes
        if fixed is not None:
            return len(ids), fixed * len(ids)
        lengths = self.lengths(ids)
        self.form.check_lengths(lengths, ids)
        return lengths.tolist(), int(lengths.sum())

    def __getitems__(self, ids: Sequence[int]) -> Any:
        """Return samples, all read by one call: a Batch for a loader of ours, else a list.

        A subclass that makes something else of a sample in `__getitem__` is asked for each.
        """
        if type(self).__getitem__ is not BatchSource.__getitem__:
            return [self[i] for i in ids]
        batch = self.read(ids)
        return batch if landing.current() is not None else batch.samples()

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, (Sequence, np.ndarray)):  # a sampler that yields batches, batch_size=None
            batch = self.read(i)
            return batch if landing.current() is not None else batch.whole()
        return self._one(index(i))

    def _one(self, i: int) -> torch.Tensor:
        wanted = np.array([i], dtype=np.int64)
        lengths, total = self._lengths(wanted)
        memory: Bytes = np.empty(total, dtype=np.uint8)
        self.fill(wanted, memory)
        return self.form.over(memory, lengths)[0]


def batch_bytes(dataset: object, count: int) -> int | None:
    """Return the memory of a batch of `dataset`, also where it is a subset of one of ours.

    Returns: None for a data set that makes its batches in another way
    """
    while not isinstance(dataset, BatchSource):
        inner = getattr(dataset, "dataset", None)  # torch's Subset, random_split
        if inner is None:
            return None
        dataset = inner
    return dataset.batch_bytes(count)
