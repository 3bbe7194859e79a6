"""Opens the directories given to a daemon, so that a disk that hangs keeps no other from serving.

Previous hop: daemon.py at its start. Next hops: directory.py, for each directory in a thread of its
own; `Targets.take` gets what was found in time, `Targets.take_late` what a disk holds that answers
later.

A disk counts as hung when a page that is read to ask it (probe.py) does not come for `patience_ms`,
and not when opening takes long: it reads the whole index. With no target that works there is
nothing to begin with, so the first one is waited for, however long it takes.

Failure behaviour: what a disk says at last may be an error; as long as it is not known which target
is there it is asked again, with pauses that double; after that the target is stopped, and
revival.py tries it again. A disk that never answers keeps its thread until the end of the process.

Threads: one for each directory, and for each page that is read; the rest is the event loop's.
Fork: none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

from ffs.errors import StorageIOError
from ffs.server.storage import directory
from ffs.server.storage.directory import Target, open_directory
from ffs.server.storage.probe import DiskProbes, in_thread
from ffs.server.storage.revival import LOOKS, PAUSE_S_MAX

log = logging.getLogger("ffs.storage.opening")

_Outcome = list[Target] | Exception


class Opening:
    """Opens one daemon's directories.

    Args:    patience_ms: how long a disk may owe an answer
    """

    def __init__(self, paths: Sequence[Path], patience_ms: int) -> None:
        self._paths = list(paths)
        self._patience_ms = patience_ms
        self._probes = DiskProbes(self._probe, patience_ms / 1e3, in_thread)
        self._found: dict[Path, list[Target]] = {}
        self._ended: asyncio.Queue[tuple[Path, _Outcome]] = asyncio.Queue()
        self._hung: set[Path] = set()
        self._tries: dict[Path, int] = {}

    async def run(self) -> dict[Path, list[Target]]:
        """Open all that can be opened now; return what was found, by directory."""
        for path in self._paths:
            self._begin(path)
        loop = asyncio.get_running_loop()
        while not self._is_enough(loop.time()):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._patience_ms / LOOKS / 1e3):
                    path, found = await self._next()
                    self._found[path] = found
        return dict(self._found)

    async def next_late(self) -> tuple[Path, list[Target]]:
        """Return what is in one more directory, once its disk has told."""
        loop = asyncio.get_running_loop()
        while True:
            path, found = await self._next()
            given = found[0]
            if given.target or not isinstance(given.error, StorageIOError):
                return path, found
            _release(found)
            log.warning("disk_fails", extra={"path": str(path), "reason": str(given.error)})
            tries = self._tries[path] = self._tries.get(path, 0) + 1
            pause_s = min(self._patience_ms / 1e3 * 2.0 ** min(tries, 30), PAUSE_S_MAX)
            loop.call_later(pause_s, self._begin, path)

    def close(self) -> None:
        """Close what was opened, and is not to be used."""
        for found in self._found.values():
            _release(found)

    async def _next(self) -> tuple[Path, list[Target]]:
        path, outcome = await self._ended.get()
        if isinstance(outcome, Exception):
            raise outcome
        return path, outcome

    def _begin(self, path: Path) -> None:
        loop = asyncio.get_running_loop()

        def work() -> None:
            outcome: _Outcome
            try:
                outcome = open_directory(path)
            except Exception as error:  # noqa: BLE001  it is raised by who waits for it
                outcome = error
            try:
                loop.call_soon_threadsafe(self._ended.put_nowait, (path, outcome))
            except RuntimeError:  # the daemon has ended meanwhile
                log.debug("opened_too_late", extra={"path": str(path)})

        in_thread(self._paths.index(path), work)

    def _is_enough(self, now_s: float) -> bool:
        """Tell whether all disks have answered, or one has with a target that works, and nothing is
        to be expected of the others."""
        waiting = [path for path in self._paths if path not in self._found]
        hung = [path for path in waiting if self._hangs(path, now_s)]
        works = any(one.error is None for found in self._found.values() for one in found)
        return not waiting or (works and hung == waiting)

    def _hangs(self, path: Path, now_s: float) -> bool:
        number = self._paths.index(path)
        self._probes.look(number, now_s)
        waiting_ms = self._probes.waiting_ms(number, now_s)
        if waiting_ms <= self._patience_ms:
            return False
        if path not in self._hung:
            self._hung.add(path)
            log.error("disk_hangs", extra={"path": str(path), "waiting_ms": waiting_ms})
        return True

    def _probe(self, number: int) -> None:
        directory.probe(self._paths[number])


def _release(found: Sequence[Target]) -> None:
    for target in found:
        if target.store is not None:
            target.store.release()
