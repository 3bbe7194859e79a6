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


class HandleTable:
    """The files of `open_many` as columns, so that a structured batch is planned without a loop.

    A handle is an index into the columns. Only plain files (one segment, not zeros) are described
    by the columns; `special` marks the others, whose ranges take the general form.

    Threads: any: one lock for `add` and `forget`; plans need none, since columns are replaced as a
             whole when they grow, and a handle is given out after its columns are filled.
    Fork: usable in the child; what another thread was adding is not there.
    """

    _COLUMNS: Final = (
        ("size", np.uint64),
        ("blob", np.uint64),
        ("shift", np.uint64),
        ("chains_start", np.uint64),
        ("chains_count", np.uint64),
        ("special", np.bool_),
    )

    def __init__(self) -> None:
        self.contents: list[Content | None] = [None]
        self._columns: dict[str, npt.NDArray[Any]] = {
            name: np.zeros(64, dtype=kind) for name, kind in self._COLUMNS
        }
        self._chains: npt.NDArray[np.uint32] = np.zeros(64, dtype=np.uint32)
        self._chains_used = 0
        self._columns["special"][0] = True  # handle 0 does not exist
        self._lock = threading.Lock()
        _fork.register(self)

    def after_fork_in_child(self) -> None:
        """Take a new lock: a thread that is not here may hold the old one."""
        self._lock = threading.Lock()

    def add(self, contents: Sequence[Content]) -> npt.NDArray[np.uint64]:
        """Register opened files and return their handles, in order; 0 is never a handle."""
        with self._lock:
            first = len(self.contents)
            self._reserve(first + len(contents))
            for index, content in enumerate(contents, first):
                self._fill(index, content)
            self.contents.extend(contents)
        return np.arange(first, first + len(contents), dtype=np.uint64)

    def forget(self, handles: Sequence[int]) -> None:
        """Let handles go; a later range that uses one is refused.

        Their numbers are not used again, so that none ever means another file; each keeps its
        columns, some 60 bytes, for the life of the table.
        """
        with self._lock:
            for handle in handles:
                index = int(handle)
                self.content(index)
                self.contents[index] = None
                self._columns["size"][index] = 0
                self._columns["special"][index] = True

    def content(self, handle: int) -> Content:
        """Return the file behind a handle."""
        content = self.contents[handle] if 0 < handle < len(self.contents) else None
        if content is None:
            raise InvalidError(
                "no such handle", hint="handles come from open_many of this object", handle=handle
            )
        return content

    def column(self, name: str, handles: U64) -> npt.NDArray[Any]:
        """Return one column's values for many handles."""
        return self._columns[name].take(handles)

    def chains(self, handles: U64, chunks: U64) -> npt.NDArray[Any]:
        """Return the chain of each (handle, chunk)."""
        start, count = self.column("chains_start", handles), self.column("chains_count", handles)
        chains: npt.NDArray[Any] = self._chains.take(start + chunks % count)
        return chains

    def _fill(self, index: int, content: Content) -> None:
        columns = self._columns
        columns["size"][index] = content.size
        piece = content.sole
        columns["special"][index] = piece is None
        if piece is None:
            return
        columns["blob"][index] = piece.blob
        columns["shift"][index] = piece.shift
        columns["chains_start"][index] = self._add_chains(piece)
        columns["chains_count"][index] = len(piece.chains)

    def _add_chains(self, piece: Piece) -> int:
        start, count = self._chains_used, len(piece.chains)
        if start + count > len(self._chains):
            grown = np.zeros(max(2 * len(self._chains), start + count), dtype=np.uint32)
            grown[:start] = self._chains[:start]
            self._chains = grown
        self._chains[start : start + count] = piece.chains
        self._chains_used = start + count
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
