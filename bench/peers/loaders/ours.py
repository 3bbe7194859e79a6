"""FFS itself: ffs.torch over a cluster whose records the benchmark has written already."""

from __future__ import annotations

from typing import Any

import ffs
import ffs.torch

from .child import Job


def version() -> str:
    """Return the package's version."""
    return str(ffs.__version__)


def write(job: Job) -> None:
    """Leave it as it is: the records are in the cluster."""


def loader(job: Job) -> Any:
    """Return the loader that docs/torch.md shows."""
    dataset = ffs.torch.RecordDataset(
        job.more["url"],
        dtype="uint8",
        shape=(job.sample_bytes,),
        storage_options=job.more["storage_options"],
    )
    sampler = ffs.torch.ElasticSampler(len(dataset), seed=job.seed)
    return ffs.torch.DataLoader(dataset, sampler=sampler, **job.loading)
