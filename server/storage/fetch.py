"""Lists and reads the chunks of another daemon's target, over a data connection of its own.

Used by server/storage/recovery.py and server/storage/repair.py. Next hop: ffs._reader, the same
engine that clients read with: it needs nothing of the client and checks every block.

Invariants: a chunk that `fetch` calls good has the very checksums that the listing named: those of
the client that wrote it. A daemon that moves bytes wrong, or has wrong ones with checksums that
fit, cannot pass them on.

Failure behaviour: a connection that broke is closed and made anew with the next call; the calls
raise FFSError or say per chunk what became of it, and never retry.

Threads: one at a time, but for `close`; the interpreter's lock is released while bytes move.
Copies: 0.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ffs import _reader, errors
from ffs.errors import OK
from ffs.handshake import HandshakeKind
from ffs.key import ClusterKey
from ffs.limits import CHUNK_INDEX_MAX, SUSPECT_CHUNKS_MAX
from ffs.rpc.dial import dial
from ffs.server.storage.neighbours import Address
from ffs.server.storage.resync import ChunkKey, Entry, ListPage, Outcome, parse_entries
from ffs.tls_relay import TlsRelay
from ffs.wire.frame import Priority

CONNECT_MS: Final = 5_000
READ_MS: Final = 60_000
STALL_MS: Final = 10_000
"""A source that sends nothing for so long is given up: longer than a reader waits, as nobody waits
for this one."""
_READ: Final = struct.Struct("<QQIIIIHHI")
_WHERE: Final = struct.Struct("<QIIII")
_STATUS_AT: Final = 34
_BAD: Final = frozenset(
    {errors.ChecksumError.code, errors.ChunkLengthError.code, errors.StorageIOError.code}
)


@dataclass(frozen=True, slots=True)
class Fetched:
    """One chunk: STORED stands for good here, and then `data` and `crcs` are its."""

    outcome: Outcome
    data: memoryview
    crcs: bytes = b""


class Source:
    """One target of another daemon."""

    def __init__(
        self,
        key: ClusterKey,
        address: Address,
        target: int,
        congestion: str,
        relay: TlsRelay | None = None,
    ) -> None:
        self.target = target
        self._key = key
        self._address = address
        self._congestion = congestion or None
        self._relay = relay
        self._connection: _reader.Connection | None = None
        self._room = bytearray()

    def list_page(self, page: ListPage, chain_version: int) -> list[Entry]:
        """Return a page of the target's chunks, as of `chain_version` or later.

        Raises:  StaleChainError while the daemon does not know that version; FFSError
        """
        connection = self._connected()
        status, listed = _reader.list_chunks(
            connection, self.target, page.after_blob, page.after_chunk, page.limit, chain_version
        )
        if status != OK:
            self._after_failure()
            raise errors.error_class(status)(
                "a peer did not list its chunks", target=self.target, address=self._text()
            )
        return parse_entries(listed)

    def find(self, key: ChunkKey, chain_version: int) -> Entry | None:
        """Return the target's entry for one chunk; None if it has none.

        Raises:  as `list_page`
        """
        before = (key[0], key[1] - 1) if key[1] else (key[0] - 1, CHUNK_INDEX_MAX)
        for entry in self.list_page(ListPage(self.target, *before, 1), chain_version):
            if entry.key == key:
                return entry
        return None

    def fetch(self, entries: Sequence[Entry]) -> tuple[memoryview, list[Fetched]]:
        """Read whole chunks back to back, and hold them against their entries.

        Returns: the memory they are in, which the next call uses again, and what became of each
        Raises:  FFSError if the daemon cannot be reached
        """
        size = sum(entry.length for entry in entries)
        if len(self._room) < size:
            self._room = bytearray(size)
        room = memoryview(self._room)[:size]
        ops, at = bytearray(), 0
        for entry in entries:
            where = (entry.blob, at, entry.chunk, self.target, 0, entry.length)
            ops += _READ.pack(*where, 0, _reader.STATUS_PENDING, 0)
            at += entry.length
        connection = self._connected()
        done = _reader.read_batch([connection], ops, room, deadline_ms=READ_MS, stall_ms=STALL_MS)
        if done < len(entries):
            self._after_failure()
        fetched: list[Fetched] = []
        at = 0
        for number, entry in enumerate(entries):
            (status,) = struct.unpack_from("<H", ops, number * _READ.size + _STATUS_AT)
            fetched.append(_judged(status, entry, room[at : at + entry.length]))
            at += entry.length
        return room, fetched

    def suspect(self, entries: Sequence[Entry]) -> None:
        """Tell the daemon that these did not come as they should: best effort."""
        rows = [
            _WHERE.pack(entry.blob, entry.chunk, self.target, 0, entry.length) for entry in entries
        ]
        connection = self._connection
        if rows and connection is not None and connection.alive:
            _reader.suspect(connection, b"".join(rows[:SUSPECT_CHUNKS_MAX]))

    def close(self) -> None:
        """Close the connection; a call under way in another thread ends soon."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connected(self) -> _reader.Connection:
        connection = self._connection
        if connection is None:
            line = dial(
                *self._address,
                self._key,
                self._relay.tls if self._relay is not None else None,
                HandshakeKind.DATA,
                timeout_ms=CONNECT_MS,
                congestion=self._congestion,
            )
            with line.plain(self._relay) as sock:
                connection = _reader.Connection(sock.fileno(), copy=True, priority=Priority.BATCH)
            self._connection = connection
        return connection

    def _after_failure(self) -> None:
        connection = self._connection
        if connection is not None and not connection.alive:
            self.close()

    def _text(self) -> str:
        return "{}:{}".format(*self._address)


def whole(data: memoryview, key: ChunkKey, digest: int) -> bytes | None:
    """Return the block checksums of a chunk's bytes; None if it was written with others."""
    crcs = _reader.block_crcs(data, *key)
    return crcs if _reader.crc32c(crcs) == digest else None


def _judged(status: int, entry: Entry, data: memoryview) -> Fetched:
    if status == OK:
        crcs = whole(data, entry.key, entry.digest)
        return Fetched(Outcome.BAD, data) if crcs is None else Fetched(Outcome.STORED, data, crcs)
    if status == errors.ChunkMissingError.code:
        return Fetched(Outcome.GONE, data)
    return Fetched(Outcome.BAD if status in _BAD else Outcome.LATER, data)
