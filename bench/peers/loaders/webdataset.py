"""WebDataset: tar files in a local folder, shuffled as files and in a buffer of 1,000 samples."""

from __future__ import annotations

import io
import tarfile
from importlib.metadata import version as installed
from typing import Any

import numpy as np
import torch
import webdataset as package

from .child import AHEAD, Job

SHARDS = 16


def version() -> str:
    """Return the package's version."""
    return f"webdataset {installed('webdataset')}"


def write(job: Job) -> None:
    """Write one member a sample, in shards of equal size."""
    for shard, indexes in enumerate(np.array_split(np.arange(job.count), SHARDS)):
        with tarfile.open(job.path / f"{shard:03d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for index in indexes.tolist():
                member = tarfile.TarInfo(f"{index:09d}.bin")
                member.size = job.sample_bytes
                tar.addfile(member, io.BytesIO(job.samples()[index].tobytes()))


def _tensor(payload: bytes) -> torch.Tensor:
    return torch.frombuffer(payload, dtype=torch.uint8)


def loader(job: Job) -> Any:
    """Return its own loader, with batches made in the workers, as its documentation advises."""
    shards = sorted(str(path) for path in job.path.glob("*.tar"))
    dataset = (
        package.WebDataset(shards, shardshuffle=SHARDS, seed=job.seed, empty_check=False)
        .shuffle(1000)
        .to_tuple("bin")
        .map_tuple(_tensor)
        .batched(job.batch, collation_fn=torch.utils.data.default_collate)
    )
    more: dict[str, Any] = {}
    if job.workers:
        more = {"persistent_workers": True, "prefetch_factor": AHEAD}
    return package.WebLoader(dataset, batch_size=None, num_workers=job.workers, **more)
