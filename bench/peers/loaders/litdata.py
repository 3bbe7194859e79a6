"""LitData: chunks of 64 MB in a local folder, made by `optimize`."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version as installed
from typing import Any

import litdata as package
import torch

from .child import Job


def version() -> str:
    """Return the package's version."""
    return f"litdata {installed('litdata')}"


def _sample(job: Job, index: int) -> torch.Tensor:
    return torch.from_numpy(job.samples()[index].copy())


def write(job: Job) -> None:
    """Optimize the data set as its documentation shows, tensors without headers."""
    package.optimize(
        fn=partial(_sample, job),
        inputs=list(range(job.count)),
        output_dir=job.directory,
        num_workers=1,
        chunk_bytes="64MB",
    )


def loader(job: Job) -> Any:
    """Return its own loader over shuffled samples."""
    dataset = package.StreamingDataset(job.directory, shuffle=True, seed=job.seed)
    return package.StreamingDataLoader(dataset, **job.loading)
