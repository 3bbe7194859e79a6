"""Notices disks that answer no reads: asks each for a page now and then, past the page cache.

Previous hop: revival.py, at each of its looks. Next hop: `Targets.probe`, in a thread that a disk
which hangs may keep for ever.

Why: a change that waits is seen by its writer, but nobody keeps the time of single reads, and
clients go elsewhere when one is late. A disk that hangs for reads alone, or while nobody writes,
would stay in service, and readers would go on trying it first.

What the disk answers is not judged: an error is met, and mended, where chunks are read.

Threads: the event loop's, and one for each read under way. Fork: none.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger("ffs.storage.probe")

Aside = Callable[[int, Callable[[], None]], None]
"""Has something done that waits for a target's disk, beside everything else."""


def in_thread(target: int, work: Callable[[], None]) -> None:
    """Do something in a thread of its own, which nobody waits for at the end of the process."""
    threading.Thread(target=work, name=f"ffs-disk-{target}", daemon=True).start()


@dataclass(slots=True)
class _Probe:
    """A read of a disk, and whether it has ended."""

    began_s: float
    over: bool = False


class DiskProbes:
    """Reads of the disks of one daemon, one at a time from each.

    Args:    read: reads something of a target from its disk, however long that takes;
             pause_s: from the beginning of a read to that of the next one
    """

    def __init__(self, read: Callable[[int], None], pause_s: float, aside: Aside) -> None:
        self._read = read
        self._pause_s = pause_s
        self._aside = aside
        self._probes: dict[int, _Probe] = {}

    def look(self, target: int, now_s: float) -> None:
        """Ask a target's disk if that is due, unless it owes an answer."""
        last = self._probes.get(target)
        if last is None or (last.over and now_s - last.began_s >= self._pause_s):
            self._probes[target] = probe = _Probe(now_s)
            self._aside(target, lambda: self._ask(target, probe))

    def waiting_ms(self, target: int, now_s: float) -> int:
        """Return for how long a disk has owed an answer."""
        probe = self._probes.get(target)
        return 0 if probe is None or probe.over else round((now_s - probe.began_s) * 1e3)

    def forget(self, target: int) -> None:
        """Hold against a disk no more what it owes: it works again."""
        self._probes.pop(target, None)

    def _ask(self, target: int, probe: _Probe) -> None:
        try:
            self._read(target)
        except OSError as error:
            log.debug("probe_failed", extra={"target": target, "reason": error.strerror})
        finally:
            probe.over = True
