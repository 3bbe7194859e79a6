"""Looks at chunks that somebody doubts, and mends those that are bad or missing from a peer's copy.

Previous hops: the data loop's EVENT_SUSPECT (a reader got wrong bytes or none), scrubber.py (which
reads everything once in a while). Next hops: fetch.py, then `ChunkStore.replace`.

Invariants: a chunk is touched only after it was read from the disk and did not hold, and is
replaced only by bytes with the very checksums that it was written with. One that is missing comes
back only if its blob is not being dropped (restoring.py). At most `SUSPECTS_MAX` chunks wait; what
comes beyond that is forgotten, since scrubbing finds it too.

Failure behaviour: while no peer can be reached, or no metadata server that has to be asked, the
chunk waits and is tried again; one that no peer has whole is unrepairable: counted, listed, logged
as an error, and looked at again when it is suspected again.

Threads: one of its own; `suspect` and `health` may be called from any. Fork: none.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Final

from ffs import errors
from ffs._storage import ChunkStore
from ffs.errors import OK, FFSError
from ffs.server.storage.fetch import Fetched
from ffs.server.storage.neighbours import Peer, Place
from ffs.server.storage.recovery import Pulling
from ffs.server.storage.restoring import Restore, Restores
from ffs.server.storage.resync import LISTED_MAX, ChunkKey, Entry, Outcome

log = logging.getLogger("ffs.storage.repair")

SUSPECTS_MAX: Final = 4_096
UNREPAIRABLE_MAX: Final = 65_536
"""So many are known by name, to count each once."""
RETRY_S: Final = 5.0
_DAMAGE: Final = frozenset(
    {errors.ChecksumError.code, errors.StorageIOError.code, errors.ChunkMissingError.code}
)


@dataclass(slots=True)
class Health:
    """What was found and mended on one target since the daemon came up."""

    bad_total: int = 0
    missing_total: int = 0
    repaired_total: int = 0
    unrepairable: set[ChunkKey] = field(default_factory=set)


class _End(Enum):
    """What looking at a suspect came to."""

    FINE = "fine"
    GONE = "gone"
    DROPPED = "dropped"
    REPAIRED = "repaired"
    UNREPAIRABLE = "unrepairable"
    LATER = "later"


@dataclass(frozen=True, slots=True)
class _Case:
    """A chunk that does not hold, and what is known of it here."""

    key: ChunkKey
    store: ChunkStore
    known: tuple[int, int] | None
    chain_version: int
    restore: Restore


class Repairer:
    """Works off what is suspected, one chunk after the other.

    Args:    stores: the targets that work; restores: hears of each chunk that is stored; is_gone:
             tells, as the metadata server does, whether a blob is being dropped, or was; or raises
    """

    def __init__(
        self,
        stores: Callable[[], Mapping[int, ChunkStore]],
        pulling: Pulling,
        restores: Restores,
        is_gone: Callable[[int], bool],
    ) -> None:
        self._stores = stores
        self._pulling = pulling
        self._restores = restores
        self._is_gone = is_gone
        self._health: dict[int, Health] = {}
        self._waiting: OrderedDict[tuple[int, ChunkKey], None] = OrderedDict()
        self._later: deque[tuple[int, int, ChunkKey]] = deque()
        """Those to be tried again, and when: in that order."""
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ffs-repair")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End after the chunk that is being worked on, and wait for that."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def suspect(self, target: int, blob: int, chunk: int) -> bool:
        """Have a chunk looked at soon; tell whether there was room to remember it."""
        with self._changed:
            if len(self._waiting) >= SUSPECTS_MAX:
                return False
            self._waiting[target, (blob, chunk)] = None
            self._changed.notify()
        return True

    def health(self, target: int) -> Health:
        """Return what is known of a target."""
        return self._health.setdefault(target, Health())

    def _run(self) -> None:
        while (suspect := self._next()) is not None:
            target, key = suspect
            store = self._stores().get(target)
            if store is None:
                continue
            try:
                with self._restores.of(key[0]) as restore:
                    end = self._mend(target, key, store, restore)
            except (FFSError, OSError, MemoryError) as error:
                log.debug("repair_failed", extra={"target": target, "reason": str(error)})
                end = _End.LATER
            if end is _End.LATER and len(self._later) < SUSPECTS_MAX:
                due_ns = self._pulling.clock.monotonic_ns() + round(RETRY_S * 1e9)
                self._later.append((due_ns, target, key))

    def _next(self) -> tuple[int, ChunkKey] | None:
        with self._changed:
            while not self._stop.is_set():
                now_ns = self._pulling.clock.monotonic_ns()
                while self._later and self._later[0][0] <= now_ns:
                    _, target, key = self._later.popleft()
                    self._waiting[target, key] = None
                if self._waiting:
                    return self._waiting.popitem(last=False)[0]
                self._changed.wait((self._later[0][0] - now_ns) / 1e9 if self._later else None)
        return None

    def _mend(self, target: int, key: ChunkKey, store: ChunkStore, restore: Restore) -> _End:
        """Look at one chunk, and mend it if it needs that."""
        health = self.health(target)
        status = store.verify(*key)
        if status not in _DAMAGE:
            health.unrepairable.discard(key)
            return _End.FINE
        place = self._pulling.view().place(target)
        missing = status == errors.ChunkMissingError.code
        if place is not None and not place.peers and place.members > 1:
            return _End.LATER  # nobody else serves just now
        if missing and (place is None or not place.peers):
            return _End.GONE
        if missing and self._is_gone(key[0]):
            return _End.DROPPED  # others are still to drop it
        end = self._from_peers(key, store, place, restore) if place else _End.UNREPAIRABLE
        if missing and end is _End.GONE:
            return end  # nobody has it: it was dropped
        if end in (_End.UNREPAIRABLE, _End.GONE) and self._is_gone(key[0]):
            return _End.DROPPED  # others have done so already
        facts = {"target": target, "blob": key[0], "chunk": key[1], "status": status}
        if end is _End.REPAIRED:
            health.missing_total += missing
            health.bad_total += not missing
            health.repaired_total += 1
            health.unrepairable.discard(key)
            log.warning("chunk_repaired", extra=facts)
        elif end in (_End.UNREPAIRABLE, _End.GONE) and key not in health.unrepairable:
            health.bad_total += 1
            if len(health.unrepairable) < UNREPAIRABLE_MAX:
                health.unrepairable.add(key)
            log.error("chunk_unrepairable", extra=facts)
        return end

    def _from_peers(self, key: ChunkKey, store: ChunkStore, place: Place, restore: Restore) -> _End:
        """Replace a chunk by the copy of the first peer that has it whole."""
        case = _Case(key, store, store.lookup(*key), place.chain_version, restore)
        ends = set()
        for peer in place.peers.values():
            end = self._from_peer(case, peer)
            if end in (_End.REPAIRED, _End.DROPPED):
                return end
            ends.add(end)
        for worst in (_End.LATER, _End.UNREPAIRABLE):
            if worst in ends:
                return worst
        return _End.GONE if ends else _End.UNREPAIRABLE

    def _from_peer(self, case: _Case, peer: Peer) -> _End:
        pulling = self._pulling
        source = pulling.source(peer)
        key, known = case.key, case.known
        try:
            entry = Entry(*key, *known) if known else source.find(key, case.chain_version)
            if entry is None:
                return _End.GONE
            _, [fetched] = source.fetch([entry])
            if fetched.outcome is Outcome.STORED:
                return _put(case, fetched)
            if fetched.outcome is Outcome.BAD:
                source.suspect([entry])
                return _End.UNREPAIRABLE
            return _End.GONE if fetched.outcome is Outcome.GONE else _End.LATER
        except FFSError as error:
            facts = {"source": peer.target, "reason": str(error)}
            log.debug("repair_peer_failed", extra=facts)
            return _End.LATER
        finally:
            source.close()


def _put(case: _Case, fetched: Fetched) -> _End:
    put = partial(case.store.replace, *case.key, fetched.data, fetched.crcs)
    status = case.restore.store(put)
    if status is None:
        return _End.DROPPED
    return _End.REPAIRED if status == OK else _End.LATER


def listed(health: Health) -> list[ChunkKey]:
    """Return the unrepairable chunks that a report names."""
    return sorted(health.unrepairable)[:LISTED_MAX]
