"""The file `.metadata` of a checkpoint: torch's own description of it, in msgpack.

Role: client/checkpoint/storage_writer.py writes it, storage_reader.py reads it.

Whatever it may consist of is listed here, so a checkpoint from elsewhere runs no code of its own.
`torch.load(weights_only=True)` promises that as well, but takes a tenth of a millisecond a tensor:
a tenth of the time in which a large checkpoint is loaded.

Layout: MAGIC, then one msgpack object. What msgpack does not know is an extension: tuples,
torch.Size and ordered dictionaries by their items, constants of torch by name, objects by the names
of their fields.
"""

from __future__ import annotations

import collections
import dataclasses
from typing import Any, Final, NamedTuple

import msgpack
import torch
from torch.distributed.checkpoint import metadata as described
from torch.distributed.checkpoint.metadata import Metadata

from ffs.errors import InvalidError

MAGIC: Final = b"FFSCKPT\x01"
_TUPLE, _SIZE, _CONSTANT, _ORDERED, _FIRST_CLASS = 0, 1, 2, 3, 16
_CLASSES: Final[list[type[Any]]] = [
    described.BytesStorageMetadata,
    described.ChunkStorageMetadata,
    described.Metadata,
    described.MetadataIndex,
    described.StorageMeta,
    described.TensorProperties,
    described.TensorStorageMetadata,
]
"""What describes a checkpoint, and nothing else. Only ever appended to: places are codes."""
_CODES: Final = {cls: _FIRST_CLASS + place for place, cls in enumerate(_CLASSES)}
_NOT_OURS: Final = (
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
    RuntimeError,
    msgpack.UnpackException,
)
"""What decoding anybody's bytes raises."""
_CONSTANTS: Final = (torch.dtype, torch.layout, torch.memory_format)


class Stored(NamedTuple):
    """Where the bytes of a tensor's shard, or of an object, are. Kept as a plain tuple."""

    file: str
    offset: int
    length: int
    dtype: torch.dtype | None
    sizes: tuple[int, ...]


def pack(metadata: Metadata) -> bytes:
    """Return the content of `.metadata`.

    Raises:  InvalidError for what a planner added that cannot be described
    """
    return MAGIC + _pack(metadata)


def unpack(data: Any, path: str) -> Metadata:
    """Return what `pack` packed.

    Raises:  InvalidError for anything else
    """
    view = memoryview(data)
    try:
        if bytes(view[: len(MAGIC)]) != MAGIC:
            raise ValueError("it begins with something else")
        metadata = _unpack(view[len(MAGIC) :])
        if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
            raise ValueError("it describes something else")
    except _NOT_OURS as error:
        raise InvalidError(
            f"no checkpoint of FFS: {error}".splitlines()[0],
            hint="ffs.torch.StorageReader loads what ffs.torch.StorageWriter saved; "
            "FsspecReader the rest",
            path=path,
        ) from error
    return metadata


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, default=_extension, strict_types=True)
    return packed


def _extension(value: Any) -> msgpack.ExtType:
    """Describe what msgpack does not know."""
    if isinstance(value, torch.Size):
        return msgpack.ExtType(_SIZE, _pack(list(value)))
    if isinstance(value, tuple):
        return msgpack.ExtType(_TUPLE, _pack(list(value)))
    if isinstance(value, _CONSTANTS):
        return msgpack.ExtType(_CONSTANT, str(value).removeprefix("torch.").encode())
    if isinstance(value, collections.OrderedDict):
        return msgpack.ExtType(_ORDERED, _pack(list(value.items())))
    code = _CODES.get(type(value))
    if code is None:
        raise InvalidError(
            f"a checkpoint's description cannot hold a {type(value).__name__}",
            hint="a planner's own data may be made of None, numbers, strings, bytes, lists, tuples "
            "and dictionaries",
        )
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return msgpack.ExtType(code, _pack(fields))


def _unpack(packed: memoryview | bytes) -> Any:
    return msgpack.unpackb(packed, ext_hook=_meant, strict_map_key=False)


def _meant(code: int, packed: bytes) -> Any:
    """Return what `_extension` described."""
    if code == _CONSTANT:
        constant = getattr(torch, packed.decode())
        if not isinstance(constant, _CONSTANTS):
            raise ValueError(f"torch.{packed.decode()} is no constant")
        return constant
    value = _unpack(packed)
    if code == _SIZE:
        return torch.Size(value)
    if code == _TUPLE:
        return tuple(value)
    if code == _ORDERED:
        return collections.OrderedDict(value)
    if not 0 <= code - _FIRST_CLASS < len(_CLASSES):
        raise ValueError(f"extension {code} is unknown")
    return _CLASSES[code - _FIRST_CLASS](**value)
