"""Several data sets as one, whose batches are still read as batches.

Role: torch's DataLoader -> client/torch/source.py -> THIS -> `read_together` of client/records, one
native call a batch, each sample straight to its place; data sets of other kinds, or of several
clusters, are read by one call for each run of one of them. torch's own reads sample by sample.

Shapes/units: a sample of the whole has a part and a number within it; both are pure functions of
its number, so that workers and resumed runs agree without a word.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from ffs.client.permutation import Permutation
from ffs.client.records.records import read_together
from ffs.client.torch.dataset import RecordDataset
from ffs.client.torch.landing import Bytes
from ffs.client.torch.source import BatchSource, Ids, reads_plain_batches
from ffs.errors import InvalidError

_SHARES_MAX: Final = 1 << 53
"""Samples that weights can be told apart for: what a float counts."""


class _Combined(BatchSource):
    """Samples of some parts, all of one form."""

    def __init__(self, datasets: Sequence[BatchSource]) -> None:
        self.datasets = list(datasets)
        if not self.datasets:
            raise InvalidError("no data sets to combine")
        for i, part in enumerate(self.datasets):
            if not reads_plain_batches(part):
                raise InvalidError(
                    f"data set {i} is a {type(part).__name__}, which makes its samples otherwise",
                    hint="combine those of ffs.torch; torch's own classes combine any",
                )
            if part.form != self.datasets[0].form:
                raise InvalidError(
                    f"data set {i} has samples of {part.form}, the first of {self.datasets[0].form}"
                )
        super().__init__(self.datasets[0].form)
        self._ends: Ids | None = None

    def _sizes(self) -> Ids:
        """Return how many numbers each part has."""
        return np.array([len(part) for part in self.datasets], dtype=np.int64)

    def _bounds(self) -> Ids:
        """Return where each part's numbers end; the sizes are asked for once."""
        if self._ends is None:
            self._ends = np.cumsum(self._sizes())
        return self._ends

    def __len__(self) -> int:
        return int(self._bounds()[-1])

    def batch_bytes(self, count: int) -> int:
        """Return the memory that a batch takes, were it from one part alone."""
        return max(part.batch_bytes(count) for part in self.datasets)

    @abstractmethod
    def locate(self, ids: Ids) -> tuple[Ids, Ids]:
        """Return the part of each sample, and its number there."""

    def _located(self, ids: Ids) -> tuple[Ids, Ids]:
        total = len(self)
        bad = (ids < 0) | (ids >= total)
        if bad.any():
            raise IndexError(
                f"there is no sample {ids[bad.argmax()]}: there are {total}, from 0 on"
            )
        return self.locate(ids)

    def leaves(self) -> list[BatchSource]:
        """Return the parts' leaves, in order."""
        return [leaf for part in self.datasets for leaf in part.leaves()]

    def trace(self, ids: Ids) -> tuple[Ids, Ids]:
        """Return the leaf that has each sample, and its number there."""
        parts, numbers = self._located(ids)
        leaf = np.empty(len(ids), dtype=np.int64)
        first = 0
        for i, part in enumerate(self.datasets):
            mine = parts == i
            if mine.any():
                inner, numbers[mine] = part.trace(numbers[mine])
                leaf[mine] = first + inner
            first += len(part.leaves())
        return leaf, numbers

    def lengths(self, ids: Ids) -> Ids:
        """Return the bytes of each sample."""
        which, numbers = self.trace(ids)
        leaves, lengths = self.leaves(), np.empty(len(ids), dtype=np.int64)
        for i in np.unique(which).tolist():
            lengths[which == i] = leaves[i].lengths(numbers[which == i])
        return lengths

    def fill(self, ids: Ids, out: Bytes) -> None:
        """Read each sample to its place."""
        which, numbers = self.trace(ids)
        fixed = self.form.sample_bytes
        leaves = self.leaves()
        records = [
            leaf.records
            for leaf in leaves
            if isinstance(leaf, RecordDataset) and type(leaf).fill is RecordDataset.fill
        ]
        usual = len(records) == len(leaves) and (
            fixed is None or all(r.sample_bytes == fixed for r in records)
        )
        if usual and read_together(records, which, numbers, out) is not None:
            return
        lengths = self.lengths(ids) if fixed is None else np.full(len(ids), fixed)
        _fill_runs(leaves, which, numbers, lengths, out)


def _fill_runs(
    leaves: Sequence[BatchSource], which: Ids, numbers: Ids, lengths: Ids, out: Bytes
) -> None:
    """Read samples back to back by one call for each run of one leaf: not all are records of one
    file system, and of the length that they should have."""
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    starts = np.flatnonzero(np.diff(which, prepend=-1)).tolist()
    for start, end in pairwise([*starts, len(which)]):
        place = out[offsets[start] : offsets[end]]
        leaves[int(which[start])].fill(numbers[start:end], place)


class ConcatDataset(_Combined):
    """The samples of all data sets, one after the other.

    Copies: 0 in user space; Threads: any; Fork: safe
    """

    def locate(self, ids: Ids) -> tuple[Ids, Ids]:
        """Return the part of each sample, and its number there."""
        ends = self._bounds()
        parts = np.searchsorted(ends, ids, side="right")
        return parts, ids - np.concatenate(([0], ends))[parts]


class MixedDataset(_Combined):
    """Data sets mixed by weight: of each, as large a share of all samples as its weight says.

    As long as it takes to have each sample of each data set at least once; the others come again,
    as often as their weights ask for. Any stretch is mixed, also in the order of the numbers.

    Args:    weights: one for each data set, positive; seed: of the order in which they are mixed
    Copies: 0 in user space; Threads: any; Fork: safe
    """

    def __init__(
        self, datasets: Sequence[BatchSource], weights: Sequence[float], *, seed: int = 0
    ) -> None:
        super().__init__(datasets)
        self.weights = [float(w) for w in weights]
        if len(self.weights) != len(self.datasets) or not all(
            0 < w < float("inf") for w in self.weights
        ):
            raise InvalidError(
                f"weights are {weights}", hint="give a positive number for each data set"
            )
        self.seed = seed
        self._order: Permutation | None = None

    def _sizes(self) -> Ids:
        there = super()._sizes()
        if not there.all():
            raise InvalidError(f"data set {int(there.argmin())} has no samples to mix")
        weights = np.array(self.weights)
        rounds = float((there / weights).max())
        if rounds * weights.sum() > _SHARES_MAX:
            raise InvalidError(f"weights {self.weights} make an epoch too long")
        return np.maximum(np.rint(rounds * weights).astype(np.int64), there)

    def locate(self, ids: Ids) -> tuple[Ids, Ids]:
        """Return the part of each sample, and its number there."""
        ends = self._bounds()
        if self._order is None:
            self._order = Permutation(len(self), seed=self.seed, epoch=0)
        places = self._order[ids.astype(np.uint64)]
        parts = np.searchsorted(ends, places, side="right")
        numbers = places - np.concatenate(([0], ends))[parts]
        return parts, numbers % np.array([len(part) for part in self.datasets])[parts]
