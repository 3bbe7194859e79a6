"""An operator's scan of a daemon's targets, against an RPC server that judges as a test wants."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ffs._reader import block_crcs
from ffs.errors import UnavailableError
from ffs.rpc.aio import AsyncRpcClient, Peer, RpcServer
from ffs.server.storage.audit import Audit
from ffs.server.storage.targets import Targets
from ffs.wire.maintenance import (
    BlobVerdict,
    JudgeReply,
    JudgeRequest,
    ScanDoneRequest,
    TargetScan,
    Verdict,
)
from ffs.wire.method import Empty
from tests.unit.server.storage.test_membership import CLUSTER, KEY, background, run, until

NODE, TARGET, SCAN = 5, 40, 77


class Judge:
    """Answers what an audit asks; its fields are what a test looks at and sets."""

    def __init__(self) -> None:
        self.unknown: set[int] = set()
        self.judged: list[int] = []
        self.told: list[ScanDoneRequest] = []
        self.refusals: dict[str, Exception] = {}

    async def judge(self, request: JudgeRequest, peer: Peer) -> JudgeReply:
        self._refuse("judge")
        self.judged += request.blobs
        return JudgeReply([self._verdict(blob) for blob in request.blobs])

    async def scan_done(self, request: ScanDoneRequest, peer: Peer) -> Empty:
        self.told.append(request)
        self._refuse("scan_done")
        return Empty()

    def _verdict(self, blob: int) -> BlobVerdict:
        known = Verdict.UNKNOWN if blob in self.unknown else Verdict.LIVE
        return BlobVerdict(known, 4, 65_536)

    def _refuse(self, method: str) -> None:
        if method in self.refusals:
            raise self.refusals.pop(method)


@contextlib.asynccontextmanager
async def auditing(judge: Judge, path: Path) -> AsyncIterator[tuple[Audit, Targets]]:
    """An audit at work, over one target that holds the blobs 1, 2 and 3."""
    server = RpcServer({"judge": judge.judge, "scan_done": judge.scan_done}, KEY)
    rpc = AsyncRpcClient([await server.start("127.0.0.1", 0)], KEY)
    targets = Targets([path])
    targets.open_existing()
    targets.create_new(CLUSTER, [TARGET])
    for blob in (1, 2, 3):
        assert targets.stores[TARGET].put(blob, 0, b"data", block_crcs(b"data", blob, 0)) == 0
    with ThreadPoolExecutor(1) as disk:
        audit = Audit(rpc, targets, disk)
        async with background(audit.run()):
            yield audit, targets
    await rpc.close()
    await server.close()
    targets.close()


async def asked(judge: Judge, audit: Audit, scan: int = SCAN) -> TargetScan:
    """What is told of the target when the wish comes, perhaps not for the first time."""
    before = len(judge.told)
    while len(judge.told) == before:  # one that comes too soon after a report is the same wish
        audit.ask(NODE, scan, drop=True)
        await asyncio.sleep(0.005)
    await until(lambda: audit._wish[1] == 0)
    (result,) = judge.told[-1].results
    assert judge.told[-1].scan == scan
    return result


def test_a_wish_that_comes_again_is_told_what_was_found_the_first_time(tmp_path: Path) -> None:
    """Else nobody would hear of what was dropped."""

    async def story() -> None:
        judge = Judge()
        judge.unknown = {2}
        async with auditing(judge, tmp_path / "t") as (audit, targets):
            first = await asked(judge, audit)
            assert (first.orphans, first.dropped, first.orphan_blobs) == (1, 1, [2])
            assert targets.stores[TARGET].blobs() == [1, 3]
            judge.unknown = {1}  # what is so by now is the next scan's
            assert await asked(judge, audit) == first
            assert targets.stores[TARGET].blobs() == [1, 3]
            assert judge.judged == [1, 2, 3]
            following = await asked(judge, audit, SCAN + 1)
            assert following.orphan_blobs == [1]

    run(story())


def test_a_report_that_is_lost_is_sent_again(tmp_path: Path) -> None:
    async def story() -> None:
        judge = Judge()
        judge.unknown = {2}
        judge.refusals = {"scan_done": UnavailableError("gone")}
        async with auditing(judge, tmp_path / "t") as (audit, _):
            lost = await asked(judge, audit)
            assert lost.dropped == 1 and not judge.refusals
            assert await asked(judge, audit) == lost

    run(story())


def test_a_target_that_could_not_be_judged_is_read_again(tmp_path: Path) -> None:
    async def story() -> None:
        judge = Judge()
        judge.unknown = {2}
        judge.refusals = {"judge": UnavailableError("gone")}
        async with auditing(judge, tmp_path / "t") as (audit, targets):
            failed = await asked(judge, audit)
            assert "gone" in failed.error and failed.dropped == 0
            assert targets.stores[TARGET].blobs() == [1, 2, 3]
            found = await asked(judge, audit)
            assert (found.error, found.dropped) == ("", 1)

    run(story())
