"""Files in the safetensors format, read into tensors and written from them without a copy.

Role: public through ffs/torch.py; next hops: memory.py, client/writer.py.

A file is the header's length (8 bytes, little-endian), the header (JSON: name -> element type,
shape, [start, end) of its bytes), and the tensors' bytes without gaps.

Invariants: nothing is allocated for a header before its length is checked, and no tensor before all
of the header is: every byte of the file belongs to exactly one tensor.
Failure behaviour: InvalidError for a file that is not of the format; a file appears when it is
whole.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from operator import index as as_index
from typing import Any, Final, NamedTuple

import torch

from ffs.client.checkpoint.memory import DTYPES, Read, bytes_of, read_all
from ffs.client.checkpoint.place import locate
from ffs.client.filesystem import FFSFileSystem
from ffs.errors import InvalidError
from ffs.wire.messages import CreateMode

HEADER_BYTES_MAX: Final = 100_000_000
"""As the format's own library has it."""
DIMENSIONS_MAX: Final = 64
ELEMENTS_MAX: Final = (1 << 62) - 1
_LENGTH: Final = struct.Struct("<Q")
_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}


class _Entry(NamedTuple):
    """What the header says of one tensor; `start` and `end` count from the header's end."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def load_safetensors(
    url: str | os.PathLike[str],
    *,
    names: Iterable[str] | None = None,
    device: str | torch.device = "cpu",
    storage_options: Mapping[str, Any] | None = None,
) -> dict[str, torch.Tensor]:
    """Return the tensors of a file, or those of `names`, each in memory of its own.

    Raises:  InvalidError for what is no such file, and for a name that it does not have
    Copies:  0 in user space to the CPU; Threads: the engine releases the GIL; Fork: safe
    """
    fs, path = locate(url, storage_options)
    entries, body = _read_header(fs, path)
    if names is not None:
        entries = _chosen(entries, list(names), path)
    tensors = {e.name: torch.empty(e.shape, dtype=e.dtype) for e in entries.values()}
    reads = [
        Read(path, body + entry.start, bytes_of(tensors[entry.name]))
        for entry in entries.values()
        if entry.end > entry.start
    ]
    read_all(fs, reads)
    if torch.device(device).type == "cpu":
        return tensors
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def save_safetensors(
    tensors: Mapping[str, torch.Tensor],
    url: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Write tensors as one file, which appears at the end, at once.

    Tensors that share memory are written each for itself.
    Args:    metadata: strings for the header's `__metadata__`
    Copies:  0 in user space for the chunks inside a contiguous CPU tensor
    """
    fs, path = locate(url, storage_options)
    # The widest types first, so that each tensor's bytes are aligned to its own.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header = _make_header({name: tensors[name] for name in names}, metadata)
    writer = fs._writer(path, CreateMode.REPLACE)
    try:
        writer.writev([header, *(bytes_of(tensors[name]) for name in names)])
        writer.seal()
        writer.publish()
    except BaseException:
        writer.discard()
        raise


def _make_header(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None) -> bytes:
    described: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise InvalidError(f"the safetensors format has no {tensor.dtype}", tensor=name)
        end = offset + tensor.numel() * tensor.dtype.itemsize
        described[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return _LENGTH.pack(len(text)) + text


def _read_header(fs: FFSFileSystem, path: str) -> tuple[dict[str, _Entry], int]:
    """Return what a file holds, and where its tensors' bytes begin."""
    size = fs.core.meta.content(path).size
    if size < _LENGTH.size:
        raise InvalidError("no safetensors file: it is too short", path=path)
    (length,) = _LENGTH.unpack(fs.read_buffer(path, 0, _LENGTH.size))
    if length > min(HEADER_BYTES_MAX, size - _LENGTH.size):
        raise InvalidError(
            f"no safetensors file: a header of {length} bytes does not fit", path=path, size=size
        )
    try:
        described = json.loads(bytes(fs.read_buffer(path, _LENGTH.size, length)))
        described.pop("__metadata__", None)
        entries = {name: _entry(name, said) for name, said in described.items()}
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise InvalidError(f"no safetensors file: {error!r}", path=path) from error
    body = _LENGTH.size + length
    _check_places(entries.values(), size - body, path)
    return entries, body


def _entry(name: str, said: dict[str, Any]) -> _Entry:
    start, end = map(as_index, said["data_offsets"])
    shape = tuple(as_index(count) for count in said["shape"])
    dtype = DTYPES[said["dtype"]]
    # What torch takes, for a tensor without elements as well.
    in_bounds = len(shape) <= DIMENSIONS_MAX and all(0 <= n <= ELEMENTS_MAX for n in shape)
    if not in_bounds or math.prod(n or 1 for n in shape) > ELEMENTS_MAX:
        raise ValueError(f"{name!r} is of shape {shape}"[:200])
    if end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name!r} has {end - start} bytes for {said['dtype']} of {shape}")
    return _Entry(name, dtype, shape, start, end)


def _check_places(entries: Iterable[_Entry], body_bytes: int, path: str) -> None:
    position = 0
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.end)):
        if entry.start != position:
            raise InvalidError(
                f"no safetensors file: {entry.name!r} begins at {entry.start}, not at {position}",
                path=path,
            )
        position = entry.end
    if position != body_bytes:
        raise InvalidError(
            f"no safetensors file: tensors of {position} bytes in {body_bytes}", path=path
        )


def _chosen(entries: dict[str, _Entry], names: list[str], path: str) -> dict[str, _Entry]:
    missing = [name for name in names if name not in entries]
    if missing:
        raise InvalidError(f"the file has no tensor {missing[0]!r}", path=path)
    return {name: entries[name] for name in names}
