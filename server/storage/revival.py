"""Gives up targets whose disks do not answer, and takes stopped targets back once they work again.

Previous hop: the clock. Next hops: `ChunkStore.give_up`, whose event stops the target as a failed
write does, so that its chain goes on without it; then `Targets.open_again`, and `on_revived`, which
gives the new store to the data loop.

A disk hangs when a change has waited for it for `patience_ms`, or a read has that is made for this
alone (probe.py). That ends the target only if its chain goes on without it: a replica more is worth
no wait, the last one is worth any. A process that stood still judges nobody by that time.

A stopped target is opened anew as by a restart of its daemon, which is what makes it safe: nothing
that was acknowledged lay on that write or sync which failed, the index is written and synced again
before it is believed, and its chain has it copy what it missed. What hangs is not believed before
it has ended: the old store is left only when its writer is, so nothing comes to the disk later.

Failure behaviour: what cannot be opened is tried again with pauses that double; a target that was
taken back `REVIVALS_MAX` times stays stopped until its daemon is started anew, since each time
costs the memory of an index.

Threads: one for each target that is being taken back or read from, which a hanging disk may keep
for ever; they end with the process. The rest is the event loop's. Fork: none.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ffs._storage import ChunkStore
from ffs.errors import FFSError
from ffs.server.storage.probe import Aside, DiskProbes, in_thread
from ffs.server.storage.targets import Targets

log = logging.getLogger("ffs.storage.revival")

LOOKS: Final = 5
"""How often a disk is looked at while it may take to answer."""
LATE: Final = 2
"""A look that comes after so many times the pause between two tells of our time, not the disk's."""
REVIVALS_MAX: Final = 5
PAUSE_S_MAX: Final = 600.0


@dataclass(slots=True)
class _Stopped:
    """A target that stopped at least once: how often it was tried, and taken back."""

    due_s: float
    tries: int = 0
    revivals: int = 0
    busy: bool = False


class Revival:
    """Looks after the disks of one daemon.

    Args:    goes_on_without: tells whether another member serves a target's chain; on_revived:
             called in the event loop with a target and the store that it has from now on; aside:
             has something done that waits for a target's disk
    """

    def __init__(
        self,
        targets: Targets,
        patience_ms: int,
        *,
        goes_on_without: Callable[[int], bool],
        on_revived: Callable[[int, ChunkStore], None],
        aside: Aside = in_thread,
    ) -> None:
        self._targets = targets
        self._patience_ms = patience_ms
        self._goes_on_without = goes_on_without
        self._on_revived = on_revived
        self._aside = aside
        self._probes = DiskProbes(targets.probe, patience_ms / 1e3, aside)
        self._stopped: dict[int, _Stopped] = {}

    def hangs(self) -> bool:
        """Tell whether a disk does not answer: who waits for it may wait for ever.

        Why it asks, too: this is how the end of a daemon finds out, when nobody else looks.
        """
        given_up = any(store.waiting_ms() for store in self._targets.stopped_stores)
        waiting_ms = [self._ask(*one) for one in self._targets.stores.items()]
        return given_up or max(waiting_ms, default=0) > self._patience_ms

    async def run(self) -> None:
        """Look at all disks, until cancelled."""
        loop = asyncio.get_running_loop()
        pause_s = self._patience_ms / LOOKS / 1e3
        while True:
            before_s = loop.time()
            await asyncio.sleep(pause_s)
            if loop.time() - before_s < LATE * pause_s:
                self._give_up()
            self._take_back()

    def _ask(self, target: int, store: ChunkStore) -> int:
        """Return for how many ms a disk has let somebody wait; have it read from if that is due."""
        now_s = asyncio.get_running_loop().time()
        self._probes.look(target, now_s)
        return max(store.waiting_ms(), self._probes.waiting_ms(target, now_s))

    def _give_up(self) -> None:
        for target, store in self._targets.working.items():
            waiting_ms = self._ask(target, store)
            if waiting_ms > self._patience_ms and self._goes_on_without(target):
                log.error("disk_hangs", extra={"target": target, "waiting_ms": waiting_ms})
                store.give_up()

    def _take_back(self) -> None:
        now_s = asyncio.get_running_loop().time()
        for target in self._targets.stopped:
            state = self._stopped.get(target)
            if state is None:
                self._stopped[target] = _Stopped(now_s + self._pause_s(0))
            elif state.revivals < REVIVALS_MAX and not state.busy and now_s >= state.due_s:
                self._begin(target, state)

    def _pause_s(self, tries: int) -> float:
        return min(self._patience_ms / 1e3 * 2.0 ** min(tries, 30), PAUSE_S_MAX)

    def _begin(self, target: int, state: _Stopped) -> None:
        state.busy = True
        loop = asyncio.get_running_loop()

        def work() -> None:
            outcome: ChunkStore | FFSError
            try:
                outcome = self._targets.open_again(target)
            except FFSError as error:
                outcome = error
            try:
                loop.call_soon_threadsafe(self._ended, target, state, outcome)
            except RuntimeError:  # the daemon has ended meanwhile
                log.debug("revival_too_late", extra={"target": target})

        self._aside(target, work)

    def _ended(self, target: int, state: _Stopped, outcome: ChunkStore | FFSError) -> None:
        state.busy = False
        state.tries += 1
        state.due_s = asyncio.get_running_loop().time() + self._pause_s(state.tries)
        if isinstance(outcome, FFSError):
            log.warning("target_not_back", extra={"target": target, "reason": str(outcome)})
            return
        state.revivals += 1
        self._probes.forget(target)
        self._targets.take_back(target, outcome)
        log.warning("target_back", extra={"target": target, "revivals": state.revivals})
        self._on_revived(target, outcome)
