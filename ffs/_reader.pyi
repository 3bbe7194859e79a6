"""The client's C engine: moves and checks bytes, decides nothing (see client/reader.py).

Read path: client/filesystem.py -> client/reader.py -> THIS -> (wire) -> ffs._storage.
Native functions never retry: they report a status (a code of ffs.errors, 0 is done) per operation.
"""

from collections.abc import Sequence
from typing import Any

READ_OP_BYTES: int
"""40: <QQIIIIHHI  blob, dest_offset, chunk, target, offset, length, conn, status, tag"""
WRITE_OP_BYTES: int
"""40: <QQIIIIIHH  blob, source_offset, chunk, target, chain, length, chain_version, conn, status"""
TIMING_BYTES: int
"""48: of one operation's times, see read_batch."""
STATUS_PENDING: int
"""0xFFFF: what callers put into `status` of an operation that is to be done."""

class Connection:
    """One authenticated data connection. Owns `fd` from here on (makes it a blocking one with a receive timeout).

    Used by one call at a time (a second concurrent user gets BlockingIOError).
    Threads: the caller hands it between threads. `close` while a call uses it makes that call's
    unfinished operations end with ConnectionLostError's code within 100 ms. Fork: a connection of another process generation is
    refused with ConnectionLostError's status; `close` in the child only closes the descriptor.
    """

    def __init__(
        self,
        fd: int,
        *,
        local: bool = False,
        mapped: bool = False,
        copy: bool = False,
        priority: int = 0,
    ) -> None:
        """`local`: a daemon's Unix socket. READ operations then have chunks located over it and read the daemon's extent
        files; the connection is a pin on what was located, for as long as it lives. `mapped`: for `map_located`, a drop
        waits for its end. `copy`: the descriptor stays the caller's, a copy of it is owned. `priority`: of its requests
        (ffs.wire.frame.Priority)."""
    @property
    def local(self) -> bool: ...
    @property
    def alive(self) -> bool: ...
    @property
    def bytes_in_flight(self) -> int: ...
    @property
    def served_ns(self) -> int:
        """How long the last call that used this connection took until it was done with it."""
    @property
    def rdma(self) -> str | None:
        """The RDMA device that it goes by; None for TCP and the same host. Only for who has the connection."""
    @property
    def own_domain(self) -> bool:
        """Whether it went over with `windows=False`. Only for who has the connection."""
    @property
    def rdma_fault(self) -> tuple[int, str]:
        """(RdmaFault, reason) where memory of a call could not be registered, which closes it; (0, "") else. With 0, a
        reason is why a DeviceMemory could not be."""
    def fileno(self) -> int: ...
    def close(self) -> None: ...

