"""Which chunks a target lacks and whom to get them from: pure logic, driven by the daemon and the
simulator.

A target that was away, or is new, is SYNCING: it takes part in every write and gets the rest by set
difference. It lists what the SERVING members of its chain hold, and fetches what it does not have.
server/storage/recovery.py does what this object says; nothing here knows time, files or sockets.

Why that is enough: a member answers a listing only once it knows the chain version at which we
began to sync. Whatever was acknowledged without us is on it by then; whatever is acknowledged
later was written here too. So nothing needs to be remembered: what was copied is not missing any
more when a listing is made anew, after a crash, or when a source has gone.

Invariants: nothing is deleted, ever: what others lack is garbage collection's business. Sources are
listed from the same key on, in pages, so at most a page of each is in memory, and at most
`queue_max` missing chunks wait; what does not fit is counted and listed again later. A chunk is
being fetched at most once at a time, and is given up only after every source that listed it has
failed it.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple

from ffs.limits import LIST_CHUNKS_MAX

ENTRY: Final = struct.Struct("<QIIII")
"""blob, chunk, length, digest (CRC32C over the chunk's block CRC list), zero: as LIST sends it."""
PAGE_ENTRIES: Final = LIST_CHUNKS_MAX
QUEUE_MAX: Final = 32_768
LISTED_MAX: Final = 64
"""Chunks of one kind that are named; all are counted."""

ChunkKey = tuple[int, int]
Lookup = Callable[[int, int], "tuple[int, int] | None"]
"""(blob, chunk) -> (length, digest) of what is here, as `ChunkStore.lookup`."""
_END: Final = (1 << 64, 0)


class Entry(NamedTuple):
    """A chunk as a listing names it."""

    blob: int
    chunk: int
    length: int
    digest: int

    @property
    def key(self) -> ChunkKey:
        """What the chunk is called."""
        return self.blob, self.chunk


def parse_entries(page: bytes) -> list[Entry]:
    """Read a listing's page."""
    return [Entry(*fields[:4]) for fields in ENTRY.iter_unpack(page)]


def pack_entries(entries: Iterable[Entry]) -> bytes:
    """Write a listing's page."""
    return b"".join(ENTRY.pack(*entry, 0) for entry in entries)


class ListPage(NamedTuple):
    """Ask `source` for the next `limit` chunks after a key."""

    source: int
    after_blob: int
    after_chunk: int
    limit: int


class Outcome(Enum):
    """What became of fetching one chunk from one source."""

    STORED = "stored"
    """It is here now, or was already."""
    GONE = "gone"
    """The source does not have it any more: dropped meanwhile, most likely."""
    BAD = "bad"
    """The source's bytes do not match their checksums, or its disk fails them."""
    LATER = "later"
    """Nothing is known about the chunk: the source could not be reached, or we had no room."""
    CONFLICT = "conflict"
    """Ours and the source's are both whole, and differ."""


@dataclass(slots=True)
class Wanted:
    """A chunk to be fetched, and who listed it and has not failed it yet.

    One of the same name and other checksums may be here, or be wanted too: that is no matter of
    planning but a CONFLICT, to be found out when it is fetched.
    """

    entry: Entry
    holders: set[int]
    bad: bool = False


@dataclass(slots=True)
class Progress:
    """How far a resync is. `left` is known, and falls, once all keys have been listed once."""

    counted: bool = False
    chunks_left: int = 0
    bytes_left: int = 0
    chunks_copied: int = 0
    bytes_copied: int = 0
    lost: int = 0
    """Chunks that no source could give whole."""
    conflicts: int = 0
    lost_chunks: list[ChunkKey] = field(default_factory=list)
    conflict_chunks: list[ChunkKey] = field(default_factory=list)


class ResyncPlan:
    """One resync of one target.

    Args:    since: the chain version at which we began to sync, which listings are made at;
             sources: the chain's SERVING members; lookup: what is here
    Threads: one caller at a time; Fork: not used after fork
    """

    def __init__(
        self,
        since: int,
        sources: Iterable[int],
        lookup: Lookup,
        *,
        page_entries: int = PAGE_ENTRIES,
        queue_max: int = QUEUE_MAX,
    ) -> None:
        self.since = since
        self.sources = set(sources)
        self.progress = Progress()
        self._lookup = lookup
        self._page_entries = page_entries
        self._queue_max = max(queue_max, page_entries)
        self._after: ChunkKey = (0, 0)
        self._first = True
        self._resume: ChunkKey | None = None
        self._asked: set[int] = set()
        self._pages: dict[int, list[Entry]] = {}
        self._queue: deque[Wanted] = deque()
        self._working: dict[Entry, Wanted] = {}

    @property
    def finished(self) -> bool:
        """Whether all that the sources hold is here, as far as anyone can give it."""
        return self._listed_all and not self._queue and not self._working

    @property
    def stuck(self) -> bool:
        """Whether there is work left and nobody to do it with: a new plan is needed."""
        return not self.sources and not self.finished

    @property
    def _listed_all(self) -> bool:
        return self.progress.counted and self._after >= _END

    # --- listing --------------------------------------------------------------------------------

    def lists(self) -> list[ListPage]:
        """Return the pages to ask for now; each is named once, until it came or failed."""
        if self._listed_all or self._room() < self._page_entries:
            return []
        wanted = sorted(self.sources - self._asked - self._pages.keys())
        self._asked.update(wanted)
        return [ListPage(source, *self._after, self._page_entries) for source in wanted]

    def listed(self, source: int, entries: list[Entry]) -> None:
        """Take the page that was asked for."""
        self._asked.discard(source)
        if source in self.sources:
            self._pages[source] = entries
            self._merge_if_complete()

    def not_listed(self, source: int) -> None:
        """A page did not come: `lists` names it again."""
        self._asked.discard(source)

    def lose(self, source: int) -> None:
        """A source does not serve any more: others have all that it has acknowledged."""
        self.sources.discard(source)
        self._asked.discard(source)
        self._pages.pop(source, None)
        for wanted in [*self._queue, *self._working.values()]:
            wanted.holders.discard(source)
        if self.sources:
            self._queue = deque(wanted for wanted in self._queue if not self._give_up(wanted))
            self._merge_if_complete()

    def _room(self) -> int:
        """How many more chunks may wait. While all keys are being counted there is always room:
        what does not fit is left for later."""
        return self._page_entries if self._first else self._queue_max - len(self._queue)

    def _merge_if_complete(self) -> None:
        if not self.sources or self._pages.keys() != self.sources:
            return
        pages, self._pages = self._pages, {}
        full = [page[-1].key for page in pages.values() if len(page) >= self._page_entries]
        frontier = min(full, default=_END)
        self._keep(self._missing(pages, frontier))
        self._after = frontier
        if frontier < _END:
            return
        if self._first and self._resume is not None:
            self._after = self._resume
        else:
            waiting = [*self._queue, *self._working.values()]
            self.progress.chunks_left = len(waiting)
            self.progress.bytes_left = sum(wanted.entry.length for wanted in waiting)
        self._first = False
        self.progress.counted = True

    def _missing(self, pages: Mapping[int, list[Entry]], frontier: ChunkKey) -> list[Wanted]:
        """Return what the pages name up to `frontier` and is not here, in order of keys."""
        found: dict[Entry, Wanted] = {}
        for source in sorted(pages):
            for entry in pages[source]:
                if entry.key > frontier:
                    break
                known = found.get(entry)
                if known is not None:
                    known.holders.add(source)
                elif self._lookup(entry.blob, entry.chunk) != (entry.length, entry.digest):
                    found[entry] = Wanted(entry, {source})
        return [found[entry] for entry in sorted(found)]

    def _keep(self, missing: list[Wanted]) -> None:
        """Queue what was found missing; while keys are being counted, as much as there is room."""
        if self._first:
            self.progress.chunks_left += len(missing)
            self.progress.bytes_left += sum(wanted.entry.length for wanted in missing)
            if self._resume is not None:
                return
            if len(self._queue) + len(missing) > self._queue_max:
                self._resume = self._after
                return
        self._queue.extend(missing)

    # --- fetching -------------------------------------------------------------------------------

    def take(self, source: int, bytes_max: int, count_max: int = 512) -> list[Wanted]:
        """Return chunks to fetch from `source` now, in order of keys; [] if it has none to give.

        They are its own until `ended` was called for each. One that alone is larger than
        `bytes_max` comes alone.
        """
        taken: list[Wanted] = []
        left: list[Wanted] = []
        size = 0
        while self._queue and len(taken) < count_max:
            wanted = self._queue.popleft()
            if source not in wanted.holders:
                left.append(wanted)
                continue
            if taken and size + wanted.entry.length > bytes_max:
                left.append(wanted)
                break
            taken.append(wanted)
            size += wanted.entry.length
        self._queue.extendleft(reversed(left))
        self._working.update((wanted.entry, wanted) for wanted in taken)
        return taken

    def ended(self, source: int, wanted: Wanted, outcome: Outcome) -> None:
        """A chunk that was taken for `source` has come, or not."""
        del self._working[wanted.entry]
        if outcome is Outcome.STORED:
            self.progress.chunks_copied += 1
            self.progress.bytes_copied += wanted.entry.length
            self._settled(wanted)
        elif outcome is Outcome.CONFLICT:
            self.progress.conflicts += 1
            _note(self.progress.conflict_chunks, wanted.entry.key)
            self._settled(wanted)
        else:
            if outcome is not Outcome.LATER:
                wanted.holders.discard(source)
                wanted.bad = wanted.bad or outcome is Outcome.BAD
            if not self._give_up(wanted):
                self._queue.appendleft(wanted)

    def _give_up(self, wanted: Wanted) -> bool:
        """Forget a chunk that nobody can give; tell whether that was so."""
        if wanted.holders or not self.sources:  # without sources it is the next plan's
            return False
        if wanted.bad:
            self.progress.lost += 1
            _note(self.progress.lost_chunks, wanted.entry.key)
        self._settled(wanted)
        return True

    def _settled(self, wanted: Wanted) -> None:
        progress = self.progress
        progress.chunks_left = max(0, progress.chunks_left - 1)
        progress.bytes_left = max(0, progress.bytes_left - wanted.entry.length)


def _note(chunks: list[ChunkKey], key: ChunkKey) -> None:
    if len(chunks) < LISTED_MAX and key not in chunks:
        chunks.append(key)
