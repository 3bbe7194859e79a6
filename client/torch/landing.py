"""Where a batch's bytes go: a slot of the loader's ring, or memory of their own.

Role: client/torch/dataset.py asks `take` for memory before it reads a batch into it. The loader
says by `use` that this thread's batches belong in its ring (a worker's main thread, or a thread
that reads ahead); any other thread gets ordinary memory.

A consumer that holds on to batches leaves the ring without a free slot. Nobody waits for one then:
the batch gets a segment of its own, mapped by the training process as a slot would be, and is
counted (`fallbacks`).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ffs.client.torch.ring import Ring, Slot
from ffs.client.torch.segment import Segment

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Landing:
    """A loader's wishes for the batches of one thread."""

    ring: Ring
    away: bool
    """Whether batches go to another process."""
    batch_size: int | None = None
    """Samples in a batch, where the data set makes batches by itself."""


class _Wishes(threading.local):
    landing: Landing | None = None


_wishes = _Wishes()


def current() -> Landing | None:
    """Return what a loader wants with this thread's batches; None: there is no loader."""
    return _wishes.landing


def use(landing: Landing | None) -> None:
    """From now on this thread's batches go where `landing` says."""
    _wishes.landing = landing


class Own:
    """Memory of a batch's own: a segment if another process is to have it."""

    def __init__(self, size_bytes: int, *, away: bool) -> None:
        self.segment = Segment(size_bytes) if away and size_bytes else None
        if self.segment is None:
            self.memory: Bytes = np.empty(size_bytes, dtype=np.uint8)
        else:
            self.memory = np.frombuffer(self.segment.memory, np.uint8, size_bytes)


Place = Slot | Own
"""Memory for a batch: `memory`, an array of exactly its bytes."""


def take(size_bytes: int, landing: Landing | None) -> Place:
    """Return memory for a batch, to be filled and then given to Batch.

    Args:    landing: the wishes of this thread's loader, as `current` has them
    Raises:  OutOfMemoryError when there is none
    Copies: none; Threads: any; Fork: as Ring
    """
    if landing is None:
        return Own(size_bytes, away=False)
    slot = landing.ring.claim(size_bytes)
    return slot if slot is not None else Own(size_bytes, away=landing.away)
