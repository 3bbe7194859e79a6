"""The storage daemon's C engine: the chunk store and the data loop (see server/storage/daemon.py).

Read path: client -> ffs._reader -> (wire) -> THIS (DataLoop -> ChunkStore), no Python in between.
Write path: DataLoop receives and checks a chunk; Python's chain logic decides; persist, forward (to the
next daemon of the chain), ack run here.
Statuses are codes of ffs.errors; 0 is done.
"""

from collections.abc import Sequence
from typing import Any

EVENT_WRITE: int
EVENT_PERSISTED: int
EVENT_CLOSED: int
EVENT_TARGET_STOPPED: int
EVENT_SLOW_READ: int
EVENT_FORWARDED: int
EVENT_PEER_CLOSED: int
EVENT_SUSPECT: int
EVENT_REFUSED: int

class ChunkStore:
    """One target: a directory of extent, checksum and index files (docs/chunk-store.md).

    Opening derives free space from the index; a superblock of another cluster, target or newer format
    raises ValueError naming it; OSError otherwise. A second opener gets BlockingIOError (file lock).
    """

    def __init__(
        self,
        path: str,
        *,
        cluster_id: bytes,
        target_id: int,
        create: bool = False,
        drop_delay_ms: int = 2000,
    ) -> None:
        """`target_id` >= 1; `drop_delay_ms`: how long a dropped extent stays untouched at least."""
    @staticmethod
    def read_superblock(path: str) -> dict[str, Any] | None:
        """{"cluster_id": bytes, "target_id": int, "format": int, "clean": bool}; None where there is none."""
    def put(self, blob: int, chunk: int, data: Any, crcs: Any) -> int:
        """Store one chunk durably (tests, resync). Returns a status: 0 also for the same CRCs again."""
    def put_many(
        self, chunks: Sequence[tuple[int, int, int, int]], data: Any, crcs: Any
    ) -> list[int]:
        """Store chunks (blob, chunk, offset, length): `data[offset : offset + length]`, with their block
        CRCs back to back in `crcs`. They share a commit. Returns a status for each; 1,000 at most."""
    def replace(self, blob: int, chunk: int, data: Any, crcs: Any) -> int:
        """Store one chunk durably in place of what is here under its name, or where nothing is.
        Readers, and a crash at any instruction, find the old chunk or the new one, whole."""
    def verify(self, blob: int, chunk: int) -> int:
        """Read a chunk from the disk and hold it against its block CRCs and its index entry. Returns a
        status: ChecksumError's, StorageIOError's, ChunkMissingError's or TargetStoppedError's code."""
    def read(self, blob: int, chunk: int, offset: int, length: int) -> tuple[int, bytes, bytes]:
        """(status, bytes widened to blocks, their CRCs), unverified, as the data loop would send them."""
    def lookup(self, blob: int, chunk: int) -> tuple[int, int] | None:
        """(length, CRC32C over the block CRC list) of a chunk that is here."""
    def drop(self, blobs: list[int]) -> int:
        """Forget all chunks of these blobs durably, free their extents; returns chunks dropped. Idempotent.
        OSError if the target is stopped or stops: what is on disk is not known then."""
    def blobs(self, after: int = 0, limit: int = 4096) -> list[int]:
        """Distinct blob ids > after in ascending order."""
    def keys(self, after_blob: int, after_chunk: int, limit: int) -> bytes:
        """The first `limit` chunks after (after_blob, after_chunk) in order, 24 bytes each: <QIIII blob,
        chunk, length, digest as `lookup` has it, 0. Fewer: there are no more."""
    def chunks(self, blob: int) -> list[tuple[int, int]]:
        """(chunk, length) of one blob, ascending."""
    def stats(self) -> dict[str, int]:
        """chunks, stored_bytes, allocated_bytes, damaged_entries, damage, stopped. `damage` is a number made of
        where the damaged entries are, 0 without any: whoever has made up for it knows it again. No I/O."""
    def latency(self) -> dict[str, tuple[int, ...]]:
        """Durations since the store was opened, each as `ffs._reader.latency` has them: "disk_read", of ranges that the
        page cache did not have, from when the disk was asked; "commit", of batches of changes, from when their first was queued."""
    def waiting_ms(self) -> int:
        """How long the oldest change under way (put, replace, drop) has been waiting for the disk. No I/O."""
    def give_up(self) -> None:
        """Stop a target whose disk does not answer: what waits for its turn ends with TargetStoppedError's code,
        what the disk has ends when it answers, and close() waits for that. Never blocks."""
    def release(self) -> None:
        """As `close`, which comes too late then; but the object goes on being what a stopped target is."""
    def close(self) -> None:
        """Sync, mark the superblock clean, release the lock. Idempotent."""

