"""The power fails while the writer has two batches: the bytes of one are on disk and its entry is
not, when those of the next are written.

A sync hangs until the second put is queued, so that both batches are there, in this order.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ffs import _storage
from tests.native.fail_nth import wait_until
from tests.sim.store_model import (
    RECORD,
    WRITE,
    Content,
    memory_directory,
    parse_journal,
    random_content,
)
from tests.sim.test_power_cuts import FIRST, OTHER, SECOND, Workload

HANG: Final = -1
ENTRY: Final = b"FFSE"
CLASS_BYTES: Final = 4096


class TwoBatches(Workload):
    """Puts whose commits overlap, on a store whose smallest class is there already."""

    def _act(self, store: _storage.ChunkStore, word: str) -> None:
        if word == "put other":
            self._put(store, OTHER, self._small())
        elif word == "two batches":
            self._put_both(store, self._small(), self._small())
        else:
            super()._act(store, word)

    def _small(self) -> Content:
        content = random_content(self.rng)
        return content if 100 <= len(content.data) <= CLASS_BYTES else self._small()

    def _put_both(self, store: _storage.ChunkStore, first: Content, second: Content) -> None:
        expected = [self.model.put(FIRST, first), self.model.put(SECOND, second)]
        begun = _storage.journal_bytes()
        written = begun + 2 * RECORD.size + len(first.data) + len(first.crcs)
        _storage.fault_set("fdatasync", 1, HANG)
        try:
            one = _Call(lambda: store.put(*FIRST, first.data, first.crcs))
            wait_until(lambda: _storage.journal_bytes() >= written, "the first is not written")
            other = _Call(lambda: store.put(*SECOND, second.data, second.crcs))
            wait_until(other.sleeps, "the second is not queued")
        finally:
            _storage.fault_set("*", 0, 0)
        assert [one.end(), other.end()] == expected


class _Call:
    """A put in a thread of its own."""

    def __init__(self, put: Callable[[], int]) -> None:
        self._put = put
        self._status = -1
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._begun.wait()

    def _run(self) -> None:
        self._begun.set()
        self._status = self._put()

    def sleeps(self) -> bool:
        """Whether it waits for the writer: asleep although nobody else runs Python meanwhile."""
        stat = Path(f"/proc/self/task/{self._thread.native_id}/stat")
        seen = []
        for _ in range(3):
            time.sleep(0.005)
            seen.append(stat.read_text().rpartition(")")[2].split()[0])
        return seen == ["S"] * 3

    def end(self) -> int:
        """Wait for it and return what it came to."""
        self._thread.join(60)
        return self._status


def test_two_batches_cut_at_every_record() -> None:
    root = memory_directory()
    try:
        words = ("put other", "two batches", "drop", "two batches")
        workload = TwoBatches(1, root, words, empty=True)
        assert workload.cut_everywhere() > 40
    finally:
        shutil.rmtree(root)


def test_the_batches_overlap() -> None:
    """The second one's bytes are written before the first one's entry is."""
    root = memory_directory()
    try:
        workload = TwoBatches(2, root, ("put other",), empty=True)
        store = workload._open()
        workload._act(store, "put other")
        first, second = workload._small(), workload._small()
        _storage.journal_start()
        workload._put_both(store, first, second)
        records = [r for r in parse_journal(_storage.journal_take()) if r.kind == WRITE]
        store.close()
    finally:
        shutil.rmtree(root)
    written = [r.extra[: len(second.data)] == second.data for r in records].index(True)
    entry = [r.extra.startswith(ENTRY) for r in records].index(True)
    assert written < entry
