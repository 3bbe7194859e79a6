"""Every sequence of three operations of the chunk store, cut at every record of its journal.

The power fails before the first write, between any two, and at each flush; of what was not flushed
then, nothing has reached the disk, or everything, or some sectors (drawn). After each cut the store
opens, holds what was acknowledged, and nothing torn: see `store_model.py`. Small and exhaustive
finds what large and random does not. FFS_ROUNDS: draws after each record.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from ffs import _storage
from tests.sim.store_model import (
    SYNC,
    Fate,
    Key,
    Run,
    memory_directory,
    parse_journal,
    random_content,
)

DRAWS: Final = int(os.environ.get("FFS_ROUNDS", "1"))
"""Draws of mixed sectors after each record."""
FIRST: Final[Key] = (1, 0)
SECOND: Final[Key] = (1, 1)
OTHER: Final[Key] = (2, 0)
pytestmark = pytest.mark.timeout(120 + 60 * DRAWS)
OPERATIONS: Final = ("put", "put other", "replace", "drop", "put many")


class Workload(Run):
    """Three operations on an empty store, or on one that holds some of their keys already."""

    def __init__(self, number: int, root: Path, words: tuple[str, ...], *, empty: bool) -> None:
        super().__init__(number, root)
        self._number = number
        if not empty:
            self._do(("put", "put many", "put other"))
            self._files = self._on_disk()
        self._words = words

    def cut_everywhere(self) -> int:
        """Cut at every record, with every fate; return how many cuts that were.

        Opening the store is the same for all, and cut for the first workload only.
        """
        _storage.journal_start()
        self._do(self._words)
        records = list(parse_journal(_storage.journal_take()))
        opening = 0 if self._number == 0 else sum(r.end <= self._steps[0].end for r in records)
        begun = self._files
        cuts = 0
        for count in range(opening, len(records) + 1):
            flushed = count == opening or records[count - 1].kind == SYNC
            # Between flushes, what has reached the disk for certain does not change.
            fates = (Fate.SYNCED, Fate.WRITTEN, Fate.MIXED) if flushed else (Fate.WRITTEN,)
            for fate in (*fates, *[Fate.MIXED] * DRAWS):
                self._files = begun
                self._cut_at(records, count, fate)
                cuts += 1
        shutil.rmtree(self._path)
        return cuts

    def _do(self, words: tuple[str, ...]) -> None:
        """Open the store, do all of it, close the store."""
        store = self._open()
        self._steps = []
        self._note(self.model.chunks, self.model.chunks)
        for word in words:
            before = dict(self.model.chunks)
            self._act(store, word)
            self._note(before, self.model.chunks)
        store.close()

    def _act(self, store: _storage.ChunkStore, word: str) -> None:
        """Do one operation, with bytes that none before it had."""
        first, second = random_content(self.rng), random_content(self.rng)
        if word == "put":
            self._put(store, FIRST, first)
        elif word == "put other":
            self._put(store, OTHER, first)
        elif word == "replace":
            status = store.replace(*FIRST, first.data, first.crcs)
            assert status == self.model.replace(FIRST, first)
        elif word == "drop":
            assert store.drop([FIRST[0]]) == self.model.drop([FIRST[0]])
        else:
            rows = [(*SECOND, 0, len(first.data)), (*OTHER, len(first.data), len(second.data))]
            expected = [self.model.put(SECOND, first), self.model.put(OTHER, second)]
            data, crcs = first.data + second.data, first.crcs + second.crcs
            assert store.put_many(rows, data, crcs) == expected


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """A directory where syncing costs nothing."""
    directory = memory_directory()
    yield directory
    shutil.rmtree(directory)


@pytest.mark.parametrize("empty", [True, False])
def test_three_operations_cut_at_every_record(empty: bool, root: Path) -> None:
    workloads = list(itertools.product(OPERATIONS, repeat=3))
    cuts = 0
    for number, words in enumerate(workloads):
        try:
            cuts += Workload(number, root, words, empty=empty).cut_everywhere()
        except AssertionError as error:
            error.add_note(f"after {words}, empty={empty}")
            raise
    print(f"{len(workloads)} workloads, {cuts} power cuts")
    assert cuts > 10 * len(workloads)


def test_a_disk_that_lies_about_flushes_is_noticed(root: Path) -> None:
    lying = Workload(0, root, ("put", "replace", "put many"), empty=True)
    lying._honest_disk = False
    with pytest.raises((AssertionError, ValueError)):
        lying.cut_everywhere()
