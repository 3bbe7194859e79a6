"""RPCs of upkeep: checking and mending the metadata, and what lies on targets against it.

Declared and sent as `ffs.wire.method` says. Previous hop: client/fsck.py and the storage
daemons; next hop: server/meta/ops/check.py, repair.py and scans.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from ffs.types import Layout
from ffs.wire.method import Empty, Method


@dataclass(frozen=True, slots=True)
class CheckRequest:
    """Hold the metadata against one of the things that must be true of it. Steps count from 0."""

    step: int
    examples: int = 8


@dataclass(frozen=True, slots=True)
class CheckExample:
    """Where one is: a path (empty where there is none; `?/...` leads not to the root) and facts."""

    path: bytes
    detail: str


@dataclass(frozen=True, slots=True)
class CheckReply:
    """What this step found, and how many steps there are."""

    steps: int
    kind: str
    count: int
    examples: list[CheckExample]
    repairable: bool


@dataclass(frozen=True, slots=True)
class RepairRequest:
    """Mend what a step finds now."""

    mutation: bytes
    step: int


@dataclass(frozen=True, slots=True)
class RepairReply:
    """How many were mended, whether there may be more, and what was done to each."""

    repaired: int
    more: bool
    action: str


@dataclass(frozen=True, slots=True)
class LiveBlobsRequest:
    """One page of all blobs that files or pins refer to, behind `after`."""

    after: int = 0
    limit: int = 4_096


@dataclass(frozen=True, slots=True)
class LiveBlob:
    """A blob whose chunks are all stored: `length` bytes of it."""

    blob: int
    length: int
    layout: Layout


@dataclass(frozen=True, slots=True)
class LiveBlobsReply:
    """In order of their ids; `more` says that another page follows."""

    blobs: list[LiveBlob]
    more: bool


@dataclass(frozen=True, slots=True)
class BlobPathsRequest:
    """Are these blobs still live, and which files hold them? At most `limit` paths of each."""

    blobs: list[int]
    limit: int = 8


@dataclass(frozen=True, slots=True)
class BlobPaths:
    """`paths` is empty for a blob that only a pin keeps."""

    live: bool
    paths: list[bytes]


@dataclass(frozen=True, slots=True)
class BlobPathsReply:
    """One per blob."""

    blobs: list[BlobPaths]


@dataclass(frozen=True, slots=True)
class StartScanRequest:
    """Let each daemon hold what its targets store against the metadata, and report.

    `drop`: let it drop what belongs to nothing. `give_up_lost`: count to that what was written
    after the backup that this database was restored from.
    """

    mutation: bytes
    drop: bool = False
    give_up_lost: bool = False


@dataclass(frozen=True, slots=True)
class StartScanReply:
    """The scan's id."""

    scan: int


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk on a target, and how long it should be (0: it should not be there)."""

    blob: int
    chunk: int
    length: int
    expected: int


@dataclass(frozen=True, slots=True)
class TargetScan:
    """What a scan found on one target; lists hold the first few. `error` empty: it was finished."""

    target: int
    blobs: int
    orphans: int
    orphan_bytes: int
    orphan_blobs: list[int]
    """In no row of the metadata: leavings of writes and drops that were cut short."""
    lost: int
    lost_bytes: int
    lost_blobs: list[int]
    """Written after the backup that the metadata was restored from."""
    misfits: int
    misfit_chunks: list[StoredChunk]
    """Of live blobs, with another length than their blob says, or beyond its end."""
    damaged_entries: int
    """Index entries that cannot be read: their chunks are missing."""
    dropped: int
    """Blobs that were dropped by this scan."""
    error: str


@dataclass(frozen=True, slots=True)
class ScanStatusRequest:
    """How far is a scan?"""

    scan: int


@dataclass(frozen=True, slots=True)
class ScanStatusReply:
    """Results by target, and the targets that have not answered."""

    results: list[TargetScan]
    waiting: list[int]


class Verdict(IntEnum):
    """What a stored blob is; sent, never renumber."""

    LIVE = 1
    CHANGING = 2
    """Being written, or waiting for its drop."""
    UNKNOWN = 3
    """Belongs to nothing and may be dropped."""
    LOST = 4
    """Nobody can tell: see `TargetScan.lost_blobs`."""


@dataclass(frozen=True, slots=True)
class JudgeRequest:
    """What are these stored blobs?"""

    node: int
    blobs: list[int]


@dataclass(frozen=True, slots=True)
class BlobVerdict:
    """A `Verdict`, and of live blobs how long they are and how they are cut."""

    verdict: int
    length: int
    chunk_size_bytes: int


@dataclass(frozen=True, slots=True)
class JudgeReply:
    """One per blob."""

    verdicts: list[BlobVerdict]


@dataclass(frozen=True, slots=True)
class ScanDoneRequest:
    """A daemon has scanned its targets."""

    node: int
    scan: int
    results: list[TargetScan]


CHECK = Method("check", CheckRequest, CheckReply)
REPAIR = Method("repair", RepairRequest, RepairReply, mutation=True)
LIVE_BLOBS = Method("live_blobs", LiveBlobsRequest, LiveBlobsReply)
BLOB_PATHS = Method("blob_paths", BlobPathsRequest, BlobPathsReply)
START_SCAN = Method("start_scan", StartScanRequest, StartScanReply, mutation=True)
SCAN_STATUS = Method("scan_status", ScanStatusRequest, ScanStatusReply)
JUDGE = Method("judge", JudgeRequest, JudgeReply)
SCAN_DONE = Method("scan_done", ScanDoneRequest, Empty)
