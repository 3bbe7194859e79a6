"""A process that may lock little memory, as those in containers may: for programs of tests."""

from __future__ import annotations

import ctypes
import resource
import struct
from typing import Final

_IPC_LOCK: Final = 1 << 14
"""The capability by which root may lock as much as it likes."""
_VERSION_3: Final = 0x20080522
_LOW: Final = (1 << 32) - 1 & ~_IPC_LOCK
_HIGH: Final = 511


def lock_no_more_than(limit_bytes: int) -> None:
    """Have this thread, and those that it starts, register no more memory than so much."""
    header = struct.pack("<Ii", _VERSION_3, 0)
    rights = struct.pack("<6I", _LOW, _LOW, 0, _HIGH, _HIGH, 0)
    if ctypes.CDLL(None, use_errno=True).capset(header, rights) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit_bytes, limit_bytes))
