"""Several data sets as one, whose batches are still read as batches.

Role: torch's DataLoader -> client/torch/source.py -> THIS -> the parts' `fill`, each straight into
its samples' place in the batch's memory. torch's own ConcatDataset reads sample by sample.

Shapes/units: a sample of the whole has a part and a number within it; both are pure functions of
its number, so that workers and resumed runs agree without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from ffs.client.permutation import Permutation
from ffs.client.torch.landing import Bytes
from ffs.client.torch.source import BatchSource, Ids, fill_together
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
            if not isinstance(part, BatchSource):
                raise InvalidError(
                    f"data set {i} is a {type(part).__name__}, which reads no batches",
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

    def locate(self, ids: Ids) -> tuple[Ids, Ids]:
        """Return the part of each sample, and its number there."""
        raise NotImplementedError

    def _located(self, ids: Ids) -> tuple[Ids, Ids]:
        total = len(self)
        bad = (ids < 0) | (ids >= total)
        if bad.any():
            raise IndexError(
                f"there is no sample {ids[bad.argmax()]}: there are {total}, from 0 on"
            )
        return self.locate(ids)

    def lengths(self, ids: Ids) -> Ids:
        """Return the bytes of each sample."""
        parts, numbers = self._located(ids)
        lengths = np.empty(len(ids), dtype=np.int64)
        for i in np.unique(parts).tolist():
            lengths[parts == i] = self.datasets[i].lengths(numbers[parts == i])
        return lengths

    def fill(self, ids: Ids, out: Bytes) -> None:
        """Read each sample to its place."""
        parts, numbers = self._located(ids)
        fixed = self.form.sample_bytes
        lengths = self.lengths(ids) if fixed is None else np.full(len(ids), fixed)
        fill_together(self.datasets, parts, numbers, lengths, out)


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
