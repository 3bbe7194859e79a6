"""MosaicML Streaming: MDS shards in a local folder, so nothing is downloaded."""

from __future__ import annotations

from importlib.metadata import version as installed
from typing import Any

import streaming

from .child import Job


def version() -> str:
    """Return the package's version."""
    return f"mosaicml-streaming {installed('mosaicml-streaming')}"


def write(job: Job) -> None:
    """Write uncompressed shards of the default size."""
    columns = {"x": f"ndarray:uint8:{job.sample_bytes}"}
    with streaming.MDSWriter(out=job.directory, columns=columns) as out:
        for row in job.samples():
            out.write({"x": row})


def loader(job: Job) -> Any:
    """Return its own loader over shuffled samples."""
    streaming.base.util.clean_stale_shared_memory()
    dataset = streaming.StreamingDataset(
        local=job.directory, shuffle=True, shuffle_seed=job.seed, batch_size=job.batch
    )
    return streaming.StreamingDataLoader(dataset, **job.loading)