class DataLoop:
    """Threads that own data connections; `loops` of them, each with its own epoll.

    Bounds: connections <= CONNECTIONS_PER_DAEMON_MAX; receive buffers <= `write_buffer_bytes` in all, one
    half for hop 0 (writes of clients), half of what is left for each hop behind it, and one chunk of any
    size where a hop has no other (a connection whose next write does not fit is simply not read from
    until there is room, so what waits for one hop's memory never waits for that of another); send
    buffers <= SEND_BUFFERS_MAX in all (a connection waits its turn for one); memory for what is read from
    the disk <= `read_buffer_bytes` in all, half of it for one connection. A peer that does not come up to
    the pace of docs/limits.md is closed.
    Fork: in the child close() does nothing, all else raises RuntimeError, as with a ChunkStore.
    """

    def __init__(
        self,
        stores: dict[int, ChunkStore],
        *,
        loops: int = 1,
        write_buffer_bytes: int = 256 << 20,
        congestion: str = "cubic",
        io: str = "auto",
        read_buffer_bytes: int = 64 << 20,
        reads: str = "auto",
        slow_read_ms: int = 1000,
        rdma: bool = True,
        rdma_device: str = "",
        rdma_gid_index: int = -1,
        rdma_max_sge: int = 0,
        rdma_connect: str = "auto",
    ) -> None:
        """`io`: what is not in the page cache is read "direct", "buffered" (through the cache), or "auto": directly
        at first, through the cache if it is read again soon. `read_buffer_bytes`: a multiple of 4 MiB. `reads`: by a
        "ring" (io_uring; OSError without), by "threads", or "auto": threads where there is no ring. `slow_read_ms`: a READ that takes so long, from its arrival to its last byte, is an EVENT_SLOW_READ.
        `rdma`: connections that ask may go over to it, on `rdma_device` (empty: any) with the GID of that index (-1: any)
        and gather lists of `rdma_max_sge` (0: the device's); `rdma_connect`: by "exchange", by "cm" or as they want."""
    def add_store(self, target_id: int, store: ChunkStore) -> None: ...
    def event_fd(self) -> int:
        """Readable when poll() has something."""
    def adopt(self, fd: int, *, local: bool = False, token_id: bytes | None = None) -> int:
        """Take over an authenticated connection; returns its connection id. Owns fd unless it raises OSError
        (EMFILE: at the bound). `local`: a client on this host, which may have chunks located and read the
        extent files itself; what it has located stays where it is until it gives it back or its end.
        `token_id`: it was opened by that token, and gets nothing but what grants to that token name."""
    def close_connection(self, connection_id: int) -> None:
        """Have it closed; EVENT_CLOSED follows. Nothing happens if it is closed already."""
    def set_grant_keys(self, *keys: tuple[int, bytes]) -> None:
        """Judge grants by these three keys of 32 bytes from now on; each has an id, 0: none."""
    def close_idle(self, count: int) -> None:
        """Have so many idle connections closed, at most one by each loop: its longest idle one. Replaces what
        an earlier call asked for; idle is who has done nothing for IDLE_MS_MIN (ffs/limits.py)."""
    def poll(self) -> list[tuple[int, ...]]:
        """Events: (EVENT_WRITE, write_id, connection_id, blob, chunk, target, chain, chain_version, length, hop)
        once the chunk is received and its CRCs hold; (EVENT_PERSISTED, write_id, status);
        (EVENT_FORWARDED, write_id, status); (EVENT_PEER_CLOSED, peer_id), the last about it;
        (EVENT_SUSPECT, target, blob, chunk): a reader did not find that chunk here, or found it wrong;
        (EVENT_REFUSED, connection_id, request_id, op, blob, left_out): a token's holder had no grant for it; at most
        ten a second from each loop, left_out were not told before;
        (EVENT_CLOSED, connection_id); (EVENT_TARGET_STOPPED, target);
        (EVENT_SLOW_READ, connection_id, trace_id, first range's blob, ranges, bytes, took_ms, queued_ms), at most
        ten a second from each loop: queued is until its last frame was made, the rest went to disk and socket."""
    def persist(self, write_ids: list[int]) -> None:
        """Hand received chunks to their target's writer thread; group commit; EVENT_PERSISTED follows for each.
        ValueError if one of them is unknown or being persisted: then none is started."""
    def ack(self, write_id: int, status: int) -> None:
        """Send the WRITE reply and free the buffer; the id is gone afterwards. Fine if the connection died.
        ValueError for an unknown id, or one between persist or forward and its event."""
    def add_peer(self, fd: int) -> int:
        """Take over an authenticated connection to another daemon's data port; returns its peer id. Owns fd unless
        it raises OSError. A peer that breaks the protocol is closed; how long one may take is the caller's to decide."""
    def close_peer(self, peer_id: int) -> None:
        """Close it: every forward under way on it ends with ConnectionLostError's code, then EVENT_PEER_CLOSED
        follows. Nothing happens if it is closed already."""
    def forward(self, write_ids: list[int], peer_id: int, target: int) -> None:
        """Send received chunks with their CRCs as WRITEs to `target` there, hop + 1, with the same chain and version;
        EVENT_FORWARDED follows for each, with the answer's status, or ConnectionLostError's code once the peer is closed.
        May be under way together with persist. A peer's connection is for writes of one hop: a daemon that is
        reached by writes of several needs one for each, or daemons might wait for each other's memory for ever.
        ValueError if a write is unknown or being forwarded, of another hop than those before it on the
        peer, or at the end of the longest chain (HOPS_MAX): then none is started.
        Copies: 0 in user space."""
    def set_chain_version(self, target: int, version: int) -> None:
        """Writes for this target are judged by this version of its chain from now on: LIST of it is answered to
        those who began to take part in writes at this version or before, with StaleChainError's code to others.
        ValueError for a target that is not served here. 0 until it is set."""
    def stats(self) -> dict[str, int]:
        """connections, send_buffers, buffer_bytes, copied_bytes, located (chunks pinned for clients on this
        host) now, and since the start: ranges_total,
        read_bytes_total, write_bytes_total, errors_total; {mapped,sendfile,buffered,disk,direct}_{ranges,bytes}_total:
        how they were sent (reply.c; disk: through the page cache); direct_refused_total: ranges that were not read
        directly because the file system would not; frames_total, send_calls_total, short_sends_total (full sockets);
        queued_ns_total over all ranges and queued_ns_max, from a request's arrival until its frame was made;
        slow_reads_total; rdma_connections_total, rdma_bytes_total: gone over to RDMA, and written to clients by it; forwards_total, forward_bytes_total, forward_send_calls_total: chunks sent to other
        daemons. read_buffer_bytes: in use for reads from the disk; ring: 1, or 0 with ring_errno if it was
        refused."""
    def latency(self) -> dict[str, tuple[int, ...]]:
        """Durations since the start, each as `ffs._reader.latency` has them: "read", of READ requests, from their arrival
        until their last byte was with the kernel; "queued", of ranges, until their frame was made."""
    def slowest(self) -> list[tuple[int, int, int, int, int, int, int, int, int]]:
        """READs of the last minute that took longest, the slowest first, a few: (age_ns, took_ns, queued_ns until its last
        frame was made, the longest wait of its ranges for a disk, trace_id, connection_id, first range's blob, bytes, ranges)."""
    def close(self) -> None: ...

def crc_implementation() -> str: ...
def fault_set(call: str, nth: int, error: int) -> None:
    """Make the nth (1-based) use of a system call wrapper from now fail with errno `error`, or move one byte for
    error 0; nth 0 clears; "*" is any.
    Only for tests; costs one relaxed load when unset."""

def fault_counts() -> dict[str, int]:
    """How often each wrapper was used since the last fault_set: to loop N = 1 .. all."""

def residency_force(means: str) -> None:
    """Only for tests: let stores opened from now on ask about the page cache by "cachestat", "mincore" or "none",
    as they would on kernels that have no better one."""

def journal_start() -> None:
    """Only for tests: note every write, sync, growth, punch, rename of the chunk store from now on
    (records: native/storage/disk.h), so that what a power cut may leave can be rebuilt."""

def journal_bytes() -> int:
    """How long the journal is: to know which records came before an acknowledgement."""

def journal_take() -> bytes:
    """Stop noting and return the records."""
