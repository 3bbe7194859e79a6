"""What a target remembers about itself beside its chunks: a small file in its directory.

Previous hops: targets.py reads it when a target is opened; orders.py and recovery.py have it
changed. Next hop: the disk; what it says goes into every report to the metadata server.

`holds`: a target that was emptied, and perhaps has joined another chain since, must not be believed
by a database that is older than that, one restored from a backup say. `healed`: damage that was
made up for by a resync stays in the index for whoever looks into it; it is known again by its
number, so that a restart does not take it for new.

Invariants: a mark is on disk before what it says is acted upon or reported; a file that is not
there, or cannot be read, says nothing about damage, and says "emptied" only if it is there.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from ffs.server.storage import small_file
from ffs.wire.membership import EMPTIED

FILE: Final = "mark.json"


@dataclass(frozen=True, slots=True)
class Mark:
    """See `TargetReport.holds`; `healed`: the `damage` of the chunk store that was made up for."""

    holds: int = 0
    healed: int = 0


def load(directory: Path) -> Mark:
    """Return what a target remembers. Raises: OSError"""
    try:
        return Mark(**json.loads(small_file.read(directory, FILE)))
    except FileNotFoundError:
        return Mark()
    except (ValueError, TypeError):  # it was damaged: copying once too often does no harm
        return Mark(holds=EMPTIED)


def save(directory: Path, mark: Mark) -> None:
    """Have a target remember something, durably. Raises: OSError"""
    small_file.replace(directory, FILE, json.dumps(asdict(mark)))
