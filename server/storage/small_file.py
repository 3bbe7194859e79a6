"""Small text files in a target's directory, beside what the chunk store keeps there.

Previous hops: mark.py and targets.py. Next hop: the disk.
Invariants: a file has its old text or its new one, and the new one is on disk before `replace`
returns; a symbolic link in the place of a file is not followed, neither to read nor to write (the
chunk store follows none either). Failure: OSError; ELOOP for a link.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

BYTES_MAX: Final = 64 << 10
_FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC


def read(directory: Path, name: str) -> str:
    """Return a file's text. Raises OSError, ValueError for what is no text."""
    with open(os.open(directory / name, os.O_RDONLY | _FLAGS), "rb") as file:
        return file.read(BYTES_MAX).decode()


def replace(directory: Path, name: str, text: str) -> None:
    """Give a file another text, durably. Raises OSError."""
    draft = directory / f"{name}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _FLAGS
    with open(os.open(draft, flags, 0o600), "wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
    draft.rename(directory / name)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
