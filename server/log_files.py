"""The log files of the processes that `ffs up` runs: bounded, though nobody looks after them.

Used by server/child.py and server/up.py. A process appends to its file by a descriptor that it got
at its start and keeps, so the file cannot be renamed under it: what it holds is copied to NAME.1
and then cut off. A line that is written between the two is lost.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

LOG_BYTES_MAX: Final = 16 << 20
"""Of one file; a process has two of them at most, and what it writes between two looks."""


def rotate(path: Path, bytes_max: int = LOG_BYTES_MAX) -> bool:
    """Put a log file aside if it has outgrown its bound; tell whether it was."""
    try:
        if path.stat().st_size <= bytes_max:
            return False
    except FileNotFoundError:
        return False
    try:
        shutil.copyfile(path, path.with_name(f"{path.name}.1"))
    except OSError:
        # The disk is full, say: then old lines are what it can best do without.
        path.with_name(f"{path.name}.1").unlink(missing_ok=True)
    os.truncate(path, 0)
    return True
