"""Keeps a chunk from being brought back after its blob was dropped: what is being restored now.

Previous hops: repair.py, for each chunk that it stores; targets.py, before it drops blobs. Next
hop: none.

Why: members of a chain drop a blob one after the other, so the first finds its chunks missing
beside the next. The metadata server knows which blobs are being dropped, and is asked before a
missing chunk is fetched. One that begins to be dropped after it has answered is ordered dropped
here, too: then either the chunk is there before the drop, which takes it, or it is not stored.

Invariant: who restores has entered (`Restores.of`) before he looks for the chunk and before he
asks. Threads: any; a drop waits for the chunks of its own blobs that are being stored. Fork: none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


class Restore:
    """A chunk of one blob that is perhaps stored."""

    def __init__(self, blob: int) -> None:
        self.blob = blob
        self._lock = threading.Lock()
        self._dropped = False

    def store(self, store: Callable[[], int]) -> int | None:
        """Store the chunk; None: its blob is being dropped, and the chunk was not stored."""
        with self._lock:
            return None if self._dropped else store()

    def drop(self) -> None:
        """Store it no more; one that is being stored is there on return."""
        with self._lock:
            self._dropped = True


class Restores:
    """What one daemon restores now."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now: list[Restore] = []

    @contextmanager
    def of(self, blob: int) -> Iterator[Restore]:
        """Enter that a chunk of a blob is perhaps restored meanwhile."""
        restore = Restore(blob)
        with self._lock:
            self._now.append(restore)
        try:
            yield restore
        finally:
            with self._lock:
                self._now.remove(restore)

    def drop(self, blobs: Iterable[int]) -> None:
        """Note that these blobs are about to be dropped."""
        gone = set(blobs)
        with self._lock:
            concerned = [restore for restore in self._now if restore.blob in gone]
        for restore in concerned:
            restore.drop()
