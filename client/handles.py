"""Opened files by number: what a structured batch names instead of paths.

Role: client/filesystem.py adds what `open_many` resolved; client/planner.py plans with it.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from ffs.client import _fork
from ffs.client.layouts import Content
from ffs.errors import InvalidError

U64 = npt.NDArray[np.uint64]


SLOT_BITS: Final = 32
SLOT_MAX: Final = (1 << SLOT_BITS) - 1
USES_MAX: Final = (1 << 31) - 1
"""Former uses of one slot; a slot that had more stays empty."""
NOBODY: Final = (1 << 64) - 1
"""The number of a slot without a file: no handle has as many former uses."""


class HandleTable:
    """The files of `open_many` by slot, as `ffs._reader.plan_ranges` takes them.

    A handle is a slot, with the number of the slot's former uses above it: a slot is used again, so
    memory follows how many files are open at once, and a handle never is. `numbers` has the handle
    of each slot, `packed` its file (None: not a plain one, whose ranges take the general form).

    Threads: any: one lock for `add` and `forget`. Plans need none: the engine plans a whole batch
             without letting another thread in, and a slot has its handle from after its file is in
             place until before it goes.
    Fork: usable in the child; what another thread was adding is not there.
    """

    def __init__(self) -> None:
        self.contents: list[Content | None] = [None]  # handle 0 does not exist
        self.packed: list[bytes | None] = [None]
        self.numbers = array("Q", [NOBODY])
        self._uses = array("Q", [0])
        self._free: list[int] = []
        # A file that is collected as garbage while its thread is in here gives its handle back.
        self._lock = threading.RLock()
        _fork.register(self)

    def after_fork_in_child(self) -> None:
        """Take a new lock: a thread that is not here may hold the old one."""
        self._lock = threading.RLock()

    def add(self, contents: Sequence[Content]) -> U64:
        """Register opened files and return their handles, in order; 0 is never a handle."""
        with self._lock:
            return np.array([self._fill(content) for content in contents], dtype=np.uint64)

    def forget(self, handles: Sequence[int]) -> None:
        """Let handles go; a later range that uses one is refused."""
        with self._lock:
            for handle in handles:
                self.content(int(handle))
                slot = int(handle) & SLOT_MAX
                self.numbers[slot] = NOBODY
                self.packed[slot] = self.contents[slot] = None
                self._uses[slot] += 1
                if self._uses[slot] <= USES_MAX:
                    self._free.append(slot)

    def content(self, handle: int) -> Content:
        """Return the file behind a handle."""
        slot = handle & SLOT_MAX
        if 0 < slot < len(self.numbers):
            content = self.contents[
                slot
            ]  # first: it is put there before the number, and goes after
            if content is not None and self.numbers[slot] == handle:
                return content
        raise InvalidError(
            "no such handle", hint="handles come from open_many of this object", handle=handle
        )

    def _fill(self, content: Content) -> int:
        """Put a file into a slot and return its handle, which is valid from its last line on."""
        if self._free:
            slot = self._free.pop()
            self.contents[slot], self.packed[slot] = content, content.packed
        else:
            slot = len(self.contents)
            self.contents.append(content)
            self.packed.append(content.packed)
            self._uses.append(0)
            self.numbers.append(NOBODY)
        handle = self._uses[slot] << SLOT_BITS | slot
        self.numbers[slot] = handle
        return handle
