"""Finds stored blobs that belong to nothing, and drops them.

At start and every hour the daemon lists what its targets hold and asks the metadata server which of
it belongs to no file, no write session and no pending drop: leavings of a write that came after its
session was reaped, or of a drop that a crash cut short.

Invariants: only blobs that were stored when the scan began are asked about and dropped; without an
answer everything is kept. A stopped target is left out: it would end each scan before the targets
behind it had their turn. Blob ids are never reused, so what is unknown once stays unknown.
"""

from __future__ import annotations

import asyncio
import logging
from array import array
from collections.abc import Iterable
from concurrent.futures import Executor
from typing import Final

from ffs._storage import ChunkStore
from ffs.errors import FFSError
from ffs.rpc.aio import AsyncRpcClient
from ffs.server.storage.membership import Membership
from ffs.server.storage.targets import Targets, drop_from
from ffs.wire.membership import UNKNOWN_BLOBS, UnknownBlobsRequest

log = logging.getLogger("ffs.storage.scan")

SCAN_INTERVAL_S: Final = 3600.0
RETRY_S: Final = 5.0
PAGE_BLOBS: Final = 4096
CALL_DEADLINE_MS: Final = 30_000
VERDICT_DEADLINE_MS: Final = 5_000


async def gone_among(rpc: AsyncRpcClient, node: int, blobs: Iterable[int]) -> set[int]:
    """Return which blobs belong to nothing, or are being dropped: none of them may come back.

    Raises:  FFSError: nobody can tell now
    """
    asked, gone = sorted(set(blobs)), set[int]()
    for first in range(0, len(asked), PAGE_BLOBS):
        page = asked[first : first + PAGE_BLOBS]
        request = UnknownBlobsRequest(node, page, dropping=True)
        reply = await rpc.call(UNKNOWN_BLOBS, request, deadline_ms=VERDICT_DEADLINE_MS)
        gone.update(set(reply.unknown) & set(page))
    return gone


class UnknownBlobScan:
    """Looks for blobs that belong to nothing on all targets of a daemon.

    Args:    disk: the thread that listing and dropping run in
    Threads: the event loop's alone; Fork: none
    """

    def __init__(
        self, rpc: AsyncRpcClient, membership: Membership, targets: Targets, disk: Executor
    ) -> None:
        self._rpc = rpc
        self._membership = membership
        self._targets = targets
        self._disk = disk

    async def run(self) -> None:
        """Scan now and then every hour, until cancelled."""
        while True:
            try:
                dropped = 0
                for target_id, store in self._targets.working.items():
                    dropped += await self._scan(target_id, store)
            except FFSError as error:
                log.warning("scan_not_finished", extra={"reason": str(error)})
                await asyncio.sleep(RETRY_S)
            else:
                log.info("scan_ended", extra={"dropped": dropped})
                await asyncio.sleep(SCAN_INTERVAL_S)

    async def _scan(self, target_id: int, store: ChunkStore) -> int:
        """Look at one target; return how many blobs it held that belonged to nothing."""
        loop = asyncio.get_running_loop()
        stored = await loop.run_in_executor(self._disk, stored_blobs, store)
        dropped = 0
        for first in range(0, len(stored), PAGE_BLOBS):
            page = stored[first : first + PAGE_BLOBS].tolist()
            request = UnknownBlobsRequest(node=self._membership.node, blobs=page)
            reply = await self._rpc.call(UNKNOWN_BLOBS, request, deadline_ms=CALL_DEADLINE_MS)
            unknown = sorted(set(reply.unknown) & set(page))
            if unknown:
                await loop.run_in_executor(self._disk, drop_from, store, unknown)
                dropped += len(unknown)
        if dropped:
            log.info("unknown_blobs_dropped", extra={"target": target_id, "blobs": dropped})
        return dropped


def stored_blobs(store: ChunkStore) -> array[int]:
    """List every blob of a store at eight bytes each."""
    found = array("Q")
    while page := store.blobs(after=found[-1] if found else 0, limit=PAGE_BLOBS):
        found.extend(page)
    return found
