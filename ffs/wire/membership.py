"""What storage daemons say to the metadata server: who they are, what they hold, what they may do.

Declared and sent as `ffs.wire.method` says. Previous hop: server/storage/membership.py and
scan.py (whoever waits for a routing calls `watch_routing`); next hop: server/meta/service.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ffs.types import Routing
from ffs.wire.auth import Revocations
from ffs.wire.method import Method


class ChunkName(NamedTuple):
    """What a chunk is called."""

    blob: int
    chunk: int


@dataclass(frozen=True, slots=True)
class TargetHealth:
    """How whole a target is, and what is being done about it. Totals are since its daemon's start.

    While a resync counts, what is left grows; then it falls. `unrepairable` chunks were whole
    nowhere when they were looked at; the first few are named.
    """

    sync_chunks_left: int = 0
    sync_bytes_left: int = 0
    scrubbed_chunks: int = 0
    """By the pass that is under way, or by the last one."""
    scrub_began_ns: int = 0
    scrub_ended_ns: int = 0
    """When the last whole pass ended; 0: never. Before `scrub_began_ns`: one is under way."""
    bad_total: int = 0
    missing_total: int = 0
    repaired_total: int = 0
    unrepairable: int = 0
    unrepairable_chunks: list[ChunkName] = field(default_factory=list)


EMPTIED: Final = -1
"""What a target holds that was emptied, and has not synced since; see `TargetReport.holds`."""


@dataclass(frozen=True, slots=True)
class TargetReport:
    """One of a daemon's targets. `target` 0: new, give it an id. `stopped`: it met a disk error.

    The label tells people where it is. That of a new target is its own for good, so that a daemon
    which dies before it has written its id down gets the same id again.
    """

    label: str
    target: int
    capacity_bytes: int
    used_bytes: int
    chunks: int
    stopped: bool
    disk: str = ""
    """Which disk it lies on: targets that name the same one share its capacity. Empty: unknown."""
    synced: int = 0
    """The `TargetInfo.since` for which it holds all that those hold who served then; 0: none."""
    damaged: bool = False
    """It has lost chunks that it held, and must sync again."""
    health: TargetHealth | None = None
    """None: from a daemon that does not tell."""
    stored_bytes: int = 0
    """Bytes of its chunks."""
    holds: int = 0
    """The chain whose chunks it holds, once it was emptied: of another one it has nothing, whatever
    an older database says. EMPTIED: of none. 0: it was never emptied."""
    compared: int = 0
    """The version of its chain at which it had all that any other member had; 0: none."""


@dataclass(frozen=True, slots=True)
class RegisterRequest:
    """A daemon came up: who it is (0: new), where it takes data connections, what it holds."""

    node: int
    cluster_id: bytes
    """Empty for a daemon that belongs to none yet."""
    pid: int
    host: str
    port: int
    targets: list[TargetReport]
    unanswered: list[str] = field(default_factory=list)
    """Directories whose disks have not answered yet: it may have the targets that lie there."""


@dataclass(frozen=True, slots=True)
class RegisterReply:
    """The ids that the daemon writes to its superblocks, in the order of its report."""

    node: int
    cluster_id: bytes
    targets: list[int]
    routing: Routing
    heartbeat_ms: int
    servers: list[str] = field(default_factory=list)
    """As in `ClusterReply`."""


class SlowRead(NamedTuple):
    """A READ that a daemon has answered in the last minute, and that took long."""

    age_us: int
    took_us: int
    queued_us: int
    """From its arrival until its last frame was made."""
    disk_us: int
    """Of that, the longest wait of one of its ranges for a disk."""
    trace_id: int
    connection: int
    blob: int
    """Of its first range."""
    size: int
    ranges: int


@dataclass(frozen=True, slots=True)
class DiskLatency:
    """How long a target's disk took of late, as `ffs.latency` counts."""

    target: int
    reads: list[int]


