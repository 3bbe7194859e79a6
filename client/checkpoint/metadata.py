"""The file `.metadata` of a checkpoint: torch's own description of it, as torch saves things.

Role: client/checkpoint/storage_writer.py writes it, storage_reader.py reads it.

A checkpoint from elsewhere runs no code of its own: only the classes that describe one are known to
what unpickles it. torch's `weights_only` sees to that as well, but in Python, at a tenth of a
millisecond for each tensor; it reads what has anything else in it, a planner's own data perhaps.
"""

from __future__ import annotations

import io
import pickle
import zipfile
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
_NAMES: Final[dict[tuple[str, str], Any]] = {
    **{(each.__module__, each.__qualname__): each for each in _CLASSES},
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): {
        str(each): each for each in vars(torch).values() if isinstance(each, torch.layout)
    }.__getitem__,
    **{
        ("torch", name): each for name, each in vars(torch).items() if isinstance(each, torch.dtype)
    },
}
"""All that a pickled description may name."""


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
        metadata = _unpickled(data)
    except Exception as error:
        # Whatever torch raises for bytes that are not its own.
        raise InvalidError(
            f"no checkpoint of FFS: {error}".splitlines()[0], hint=hint, path=path
        ) from error
    if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
        raise InvalidError("no checkpoint of FFS", hint=hint, path=path)
    return metadata


class _Unpickler(pickle.Unpickler):
    """Knows the names of `_NAMES`; C code runs it."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what a name stands for."""
        try:
            return _NAMES[module, name]
        except KeyError as error:
            raise pickle.UnpicklingError(f"{module}.{name} is not known") from error


def _unpickled(data: Any) -> Any:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        name = next(each for each in archive.namelist() if each.endswith("/data.pkl"))
        pickled = archive.read(name)
    before = [(each, dict(vars(each))) for each in _CLASSES]
    try:
        return _Unpickler(io.BytesIO(pickled)).load()
    except pickle.UnpicklingError:
        with torch.serialization.safe_globals(_CLASSES):
            return torch.load(io.BytesIO(data), weights_only=True)
    finally:
        # Pickled data may set the attributes of any object that it can name, these included.
        for each, attributes in before:
            _restore(each, attributes)


def _restore(changed: Any, attributes: dict[str, Any]) -> None:
    for name in vars(changed).keys() - attributes:
        type.__delattr__(changed, name)
    for name, value in attributes.items():
        if vars(changed)[name] is not value:
            type.__setattr__(changed, name, value)
