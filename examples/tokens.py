"""Train a small language model on sequences of tokens in FFS.

    export FFS_URL=ffs://localhost:7070 FFS_KEY_FILE=...
    python examples/tokens.py make ffs:///tokens.ffr
    torchrun --nproc-per-node 2 examples/tokens.py train ffs:///tokens.ffr ffs:///runs/tokens

Kill it and start it again with another number of ranks: it goes on where it was.
"""

from __future__ import annotations

import numpy as np
import torch
from job import arguments, train
from torch.nn.functional import cross_entropy

import ffs.records
import ffs.torch

TOKENS, VOCABULARY, WIDTH = 65, 256, 48


def make(url: str, count: int) -> None:
    """Write sequences in which each token follows from the one before, with some noise."""
    dice = np.random.default_rng(0)
    with ffs.records.create(url) as records:
        for _ in range(count):
            steps = dice.integers(1, 8, TOKENS)
            records.append((np.cumsum(steps) % VOCABULARY).astype(np.int32))


class Model(torch.nn.Module):
    """Predicts each token from the ones before."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, WIDTH)
        self.memory = torch.nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = torch.nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits of the token after each."""
        logits: torch.Tensor = self.head(self.memory(self.embedding(tokens))[0])
        return logits


def loss_of(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """How surprising the next tokens are."""
    logits = model(batch[:, :-1])
    return cross_entropy(logits.flatten(0, 1), batch[:, 1:].long().flatten())


def main() -> None:
    """Make the data, or train."""
    options = arguments(__doc__)
    if options.command == "make":
        make(options.data, options.samples)
        return
    data = ffs.torch.RecordDataset(options.data, dtype="int32", shape=(TOKENS,))
    train(options, data, Model(), loss_of)


if __name__ == "__main__":
    main()
