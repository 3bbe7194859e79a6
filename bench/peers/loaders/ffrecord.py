"""FFRecord's own reader and loader: one local file, Linux AIO, its checksums on."""

from __future__ import annotations

from typing import Any

import ffrecord as package
import ffrecord.torch
import numpy as np
import torch

from .child import Job


def version() -> str:
    """Return the package's version."""
    return f"ffrecord {package.__version__}"


def _file(job: Job) -> str:
    return str(job.path / "samples.ffr")


def write(job: Job) -> None:
    """Write the samples with its own writer."""
    with package.FileWriter(_file(job), job.count) as out:
        for row in job.samples():
            out.write_one(row)


class _Samples(ffrecord.torch.Dataset):  # type: ignore[misc]  # it has no annotations
    """Batches as one tensor."""

    def process(self, indices: list[int], data: list[Any]) -> torch.Tensor:
        return torch.from_numpy(np.stack(data))


def _as_it_is(batch: torch.Tensor) -> torch.Tensor:
    return batch


def loader(job: Job) -> Any:
    """Return its own loader, which forks."""
    dataset = _Samples(_file(job))
    return ffrecord.torch.DataLoader(dataset, shuffle=True, collate_fn=_as_it_is, **job.loading)
