"""Lightning on FFS: records as batches, checkpoints as ffs:// URLs, and a run that goes on.

    python examples/lightning_training.py ffs:///lightning-example

The cluster is that of FFS_URL and FFS_KEY_FILE. `ffs.torch.DataLoader` is a torch DataLoader, so
Lightning takes it as it is; Lightning stores checkpoints through fsspec.
"""

from __future__ import annotations

import sys
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import ffs.records
import ffs.torch

SAMPLES, INPUTS, BATCH = 512, 16, 32


class Line(lightning.LightningModule):
    """A linear layer that learns the mean of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(INPUTS, 1)

    def training_step(self, batch: torch.Tensor, number: int) -> torch.Tensor:
        """Return the loss of a batch."""
        found = self.layer(batch)[:, 0]
        return torch.nn.functional.mse_loss(found, batch.mean(dim=1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return what steps."""
        return torch.optim.SGD(self.parameters(), lr=0.05)


def write_samples(url: str) -> None:
    """Store random samples as records."""
    dice = np.random.default_rng(0)
    with ffs.records.create(url) as writer:
        for _ in range(SAMPLES):
            writer.append(dice.standard_normal(INPUTS, dtype=np.float32))


def train(url: str, epochs: int, resume_from: str | None = None) -> Any:
    """Train up to a number of epochs in all; return Lightning's trainer."""
    data = ffs.torch.RecordDataset(f"{url}/train.ffr", dtype="float32", shape=(INPUTS,))
    sampler = ffs.torch.ElasticSampler(len(data), seed=0)
    loader = ffs.torch.DataLoader(data, batch_size=BATCH, sampler=sampler, num_workers=1)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        callbacks=[
            ModelCheckpoint(dirpath=f"{url}/checkpoints", filename="{epoch}", save_top_k=-1)
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Line(), loader, ckpt_path=resume_from)
    return trainer


def main(url: str) -> None:
    """Train for two epochs; then, as after a restart, go on for a third."""
    write_samples(f"{url}/train.ffr")
    first = train(url, epochs=2)
    last = first.checkpoint_callback.best_model_path
    second = train(url, epochs=3, resume_from=last)
    print(f"stopped at step {first.global_step}, resumed from {last}, at {second.global_step} now")


if __name__ == "__main__":
    main(sys.argv[1])
