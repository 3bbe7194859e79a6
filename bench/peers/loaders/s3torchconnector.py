"""The S3 connector for PyTorch: an object a sample, of an nginx on this machine, unsigned."""

from __future__ import annotations

from importlib.metadata import version as installed
from typing import Any

import s3torchconnector as package
import torch

from .child import Job


def version() -> str:
    """Return the package's version."""
    return f"s3torchconnector {installed('s3torchconnector')}"


def write(job: Job) -> None:
    """Write a file a sample into the folder that nginx serves as a bucket."""
    for index, row in enumerate(job.samples()):
        (job.path / f"{index:09d}").write_bytes(row)


def _tensor(reader: Any) -> torch.Tensor:
    return torch.frombuffer(reader.read(), dtype=torch.uint8)


def loader(job: Job) -> Any:
    """Return torch's loader over the map-style data set."""
    prefix = f"s3://{job.more['bucket']}/{job.path.name}"
    dataset = package.S3MapDataset.from_objects(
        [f"{prefix}/{index:09d}" for index in range(job.count)],
        region="us-east-1",
        endpoint=job.more["endpoint"],
        transform=_tensor,
        s3client_config=package.S3ClientConfig(unsigned=True, force_path_style=True),
    )
    return torch.utils.data.DataLoader(dataset, shuffle=True, **job.loading)
