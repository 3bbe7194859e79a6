"""Brings targets that were away, or are new, up to date while they already take part in writes.

Previous hop: the routing (neighbours.View) says which of our targets are SYNCING, since when, and
who serves their chains. Next hops: resync.py decides, fetch.py reads from peers, the chunk stores
keep. What is done is reported with the next heartbeat (`synced`), and the manager then lets the
target serve.

Invariants: `synced` is told only for the `since` whose plan ended with nothing left to fetch. A
target whose routing changes to another `since`, or whose sources are all gone, starts over: what it
has copied is not missing any more. A source is asked one thing at a time by this daemon, in turns
(pace.py) that leave its readers their share.

Failure behaviour: a source that cannot be used is tried again with growing pauses, and left out
after some while others serve; a chunk that it fails is fetched from another. A store that stopped
ends its resync. A full disk keeps it waiting.

Threads: one for each source of each target that syncs; `view_changed` and the rest are the event
loop's. Fork: none.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ffs import errors
from ffs._storage import ChunkStore
from ffs.errors import OK, FFSError
from ffs.key import ClusterKey
from ffs.seams import Clock, SystemClock
from ffs.server.storage.fetch import Fetched, Source
from ffs.server.storage.neighbours import Peer, Place, View
from ffs.server.storage.pace import Turns
from ffs.server.storage.resync import (
    Entry,
    ListPage,
    Outcome,
    Progress,
    ResyncPlan,
    Wanted,
)
from ffs.tls_relay import TlsRelay
from ffs.types import TargetState

log = logging.getLogger("ffs.storage.recovery")

BATCH_BYTES: Final = 8 << 20
FAILURES_MAX: Final = 8
"""So many in a row, and a source is left out while others serve."""
PAUSE_S_MIN: Final = 0.05
PAUSE_S_MAX: Final = 2.0
_LOOK_S: Final = 0.5


@dataclass(slots=True)
class _Node:
    """A node that we pull from: one turn at a time, and rests between them."""

    turns: Turns
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, slots=True)
class Pulling:
    """What all resyncs of a daemon share."""

    key: ClusterKey
    congestion: str
    share: float
    view: Callable[[], View]
    relay: TlsRelay | None = None
    """Encrypts what is pulled; None: it comes in clear."""
    clock: Clock = field(default_factory=SystemClock)
    nodes: dict[int, _Node] = field(default_factory=dict)

    def node(self, node: int) -> _Node:
        """Return the turns at a node."""
        return self.nodes.setdefault(node, _Node(Turns(self.share)))

    def source(self, peer: Peer) -> Source:
        """Return a target of another daemon to pull from; nothing is opened yet."""
        return Source(self.key, peer.address, peer.target, self.congestion, self.relay)


class Resync:
    """One target's way from SYNCING to complete, by several threads.

    Args:    on_end: called once by one of the threads, when there is nothing left to do
    """

    def __init__(
        self,
        target: int,
        place: Place,
        store: ChunkStore,
        pulling: Pulling,
        on_end: Callable[[Resync], None],
    ) -> None:
        peers = place.peers
        self.target = target
        self.chain = place.chain
        self.since = place.since
        self.damage = store.stats()["damage"]
        self._plan = ResyncPlan(place.since, peers, store.lookup)
        self._addresses = {peer.target: peer.address for peer in peers.values()}
        self._store = store
        self._pulling = pulling
        self._on_end = on_end
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._pages: dict[int, ListPage] = {}
        self._running = len(peers)
        self._told = False
        self._sources = {peer.target: pulling.source(peer) for peer in peers.values()}
        self._threads = [
            threading.Thread(target=self._work, args=(peer,), name=f"ffs-sync-{target}")
            for peer in peers.values()
        ]

    @property
    def complete(self) -> bool:
        """Whether all is here that the sources could give."""
        return self._plan.finished and not self._stop.is_set()

    @property
    def progress(self) -> Progress:
        """How far it is."""
        return self._plan.progress

    def start(self) -> None:
        """Begin."""
        log.info("resync_started", extra={"target": self.target, "since": self.since})
        for thread in self._threads:
            thread.start()

    def keep_only(self, serving: Mapping[int, Peer]) -> None:
        """Leave out sources that serve no more, or are elsewhere now: a daemon that was started
        again may listen at another port."""
        there = {peer.target for peer in serving.values() if self._reads_from(peer)}
        with self._changed:
            gone = self._plan.sources - there
            for source in gone:
                self._plan.lose(source)
            self._changed.notify_all()
        for source in gone:
            self._sources[source].close()

    def _reads_from(self, peer: Peer) -> bool:
        return self._addresses.get(peer.target) == peer.address

    def stop(self) -> None:
        """End as soon as the calls under way have."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        for source in self._sources.values():
            source.close()

    def log_end(self) -> None:
        """Say what it came to."""
        progress = self.progress
        facts: dict[str, object] = {"target": self.target, "since": self.since}
        facts |= {"complete": self.complete, "copied": progress.chunks_copied}
        facts |= {"bytes": progress.bytes_copied, "conflicts": progress.conflicts}
        log.info("resync_ended", extra=facts)
        for blob, chunk in progress.lost_chunks:
            where = {"target": self.target, "blob": blob, "chunk": chunk}
            log.error("chunk_unrepairable", extra=where)

    @property
    def running(self) -> bool:
        """Whether a thread of it is still there."""
        return any(thread.is_alive() for thread in self._threads)

    def join(self) -> None:
        """Wait until all threads have ended."""
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _work(self, peer: Peer) -> None:
        source, failures = self._sources[peer.target], 0
        try:
            while (step := self._next(peer.target)) is not None:
                try:
                    good = self._do(step, source, peer)
                except (FFSError, OSError, MemoryError) as error:
                    self._give_back(step, peer, error)
                    good = False
                failures = 0 if good else failures + 1
                if failures:
                    self._pause(peer, failures)
        finally:
            source.close()
            with self._changed:
                self._running -= 1
                # A source that hangs does not hold up what the others have brought to its end.
                over = self._plan.finished or self._running == 0
                tell, self._told = over and not self._told, self._told or over
                self._changed.notify_all()
            if tell:
                self._on_end(self)

    def _next(self, source: int) -> ListPage | list[Wanted] | None:
        """Wait for something to do with a source; None: there will be nothing more."""
        plan = self._plan
        with self._changed:
            while not self._stop.is_set():
                if plan.finished or source not in plan.sources:
                    return None
                self._pages.update((page.source, page) for page in plan.lists())
                if source in self._pages:
                    return self._pages.pop(source)
                if taken := plan.take(source, BATCH_BYTES):
                    return taken
                self._changed.wait(_LOOK_S)
        return None

    def _do(self, step: ListPage | list[Wanted], source: Source, peer: Peer) -> bool:
        """Take one turn at a source; tell whether the source did its part.

        Raises:  FFSError if it did not answer
        """
        listed: list[Entry] = []
        fetched: list[Fetched] = []
        room = memoryview(b"")
        clock, node = self._pulling.clock, self._pulling.node(peer.node)
        with node.lock:
            self._stop.wait(node.turns.wait_ns(clock.monotonic_ns()) / 1e9)
            began_ns = clock.monotonic_ns()
            if isinstance(step, ListPage):
                listed = source.list_page(step, self.since)
            else:
                room, fetched = source.fetch([wanted.entry for wanted in step])
            pullers = self._pulling.view().pullers(peer.node)
            node.turns.ended(began_ns, clock.monotonic_ns(), pullers)
        if self._stop.is_set():
            return False  # another resync may be over, and what has come dropped since
        if isinstance(step, ListPage):
            with self._changed:
                self._plan.listed(step.source, listed)
                self._changed.notify_all()
            return True
        self._store_batch(step, source, room, fetched)
        return all(one.outcome is not Outcome.LATER for one in fetched)

    def _store_batch(
        self, step: list[Wanted], source: Source, room: memoryview, fetched: list[Fetched]
    ) -> None:
        """Store what came, after the source's turn: this is our disk's time, not its."""
        ends = list(zip(step, store_fetched(self._store, step, fetched, room), strict=True))
        source.suspect([wanted.entry for wanted, outcome in ends if outcome is Outcome.BAD])
        with self._changed:
            for wanted, outcome in ends:
                self._plan.ended(source.target, wanted, outcome)
            self._changed.notify_all()
        ours = [
            outcome
            for outcome, one in zip(ends, fetched, strict=True)
            if outcome[1] is Outcome.LATER and one.outcome is Outcome.STORED
        ]
        if self._store.stats()["stopped"]:
            self.stop()
        elif ours:  # no room: it will be tried again until there is
            self._stop.wait(PAUSE_S_MAX)

    def _give_back(self, step: ListPage | list[Wanted], peer: Peer, error: Exception) -> None:
        facts = {"target": self.target, "source": peer.target, "reason": str(error)}
        log.debug("resync_step_failed", extra=facts)
        with self._changed:
            if isinstance(step, ListPage):
                self._plan.not_listed(step.source)
            else:
                for wanted in step:
                    self._plan.ended(peer.target, wanted, Outcome.LATER)
            self._changed.notify_all()

    def _pause(self, peer: Peer, failures: int) -> None:
        """Let a source that failed rest; leave it out if that helps nothing and others serve."""
        with self._changed:
            if failures >= FAILURES_MAX and len(self._plan.sources) > 1:
                facts = {"target": self.target, "source": peer.target}
                log.warning("resync_source_left_out", extra=facts)
                self._plan.lose(peer.target)
                self._changed.notify_all()
        self._stop.wait(min(PAUSE_S_MIN * 2 ** min(failures, 10), PAUSE_S_MAX))