def read_batch(
    connections: Sequence[Connection],
    ops: Any,
    out: Any,
    *,
    deadline_ms: int,
    stall_ms: int | Sequence[int] = 0,
    hedge_ms: int = 0,
    hedge_ranges: int = 0,
    verify: bool = True,
    trace_id: int = 0,
    thread_bytes: int = 0,
    timings: Any = None,
) -> int:
    """Run READ operations, receiving each range straight at `out[dest_offset : dest_offset + length]`.

    Args:    connections: one that no operation names helps the nearest one before it, if both go by TCP: they
             must lead to one daemon, and take the operations in turn, so that all end together;
             ops: writable buffer of n * READ_OP_BYTES; only those with status STATUS_PENDING are run;
             out: writable C-contiguous buffer; or DeviceMemory, with `verify=False`, over connections with a domain of
             their own: over others, and where the device does not take it, operations get TransportError's code;
             deadline_ms: from now, > 0;
             stall_ms: 0 = off; else a connection with requests outstanding and no byte for so long
             is closed and its unfinished operations get StalledError's code; one for all, or a
             sequence with one for each connection;
             hedge_ms: 0 = off; else, so long after the start and from then on, a connection that
             has a stall time and at most `hedge_ranges` unfinished operations is closed, and they
             get CancelledOperationError's code: `hedge_ranges` in one call, over all connections;
             thread_bytes: 0 = off; else connections are driven by several threads, this one and helpers that
             sleep between calls, each with at least about so many bytes;
             timings: writable buffer of n * TIMING_BYTES: the call is sampled, and tells of each operation that it runs
             <QQQQQII: asked_ns and ended_ns of the monotonic clock (asked 0: it never was), queued_ns at the daemon,
             disk_ns of that, crc_ns here, place of its connection, 0. On a daemon's own host disk_ns is this thread's, CRCs included.
    Returns: how many operations of the array have status 0 now (those that had it before included);
             every one has a final status, and no byte of
             `out` is touched after the return: whatever could still arrive on a connection with
             unfinished requests can not, since that connection has been closed.
    Raises:  BlockingIOError (a connection is used by another call: nothing was sent),
             ValueError (a range outside `out`, connection index, or limits.py bound broken: nothing was sent),
             KeyboardInterrupt and others from signal handlers, within 200 ms, after revoking as above.
    Copies:  0 in user space for the payload (edges of unaligned ranges go to scratch; counted);
    Threads: drives the sockets in the calling thread and in helpers, GIL released; helpers start with the
             first call that is large enough, and have ended their part when a call returns.
    Fork: see Connection; helpers are not inherited.
    """

def write_batch(
    connections: Sequence[Connection],
    ops: Any,
    data: Any,
    *,
    deadline_ms: int,
    stall_ms: int | Sequence[int] = 0,
    trace_id: int = 0,
) -> int:
    """Send whole chunks from `data[source_offset : source_offset + length]` with their block CRCs, several in flight.

    Args:    stall_ms: as for read_batch; a byte that the peer has taken counts as well
    Returns: how many were acknowledged as durable (status 0); same rules as read_batch otherwise.
    """

def list_chunks(
    connection: Connection,
    target: int,
    after_blob: int,
    after_chunk: int,
    limit: int,
    chain_version: int,
    *,
    deadline_ms: int = 10_000,
    trace_id: int = 0,
) -> tuple[int, bytes]:
    """The first `limit` chunks of a target behind (after_blob, after_chunk), in order: a status, and 24 bytes each,
    <QIIII blob, chunk, length, CRC32C over its list of block CRCs, 0. Fewer than `limit`: there are no more.

    Args:    limit: 1 to LIST_CHUNKS_MAX; chain_version: refused with StaleChainError's code until the daemon judges
             writes by this version of the target's chain or a later one
    Raises:  BlockingIOError (the connection is used by another call), ValueError, and what signal handlers raise
    Threads: the interpreter's lock is released; after anything but a daemon's own answer the connection is
             closed. Fork: see Connection
    """

def present(connection: Connection, grant: bytes, count: int, *, deadline_ms: int = 10_000) -> int:
    """Show a daemon a grant (ffs/auth/grant.py) of `count` ranges, on a connection that was opened by a token.
    By TCP nothing answers, by RDMA a header does: a request that it does not cover is refused. Returns 0, or why it
    could not be shown: then the connection is closed. Otherwise as `list_chunks`."""

def suspect(
    connection: Connection, descriptors: Any, *, deadline_ms: int = 10_000, trace_id: int = 0
) -> int:
    """Tell a daemon which of its chunks were missing or did not match; returns the answer's status, BusyError's code
    if it has enough to look into already. `descriptors`: READ descriptors of 24 bytes, 1 to SUSPECT_CHUNKS_MAX.
    Otherwise as `list_chunks`."""

