"""What all data sets here have in common: a batch is one call that fills memory.

Role: torch's DataLoader -> THIS -> `fill` of client/torch/dataset.py and client/torch/mixing.py.
With a loader of ours a batch lands in its ring and stays one piece; any other caller gets samples,
which are views of one piece of memory, as torch expects.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from operator import index
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, IterableDataset, Subset, get_worker_info

from ffs.client.torch import landing
from ffs.client.torch.batch import Batch, Form, Lengths, Row
from ffs.client.torch.landing import Bytes

Ids = npt.NDArray[np.int64]

STREAM_BATCH: Final = 64
"""Samples that a stream reads at once where no loader of ours says how many make a batch."""
_LOOKED_AT: Final = 4096
"""Samples whose lengths say how large a batch of samples of different lengths gets."""


class BatchSource(Dataset[Any], ABC):
    """A map-style data set that reads whole batches.

    Args:    form: what a sample's bytes mean
    """

    def __init__(self, form: Form) -> None:
        self.form = form

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def lengths(self, ids: Ids) -> Ids:
        """Return the bytes of each sample; IndexError for one that is not there."""

    @abstractmethod
    def fill(self, ids: Ids, out: Bytes) -> None:
        """Read samples back to back into `out`, which is as long as they are, in one call."""

    def leaves(self) -> list[BatchSource]:
        """Return what really reads: this, or the parts that it is made of."""
        return [self]

    def trace(self, ids: Ids) -> tuple[Ids, Ids]:
        """Return the leaf that has each sample, and its number there."""
        return np.zeros(len(ids), dtype=np.int64), ids

    def batch_bytes(self, count: int) -> int:
        """Return the memory of a batch; if samples differ in length, that of all but a few."""
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
        wanted, wishes = np.asarray(ids, dtype=np.int64), landing.current()
        lengths, total = self._lengths(wanted)
        place = landing.take(total, wishes)
        self.fill(wanted, place.memory)
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


class BatchStream(IterableDataset[Any], ABC):
    """A stream that reads whole batches: each worker takes its turn at them.

    Args:    source: reads the batches
    """

    def __init__(self, source: BatchSource) -> None:
        self.source = source
        self.yielded = 0
        self.skip = 0
        """Samples of this process's stream that the next iteration passes over."""

    @abstractmethod
    def batches_of_ids(self, size: int) -> Iterator[list[int]]:
        """Yield the numbers of this rank's samples, `size` at a time, as the epoch has them."""

    def __iter__(self) -> Iterator[Any]:
        wishes, worker = landing.current(), get_worker_info()
        size = wishes.batch_size if wishes is not None else None
        first, step = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        skip, self.skip = self.skip, 0
        self.yielded = skip
        for ids in islice(self.batches_of_ids(size or STREAM_BATCH), first, None, step):
            passed = min(skip, len(ids))
            skip -= passed
            if passed == len(ids):
                continue
            batch = self.source.read(ids[passed:])
            for i in range(len(batch)):
                self.yielded += 1
                yield Row(batch, i) if size else batch[i]


def reads_plain_batches(dataset: object) -> bool:
    """Whether reading its bytes is all there is to a sample: nobody overrides what makes one."""
    if not isinstance(dataset, BatchSource) or source_of(dataset) is not dataset:
        return False
    return type(dataset).__getitems__ is BatchSource.__getitems__


def source_of(dataset: object) -> BatchSource | None:
    """Return what reads a data set's batches; None where samples are made one by one.

    So it is with any other data set, and with those of ours whose subclass makes something else of
    each sample.
    """
    while isinstance(dataset, Subset):  # random_split's as well
        dataset = dataset.dataset
    if isinstance(dataset, BatchStream):
        return dataset.source if type(dataset).__iter__ is BatchStream.__iter__ else None
    if isinstance(dataset, BatchSource):
        return dataset if type(dataset).__getitem__ is BatchSource.__getitem__ else None
    return None
