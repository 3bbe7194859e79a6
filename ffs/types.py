"""The nouns that both sides speak: ids, attributes, layouts, segments, routing.

Conventions, said once: offsets and lengths are bytes, ends are exclusive, times are integer
nanoseconds since the Unix epoch, names and paths are bytes on the wire and in the store.
What comes by the thousand is a named tuple, as cheap to make as a row of a query; the rest are
dataclasses.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, NewType

InodeId = NewType("InodeId", int)
BlobId = NewType("BlobId", int)
ChunkIndex = NewType("ChunkIndex", int)
ChainId = NewType("ChainId", int)
TargetId = NewType("TargetId", int)
NodeId = NewType("NodeId", int)

ROOT_INODE = InodeId(1)
ZERO_BLOB = BlobId(0)
"""The blob that is zeros of any length: the only way a file may hold a hole."""

BLOCK_BYTES = 4096
"""The unit of checksum inside a chunk."""


class FileType(IntEnum):
    """What an inode is; the numbers are stored and sent, never renumber."""

    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3


class TargetState(IntEnum):
    """Where a target stands in its chain; the numbers are stored and sent, never renumber."""

    SERVING = 1
    """It holds all that was acknowledged, and answers reads."""
    SYNCING = 2
    """It takes writes, and copies what it missed from those that serve."""
    WAITING = 3
    """It lives, but nobody serves that it could copy from; or it belongs to no chain."""
    LASTSRV = 4
    """It is gone, and served when its chain lost its last server: nobody has more than it."""
    OFFLINE = 5
    """It is gone, and has missed what was written since."""


class Attr(NamedTuple):
    """What `stat` knows about an inode. `version` grows with every change of the content."""

    inode: int
    type: int
    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    version: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


class Layout(NamedTuple):
    """How a blob's chunks are cut and spread; with the routing table it says where each one lives.

    Shapes/units: chunk_size_bytes is a power of two in 64 KiB .. 64 MiB; stripe counts chains.
    """

    chunk_size_bytes: int
    stripe: int
    table: int
    seed: int


class Segment(NamedTuple):
    """A piece of a file: the first `length` bytes of `blob`, which was written with `layout`."""

    blob: int
    length: int
    layout: Layout


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """One storage daemon and the address at which it takes data connections."""

    node: int
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class TargetInfo:
    """One target: a storage directory on one disk of one node; member of one chain at most.

    `since` is the version that its chain had when the target came to this state.
    """

    target: int
    node: int
    state: int
    since: int = 0


@dataclass(frozen=True, slots=True)
class ChainInfo:
    """Ordered replicas: those that serve, then those that sync, then the rest (ffs/chains.py).

    `version` grows with every change of members, order or states.
    """

    chain: int
    version: int
    targets: list[int]


@dataclass(frozen=True, slots=True)
class TableInfo:
    """An immutable list of chains that layouts refer to; a grown cluster gets a new table."""

    table: int
    chains: list[int]


@dataclass(frozen=True, slots=True)
class Routing:
    """Everything a client needs to find a chunk, as of `version`.

    A chain of which fewer than `min_replicas` targets serve takes no writes.
    """

    version: int
    nodes: list[NodeInfo]
    targets: list[TargetInfo]
    chains: list[ChainInfo]
    tables: list[TableInfo]
    min_replicas: int = 1
