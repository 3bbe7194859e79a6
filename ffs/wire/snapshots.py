"""RPCs of snapshots, clones and the trash.

Declared and sent as `ffs.wire.method` says. Paths are absolute bytes. Previous hop:
client/snapshots.py; next hop: server/meta/ops/snapshot.py, clone.py and trash.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ffs.types import Attr
from ffs.wire.messages import RmdirReply
from ffs.wire.method import Method


@dataclass(frozen=True, slots=True)
class CloneRequest:
    """Make a tree at `target` that is what `source` is now: new inodes, shared blobs."""

    mutation: bytes
    source: bytes
    target: bytes
    parents: bool = False


@dataclass(frozen=True, slots=True)
class CloneReply:
    """The new directory, and how many inodes were made, itself included."""

    attr: Attr
    files: int
    directories: int
    symlinks: int


@dataclass(frozen=True, slots=True)
class SnapshotRequest:
    """Keep what a directory is now as `PATH/.snapshots/NAME`, where nobody can change it."""

    mutation: bytes
    path: bytes
    name: bytes


@dataclass(frozen=True, slots=True)
class RemoveSnapshotRequest:
    """Remove a snapshot of a directory."""

    mutation: bytes
    path: bytes
    name: bytes


@dataclass(frozen=True, slots=True)
class TrashRequest:
    """Move a file, link or directory into the caller's trash."""

    mutation: bytes
    path: bytes


@dataclass(frozen=True, slots=True)
class TrashReply:
    """The path of the directory in the trash that says what was removed, and holds it."""

    entry: bytes


@dataclass(frozen=True, slots=True)
class TrashedRequest:
    """One page of what is in the caller's trash, behind the entry `after` (empty: the first)."""

    after: bytes = b""
    everyone: bool = False
    """What all users have removed; for root."""


class Trashed(NamedTuple):
    """An entry of a trash: where it is, what its path was, since when, and what it is."""

    entry: bytes
    origin: bytes
    removed_ns: int
    attr: Attr


@dataclass(frozen=True, slots=True)
class TrashedReply:
    """Oldest first for each user; `more` says that another page follows."""

    entries: list[Trashed]
    more: bool


CLONE = Method("clone", CloneRequest, CloneReply, mutation=True)
SNAPSHOT = Method("snapshot", SnapshotRequest, CloneReply, mutation=True)
REMOVE_SNAPSHOT = Method("remove_snapshot", RemoveSnapshotRequest, RmdirReply, mutation=True)
TRASH = Method("trash", TrashRequest, TrashReply, mutation=True)
TRASHED = Method("trashed", TrashedRequest, TrashedReply)
