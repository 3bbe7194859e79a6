"""Arrays of an index that come from files a page at a time, each page when it is first needed.

Role: index.py keeps bounds and checksums in two of these; next hop is files.py.

The entries lie in memory that all workers of a host share, so a page is fetched once for all of
them. Two that miss it at the same moment both write the same bytes there.
Invariants: a page is marked as loaded only after every entry of it is in place and was held against
the file's bounds, so who finds the mark need not check again.
Failure behaviour: FormatError for entries out of order or out of bounds; the page stays unloaded.
Threads: any; one lock for fetching, none for what is there. Fork: see `after_fork_in_child`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ffs.client.planner import RANGE_DTYPE
from ffs.client.records.files import Files

I64 = npt.NDArray[np.int64]

PAGE: Final = 4_096
"""Entries that are fetched together."""
FETCH_PAGES: Final = 256
"""Pages in one call of the engine: 8 MiB of bounds."""


def page_count(entries: int) -> int:
    """Return how many pages an array of one part takes."""
    return -(-entries // PAGE)


class Places:
    """Where a paged array comes from: for each part its file, place there and first page here."""

    def __init__(self, files: I64, sources: I64, stored: I64, first_pages: I64) -> None:
        self.files, self.sources = files, sources
        self.stored, self.first_pages = stored, first_pages


class PagedArray:
    """Entries of all parts, each part from a page of its own on.

    Args:    overlap: how many entries of the next page come along with each
             check: called with (part, first, last) of each page's entries as soon as they are there
    """

    def __init__(
        self,
        entries: npt.NDArray[Any],
        loaded: npt.NDArray[np.uint8],
        places: Places,
        files: Files,
        *,
        overlap: int,
        check: Callable[[int, int, int], None],
    ) -> None:
        self.entries = entries
        self.complete = False
        self._loaded = loaded
        self._places = places
        self._files = files
        self._overlap = overlap
        self._check = check
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        """Take new locks: a thread that is not here may hold the old ones."""
        self._lock, self._order = threading.Lock(), threading.Lock()

    def need(self, places: I64) -> None:
        """Have the entries at these places, and their overlap, in memory."""
        if self.complete:
            return
        pages = places // PAGE
        if self._loaded[pages].all():
            return
        self._fetch(np.unique(pages))

    def need_all(self) -> None:
        """Have every entry in memory."""
        if not self.complete:
            self._fetch(np.arange(len(self._loaded)))
            self.complete = True

    def _fetch(self, pages: I64) -> None:
        with self._lock:
            missing = pages[self._loaded[pages] == 0]
            for start in range(0, len(missing), FETCH_PAGES):
                some = missing[start : start + FETCH_PAGES]
                # Entries before marks, also on CPUs that reorder stores: to release a lock and to
                # take it again is a barrier.
                with self._order:
                    self._fetch_some(some)
                with self._order:
                    self._loaded[some] = 1

    def _fetch_some(self, pages: I64) -> None:
        where, size = self._places, self.entries.itemsize
        parts = np.searchsorted(where.first_pages, pages, side="right") - 1
        firsts = (pages - where.first_pages[parts]) * PAGE
        counts = np.minimum(where.stored[parts] - firsts, PAGE + self._overlap)
        ranges = np.empty(len(pages), dtype=RANGE_DTYPE)
        ranges["handle"] = self._files.handles[where.files[parts]]
        ranges["offset"] = where.sources[parts] + firsts * size
        ranges["length"] = counts * size
        fetched = np.empty(int(counts.sum()), dtype=self.entries.dtype)
        self._files.readv_into(ranges[counts > 0], fetched)
        done = 0
        for page, part, first, count in zip(
            pages.tolist(), parts.tolist(), firsts.tolist(), counts.tolist(), strict=True
        ):
            at = page * PAGE
            self.entries[at : at + count] = fetched[done : done + count]
            done += count
            self._check(part, first, first + count)