def connect_qp(
    connection: Connection,
    *,
    device: str = "",
    gid_index: int = -1,
    window_bytes: int = 64 << 20,
    windows: bool = True,
    deadline_ms: int = 5_000,
    way: str = "auto",
) -> tuple[int, int, str]:
    """Have a fresh TCP connection go over to RDMA: its reads and writes, and nothing else, go that way from then on.

    Args:    device, gid_index: which; empty and -1: the one that leads where the connection leads;
             window_bytes: asked for over all connections of the process, but for one request of each;
             windows: use memory windows where the device has them, which serve reads alone: of writes each operation gets
             TransportError's code. Else memory is registered for this connection, in a protection domain of its own;
             way: "exchange": each end tells the other of itself; "cm": by rdma_cm; "auto": the one, or else the other
    Returns: a status, an RdmaFault and a reason. Status 0 and fault 0: done. Status 0 and a fault: the connection
             stays TCP; an empty reason means that the daemon refused. Another status: it is closed.
    Raises:  BlockingIOError, ValueError (closed, or not TCP), and what signal handlers raise
    Threads: the interpreter's lock is released; Fork: see Connection
    """

class Region:
    """Memory that is read into again and again: registered with an RDMA device once, when it is first used.

    Holds a buffer of it, so that it stays where it is, until `release` or its own end. Without RDMA it does
    nothing. Fork: a child registers it anew; what is shared memory is the same memory there.
    """

    def __init__(self, memory: Any) -> None: ...
    def release(self) -> None: ...

class DeviceMemory:
    """Memory of a device, a GPU's, that RDMA reads into: a part of a dma-buf. `read_batch` takes it as `out`.

    Keeps a descriptor of its own, and `owner`, whose memory it is. Fork: as any descriptor.
    """

    def __init__(
        self, fd: int, nbytes: int, address: int, *, offset: int = 0, owner: object = None
    ) -> None:
        """`nbytes` from `offset` on, which the device has at `address`: equal modulo the size of a page.

        Raises:  ValueError; OSError if the descriptor cannot be copied
        """
    @property
    def nbytes(self) -> int: ...
    @property
    def address(self) -> int: ...

def rdma_usage() -> dict[str, int]:
    """{"regions": registrations of callers' memory, "bytes_asked": payload asked for by RDMA and not answered}."""

class Mapping:
    """Read-only memory that shows ranges of chunks side by side: a buffer.

    Lives, and keeps its connections, until the last view is gone. Fork: the child does not have the memory;
    there a new view raises BufferError.
    """

    def __buffer__(self, flags: int, /) -> memoryview: ...

def map_located(
    connections: tuple[Connection, ...], ops: bytes, owner: object, /
) -> Mapping | None:
    """Map ranges that read_batch has just read over these connections, which are `mapped` ones.

    Args:    ops: as for read_batch, statuses and destinations aside: ranges lie in this order, without gaps;
             owner: kept alive by the mapping; it has the connections, and must let nobody else use them
    Returns: None where pages do not allow it, a bound or the system is in the way, or a daemon has gone
    Raises:  ValueError for a connection that is closed, in use, or not for mapping
    Copies:  0; Threads: the interpreter's lock is released; Fork: see Mapping
    """

def parse_ranges(ranges: Any, /) -> tuple[list[str | int], bytearray] | None:
    """Take (path or handle, offset, length) tuples apart; None unless `ranges` is a list or tuple of at least
    two such tuples with paths of type str and numbers that fit 64 bits unsigned.

    Returns: the different files in order of appearance, and for each range a row <QQQ: its file's place in
             that list, offset, length.
    """

def plan_ranges(
    ranges: Any,
    files: list[bytes | None],
    numbers: Any,
    chain_ids: Any,
    chain_targets: Any,
    sole_target: int,
    /,
) -> tuple[bytearray, bytearray | None, int] | None:
    """Plan ranges, back to back, as operations of READ_OP_BYTES, none across chunks, neighbours in a chunk
    as one up to 1 MiB; None if a range is empty, not inside its file, or of a file that is None or not there.

    Args:    ranges: buffer of rows <QQQ: number, offset, length; files: <QQII size, blob, log2 of the chunk
             size, count of chains, and so many u32; numbers: buffer of u64, the number of each file, whose
             low 32 bits are its place in `files`; or None: numbers are places; chain_ids, chain_targets:
             buffers of u32, ascending, and who serves each (0: nobody); sole_target: who serves all, or 0
    Returns: operations, the chain of each (u32; None with a sole target), bytes in all
    Threads: holds the interpreter's lock throughout: what it is given can not change meanwhile.
    """

