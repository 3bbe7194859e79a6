"""Every RPC: its name, its request, its reply. The codec (ffs.rpc) validates both by these types.

A message travels as a msgpack array of its fields in the order declared here; a new field is added
at the end with a default, so that versions N and N-1 understand each other. Paths are absolute
bytes. Every mutation carries `mutation`, 16 random bytes chosen once per logical operation and kept
over retries: the server applies it once and answers duplicates with the recorded result.
Batch replies hold one entry per request entry, in order: the value, or an `Fault`. What comes by
the thousand is a named tuple (ffs.rpc.schema says why), other messages are dataclasses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Generic, NamedTuple, TypeVar

from ffs.types import Attr, Layout, Routing, Segment

Req = TypeVar("Req")
Rep = TypeVar("Rep")


@dataclass(frozen=True, slots=True)
class Method(Generic[Req, Rep]):
    """One remote procedure: its name on the wire and the types of both directions."""

    name: str
    request: type[Req]
    reply: type[Rep]
    mutation: bool = False
    waits: bool = False
    """Whether its answer may take long without any work: nothing is set aside for it meanwhile, and
    it ends with the connection that it came by."""


@dataclass(frozen=True, slots=True)
class Empty:
    """A reply that says only that it was done."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why one entry of a batch failed: an error code of ffs.errors and its message."""

    code: int
    message: str


# --- what is there ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RoutingRequest:
    """Ask for the routing table."""


@dataclass(frozen=True, slots=True)
class ClusterReply:
    """The cluster's identity and routing, and how long the server keeps what clients hold."""

    cluster_id: bytes
    routing: Routing
    session_ttl_ms: int
    attr_ttl_ms: int
    default_layout: Layout
    servers: list[str] = field(default_factory=list)
    """HOST:PORT of the metadata servers that live, where there may be several."""


@dataclass(frozen=True, slots=True)
class StatManyRequest:
    """Attributes of many paths. `follow` resolves a symlink in the last place."""

    paths: list[bytes]
    follow: bool = True


@dataclass(frozen=True, slots=True)
class StatManyReply:
    """One per path."""

    attrs: list[Attr | Fault]


@dataclass(frozen=True, slots=True)
class OpenManyRequest:
    """Attributes and segments of many files, for reading. Leaves no state behind."""

    paths: list[bytes]


class OpenFile(NamedTuple):
    """A file's content at one moment: what a read needs and nothing more."""

    attr: Attr
    segments: list[Segment]


@dataclass(frozen=True, slots=True)
class OpenManyReply:
    """One per path."""

    files: list[OpenFile | Fault]


@dataclass(frozen=True, slots=True)
class ListRequest:
    """One page of a directory in name order, after `after` (empty: from the start)."""

    path: bytes
    after: bytes = b""
    limit: int = 1024


class DirEntry(NamedTuple):
    """A name and what it stands for; `link` is what a symbolic link holds."""

    name: bytes
    attr: Attr
    link: bytes = b""


@dataclass(frozen=True, slots=True)
class ListReply:
    """Entries in name order; `more` says that another page follows the last name."""

    entries: list[DirEntry]
    more: bool


@dataclass(frozen=True, slots=True)
class ReadlinkRequest:
    """What does a symbolic link hold?"""

    path: bytes


@dataclass(frozen=True, slots=True)
class ReadlinkReply:
    """The target as it was written: absolute from the root of FFS, or relative to the link."""

    target: bytes


@dataclass(frozen=True, slots=True)
class UsageManyRequest:
    """How much lies at and below each path. Symbolic links are counted, not followed."""

    paths: list[bytes]


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tree holds. An inode with several names in it counts once.

    Shapes/units: size_bytes adds up file sizes; stored_bytes adds up the blobs' lengths, each blob
    once, before replication: copies by reference and zeros cost nothing.
    """

    files: int
    directories: int
    symlinks: int
    size_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class UsageManyReply:
    """One per path."""

    usages: list[Usage | Fault]


@dataclass(frozen=True, slots=True)
class StatfsRequest:
    """How full is the cluster?"""


@dataclass(frozen=True, slots=True)
class StatfsReply:
    """Sums over all targets, as they last reported, replicas included; `inodes` in use."""

    capacity_bytes: int
    used_bytes: int
    available_bytes: int
    inodes: int
    replicas: int
    """Copies of each chunk that a new file will have."""


# --- writing files --------------------------------------------------------------------------------


class CreateMode(IntEnum):
    """What creating means when the name exists. The content changes at close in every mode."""

    REPLACE = 1
    EXCLUSIVE = 2
    """Reserve the name now; others get ExistsError until close, abort or reaping."""
    APPEND = 3
    """At close the blob goes behind what the file holds then; a missing file is made."""


class CreateEntry(NamedTuple):
    """One file to be written. Missing parents are made if `parents`."""

    path: bytes
    create_mode: int = CreateMode.REPLACE
    mode: int = 0o644
    parents: bool = False
    chunk_size_bytes: int = 0
    """0: as the nearest directory above says that has a layout, else the cluster's default."""
    stripe: int = -1
    """-1: the same; 0: all chains."""


