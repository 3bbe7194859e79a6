"""Opened files by number: what a structured batch names instead of paths.

Role: client/filesystem.py adds what `open_many` resolved; client/planner.py looks columns up.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ffs.client import _fork
from ffs.client.layouts import Content, Piece
from ffs.errors import InvalidError

U64 = npt.NDArray[np.uint64]


SLOT_BITS: Final = 32
SLOT_MAX: Final = (1 << SLOT_BITS) - 1
USES_MAX: Final = (1 << 31) - 1
"""Uses of one slot; a slot that had so many stays empty."""


class HandleTable:
    """The files of `open_many` as columns, so that a structured batch is planned without a loop.

    A handle is a slot of the columns, with the number of the slot's former uses above it: a slot is
    used again, so memory follows how many files are open at once, and a handle never is. Only plain
    files (one segment, not zeros) are described by the columns; `special` marks the others, whose
    ranges take the general form.

    Threads: any: one lock for `add` and `forget`. Plans need none: columns are replaced as a whole
             when they grow; a handle is given out after its columns are filled; and a plan that saw
             `reuses` change has to be made again, since columns may have become another file's.
    Fork: usable in the child; what another thread was adding is not there.
    """

    _COLUMNS: Final = (
        ("handle", np.uint64),
        ("size", np.uint64),
        ("blob", np.uint64),
        ("shift", np.uint64),
        ("chains_start", np.uint64),
        ("chains_count", np.uint64),
        ("special", np.bool_),
    )

    def __init__(self) -> None:
        self.reuses = 0
        self.contents: list[Content | None] = [None]  # handle 0 does not exist
        self._columns: dict[str, npt.NDArray[Any]] = {
            name: np.zeros(64, dtype=kind) for name, kind in self._COLUMNS
        }
        self._chains: npt.NDArray[np.uint32] = np.zeros(64, dtype=np.uint32)
        self._chains_used = 0
        self._free: list[int] = []
        self._free_chains: dict[int, list[int]] = {}
        self._lock = threading.Lock()
        _fork.register(self)

    def after_fork_in_child(self) -> None:
        """Take a new lock: a thread that is not here may hold the old one."""
        self._lock = threading.Lock()

    def add(self, contents: Sequence[Content]) -> U64:
        """Register opened files and return their handles, in order; 0 is never a handle."""
        with self._lock:
            fresh = max(0, len(contents) - len(self._free))
            if self._free or self._free_chains:
                self.reuses += 1
            self._reserve(len(self.contents) + fresh)
            return np.array([self._fill(content) for content in contents], dtype=np.uint64)

    def forget(self, handles: Sequence[int]) -> None:
        """Let handles go; a later range that uses one is refused."""
        with self._lock:
            for handle in handles:
                self.content(int(handle))
                slot, columns = int(handle) & SLOT_MAX, self._columns
                if not columns["special"][slot]:
                    count = int(columns["chains_count"][slot])
                    start = int(columns["chains_start"][slot])
                    self._free_chains.setdefault(count, []).append(start)
                columns["size"][slot] = 0
                columns["special"][slot] = True
                # What the slot's next user is called; until then it is nobody's.
                columns["handle"][slot] += np.uint64(1 << SLOT_BITS)
                self.contents[slot] = None
                if int(handle) >> SLOT_BITS < USES_MAX:
                    self._free.append(slot)

    def content(self, handle: int) -> Content:
        """Return the file behind a handle."""
        slot = handle & SLOT_MAX
        if 0 < slot < len(self.contents) and int(self._columns["handle"][slot]) == handle:
            content = self.contents[slot]
            if content is not None:
                return content
        raise InvalidError(
            "no such handle", hint="handles come from open_many of this object", handle=handle
        )

    def slots(self, handles: U64) -> U64:
        """Return the slots of handles, every one of which is open. Raises InvalidError."""
        if len(handles) == 0:
            return handles
        slots = handles
        if self.reuses:
            slots = handles & np.uint64(SLOT_MAX)
        if int(slots.max()) >= len(self.contents):
            self.content(int(handles[int(slots.argmax())]))
        if self.reuses:
            strange = self._columns["handle"].take(slots) != handles
            if strange.any():
                self.content(int(handles[int(strange.argmax())]))
        return slots

    def column(self, name: str, slots: U64) -> npt.NDArray[Any]:
        """Return one column's values for many slots."""
        return self._columns[name].take(slots)

    def chains(self, slots: U64, chunks: U64) -> npt.NDArray[Any]:
        """Return the chain of each (slot, chunk)."""
        start, count = self.column("chains_start", slots), self.column("chains_count", slots)
        chains: npt.NDArray[Any] = self._chains.take(start + chunks % count, mode="clip")
        return chains

    def _fill(self, content: Content) -> int:
        """Put a file into a slot and return its handle, which is valid from its last line on."""
        columns = self._columns
        slot = self._free.pop() if self._free else len(self.contents)
        handle = int(columns["handle"][slot]) or slot
        columns["size"][slot] = content.size
        piece = content.sole
        if piece is not None:
            columns["blob"][slot] = piece.blob
            columns["shift"][slot] = piece.shift
            columns["chains_start"][slot] = self._add_chains(piece)
            columns["chains_count"][slot] = len(piece.chains)
        columns["special"][slot] = piece is None
        columns["handle"][slot] = handle
        if slot == len(self.contents):
            self.contents.append(content)
        else:
            self.contents[slot] = content
        return handle

    def _add_chains(self, piece: Piece) -> int:
        count = len(piece.chains)
        again = self._free_chains.get(count)
        start = again.pop() if again else self._chains_used
        if start + count > len(self._chains):
            grown = np.zeros(max(2 * len(self._chains), start + count), dtype=np.uint32)
            grown[: self._chains_used] = self._chains[: self._chains_used]
            self._chains = grown
        self._chains[start : start + count] = piece.chains
        self._chains_used = max(self._chains_used, start + count)
        return start

    def _reserve(self, count: int) -> None:
        have = len(self._columns["size"])
        if count <= have:
            return
        room = max(2 * have, count)
        for name, old in self._columns.items():
            grown = np.zeros(room, dtype=old.dtype)
            grown[:have] = old
            self._columns[name] = grown
