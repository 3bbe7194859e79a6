"""A disk in memory for nbdkit that notes every write and every flush; loaded by nbdkit, not by us.

    nbdkit python journal_plugin.py size=BYTES journal=FILE

Each record of the journal is one byte, W or F, then u32 length and u64 offset, little-endian, then
the bytes of a write. A record is in the file before the request is answered.
"""

from __future__ import annotations

import os
import struct
from typing import Any

API_VERSION = 2
HEADER = struct.Struct("<cIQ")

_disk = bytearray()
_journal = -1


def config(key: str, value: str) -> None:
    """Take a parameter."""
    global _disk, _journal
    if key == "size":
        _disk = bytearray(int(value))
    elif key == "journal":
        _journal = os.open(value, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    else:
        raise RuntimeError(f"no parameter is called {key}")


def open(readonly: bool) -> int:  # noqa: A001  # nbdkit looks for this name
    """Begin a connection."""
    return 1


def get_size(handle: int) -> int:
    """How large the disk is."""
    return len(_disk)


def can_flush(handle: int) -> bool:
    """Flushes are wanted: they are what this is about."""
    return True


def pread(handle: int, buffer: Any, offset: int, flags: int) -> None:
    """Read."""
    buffer[:] = _disk[offset : offset + len(buffer)]


def pwrite(handle: int, buffer: Any, offset: int, flags: int) -> None:
    """Write, and note it."""
    _disk[offset : offset + len(buffer)] = buffer
    os.write(_journal, HEADER.pack(b"W", len(buffer), offset) + bytes(buffer))


def flush(handle: int, flags: int) -> None:
    """Note that what was written until now is to stay."""
    os.write(_journal, HEADER.pack(b"F", 0, 0))
