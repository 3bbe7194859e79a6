"""Which targets `ffs up` has run before, so that one which is gone is not taken for a new one.

Used by server/up_directory.py. DIR/targets.json names each daemon's targets by their ids, from the
first time that the daemon served. Without it, a disk that is not mounted, or a directory that
somebody removed, would come up as a new and empty target beside the chunks that are missing.

Failure behaviour: FormatError at each start of the daemon until the directory is back; losing
targets.json costs only the warning.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

from ffs.errors import FormatError

_FILE: Final = "targets.json"


class KnownTargets:
    """The memory of one DIR."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / _FILE

    def load(self) -> dict[str, int]:
        """Return target ids by daemon name; empty if nothing is known."""
        try:
            known = json.loads(self._path.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        valid = isinstance(known, dict) and all(isinstance(t, int) for t in known.values())
        return known if valid else {}

    def remember(self, identities: dict[str, int]) -> None:
        """Add what serves now, on disk before this returns."""
        known = self.load()
        if known | identities == known:
            return
        draft = self._path.with_suffix(".new")
        with draft.open("w") as file:
            json.dump(known | identities, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._path)

    def check(self, name: str, target_id: int | None, path: Path) -> None:
        """Refuse a daemon whose directory holds no target, or another one, than it did.

        Args:    target_id: what the directory's superblock says; None: it has none
        Raises:  FormatError
        """
        wanted = self.load().get(name)
        if wanted is None or target_id == wanted:
            return
        found = "holds no target" if target_id is None else f"holds target {target_id}"
        raise FormatError(
            f"the directory of {name} {found}, but held target {wanted}",
            hint=f"mount its disk or restore it; to give its chunks up, edit {self._path}",
            path=str(path),
        )
