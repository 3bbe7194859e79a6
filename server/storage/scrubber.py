"""Reads every chunk of every target once in a while and has repaired what does not hold.

Previous hops: the clock. Next hops: `ChunkStore.verify`, which reads past the page cache, and
repair.py. After each pass the keys are compared with those of the chain's other members, since a
chunk that is not there at all is nothing that reading could find.

Priority: one thread at a lower one than the rest of the daemon, `scrub_bytes_per_s` for each
target, and before each chunk it lets reads that wait for a disk go first, for a second at most.

Failure behaviour: its place is written down now and then, without syncing: losing it costs a few
minutes of reading. What cannot be compared, because no peer answers, is the next pass's.

Threads: one of its own; `state` may be called from any. Fork: none.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ffs._storage import ChunkStore
from ffs.errors import OK, ChunkMissingError, FFSError
from ffs.seams import Clock, SystemClock
from ffs.server.storage.compare import missing_beside
from ffs.server.storage.neighbours import Place
from ffs.server.storage.pace import SECOND, ByteRate
from ffs.server.storage.recovery import Pulling
from ffs.server.storage.repair import Repairer
from ffs.server.storage.resync import Entry, parse_entries
from ffs.server.storage.scrub import PAGE_ENTRIES, ScrubPass, ScrubState
from ffs.types import TargetState

log = logging.getLogger("ffs.storage.scrub")

STATE_FILE: Final = "scrub.json"
SAVE_S: Final = 60
YIELD_S_MAX: Final = 1.0
_YIELD_STEP_S: Final = 0.02
_LOOK_S: Final = 5.0
_NICE: Final = 10


@dataclass(slots=True)
class _Scrubbed:
    """One target: its pass, its pace, and when its place was last written down."""

    path: Path
    scrub: ScrubPass
    rate: ByteRate
    saved_ns: int = 0


class Scrubber:
    """Goes over one daemon's targets, pass after pass.

    Args:    stores: the targets that work; path_of: where a target's directory is; reads_wait:
             tells whether a reader waits for a disk now; bytes_per_s: of each target, 0: never
    """

    def __init__(
        self,
        stores: Callable[[], Mapping[int, ChunkStore]],
        path_of: Callable[[int], Path],
        repairer: Repairer,
        pulling: Pulling,
        *,
        bytes_per_s: int,
        interval_s: int,
        reads_wait: Callable[[], bool],
        clock: Clock | None = None,
    ) -> None:
        self._stores = stores
        self._path_of = path_of
        self._repairer = repairer
        self._pulling = pulling
        self._bytes_per_s = bytes_per_s
        self._interval_ns = interval_s * SECOND
        self._reads_wait = reads_wait
        self._clock = clock or SystemClock()
        self._scrubbed: dict[int, _Scrubbed] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ffs-scrub")

    def start(self) -> None:
        """Begin, unless scrubbing is switched off."""
        if self._bytes_per_s:
            self._thread.start()

    def close(self) -> None:
        """End after the chunk that is being read, and wait for that."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def state(self, target: int) -> ScrubState:
        """Return where the pass over a target stands."""
        scrubbed = self._scrubbed.get(target)
        return scrubbed.scrub.state if scrubbed is not None else ScrubState()

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while not self._stop.is_set():
            stores = self._stores()
            wait_ns = round(_LOOK_S * SECOND)
            for target, store in stores.items():
                if self._stop.is_set():
                    break
                try:
                    wait_ns = min(wait_ns, self._step(target, store))
                except (OSError, MemoryError) as error:
                    facts = {"target": target, "reason": str(error)}
                    log.warning("scrub_step_failed", extra=facts)
            self._stop.wait(wait_ns / 1e9)
        for scrubbed in self._scrubbed.values():
            _save(scrubbed)

    def _step(self, target: int, store: ChunkStore) -> int:
        """Do what is due on a target; return the ns until something else is."""
        scrubbed = self._scrubbed.get(target) or self._load(target)
        scrub, now_ns, wall_ns = scrubbed.scrub, self._clock.monotonic_ns(), self._clock.wall_ns()
        if not scrub.under_way:
            if begin_in_ns := scrub.begin_in_ns(wall_ns):
                return begin_in_ns
            scrub.begin(wall_ns)
        if wait_ns := scrubbed.rate.wait_ns(now_ns):
            return wait_ns
        if (after := scrub.page_after) is not None:
            scrub.listed(parse_entries(store.keys(*after, PAGE_ENTRIES)), wall_ns)
        if scrub.under_way:
            self._look(target, store, scrubbed)
        else:
            self._end_pass(target, store, scrubbed)
        if now_ns - scrubbed.saved_ns > SAVE_S * SECOND:
            scrubbed.saved_ns = now_ns
            _save(scrubbed)
        return scrubbed.rate.wait_ns(self._clock.monotonic_ns())

    def _look(self, target: int, store: ChunkStore, scrubbed: _Scrubbed) -> None:
        entry = scrubbed.scrub.next()
        self._let_reads_go_first()
        scrubbed.rate.used(entry.length, self._clock.monotonic_ns())
        if store.verify(*entry.key) not in (OK, ChunkMissingError.code):
            self._repairer.suspect(target, *entry.key)

    def _let_reads_go_first(self) -> None:
        waited_s = 0.0
        while self._reads_wait() and waited_s < YIELD_S_MAX and not self._stop.is_set():
            self._stop.wait(_YIELD_STEP_S)
            waited_s += _YIELD_STEP_S

    def _end_pass(self, target: int, store: ChunkStore, scrubbed: _Scrubbed) -> None:
        state = scrubbed.scrub.state
        place = self._pulling.view().place(target)
        missing = 0
        if place is not None and place.state == TargetState.SERVING and place.peers:
            for entry in self._missing(store, place):
                missing += self._repairer.suspect(target, *entry.key)
        facts = {"target": target, "chunks": state.chunks, "missing": missing}
        log.info("scrub_pass_ended", extra=facts)
        _save(scrubbed)

    def _missing(self, store: ChunkStore, place: Place) -> list[Entry]:
        """Return chunks that a serving peer has and we do not, as many as a plan holds at once."""
        for peer in place.peers.values():
            try:
                version = place.chain_version
                return missing_beside(store, peer, version, self._pulling, self._stop)[0]
            except FFSError as error:
                facts = {"source": peer.target, "reason": str(error)}
                log.debug("scrub_peer_failed", extra=facts)
        return []

    def _load(self, target: int) -> _Scrubbed:
        path = self._path_of(target) / STATE_FILE
        try:
            state = ScrubState.from_text(path.read_text())
        except OSError:
            state = ScrubState()
        scrub = ScrubPass(state, self._interval_ns)
        made = _Scrubbed(path, scrub, ByteRate(self._bytes_per_s), self._clock.monotonic_ns())
        self._scrubbed[target] = made
        return made


def _save(scrubbed: _Scrubbed) -> None:
    draft = scrubbed.path.with_suffix(".new")
    try:
        draft.write_text(scrubbed.scrub.state.to_text())
        draft.rename(scrubbed.path)
    except OSError as error:  # a full or failing disk: the pass begins anew after a restart
        log.debug("scrub_place_not_saved", extra={"reason": error.strerror})