@dataclass(frozen=True, slots=True)
class CreateManyRequest:
    """Open write sessions. A session dies with its client's lease (session_ttl_ms)."""

    mutation: bytes
    client: bytes
    entries: list[CreateEntry]


class WriteSession(NamedTuple):
    """A right to write one new blob, until it is closed, aborted or reaped."""

    session: int
    blob: int
    layout: Layout


@dataclass(frozen=True, slots=True)
class CreateManyReply:
    """One per entry."""

    sessions: list[WriteSession | Fault]


class CloseEntry(NamedTuple):
    """Publish a session's blob as its path's content: the first `length` bytes of it."""

    session: int
    length: int
    mtime_ns: int = 0
    """0: now."""
    segments_replaced: int = 0
    """With APPEND: the blob takes the place of the file's last so many segments, which must have
    its length in all: the file's bytes stay the same and lie in fewer pieces."""
    version_expected: int = 0
    """0: any; else VersionError unless the file is at this version."""
    inode_expected: int = 0
    """0: any; else VersionError unless the name still stands for this inode. With segments_replaced
    both must be given: only together do they say which bytes were read."""


@dataclass(frozen=True, slots=True)
class CloseManyRequest:
    """Make written files visible. All their chunks must be durable before this is sent."""

    mutation: bytes
    client: bytes
    entries: list[CloseEntry]


@dataclass(frozen=True, slots=True)
class CloseManyReply:
    """One per entry."""

    attrs: list[Attr | Fault]


@dataclass(frozen=True, slots=True)
class AbortManyRequest:
    """Give up write sessions; their blobs die. Unknown sessions are fine."""

    mutation: bytes
    client: bytes
    sessions: list[int]


@dataclass(frozen=True, slots=True)
class RenewRequest:
    """Keep all of a client's write sessions alive."""

    client: bytes


@dataclass(frozen=True, slots=True)
class RenewReply:
    """How many sessions the client still has."""

    sessions: int


# --- changing the namespace -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MkdirRequest:
    """Make a directory. With `exist_ok` a directory that is there already is fine."""

    mutation: bytes
    path: bytes
    mode: int = 0o755
    parents: bool = False
    exist_ok: bool = False


@dataclass(frozen=True, slots=True)
class AttrReply:
    """The attributes after the change."""

    attr: Attr


@dataclass(frozen=True, slots=True)
class RenameRequest:
    """Atomically move a name; a file or empty directory in its place is replaced if `replace`."""

    mutation: bytes
    source: bytes
    target: bytes
    replace: bool = True
    parents: bool = False


@dataclass(frozen=True, slots=True)
class RemoveManyRequest:
    """Remove files (and symlinks). One answer per path."""

    mutation: bytes
    paths: list[bytes]


@dataclass(frozen=True, slots=True)
class RemoveManyReply:
    """None for what was removed."""

    results: list[None | Fault]


@dataclass(frozen=True, slots=True)
class RmdirRequest:
    """Remove an empty directory, or with `recursive` a whole tree in one transaction."""

    mutation: bytes
    path: bytes
    recursive: bool = False


@dataclass(frozen=True, slots=True)
class RmdirReply:
    """How many names went."""

    removed: int


@dataclass(frozen=True, slots=True)
class SetattrRequest:
    """Change attributes; None leaves one as it is. A smaller `size` cuts, a larger adds zeros."""

    mutation: bytes
    path: bytes
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    follow: bool = True
    """Whether a symbolic link in the last place means what it points to."""


@dataclass(frozen=True, slots=True)
class CopyRequest:
    """Copy a file by reference: the new inode shares the blobs, no data moves."""

    mutation: bytes
    source: bytes
    target: bytes
    replace: bool = True
    parents: bool = False


@dataclass(frozen=True, slots=True)
class SymlinkRequest:
    """Make a symbolic link that holds `target`, which need not exist."""

    mutation: bytes
    path: bytes
    target: bytes
    parents: bool = False


@dataclass(frozen=True, slots=True)
class LinkRequest:
    """Give the file or symbolic link at `source` (not followed) one more name."""

    mutation: bytes
    source: bytes
    target: bytes
    parents: bool = False


@dataclass(frozen=True, slots=True)
class LayoutRequest:
    """How are new files in this directory laid out; how is this file?"""

    path: bytes


@dataclass(frozen=True, slots=True)
class LayoutReply:
    """`origin` is the directory or file that says so; empty: the cluster's default."""

    chunk_size_bytes: int
    stripe: int
    origin: bytes


