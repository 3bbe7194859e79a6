"""The file `.metadata` of a checkpoint: torch's own description of it, as torch saves things.

Role: client/checkpoint/storage_writer.py writes it, storage_reader.py reads it.

It is loaded with `weights_only`, so that a checkpoint from elsewhere runs no code of its own.
"""

from __future__ import annotations

import io
from typing import Any, Final, NamedTuple

import torch
import torch.serialization
from torch.distributed.checkpoint import metadata as described
from torch.distributed.checkpoint.metadata import Metadata

from ffs.errors import InvalidError

_CLASSES: Final[list[Any]] = [
    described.BytesStorageMetadata,
    described.ChunkStorageMetadata,
    described.Metadata,
    described.MetadataIndex,
    described.StorageMeta,
    described.TensorProperties,
    described.TensorStorageMetadata,
    described._MEM_FORMAT_ENCODING,
]
"""What describes a checkpoint, and nothing else."""


class Stored(NamedTuple):
    """Where the bytes of a tensor's shard, or of an object, are. Kept as a plain tuple."""

    file: str
    offset: int
    length: int
    dtype: torch.dtype | None
    sizes: tuple[int, ...]


def pack(metadata: Metadata) -> bytes:
    """Return the content of `.metadata`."""
    out = io.BytesIO()
    torch.save(metadata, out)
    return out.getvalue()


def unpack(data: Any, path: str) -> Metadata:
    """Return what `pack` packed.

    Raises:  InvalidError for anything else
    """
    hint = "ffs.torch.StorageReader loads what ffs.torch.StorageWriter saved; FsspecReader the rest"
    try:
        with torch.serialization.safe_globals(_CLASSES):
            metadata = torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:
        # Whatever torch raises for bytes that are not its own.
        raise InvalidError(
            f"no checkpoint of FFS: {error}".splitlines()[0], hint=hint, path=path
        ) from error
    if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
        raise InvalidError("no checkpoint of FFS", hint=hint, path=path)
    return metadata
