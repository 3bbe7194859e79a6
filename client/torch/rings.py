"""The rings of one loader: an iterator leases one, and the next iterator takes it over.

Role: client/torch/loader.py leases one at the start of an epoch. Memory that was allocated, mapped
and registered with CUDA once serves all epochs; two iterators at a time have two rings.

The first ring is sized by the data set's word for its batches. Where batches were larger, because
samples differ or the sampler's batches have no known size, the next epoch's ring is, and workers
that outlive epochs are started anew for it.
"""

from __future__ import annotations

from typing import Final

from ffs.client import _fork
from ffs.client.torch import cuda
from ffs.client.torch.ring import STATE_NAMES, Ring
from ffs.errors import OutOfMemoryError

_COUNTED: Final = ("slots", "slot_bytes", *STATE_NAMES, "batches", "fallbacks")


class Lease:
    """The use of a ring by one iterator; without a ring where no size is known."""

    def __init__(self, rings: Rings, ring: Ring | None, pinning: cuda.Pinning | None) -> None:
        self._rings = rings
        self.ring = ring
        self.pinning = pinning
        self._generation = _fork.generation()
        self._ended = False

    def outgrown(self) -> bool:
        """Whether there were batches that its slots do not hold, and a larger ring may."""
        return self.ring is not None and self._rings.would_grow(self.ring)

    def end(self) -> None:
        """Leave the ring to the next iterator; the second time, and in a child, nothing."""
        if not self._ended and self._generation == _fork.generation():
            self._ended = True
            self._rings.take_back(self.ring, self.pinning)


class Rings:
    """Rings of `slots` slots for `writers` processes.

    Threads: the loop's; Fork: the child has none
    """

    def __init__(self, slots: int, writers: int) -> None:
        self._slots = slots
        self._writers = writers
        self._idle: tuple[Ring, cuda.Pinning | None] | None = None
        self._latest: Ring | None = None
        self._largest_bytes = 0
        self._asked_bytes = 0
        _fork.register(self)

    def after_fork_in_child(self) -> None:
        """Leave the parent its ring: two loaders in one would take back each other's slots."""
        self._idle = None

    def lease(self, slot_bytes: int | None, *, pinned: bool) -> Lease:
        """Return the lease of a ring whose slots hold `slot_bytes`, and what earlier epochs needed.

        Raises:  OutOfMemoryError when there is no room for the first one
        """
        if slot_bytes is None:
            return Lease(self, None, None)
        wanted = self._asked_bytes = max(slot_bytes, self._largest_bytes, 1)
        idle, self._idle = self._idle, None
        if idle is None or idle[0].slot_bytes < wanted:
            try:
                ring = Ring(wanted, self._slots, self._writers)
                idle = ring, cuda.pin(ring) if pinned else None
            except OutOfMemoryError:
                if idle is None:
                    raise
        self._latest = idle[0]
        self._latest.reset()
        return Lease(self, *idle)

    def would_grow(self, ring: Ring) -> bool:
        """Whether a new ring would be larger; not if there was no room for one of that size."""
        return ring.largest_bytes > max(ring.slot_bytes, self._asked_bytes)

    def take_back(self, ring: Ring | None, pinning: cuda.Pinning | None) -> None:
        """Keep a ring that no iterator has any more for the next one."""
        if ring is not None:
            self._largest_bytes = max(self._largest_bytes, ring.largest_bytes)
            ring.reset()
            self._idle = ring, pinning

    def counters(self) -> dict[str, int]:
        """Return the counters of the ring that was leased last."""
        return self._latest.counters() if self._latest is not None else dict.fromkeys(_COUNTED, 0)