def store_fetched(
    store: ChunkStore, step: Sequence[Wanted], fetched: Sequence[Fetched], room: memoryview
) -> list[Outcome]:
    """Store what came whole, in one commit, and say what became of each chunk."""
    outcomes = [one.outcome for one in fetched]
    rows: list[tuple[int, int, int, int]] = []
    places: list[int] = []
    crcs = bytearray()
    at = 0
    for number, (wanted, one) in enumerate(zip(step, fetched, strict=True)):
        if one.outcome is Outcome.STORED:
            rows.append((*wanted.entry.key, at, wanted.entry.length))
            places.append(number)
            crcs += one.crcs
        at += wanted.entry.length
    for number, status in zip(places, store.put_many(rows, room, crcs), strict=True):
        if status == errors.ChunkConflictError.code:
            outcomes[number] = _settle(store, step[number], fetched[number])
        elif status != OK:
            outcomes[number] = Outcome.LATER
    return outcomes


def _settle(store: ChunkStore, wanted: Wanted, fetched: Fetched) -> Outcome:
    """Ours has other checksums than a peer's, which is whole: ours makes way unless it is, too."""
    key = wanted.entry.key
    status = store.verify(*key)
    facts = {"blob": key[0], "chunk": key[1], "status": status}
    if status == OK:
        log.error("chunk_conflict", extra=facts | {"theirs": wanted.entry.digest})
        return Outcome.CONFLICT
    if status not in (errors.ChecksumError.code, errors.StorageIOError.code):
        return Outcome.LATER
    log.warning("chunk_replaced", extra=facts)
    replaced = store.replace(*key, fetched.data, fetched.crcs)
    return Outcome.STORED if replaced == OK else Outcome.LATER