def crc32c(data: Any, init: int = 0) -> int:
    """CRC32C (Castagnoli), standard form: crc32c(b"123456789") == 0xE3069283; `init` continues one."""

def crc32(data: Any, init: int = 0) -> int:
    """CRC-32 as zlib has it: crc32(b"123456789") == 0xCBF43926; `init` continues one."""

def check_samples(data: Any, offsets: Any, lengths: Any, crcs: Any, checksum: str, /) -> int:
    """Hold samples that lie in `data` against their checksums: "crc32" or "crc32c".

    Args:    offsets, lengths: buffers of u64, crcs: buffer of u32, one for each sample
    Returns: the place of the first sample that does not match; how many there are if all do
    Raises:  ValueError for a sample outside `data`, or arrays of different lengths
    Copies:  0; Threads: the interpreter's lock is released; Fork: no state
    """

def crc32_implementation() -> str:
    """One of "pclmul", "armv8", "software"."""

def force_crc32(name: str, /) -> None:
    """Select an implementation of CRC-32 by name ("auto" for the best); ValueError if this CPU lacks it."""

def block_crcs(data: Any, blob: int, chunk: int, first_block: int = 0) -> bytes:
    """u32 little-endian CRCs of each 4 KiB block of `data`, each started from ffs.layout.block_seed."""

def block_seed(blob: int, chunk: int, block: int) -> int: ...
def pack_header(**fields: int) -> bytes:
    """A frame header with its CRC, fields as ffs.wire.frame.FrameHeader (tests, tools)."""

def unpack_header(data: Any) -> dict[str, int]:
    """Check magic, version, CRC and bounds; ProtocolError-worthy input raises ValueError."""

def crc_implementation() -> str:
    """One of "avx512", "sse42", "armv8", "software"."""

def force_crc(name: str) -> None:
    """Select an implementation by name ("auto" for the best); ValueError if this CPU lacks it."""

def counters() -> dict[str, int]:
    """Totals of this process since start or fork: payload_bytes (asked for and landed),
    wire_bytes_received, wire_bytes_sent, copied_bytes (payload bytes moved by a user-space copy: each such
    copy in the engine goes through one counting function), edge_bytes, ranges, frames, rdma_bytes, syscalls_recv, syscalls_send, crc_failures,
    connections_closed."""

def latency() -> tuple[int, ...]:
    """How long the process's calls of read_batch took, since start or fork: the sum in ns, then how many fell into
    each of the 22 buckets (ffs.latency.BOUNDS_NS)."""

def slowest() -> list[tuple[int, int, int, int, int, int, int, int, int]]:
    """Calls of read_batch that ended in the last minute and took longest, the slowest first, a few: (age_ns, took_ns,
    0, 0, trace_id, 0, first range's blob, bytes, ranges)."""

def pack_part(name: str, /, **fields: int) -> bytes:
    """A structure of a frame's body: "read_descriptor", "reply_entry", "write_descriptor", "qp_end" or "remote" (tests)."""

def unpack_part(name: str, data: Any, /) -> dict[str, int]:
    """The fields of such a structure (tests)."""

def constants() -> dict[str, dict[str, int]]:
    """{"limits": names of ffs.limits -> values in C, "status": error class names -> codes in C} (tests)."""

def fault_set(call: str, nth: int, error: int, /) -> None:
    """Make the nth (1-based) use of a system call wrapper from now fail with errno `error`, or move one byte for
    error 0; nth 0 clears; "*" is any.
    Only for tests; costs one relaxed load when unset."""

def fault_counts() -> dict[str, int]:
    """How often each wrapper was used since the last fault_set: to loop N = 1 .. all."""
