"""The ring where there is CUDA. Collected by tests/torch/conftest.py there only: elsewhere these
are no tests, and none that are skipped.
"""

from __future__ import annotations

import numpy as np
import torch

from ffs.client.torch import cuda
from ffs.client.torch.batch import Batch, Form
from ffs.client.torch.ring import Ring
from ffs.torch import DataLoader
from tests.torch.samples import InMemory

BYTES = Form(torch.uint8, (1 << 20,))


def pinned_ring(slots: int) -> tuple[Ring, cuda.Pinning]:
    """A ring of slots of 16 MiB that CUDA knows."""
    ring = Ring(16 << 20, slots)
    pinning = cuda.pin(ring)
    assert pinning is not None
    return ring, pinning


def test_tensors_of_the_ring_are_pinned_already() -> None:
    ring, _ = pinned_ring(2)
    slot = ring.claim(16 << 20)
    assert slot is not None
    whole = Batch(BYTES, slot, 16, away=False).whole()
    assert isinstance(whole, torch.Tensor) and whole.is_pinned()
    assert whole.pin_memory().data_ptr() == whole.data_ptr()


def test_a_slot_that_is_being_copied_is_not_given_away() -> None:
    ring, pinning = pinned_ring(1)
    for value in range(20):
        pinning.settle()
        while (slot := ring.claim(16 << 20)) is None:
            pinning.settle()
        slot.memory[:] = value
        whole = Batch(BYTES, slot, 16, away=False).whole()
        del slot
        assert isinstance(whole, torch.Tensor)
        torch.cuda._sleep(20_000_000)  # type: ignore[no-untyped-call]
        there = whole.to("cuda", non_blocking=True)
        del whole
        assert ring.claim(16 << 20) is None  # the stream sleeps still
        assert bool((there == value).all())


def test_a_loader_pins_without_a_copy() -> None:
    rows = np.random.default_rng(3).integers(0, 256, (64, 4096), dtype=np.uint8)
    for workers in (0, 1):
        loader = DataLoader(InMemory(rows), batch_size=8, num_workers=workers, pin_memory=True)
        got = []
        for batch in loader:
            assert batch.is_pinned()
            got.append(batch.to("cuda", non_blocking=True))
            del batch
        assert (torch.cat(got).cpu().numpy() == rows).all()
        assert loader.ring_counters()["fallbacks"] <= 8
