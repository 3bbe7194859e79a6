"""Train a small image classifier on raw images and labels in FFS.

    export FFS_URL=ffs://localhost:7070 FFS_KEY_FILE=...
    python examples/images.py make ffs:///images.ffr
    torchrun --nproc-per-node 2 examples/images.py train ffs:///images.ffr ffs:///runs/images

A sample is a label byte and three planes of pixels. Kill it and start it again with another number
of ranks: it goes on where it was.
"""

from __future__ import annotations

import numpy as np
import torch
from job import arguments, train
from torch.nn.functional import cross_entropy

import ffs.records
import ffs.torch

SIDE, CLASSES = 32, 10
SHAPE = (3, SIDE, SIDE)
SAMPLE_BYTES = 1 + 3 * SIDE * SIDE


def make(url: str, count: int) -> None:
    """Write noise that is brighter the higher its label."""
    dice = np.random.default_rng(0)
    with ffs.records.create(url) as records:
        for _ in range(count):
            label = int(dice.integers(CLASSES))
            pixels = dice.integers(0, 100, SAMPLE_BYTES - 1, dtype=np.uint8) + label * 15
            records.append(bytes([label]) + pixels.astype(np.uint8).tobytes())


def network() -> torch.nn.Module:
    """A few convolutions."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, stride=2),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 3, stride=2),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(32, CLASSES),
    )


def loss_of(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """How far the labels are from what the model says."""
    pixels = batch[:, 1:].reshape(-1, *SHAPE).float().div_(255)
    return cross_entropy(model(pixels), batch[:, 0].long())


def main() -> None:
    """Make the data, or train."""
    options = arguments(__doc__)
    if options.command == "make":
        make(options.data, options.samples)
        return
    data = ffs.torch.RecordDataset(options.data, dtype="uint8", shape=(SAMPLE_BYTES,))
    train(options, data, network(), loss_of)


if __name__ == "__main__":
    main()
