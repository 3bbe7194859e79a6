"""The ring: slots of shared memory that workers fill and the training process uses in place.

Role: last leg of the read path. client/torch/landing.py takes a slot for a batch; the batch's
message (client/torch/batch.py) says where it is; the training process makes a tensor over it, and
when the last view of that dies the slot is free again.

Each slot has one byte of state in the ring's head:

    FREE -> FILLING -> SENT -> HELD -> FREE
      worker claims  message  tensor  tensor's end

Invariants:
- whoever fills a slot holds the kernel's lock on byte `slot` of the memfd, and a claim is made
  under that lock: the kernel lets go of it when the process dies, however it dies, so a slot that
  is FILLING without a lock has lost its owner and may be claimed at once;
- no lock is ever waited for, so no process can be stopped by another one's death;
- a slot that was sent and never received (its worker's loader is gone) is taken back by `reset`,
  which only the loader calls, when no iterator has the ring;
- a tensor that a forked child inherited is not the child's: its end there frees nothing.

The locks are POSIX record locks: one process's own never conflict, so within a process `_mine` and
a thread lock keep fillers apart; closing any descriptor of the memfd drops the process's locks, so
nothing here closes one while the ring is in use.
"""

from __future__ import annotations

import atexit
import fcntl
import itertools
import mmap
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ffs.client import _fork
from ffs.client.torch.segment import Segment
from ffs.errors import ClosedError, InvalidError

FREE: Final = 0
FILLING: Final = 1
SENT: Final = 2
HELD: Final = 3
STATE_NAMES: Final = ("free", "filling", "sent", "held")

_HEAD_BYTES: Final = mmap.PAGESIZE
"""The first page has the slots' states, and at its end the note."""
SLOTS_MAX: Final = _HEAD_BYTES // 2
_BATCHES, _FALLBACKS, _LARGEST = 0, 1, 2
_CELL: Final = 8
"""Unsigned 64-bit numbers in a writer's cell, a cache line: only its writer changes them."""

_numbers = itertools.count()
_rings: weakref.WeakValueDictionary[str, Ring] = weakref.WeakValueDictionary()


