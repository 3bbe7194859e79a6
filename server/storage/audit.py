"""Holds what the targets store against the metadata when an operator asks for it, and reports.

Previous hop: `membership` hands on the wish that came with a heartbeat's answer. Next hops: the
chunk stores, and the metadata server, which judges blobs and keeps the result. Unlike the hourly
`scan`, which only drops what belongs to nothing, this one counts, looks at the length of every
chunk, and drops only if it was told to.

Invariants: only blobs that were stored when it began are judged, and what has gone meanwhile is no
finding: so work that goes on gives no false alarm. What cannot be judged is kept. A target is read
once for a wish: another look would not find what the first one dropped. Lists in the report are
bounded, counts are not. Failure: a target that cannot be read is reported with the reason, and read
again if the wish comes again; a report that cannot be delivered is sent again then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Final

from ffs._storage import ChunkStore
from ffs.errors import FFSError
from ffs.layout import chunk_count, chunk_length
from ffs.rpc.aio import AsyncRpcClient
from ffs.server.storage.scan import CALL_DEADLINE_MS, PAGE_BLOBS, stored_blobs
from ffs.server.storage.targets import Targets, drop_from
from ffs.wire.maintenance import (
    JUDGE,
    SCAN_DONE,
    BlobVerdict,
    JudgeRequest,
    ScanDoneRequest,
    StoredChunk,
    TargetScan,
    Verdict,
)

log = logging.getLogger("ffs.storage.audit")

LISTED_MAX: Final = 64
"""Blobs, or chunks, of one kind that a target's report names."""


@dataclass(slots=True)
class _Heap:
    """Blobs of one kind: how many, how much they hold, and the first few."""

    count: int = 0
    size_bytes: int = 0
    first: list[int] = field(default_factory=list)

    def add(self, blob: int, size_bytes: int) -> None:
        self.count += 1
        self.size_bytes += size_bytes
        if len(self.first) < LISTED_MAX:
            self.first.append(blob)


@dataclass(slots=True)
class _Found:
    """What was found on a target so far."""

    orphans: _Heap = field(default_factory=_Heap)
    lost: _Heap = field(default_factory=_Heap)
    misfits: int = 0
    misfit_chunks: list[StoredChunk] = field(default_factory=list)
    dropped: int = 0


class Audit:
    """Does one wish after the other; one that comes again while it is being done is the same.

    One that comes again after that was on its way before the report was there, or the report was
    lost: it is sent once more, with what was found the first time.

    Args:    disk: the thread that reading the stores' tables and dropping run in
    Threads: the event loop's alone; Fork: none
    """

    def __init__(self, rpc: AsyncRpcClient, targets: Targets, disk: Executor) -> None:
        self._rpc = rpc
        self._targets = targets
        self._disk = disk
        self._asked = asyncio.Event()
        self._wish = (0, 0, False)
        self._told: tuple[int, dict[int, TargetScan]] = (0, {})
        """The last scan that was done, and what it found on which target."""

    def ask(self, node: int, scan: int, drop: bool) -> None:
        """Do a scan soon, in the name of `node`."""
        if scan and self._wish[1] != scan:
            self._wish = (node, scan, drop)
            self._asked.set()

    async def run(self) -> None:
        """Do what is asked for, until cancelled."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            node, scan, drop = self._wish
            if self._told[0] != scan:
                self._told = (scan, {})
            found = self._told[1]
            for target, store in self._targets.working.items():
                if target not in found or found[target].error:
                    found[target] = await self._audit(node, target, store, drop=drop)
            unread = [_not_read(t) for t in self._targets.stopped if t not in found]
            try:
                request = ScanDoneRequest(node, scan, [*found.values(), *unread])
                await self._rpc.call(SCAN_DONE, request, deadline_ms=CALL_DEADLINE_MS)
            except FFSError as error:
                log.warning("audit_not_delivered", extra={"reason": str(error)})
            if self._wish[1] == scan:
                self._wish = (0, 0, False)

    async def _audit(self, node: int, target: int, store: ChunkStore, *, drop: bool) -> TargetScan:
        loop = asyncio.get_running_loop()
        found, blobs, error = _Found(), 0, ""
        try:
            stored = await loop.run_in_executor(self._disk, stored_blobs, store)
            blobs = len(stored)
            for first in range(0, blobs, PAGE_BLOBS):
                page = stored[first : first + PAGE_BLOBS].tolist()
                request = JudgeRequest(node, page)
                reply = await self._rpc.call(JUDGE, request, deadline_ms=CALL_DEADLINE_MS)
                verdicts = list(zip(page, reply.verdicts, strict=True))
                await loop.run_in_executor(self._disk, _look, store, verdicts, found, drop)
        except (FFSError, OSError, ValueError) as failure:
            error = str(failure)
            log.warning("audit_not_finished", extra={"target": target, "reason": error})
        if found.dropped:
            log.info("unknown_blobs_dropped", extra={"target": target, "blobs": found.dropped})
        return _result(target, blobs, found, store, error)


def _look(
    store: ChunkStore,
    verdicts: Sequence[tuple[int, BlobVerdict]],
    found: _Found,
    drop: bool,
) -> None:
    """Count what a page of verdicts means, and drop what belongs to nothing if that is wanted."""
    unknown: list[int] = []
    for blob, verdict in verdicts:
        if verdict.verdict == Verdict.CHANGING:
            continue
        chunks = store.chunks(blob)
        if verdict.verdict == Verdict.LIVE:
            _measure(blob, verdict, chunks, found)
        elif chunks:
            heap = found.lost if verdict.verdict == Verdict.LOST else found.orphans
            heap.add(blob, sum(length for _, length in chunks))
            if verdict.verdict == Verdict.UNKNOWN:
                unknown.append(blob)
    if drop and unknown:
        drop_from(store, unknown)
        found.dropped += len(unknown)


def _measure(
    blob: int, verdict: BlobVerdict, chunks: Sequence[tuple[int, int]], found: _Found
) -> None:
    """Hold the chunks that are here against their blob's length; it says not which should be."""
    cut = verdict.chunk_size_bytes
    count = chunk_count(verdict.length, cut)
    for chunk, length in chunks:
        expected = chunk_length(verdict.length, cut, chunk) if chunk < count else 0
        if length != expected:
            found.misfits += 1
            if len(found.misfit_chunks) < LISTED_MAX:
                found.misfit_chunks.append(StoredChunk(blob, chunk, length, expected))


def _result(target: int, blobs: int, found: _Found, store: ChunkStore, error: str) -> TargetScan:
    return TargetScan(
        target=target,
        blobs=blobs,
        orphans=found.orphans.count,
        orphan_bytes=found.orphans.size_bytes,
        orphan_blobs=found.orphans.first,
        lost=found.lost.count,
        lost_bytes=found.lost.size_bytes,
        lost_blobs=found.lost.first,
        misfits=found.misfits,
        misfit_chunks=found.misfit_chunks,
        damaged_entries=store.stats()["damaged_entries"],
        dropped=found.dropped,
        error=error,
    )


def _not_read(target: int) -> TargetScan:
    return TargetScan(target, 0, 0, 0, [], 0, 0, [], 0, [], 0, 0, "the target has stopped")
