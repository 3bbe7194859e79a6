"""Simulated disks: what survives a crash, and everything that goes wrong with it.

A `Disk` is one target's directory. A `Store` is one life's `ChunkStore` over it: the same methods,
with what a chunk holds as a short token in place of megabytes. A token names its place, as the
checksums of real chunks do, so that whoever verifies a token notices that it was misdirected.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ffs.errors import (
    OK,
    ChecksumError,
    ChunkConflictError,
    ChunkMissingError,
    NoSpaceError,
    StorageIOError,
    TargetStoppedError,
)
from tests.sim.world import MS, World

Key = tuple[int, int]
"""(blob, chunk)."""

CAPACITY_BYTES: Final = 1 << 30
_ROTTEN: Final = b"?"


def token(key: Key, nonce: int) -> bytes:
    """Return a chunk's bytes: they tell where they belong and who wrote them."""
    return b"%d/%d=%d" % (*key, nonce)


def verifies(key: Key, data: bytes) -> bool:
    """Tell whether bytes are undamaged and belong to a place, as block checksums tell it."""
    return data.startswith(b"%d/%d=" % key) and not data.endswith(_ROTTEN)


def checksum(data: bytes) -> int:
    """Return what stands for the CRC32C of a chunk's list of block checksums."""
    return zlib.crc32(data)


@dataclass(slots=True)
class Pending:
    """A chunk of the group that the next commit makes durable."""

    key: Key
    data: bytes


