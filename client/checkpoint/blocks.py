"""Which bytes of a stored tensor a block of it is: for ranks that load other shards.

Role: client/checkpoint/storage_reader.py asks; pure numbers. A tensor is stored in row-major order;
a block is given by where it begins and how long it is in each dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

GAP_BYTES: Final = 4 << 10
"""Runs that are closer are read together with what is between them: that travels anyway, as part of
the blocks that a checksum covers."""


class Runs(NamedTuple):
    """A block as contiguous runs of equal length; `starts` counts from the tensor's first byte."""

    starts: npt.NDArray[np.int64]
    run_bytes: int

    def merged(self) -> list[tuple[int, int]]:
        """Return [start, end) of what is read: runs that are close together as one."""
        ends = self.starts + self.run_bytes
        apart = np.flatnonzero(self.starts[1:] - ends[:-1] >= GAP_BYTES)
        firsts = self.starts[np.concatenate(([0], apart + 1))]
        lasts = ends[np.concatenate((apart, [len(ends) - 1]))]
        return list(zip(firsts.tolist(), lasts.tolist(), strict=True))


def strides_of(sizes: Sequence[int]) -> list[int]:
    """Return the distance between neighbours in each dimension, in elements."""
    return [math.prod(sizes[dimension + 1 :]) for dimension in range(len(sizes))]


def runs_of(
    sizes: Sequence[int], offsets: Sequence[int], lengths: Sequence[int], itemsize: int
) -> Runs:
    """Return where a block of a tensor of `sizes` lies in its stored bytes.

    Args:    offsets, lengths: of the block, inside `sizes`; no length is 0
    """
    strides = strides_of(sizes)
    whole = len(sizes)
    while whole > 0 and lengths[whole - 1] == sizes[whole - 1]:
        whole -= 1
    # From dimension `whole` on the block has all there is, so one step before lies in one piece.
    inner = max(whole - 1, 0)
    start = sum(o * s for o, s in zip(offsets, strides, strict=True))
    starts = np.array([start], dtype=np.int64)
    for dimension in range(inner):
        steps = np.arange(lengths[dimension], dtype=np.int64) * strides[dimension]
        starts = (starts[:, None] + steps).reshape(-1)
    return Runs(starts * itemsize, math.prod(lengths[inner:]) * itemsize)
