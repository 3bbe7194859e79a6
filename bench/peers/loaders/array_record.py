"""array_record: one local file, read by its data source's batched `__getitems__`."""

from __future__ import annotations

from importlib.metadata import version as installed
from typing import Any

import torch
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from .child import Job


def version() -> str:
    """Return the package's version."""
    return f"array_record {installed('array_record')}"


def _file(job: Job) -> str:
    return str(job.path / "samples.array_record")


def write(job: Job) -> None:
    """Write uncompressed records, one a group, as random access wants it."""
    writer = ArrayRecordWriter(_file(job), "group_size:1,uncompressed")
    for row in job.samples():
        writer.write(row.tobytes())
    writer.close()


def _collate(found: list[bytes]) -> torch.Tensor:
    return torch.stack([torch.frombuffer(each, dtype=torch.uint8) for each in found])


def loader(job: Job) -> Any:
    """Return torch's loader over the data source."""
    source: Any = ArrayRecordDataSource([_file(job)])
    return torch.utils.data.DataLoader(source, shuffle=True, collate_fn=_collate, **job.loading)