class Recovery:
    """Runs the resyncs of one daemon's targets.

    Args:    stores: the targets that work; remember: notes durably, in one of our threads, that a
             target has all of a chain, and what damage that made up for; on_synced: called in the
             event loop's thread by way of `call_soon` when a target has become complete
    """

    def __init__(
        self,
        stores: Callable[[], Mapping[int, ChunkStore]],
        pulling: Pulling,
        *,
        call_soon: Callable[[Callable[[], None]], object],
        remember: Callable[[int, int, int], None],
        on_synced: Callable[[], None],
    ) -> None:
        self._stores = stores
        self._pulling = pulling
        self._call_soon = call_soon
        self._remember = remember
        self._on_synced = on_synced
        self._running: dict[int, Resync] = {}
        self._ending: list[Resync] = []
        self._synced: dict[int, int] = {}
        self._done: dict[int, Progress] = {}

    def view_changed(self) -> None:
        """Start, go on with, or stop what the newest view asks for."""
        view, stores = self._pulling.view(), self._stores()
        for target in self._running.keys() | stores.keys():
            place = view.place(target)
            if place is None:  # what it has synced for says nothing about its next chain
                self._synced.pop(target, None)
            since = place.since if place and place.state == TargetState.SYNCING else 0
            running = self._running.get(target)
            if running is not None and (running.since != since or target not in stores):
                self._end(running)
                running = None
            if target not in stores:
                continue
            if running is not None and place is not None:
                running.keep_only(place.peers)
            elif since and place and place.peers and self.synced(target) != since:
                self._begin(target, place, stores[target])

    def revived(self, target: int) -> None:
        """A target has another store now: what is known of the old one does not hold."""
        self._synced.pop(target, None)
        self.view_changed()

    def synced(self, target: int) -> int:
        """Return the `since` for which a target is complete; 0: for none."""
        return self._synced.get(target, 0)

    def progress(self, target: int) -> Progress | None:
        """Return how far a target's resync is, or how its last one went; None: there was none."""
        running = self._running.get(target)
        return running.progress if running is not None else self._done.get(target)

    def close(self) -> None:
        """Stop everything and wait for it."""
        for running in list(self._running.values()):
            self._end(running)
        for ending in self._ending:
            ending.join()

    def _begin(self, target: int, place: Place, store: ChunkStore) -> None:
        resync = Resync(target, place, store, self._pulling, self._thread_ended)
        self._running[target] = resync
        resync.start()

    def _end(self, running: Resync) -> None:
        running.stop()
        del self._running[running.target]
        self._ending = [resync for resync in self._ending if resync.running]
        self._ending.append(running)

    def _thread_ended(self, resync: Resync) -> None:
        complete = resync.complete
        if complete:
            try:
                self._remember(resync.target, resync.chain, resync.damage)
            except FFSError as error:
                facts = {"target": resync.target, "reason": str(error)}
                log.warning("resync_not_noted", extra=facts)
                complete = False
        self._call_soon(lambda: self._ended(resync, complete=complete))

    def _ended(self, resync: Resync, *, complete: bool) -> None:
        if self._running.get(resync.target) is not resync:
            return
        resync.log_end()
        self._end(resync)
        self._done[resync.target] = resync.progress
        if complete:
            self._synced[resync.target] = resync.since
            self._on_synced()
        else:
            self.view_changed()
