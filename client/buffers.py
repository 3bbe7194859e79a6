"""The caller's memory as flat bytes: what all reads fill and all writes are taken from.

Copies: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from ffs.errors import InvalidError

ALIGNMENT: Final = 64
"""What Arrow recommends, and vector instructions like."""


def aligned_view(length: int) -> memoryview:
    """Return fresh memory that starts at a multiple of ALIGNMENT; its bytes are unspecified."""
    memory = np.empty(length + ALIGNMENT - 1, dtype=np.uint8)
    start = -memory.__array_interface__["data"][0] % ALIGNMENT
    return memory[start : start + length].data


def spanning_view(views: Sequence[memoryview]) -> tuple[memoryview, list[int]]:
    """Return one view that reaches from the first to the last of `views`, and the place of each.

    Why: the engine takes one buffer a call; so a call can serve memory that lies anywhere. What is
    between the views is not ours and may not even be mapped: only their places may be touched.
    Args:    views: flat bytes, at least one; the caller keeps them alive
    """
    arrays = [np.frombuffer(view, dtype=np.uint8) for view in views]
    starts = [array.__array_interface__["data"][0] for array in arrays]
    lowest = min(range(len(starts)), key=starts.__getitem__)
    base = starts[lowest]
    end = max(start + array.nbytes for start, array in zip(starts, arrays, strict=True))
    span = np.lib.stride_tricks.as_strided(arrays[lowest], (end - base,), (1,))
    return span.data, [start - base for start in starts]


def flat_view(value: Any) -> memoryview:
    """Return any C-contiguous buffer as flat bytes.

    Raises:  TypeError for what is no such buffer, as Python's own files do
    """
    view = memoryview(value)
    if view.format == "B" and view.ndim == 1:
        return view
    # memoryview.cast refuses a shape with a zero in it.
    return view.cast("B") if view.nbytes else memoryview(bytearray())


def writable_view(out: Any) -> memoryview:
    """Return `out` as flat bytes; InvalidError unless it is writable and C-contiguous."""
    try:
        view = memoryview(out)
    except TypeError as error:
        raise InvalidError(
            f"out is a {type(out).__name__}, which is not a buffer",
            hint="pass a bytearray, a NumPy array, or tensor.numpy()",
        ) from error
    if view.readonly or not view.c_contiguous:
        raise InvalidError(
            "out is read-only" if view.readonly else "out is not C-contiguous",
            hint="pass a writable, contiguous buffer",
        )
    return flat_view(view)
