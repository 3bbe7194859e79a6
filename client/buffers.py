"""The caller's memory as flat bytes: what all reads fill and all writes are taken from.

Copies: none.
"""

from __future__ import annotations

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
