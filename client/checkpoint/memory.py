"""Tensors as memory that files are written from and read into.

Role: both directions of this package meet client/writer.py and client/reader.py here.

Invariants: a view of a tensor keeps its storage alive; only memory of the tensors given is touched.
Copies: 0 where a tensor is contiguous and on the CPU; one otherwise, of one tensor at a time on the
        way out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch

from ffs.client.buffers import spanning_view
from ffs.client.filesystem import FFSFileSystem
from ffs.errors import ChunkMissingError, InvalidError

DTYPES: Final[dict[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The names that the safetensors format has for element types."""


class Read(NamedTuple):
    """A range of a file, and where its bytes go."""

    path: str
    offset: int
    view: memoryview


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return a tensor's elements in row-major order: its own memory if that is what it is.

    Raises:  InvalidError for tensors that are no plain memory (sparse, quantized)
    """
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise InvalidError(
            f"a tensor of layout {tensor.layout} has no one place in memory",
            hint="convert it, or put it into the state dict as an object",
        )
    plain = tensor.detach().resolve_conj().resolve_neg().to("cpu").contiguous()
    flat = plain.reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def can_receive(tensor: torch.Tensor) -> bool:
    """Return whether `bytes_of` a tensor is its own memory, so that it can be read into."""
    return (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and tensor.is_contiguous()
        and not (tensor.is_conj() or tensor.is_neg())
    )


def read_all(fs: FFSFileSystem, reads: Sequence[Read]) -> None:
    """Fill many places in memory from many files, by one call of the engine.

    Copies:  0 in user space; Threads: the engine releases the GIL; Fork: safe
    """
    wanted = [read for read in reads if len(read.view)]
    if not wanted:
        return
    core = fs.core
    names = list(dict.fromkeys(read.path for read in wanted))
    contents = dict(zip(names, core.meta.contents(names), strict=True))
    out, places = spanning_view([read.view for read in wanted])
    try:
        core.reader.read_scattered(
            [contents[read.path] for read in wanted],
            [read.offset for read in wanted],
            [len(read.view) for read in wanted],
            places,
            out,
        )
    except ChunkMissingError as error:
        for content in contents.values():
            if content.path == error.where.get("path"):
                fs.explain_missing(content, error)
        raise