@dataclass(frozen=True, slots=True)
class SetLayoutRequest:
    """Say how files made below a directory from now on are laid out. Both unset: say nothing."""

    mutation: bytes
    path: bytes
    chunk_size_bytes: int = 0
    """0: unset."""
    stripe: int = -1
    """-1: unset; 0: all chains."""


@dataclass(frozen=True, slots=True)
class PinRequest:
    """Keep the content that the files at and below a path have now, whatever becomes of them."""

    mutation: bytes
    path: bytes
    owner: str
    ttl_ms: int = 0
    """0: until it is taken off."""


@dataclass(frozen=True, slots=True)
class PinInfo:
    """A pin. `expires_ns` 0: never."""

    pin: int
    path: bytes
    owner: str
    created_ns: int
    expires_ns: int
    files: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class PinReply:
    """The new pin."""

    pin: PinInfo


@dataclass(frozen=True, slots=True)
class UnpinRequest:
    """Take a pin off; blobs that only it kept die."""

    mutation: bytes
    pin: int


@dataclass(frozen=True, slots=True)
class PinsRequest:
    """Which pins are there?"""


@dataclass(frozen=True, slots=True)
class PinsReply:
    """In order of their ids."""

    pins: list[PinInfo]


# --- storage daemons ------------------------------------------------------------------------------


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


@dataclass(frozen=True, slots=True)
class UnknownBlobsReply:
    """A subset of the request; the daemon may drop them."""

    unknown: list[int]


# --- operators ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StatusRequest:
    """Ask for the whole state of the cluster."""


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One process of the cluster, as the metadata server sees it."""

    id: int
    role: str
    pid: int
    state: str
    address: str
    counters: DataLoopCounters | None = None
    """Of a storage daemon, as its last heartbeat told them; None: it did not."""


@dataclass(frozen=True, slots=True)
class StatusReply:
    """What `ffs status` prints."""

    cluster_id: bytes
    nodes: list[NodeStatus]
    routing: Routing
    reports: list[TargetReport]
    inodes: int
    blobs: int
    sessions: int
    dead_blobs: int
    backup_ns: int = 0
    """When the server last made a backup by itself; 0: never."""
    backup_error: str = ""
    """Why its last attempt failed; empty: it did not."""


ROUTING = Method("routing", RoutingRequest, ClusterReply)
STAT_MANY = Method("stat_many", StatManyRequest, StatManyReply)
OPEN_MANY = Method("open_many", OpenManyRequest, OpenManyReply)
LIST = Method("list", ListRequest, ListReply)
CREATE_MANY = Method("create_many", CreateManyRequest, CreateManyReply, mutation=True)
CLOSE_MANY = Method("close_many", CloseManyRequest, CloseManyReply, mutation=True)
ABORT_MANY = Method("abort_many", AbortManyRequest, Empty, mutation=True)
RENEW = Method("renew", RenewRequest, RenewReply)
MKDIR = Method("mkdir", MkdirRequest, AttrReply, mutation=True)
RENAME = Method("rename", RenameRequest, Empty, mutation=True)
REMOVE_MANY = Method("remove_many", RemoveManyRequest, RemoveManyReply, mutation=True)
RMDIR = Method("rmdir", RmdirRequest, RmdirReply, mutation=True)
SYMLINK = Method("symlink", SymlinkRequest, AttrReply, mutation=True)
READLINK = Method("readlink", ReadlinkRequest, ReadlinkReply)
LINK = Method("link", LinkRequest, AttrReply, mutation=True)
LAYOUT = Method("layout", LayoutRequest, LayoutReply)
SET_LAYOUT = Method("set_layout", SetLayoutRequest, LayoutReply, mutation=True)
PIN = Method("pin", PinRequest, PinReply, mutation=True)
UNPIN = Method("unpin", UnpinRequest, Empty, mutation=True)
PINS = Method("pins", PinsRequest, PinsReply)
USAGE_MANY = Method("usage_many", UsageManyRequest, UsageManyReply)
STATFS = Method("statfs", StatfsRequest, StatfsReply)
SETATTR = Method("setattr", SetattrRequest, AttrReply, mutation=True)
COPY = Method("copy", CopyRequest, AttrReply, mutation=True)
REGISTER = Method("register", RegisterRequest, RegisterReply)
HEARTBEAT = Method("heartbeat", HeartbeatRequest, HeartbeatReply)
WATCH_ROUTING = Method("watch_routing", WatchRoutingRequest, WatchRoutingReply, waits=True)
UNKNOWN_BLOBS = Method("unknown_blobs", UnknownBlobsRequest, UnknownBlobsReply)
STATUS = Method("status", StatusRequest, StatusReply)