class Disk:
    """What one target's directory holds, whichever process looks at it."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.place = name.partition("+")[0]
        """The disk that it lies on: an ordered target is beside the one that it is named after."""
        self.world = world
        self.chunks: dict[Key, bytes] = {}
        self.index: dict[Key, tuple[int, int]] = {}
        """Length and checksum of a chunk as the index has them, damaged or not."""
        self.target = 0
        self.claim = f"{name}#claim"
        self.cluster_id = b""
        self.fails_next_sync = False
        self.fails_reads = False
        self.full = False
        self.slow = False
        self.holds = 0
        """See `TargetReport.holds`."""
        self.shows_damage = False
        """Whether the next opening finds that entries are missing."""
        self.hangs = False
        self._awaited_by: list[Callable[[], None]] = []

    def wipe(self) -> None:
        """Put an empty disk into the same place."""
        self.__init__(self.world, self.name)  # type: ignore[misc]

    def mend(self) -> None:
        """Fail no more; what is lost stays lost."""
        self.fails_next_sync = self.fails_reads = self.full = self.slow = False
        self.answer()

    def when_answers(self, action: Callable[[], None]) -> None:
        """Do something that takes the disk: now, unless it hangs."""
        if self.hangs:
            self._awaited_by.append(action)
        else:
            action()

    def answer(self) -> None:
        """Hang no more: what was asked for meanwhile is done, in order."""
        self.hangs = False
        awaited, self._awaited_by = self._awaited_by, []
        for action in awaited:
            self.world.after(0, action)

    def keep(self, key: Key, data: bytes) -> None:
        """Hold a chunk from now on."""
        self.chunks[key] = data
        self.index[key] = (len(data), checksum(data))

    def forget(self, key: Key) -> None:
        """Lose a chunk and its entry."""
        del self.chunks[key], self.index[key]

    # --- damage -----------------------------------------------------------------------------------

    def rot(self, key: Key) -> None:
        """Flip a bit."""
        self.chunks[key] = self.chunks[key][:-1] + _ROTTEN

    def misdirect(self, source: Key, target: Key) -> None:
        """The bytes of one chunk come to lie where those of another should."""
        self.chunks[target] = self.chunks[source]
        self.rot(source)


class Store:
    """The `ChunkStore` of one life of a daemon over one disk.

    Args:    on_stop: called once, when the target stops
    """

    def __init__(self, disk: Disk, on_stop: Callable[[], None] = lambda: None) -> None:
        self.disk = disk
        self.stopped = False
        self.pending: dict[int, Pending] = {}
        self.committing = False
        self.overlapping = False
        """Whether two writes of one chunk were ever in a group at once."""
        self._on_stop = on_stop
        self._waits_since_ns = 0

    # --- what the data loop does ------------------------------------------------------------------

    def begin(self, write_id: int, key: Key, data: bytes) -> None:
        """Add a chunk to the group."""
        self.overlapping |= any(other.key == key for other in self.pending.values())
        self.pending[write_id] = Pending(key, data)
        self._waits_since_ns = self._waits_since_ns or self.disk.world.now_ns

    def commit(self) -> list[tuple[int, int]]:
        """End the group: (write id, status) of each member."""
        group, self.pending = self.pending, {}
        self._waits_since_ns = 0
        if self.stopped:
            self.keep_some(group)
            return [(write_id, TargetStoppedError.code) for write_id in group]
        if self.disk.fails_next_sync and group:
            return self.sync_failed(group)
        return [(write_id, self._put(one.key, one.data)) for write_id, one in group.items()]

    def sync_failed(self, group: dict[int, Pending]) -> list[tuple[int, int]]:
        """What was to be synced is anywhere; nobody may sync it again, so the target stops."""
        self.disk.fails_next_sync = False
        self._stop()
        self.keep_some(group)
        return [(write_id, StorageIOError.code) for write_id in group]

    def _stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            self._on_stop()

    def keep_some(self, group: dict[int, Pending]) -> None:
        """Of chunks that were not synced each is whole or absent."""
        for one in group.values():
            if self.disk.world.random.random() < 0.5 and one.key not in self.disk.chunks:
                self.disk.keep(one.key, one.data)

    def crash(self) -> None:
        """The process died, or the power failed."""
        group, self.pending = self.pending, {}
        self.keep_some(group)

    def serve(self, key: Key) -> tuple[int, bytes]:
        """Read a chunk for a client: it verifies what it gets."""
        if self.stopped:
            return TargetStoppedError.code, b""
        if self.disk.fails_reads:
            return StorageIOError.code, b""
        data = self.disk.chunks.get(key)
        return (ChunkMissingError.code, b"") if data is None else (OK, data)

    # --- what the daemon's own parts do -----------------------------------------------------------

    def put(self, blob: int, chunk: int, data: Any, crcs: Any = b"") -> int:
        """See `ChunkStore.put`."""
        if self.stopped:
            return TargetStoppedError.code
        if self.disk.fails_next_sync:
            self.sync_failed({0: Pending((blob, chunk), bytes(data))})
            return StorageIOError.code
        return self._put((blob, chunk), bytes(data))

    def verify(self, blob: int, chunk: int) -> int:
        """See `ChunkStore.verify`."""
        status, data = self.serve((blob, chunk))
        if status != OK:
            return status
        return OK if verifies((blob, chunk), data) else ChecksumError.code

    def replace(self, blob: int, chunk: int, data: Any, crcs: Any = b"") -> int:
        """See `ChunkStore.replace`."""
        if self.stopped:
            return TargetStoppedError.code
        self.disk.keep((blob, chunk), bytes(data))
        return OK

    def lookup(self, blob: int, chunk: int) -> tuple[int, int] | None:
        """See `ChunkStore.lookup`."""
        return self.disk.index.get((blob, chunk))

    def drop(self, blobs: Sequence[int]) -> int:
        """See `ChunkStore.drop`."""
        if self.stopped or self.disk.hangs:  # as if it had been given up already
            raise OSError(5, "target is stopped")
        gone = set(blobs)
        keys = [key for key in self.disk.chunks if key[0] in gone]
        for key in keys:
            self.disk.forget(key)
        return len(keys)

    def blobs(self, after: int = 0, limit: int = 4096) -> list[int]:
        """See `ChunkStore.blobs`."""
        return sorted({blob for blob, _ in self.disk.chunks if blob > after})[:limit]

    def chunks(self, blob: int) -> list[tuple[int, int]]:
        """See `ChunkStore.chunks`."""
        held = self.disk.chunks
        return sorted((key[1], len(held[key])) for key in held if key[0] == blob)

    def listing(self, after: Key, limit: int) -> list[tuple[int, int, int, int]]:
        """Return (blob, chunk, length, checksum) of chunks behind a place, in order."""
        index = self.disk.index
        return [(*key, *index[key]) for key in sorted(key for key in index if key > after)[:limit]]

    def stats(self) -> dict[str, int]:
        """See `ChunkStore.stats`."""
        used = sum(map(len, self.disk.chunks.values()))
        return {
            "chunks": len(self.disk.chunks),
            "stored_bytes": used,
            "allocated_bytes": used,
            "damaged_entries": 0,
            "capacity_bytes": CAPACITY_BYTES,
            "free_bytes": 0 if self.disk.full else CAPACITY_BYTES - used,
            "stopped": int(self.stopped),
        }

    def waiting_ms(self) -> int:
        """See `ChunkStore.waiting_ms`."""
        waits_ns = self.disk.world.now_ns - self._waits_since_ns
        return waits_ns // MS if self._waits_since_ns else 0

    def give_up(self) -> None:
        """See `ChunkStore.give_up`: what waits behind the disk's answer is refused then."""
        self._stop()

    def close(self) -> None:
        """See `ChunkStore.close`."""

    def _put(self, key: Key, data: bytes) -> int:
        known = self.disk.index.get(key)
        if known is not None:
            return OK if known == (len(data), checksum(data)) else ChunkConflictError.code
        if self.disk.full:
            return NoSpaceError.code
        self.disk.keep(key, data)
        return OK


def keys_of(stores: Iterable[Store]) -> set[Key]:
    """Return all keys that some stores hold."""
    return {key for store in stores for key in store.disk.chunks}
