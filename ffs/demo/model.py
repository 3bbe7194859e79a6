"""A tiny next-byte model: enough to see that what was read is language and not noise."""

from __future__ import annotations

import torch
from torch import nn

CONTEXT = 8
WIDTH = 24
HIDDEN = 128
POSITIONS = 64
"""Places of every sample that one step learns from."""


class NextByte(nn.Module):
    """The next byte from the CONTEXT bytes before it: embeddings, one hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, WIDTH)
        self.layers = nn.Sequential(
            nn.Linear(CONTEXT * WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 256)
        )

    def forward(self, context: torch.Tensor) -> torch.Tensor:
        """(n, CONTEXT) bytes to (n, 256) logits."""
        logits: torch.Tensor = self.layers(self.embed(context).flatten(1))
        return logits


class Trainer:
    """The model, its optimizer, and the loss of every step."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = NextByte()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=3e-3)
        self.losses: list[float] = []

    def step(self, tokens: torch.Tensor) -> None:
        """Learn from random places of a batch of samples."""
        rows, length = tokens.shape
        row = torch.arange(rows).repeat_interleave(POSITIONS)
        place = torch.randint(CONTEXT, length, (rows * POSITIONS,))
        window = place[:, None] + torch.arange(-CONTEXT, 1)
        bytes_ = tokens[row[:, None], window].long()
        loss = nn.functional.cross_entropy(self.model(bytes_[:, :-1]), bytes_[:, -1])
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.losses.append(loss.item())

    def tenths(self) -> tuple[float, float]:
        """The mean loss of the first and of the last tenth of the steps."""
        part = max(1, len(self.losses) // 10)
        return sum(self.losses[:part]) / part, sum(self.losses[-part:]) / part
