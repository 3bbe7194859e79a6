"""What clients ask of the metadata server: name, request and reply of each procedure.

Declared and sent as `ffs.wire.method` says. Paths are absolute bytes. Previous hop:
client/calls.py; next hop: server/meta/service.py. What storage daemons and operators say:
membership.py, maintenance.py, status.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from ffs.types import Attr, Layout, Routing, Segment
from ffs.wire.method import Empty, Fault, Method

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
    grants: list[bytes] = field(default_factory=list)
    """What a token's holder shows storage daemons (ffs.auth.grant); none for the cluster key's."""


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
    grants: list[bytes] = field(default_factory=list)
    """As in `OpenManyReply`: to write the blobs, and to read them."""


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
class QuotaRequest:
    """Which quotas hold at this path?"""

    path: bytes


class QuotaInfo(NamedTuple):
    """A directory's quota and what is below it. A bound of -1: none."""

    path: bytes
    bytes_max: int
    files_max: int
    bytes_used: int
    files_used: int
    """Everything that has an inode: files, directories, links."""


@dataclass(frozen=True, slots=True)
class QuotaReply:
    """The nearest first; each of them counts."""

    quotas: list[QuotaInfo]


@dataclass(frozen=True, slots=True)
class SetQuotaRequest:
    """Bound what may be below a directory. Both bounds -1: nothing any more."""

    mutation: bytes
    path: bytes
    bytes_max: int = -1
    files_max: int = -1


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
QUOTA = Method("quota", QuotaRequest, QuotaReply)
SET_QUOTA = Method("set_quota", SetQuotaRequest, QuotaReply, mutation=True)
PIN = Method("pin", PinRequest, PinReply, mutation=True)
UNPIN = Method("unpin", UnpinRequest, Empty, mutation=True)
PINS = Method("pins", PinsRequest, PinsReply)
USAGE_MANY = Method("usage_many", UsageManyRequest, UsageManyReply)
STATFS = Method("statfs", StatfsRequest, StatfsReply)
SETATTR = Method("setattr", SetattrRequest, AttrReply, mutation=True)
COPY = Method("copy", CopyRequest, AttrReply, mutation=True)
