"""Compares what a target holds with what others have, by name, and has fetched what is missing.

Previous hops: heartbeats, which name targets of chains in doubt (`HeartbeatReply.compare`), and
scrubber.py at the end of each pass. Next hops: listings of peers, then repair.py. A chain is in
doubt when its only servers had lost chunks: who synced from them may lack what one that came back
later has. Once every member serves, each compares itself with all others, and says so
(`TargetReport.compared`); when all have, none has a chunk that another one lacks, but for blobs
that are gone: one that was dropped here, or was left behind there, is nothing to wait for, since
it does not come back (restoring.py), and a peer may keep it until it looks (scan.py).

Failure behaviour: a peer or a metadata server that does not answer, or a chunk that is not here
yet, leaves the target uncompared; the order comes again with the next heartbeats.

Threads: one of its own; `ask` and `compared` may be called from any. Fork: none.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from ffs._storage import ChunkStore
from ffs.errors import FFSError
from ffs.server.storage.neighbours import Peer, Place
from ffs.server.storage.recovery import Pulling
from ffs.server.storage.repair import Repairer
from ffs.server.storage.resync import Entry, ResyncPlan
from ffs.types import TargetState

log = logging.getLogger("ffs.storage.compare")

PAUSE_S: Final = 2.0
"""Between two times: what was missing is being fetched meanwhile."""


def missing_beside(
    store: ChunkStore, peer: Peer, chain_version: int, pulling: Pulling, stop: threading.Event
) -> tuple[list[Entry], int]:
    """Return chunks that a peer has and we do not, as many as a plan holds at once; and how many
    it has beyond those.

    Raises: FFSError: the peer does not answer
    """
    plan = ResyncPlan(chain_version, [peer.target], store.lookup)
    source = pulling.source(peer)
    try:
        while not plan.progress.counted and not stop.is_set():
            for page in plan.lists():
                plan.listed(page.source, source.list_page(page, chain_version))
    finally:
        source.close()
    entries = [wanted.entry for wanted in plan.take(peer.target, 1 << 62, 1 << 30)]
    return entries, plan.progress.chunks_left - len(entries)


class Comparer:
    """Compares the targets that it is asked about, one after the other.

    Args:    stores: the targets that work; gone_among: tells, as the metadata server does, which
             blobs are being dropped, or were; or raises; on_compared: called by our thread when
             one is done
    """

    def __init__(
        self,
        stores: Callable[[], Mapping[int, ChunkStore]],
        repairer: Repairer,
        pulling: Pulling,
        gone_among: Callable[[Iterable[int]], set[int]],
        on_compared: Callable[[], object],
    ) -> None:
        self._stores = stores
        self._repairer = repairer
        self._pulling = pulling
        self._gone_among = gone_among
        self._on_compared = on_compared
        self._compared: dict[int, int] = {}
        self._asked: Sequence[int] = ()
        self._came = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ffs-compare")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End after the page that is being listed, and wait for that."""
        self._stop.set()
        self._came.set()
        if self._thread.ident is not None:
            self._thread.join()

    def ask(self, targets: Sequence[int]) -> None:
        """Compare these soon, unless that was done."""
        self._asked = targets
        self._came.set()

    def compared(self, target: int) -> int:
        """Return the version of its chain at which a target was compared; 0: at none."""
        return self._compared.get(target, 0)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._came.wait()
            self._came.clear()
            done = [target for target in self._asked if self._compare(target)]
            if done:
                self._on_compared()
            self._stop.wait(PAUSE_S if self._asked else 0)

    def _compare(self, target: int) -> bool:
        """Compare one target if all members of its chain serve; tell whether it lacks nothing."""
        place, store = self._pulling.view().place(target), self._stores().get(target)
        if place is None or store is None or not _is_full(place):
            return False
        if self._compared.get(target) == place.chain_version:
            return False
        try:
            missing = self._have_mended(target, place, store)
        except (FFSError, OSError, MemoryError) as error:
            log.debug("compare_failed", extra={"target": target, "reason": str(error)})
            return False
        if missing:
            log.warning("chunks_missing", extra={"target": target, "chunks": missing})
            return False
        if not self._stop.is_set():
            self._compared[target] = place.chain_version
        return True

    def _have_mended(self, target: int, place: Place, store: ChunkStore) -> int:
        """Have fetched what others have and we do not; return how much that is."""
        missing, version = 0, place.chain_version
        for peer in place.peers.values():
            entries, beyond = missing_beside(store, peer, version, self._pulling, self._stop)
            missing += beyond
            # Asked after the listing: what is gone stays gone, so none of it counts later on.
            gone = self._gone_among({entry.blob for entry in entries}) if entries else set()
            for entry in entries:
                lost = entry.key in self._repairer.health(target).unrepairable
                if entry.blob not in gone and not lost:
                    self._repairer.suspect(target, *entry.key)
                    missing += 1
        return missing


def _is_full(place: Place) -> bool:
    return place.state == TargetState.SERVING and len(place.peers) == place.members - 1