@dataclass(frozen=True, slots=True)
class DaemonReport:
    """What a daemon says of itself besides counts."""

    version: str = ""
    congestion: str = ""
    """TCP congestion control that it sends by."""
    clock_ahead_ns: int = 0
    """By how much its clock is ahead of its metadata server's at least (below 0: behind), by what
    its last heartbeat's answer said and how long that took."""
    reads: list[int] = field(default_factory=list)
    """How long READs took since it came up, as `ffs.latency` counts."""
    slowest: list[SlowRead] = field(default_factory=list)
    disks: list[DiskLatency] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class DataLoopCounters:
    """What a daemon's data loop has done since it came up, and what it holds now.

    `ffs/_storage.pyi` says what each one means, by the same name. Rates are for the reader of two
    of them: `age_ns` tells their distance, and a lower one that the daemon has started anew.
    """

    age_ns: int
    """How long the data loop has been there."""
    connections: int = 0
    ranges_total: int = 0
    read_bytes_total: int = 0
    write_bytes_total: int = 0
    errors_total: int = 0
    mapped_ranges_total: int = 0
    mapped_bytes_total: int = 0
    sendfile_ranges_total: int = 0
    sendfile_bytes_total: int = 0
    buffered_ranges_total: int = 0
    buffered_bytes_total: int = 0
    disk_ranges_total: int = 0
    disk_bytes_total: int = 0
    direct_ranges_total: int = 0
    direct_bytes_total: int = 0
    direct_refused_total: int = 0
    frames_total: int = 0
    send_calls_total: int = 0
    short_sends_total: int = 0
    queued_ns_total: int = 0
    queued_ns_max: int = 0
    slow_reads_total: int = 0
    copied_bytes: int = 0
    located: int = 0
    send_buffers: int = 0
    buffer_bytes: int = 0
    read_buffer_bytes: int = 0
    ring: int = 0
    ring_errno: int = 0
    forwards_total: int = 0
    forward_bytes_total: int = 0
    forward_send_calls_total: int = 0
    rdma_connections_total: int = 0
    rdma_bytes_total: int = 0
    daemon: DaemonReport | None = None
    """None: from a daemon that does not tell. It travels here since what is written down of a
    node in a shared database is this."""


@dataclass(frozen=True, slots=True)
class HeartbeatRequest:
    """I am alive; these are my targets; the blobs of the last answer are dropped from them.

    `pid` and `port` are those of the registration: whoever finds others has been told a wrong one.
    """

    node: int
    targets: list[TargetReport]
    dropped: list[int]
    routing_version: int
    pid: int = 0
    port: int = 0
    counters: DataLoopCounters | None = None
    revocations_version: int = -2
    """Of those that the daemon goes by; -1: it knows none; -2: it does not ask."""


@dataclass(frozen=True, slots=True)
class NewTarget:
    """A target to be created on the disk of another one of the same daemon, in a place below it."""

    target: int
    beside: int


@dataclass(frozen=True, slots=True)
class HeartbeatReply:
    """Blobs to drop now (idempotent), and the routing if it is newer than the daemon's."""

    drops: list[int]
    routing: Routing | None
    servers: list[str] = field(default_factory=list)
    """As in `ClusterReply`."""
    scan: int = 0
    """Scan all targets and report (`ffs.wire.maintenance`), unless that is under way; 0: no."""
    scan_drop: bool = False
    """Let that scan drop what belongs to nothing."""
    create: list[NewTarget] = field(default_factory=list)
    """Targets to create, each told until it is reported."""
    retire: list[int] = field(default_factory=list)
    """Targets that left their chains, to be emptied; told until they report no chunk."""
    compare: list[int] = field(default_factory=list)
    """Targets of chains in doubt, to be compared with the others; told until that is over."""
    revocations: Revocations | None = None
    """All that is revoked, if that is not what the daemon goes by."""
    wall_ns: int = 0
    """The server's clock when it answered; 0: it does not tell."""


@dataclass(frozen=True, slots=True)
class WatchRoutingRequest:
    """Answer as soon as there is a routing newer than `version`, or after `wait_ms` without one."""

    version: int
    wait_ms: int


@dataclass(frozen=True, slots=True)
class WatchRoutingReply:
    """The newer routing; None: there is none yet."""

    routing: Routing | None


@dataclass(frozen=True, slots=True)
class UnknownBlobsRequest:
    """Which of these stored blobs belong to no file, no session and no pending drop?"""

    node: int
    blobs: list[int]
    dropping: bool = False
    """And which of them are being dropped?"""


@dataclass(frozen=True, slots=True)
class UnknownBlobsReply:
    """A subset of the request; the daemon may drop them."""

    unknown: list[int]


REGISTER = Method("register", RegisterRequest, RegisterReply)
HEARTBEAT = Method("heartbeat", HeartbeatRequest, HeartbeatReply)
WATCH_ROUTING = Method("watch_routing", WatchRoutingRequest, WatchRoutingReply, waits=True)
UNKNOWN_BLOBS = Method("unknown_blobs", UnknownBlobsRequest, UnknownBlobsReply)
