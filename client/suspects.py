"""Tells storage daemons which of their chunks came wrong or not at all, so that they look and mend.

Previous hop: client/settle.py notes what a replica failed to give, and has it sent once the call's
bytes are there. Next hop: the daemon's data port (SUSPECT), whose repair reads the chunk again.

It is a courtesy: bounded in number and rate, never waited for, never retried. A chunk that stays
bad is named again by the next reader, a minute after the daemon was told at the earliest.

Threads: any; what is sent goes by a thread of its own, at most one at a time.
Fork:    the child sends what it notes itself.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from typing import Final

from ffs.client import _fork
from ffs.client.connections import Connections
from ffs.errors import FFSError
from ffs.limits import SUSPECT_CHUNKS_MAX
from ffs.seams import Clock

Address = tuple[str, int]

AGAIN_NS: Final = 60_000_000_000
KNOWN_MAX: Final = 4_096
"""Chunks that were named within the last minute; while there are so many, others are left out."""
SEND_MS: Final = 2_000
_DESCRIPTOR: Final = struct.Struct("<QIIII")
"""blob, chunk, target, offset, length: what READ asks with."""


class Suspects:
    """What this client has to say about chunks of others.

    Args:    aside: runs a function beside everything else
    """

    def __init__(
        self, connections: Connections, clock: Clock, aside: Callable[[Callable[[], None]], None]
    ) -> None:
        self._connections = connections
        self._clock = clock
        self._aside = aside
        self._known: dict[tuple[int, int, int], int] = {}
        self._waiting: dict[Address, list[bytes]] = {}
        self._sending = False
        _fork.register(self)

    def after_fork_in_child(self) -> None:
        """Forget what the parent's thread is about to send."""
        self._waiting = {}
        self._sending = False

    def note(
        self, address: Address, *, target: int, blob: int, chunk: int, offset: int, length: int
    ) -> None:
        """Remember that `target`, at `address`, did not give a range as it should be."""
        now_ns, key = self._clock.monotonic_ns(), (target, blob, chunk)
        self._forget(now_ns - AGAIN_NS)
        if key in self._known or len(self._known) >= KNOWN_MAX:
            return
        rows = self._waiting.setdefault(address, [])
        if len(rows) < SUSPECT_CHUNKS_MAX:
            self._known[key] = now_ns
            rows.append(_DESCRIPTOR.pack(blob, chunk, target, offset, length))

    def _forget(self, until_ns: int) -> None:
        """Let what was named up to then be named again: the oldest stand first."""
        with contextlib.suppress(StopIteration, RuntimeError, KeyError):  # another thread's turn
            while self._known[oldest := next(iter(self._known))] <= until_ns:
                del self._known[oldest]

    def send_soon(self) -> None:
        """Have what was noted sent, after the caller has got its bytes."""
        if self._waiting and not self._sending:
            self._sending = True
            self._aside(self._send)

    def _send(self) -> None:
        try:
            while self._waiting:
                address, rows = self._waiting.popitem()
                try:
                    self._connections.tell_suspects(address, b"".join(rows), SEND_MS)
                except (FFSError, OSError):  # it has not heard: the next reader may tell it
                    for blob, chunk, target, _, _ in map(_DESCRIPTOR.unpack, rows):
                        self._known.pop((target, blob, chunk), None)
        finally:
            self._sending = False