class Ring:
    """Some slots of one size in one memfd.

    Args:    slot_bytes: what a slot must hold; slots: how many; writers: how many processes fill
             them (each has its own counters)
    `note` is for a few numbers that a loader tells its workers when an epoch begins.
    Raises:  OutOfMemoryError when this machine cannot hold it
    Threads: any; Fork: the child may fill slots, and frees only what it claimed
    """

    def __init__(self, slot_bytes: int, slots: int, writers: int = 1) -> None:
        self.slot_bytes = -(-slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.slots = min(slots, SLOTS_MAX)
        self._writers = writers
        cells_bytes = writers * _CELL * 8
        self._data_start = _HEAD_BYTES + -(-cells_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.name = f"{os.getpid()}-{next(_numbers)}"
        self._segment = Segment(self._data_start + self.slots * self.slot_bytes)
        self._become_usable()
        _rings[self.name] = self

    def _become_usable(self) -> None:
        memory = self._segment.memory
        # Views, not arrays: what changes here are single numbers, a few for each batch.
        self._states = memoryview(memory)[: self.slots]
        cells_end = _HEAD_BYTES + self._writers * _CELL * 8
        self._cells = memoryview(memory)[_HEAD_BYTES:cells_end].cast("Q")
        self.note = np.frombuffer(memory, np.uint64, _CELL, _HEAD_BYTES - _CELL * 8)
        self._writer = 0
        self._retire: Callable[[int], None] = self.free
        self.after_fork_in_child()
        _fork.register(self)

    def after_fork_in_child(self) -> None:
        """Hold nothing: what is being filled is the parent's."""
        # Taken twice by a thread in which the garbage collector ends a slot while it claims one.
        self._lock = threading.RLock()
        self._mine: set[int] = set()

    def __getstate__(self) -> dict[str, Any]:
        names = ("slot_bytes", "slots", "_writers", "_data_start", "name", "_segment")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._become_usable()

    def attach(self, writer: int) -> None:
        """Make this process writer number `writer`, with every page in place.

        Fork: for the child of the process that made the ring, and for a spawned one
        """
        self._segment.map_again()
        self._become_usable()
        self._writer = writer

    def tell(self, note: Sequence[int]) -> None:
        """Write the note."""
        self.note[: len(note)] = note

    # --- filling --------------------------------------------------------------------------------

    def claim(self, size_bytes: int) -> Slot | None:
        """Take a slot to fill; None if there is none, or the bytes are too many for one.

        Copies: none; Threads: any; Fork: usable in the child
        """
        cells, cell = self._cells, self._writer * _CELL
        with self._lock:
            cells[cell + _BATCHES] += 1
            cells[cell + _LARGEST] = max(cells[cell + _LARGEST], size_bytes)
            if size_bytes <= self.slot_bytes:
                for state in (FREE, FILLING):
                    slot = self._seize_any(state)
                    if slot is not None:
                        return Slot(self, slot, size_bytes)
            cells[cell + _FALLBACKS] += 1
        return None

    def _seize_any(self, state: int) -> int | None:
        states = bytes(self._states)
        slot = states.find(state)
        while slot >= 0:
            if slot not in self._mine and self._seize(slot):
                return slot
            slot = states.find(state, slot + 1)
        return None

    def _seize(self, slot: int) -> bool:
        if not self._lock_byte(slot):
            return False
        if self._states[slot] > FILLING:  # another process was faster, and is done with it
            self._unlock_byte(slot)
            return False
        self._states[slot] = FILLING
        self._mine.add(slot)
        return True

    def let_go(self, slot: int, state: int) -> None:
        """End the filling of a slot: SENT, HELD (by this process), or FREE when nobody wants it."""
        with self._lock:
            self._mine.discard(slot)
            self._states[slot] = state
            self._unlock_byte(slot)

    def _lock_byte(self, slot: int) -> bool:
        try:
            fcntl.lockf(self._segment.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
        except BlockingIOError:
            return False
        return True

    def _unlock_byte(self, slot: int) -> None:
        fcntl.lockf(self._segment.fd, fcntl.LOCK_UN, 1, slot)

    # --- using ----------------------------------------------------------------------------------

    def view(self, slot: int, size_bytes: int) -> npt.NDArray[np.uint8]:
        """Return the first bytes of a slot as an array of their own: no base that is larger."""
        start = self._data_start + slot * self.slot_bytes
        return np.frombuffer(self._segment.memory, np.uint8, size_bytes, start)

    def hold(self, slot: int, size_bytes: int) -> npt.NDArray[np.uint8]:
        """Return a slot's bytes; when the array and all that is made over it die, it is free.

        Threads: any; Fork: a child's copy frees nothing
        """
        self._states[slot] = HELD
        memory = self.view(slot, size_bytes)
        self.free_after(slot, memory)
        return memory

    def free_after(self, slot: int, memory: npt.NDArray[np.uint8]) -> None:
        """Free a slot when `memory` is gone."""
        _watch(memory, self, slot, _ended)

    def free(self, slot: int) -> None:
        """Give a slot back."""
        self._states[slot] = FREE

    def on_end(self, retire: Callable[[int], None]) -> None:
        """Have `retire(slot)` called at a tensor's end instead of `free`, which it calls later."""
        self._retire = retire

    def reset(self) -> None:
        """Free what was sent and never received, and what a dead process was filling.

        For the loader alone, while no iterator has the ring: no message is under way any more.
        """
        with self._lock:
            for slot, state in enumerate(bytes(self._states)):
                if slot in self._mine or state not in (FILLING, SENT) or not self._lock_byte(slot):
                    continue
                if self._states[slot] != HELD:
                    self._states[slot] = FREE
                self._unlock_byte(slot)

    # --- what it looks like ---------------------------------------------------------------------

    @property
    def memory(self) -> mmap.mmap:
        """The whole mapping."""
        return self._segment.memory

    @property
    def largest_bytes(self) -> int:
        """The largest batch that was asked for."""
        return max(self._cells[_LARGEST::_CELL])

    def counters(self) -> dict[str, int]:
        """Return how many slots are in which state, and what happened since the ring was made."""
        states = bytes(self._states)
        return {
            "slots": self.slots,
            "slot_bytes": self.slot_bytes,
            **{name: states.count(state) for state, name in enumerate(STATE_NAMES)},
            "batches": sum(self._cells[_BATCHES::_CELL]),
            "fallbacks": sum(self._cells[_FALLBACKS::_CELL]),
        }


class Slot:
    """A slot that this process fills. Dropped, with all that was made over it, it is free again."""

    def __init__(self, ring: Ring, number: int, size_bytes: int) -> None:
        self.ring = ring
        self.number = number
        self.memory = ring.view(number, size_bytes)
        self._unused = _watch(self.memory, ring, number, _dropped)

    def send(self) -> None:
        """Leave it to the process that the message goes to.

        Raises:  InvalidError the second time
        """
        self._finish(SENT)

    def keep(self) -> None:
        """Leave it to this process: it is free at the end of what was made over `memory`."""
        self._finish(HELD)
        self.ring.free_after(self.number, self.memory)

    def _finish(self, state: int) -> None:
        if not _forget(self._unused):
            raise InvalidError(
                "the batch was handed over before", hint="copy its tensor to send it again"
            )
        self.ring.let_go(self.number, state)


_Watch = tuple[weakref.ref[npt.NDArray[np.uint8]], "Ring", int, Callable[["Ring", int], None], int]

_watched: dict[int, _Watch] = {}
"""Arrays whose end is waited for, by their weak reference; none when the program ends."""
atexit.register(_watched.clear)


def _watch(
    memory: npt.NDArray[np.uint8], ring: Ring, slot: int, then: Callable[[Ring, int], None]
) -> int:
    """Have `then(ring, slot)` called when an array is gone; return what `_forget` takes.

    Why: weakref.finalize does that, too, and takes several times as long, for each batch.
    """
    end = weakref.ref(memory, _gone)
    _watched[id(end)] = end, ring, slot, then, _fork.generation()
    return id(end)


def _forget(watch: int) -> bool:
    """Call nothing any more; whether something might have been called."""
    return _watched.pop(watch, None) is not None


def _gone(end: weakref.ref[npt.NDArray[np.uint8]]) -> None:
    _, ring, slot, then, generation = _watched.pop(id(end))
    if generation == _fork.generation():
        then(ring, slot)


def _dropped(ring: Ring, slot: int) -> None:
    ring.let_go(slot, FREE)


def _ended(ring: Ring, slot: int) -> None:
    ring._retire(slot)


def ring_named(name: str) -> Ring:
    """Return the ring that a message speaks of.

    Raises:  ClosedError in a process that has no such ring
    """
    try:
        return _rings[name]
    except KeyError as error:
        raise ClosedError(
            "this process has not the ring that the batch is in",
            hint="send a copy of the tensor to other processes",
            ring=name,
        ) from error
