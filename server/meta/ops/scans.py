"""Scans that an operator asks for: what lies on the targets against what the database knows.

Previous hop: `service`, for `client/fsck.py` (start, status, paths of blobs) and for the daemons
(judge, done). The metadata server never connects to a daemon: a wish for a scan is a setting that
goes out with the answers to heartbeats until each target's result has come in, which is a setting
too. So any server of several may be asked, and one that starts again knows as much as before.
Invariants: one scan at a time, a new one takes the place of the last; a scan that nobody waits for
is over after `SCAN_NS_MAX`; lists in results are bounded, their counts are not.
Blobs of `blob_gaps` were given out after the backup that this database was restored from: nobody
knows what they were. They are judged LOST, told, and kept until an operator gives them up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgpack

from ffs.errors import InvalidError
from ffs.limits import LIST_PAGE_MAX
from ffs.rpc.schema import codec_of
from ffs.server.meta.ops.check import paths_of_blobs, plan_for_whole_tables
from ffs.server.meta.ops.context import Context
from ffs.server.meta.ops.storage import rows_of_blobs
from ffs.server.meta.schema import BlobState
from ffs.server.meta.store import Row, Transaction
from ffs.types import Layout
from ffs.wire.maintenance import (
    BlobPaths,
    BlobPathsReply,
    BlobPathsRequest,
    BlobVerdict,
    JudgeReply,
    JudgeRequest,
    LiveBlob,
    LiveBlobsReply,
    LiveBlobsRequest,
    ScanDoneRequest,
    ScanStatusReply,
    ScanStatusRequest,
    StartScanReply,
    StartScanRequest,
    TargetScan,
    Verdict,
)
from ffs.wire.method import Empty

SCAN_NS_MAX: Final = 3_600 * 1_000_000_000
PATHS_MAX: Final = 64
_SCAN: Final = "scan"
_RESULT: Final = "scan of target "


# --- for operators --------------------------------------------------------------------------------


def start(tx: Transaction, context: Context, request: StartScanRequest) -> StartScanReply:
    """Let every target be scanned; see `StartScanRequest`."""
    if request.give_up_lost:
        tx.run("DELETE FROM blob_gaps")
    scan = context.randomness.u64() >> 1 or 1
    tx.run("DELETE FROM settings WHERE name LIKE ?", (_RESULT + "%",))
    wish = msgpack.packb((scan, request.drop, context.now_ns))
    tx.insert(
        "settings",
        ("name", "value"),
        [(_SCAN, wish)],
        conflict="(name) DO UPDATE SET value = excluded.value",
    )
    return StartScanReply(scan)


def status(tx: Transaction, request: ScanStatusRequest) -> ScanStatusReply:
    """Say what has come in. Raises InvalidError for a scan that another one has replaced."""
    wish = _wish(tx)
    if wish is None or wish[0] != request.scan:
        raise InvalidError("another scan was started meanwhile", hint="start this one again")
    results = _results(tx, request.scan)
    targets = [target for (target,) in tx.rows("SELECT target FROM targets ORDER BY target")]
    return ScanStatusReply(
        results=[results[target] for target in sorted(results)],
        waiting=[target for target in targets if target not in results],
    )


def live_blobs(tx: Transaction, request: LiveBlobsRequest) -> LiveBlobsReply:
    """Return one page of the blobs that files or pins refer to, in order of their ids."""
    limit = max(1, min(request.limit, LIST_PAGE_MAX))
    rows = tx.rows(
        "SELECT blob, length, chunk_size_bytes, stripe, chain_table, seed FROM blobs"
        f" WHERE blob > ? AND state = {BlobState.LIVE:d} ORDER BY blob LIMIT ?",
        (request.after, limit),
    )
    blobs = [
        LiveBlob(blob, length, Layout(cut, stripe, table, seed))
        for blob, length, cut, stripe, table, seed in rows
    ]
    return LiveBlobsReply(blobs, more=len(rows) == limit)


def blob_paths(tx: Transaction, request: BlobPathsRequest) -> BlobPathsReply:
    """Say of each blob whether it is live still, and which files hold it."""
    plan_for_whole_tables(tx)
    rows, _ = rows_of_blobs(tx, request.blobs)
    live = {blob for blob, facts in rows.items() if facts[0] == BlobState.LIVE}
    limit = max(1, min(request.limit, PATHS_MAX))
    paths = paths_of_blobs(tx, live, limit)
    return BlobPathsReply([BlobPaths(b in live, paths.get(b, [])) for b in request.blobs])


# --- for daemons ----------------------------------------------------------------------------------


def wanted(tx: Transaction, targets: Sequence[int], now_ns: int) -> tuple[int, bool]:
    """Return the scan that one of these targets has not answered, and whether it is to drop.

    (0, False): there is none
    """
    wish = _wish(tx)
    if wish is None or not 0 <= now_ns - wish[2] < SCAN_NS_MAX:
        return 0, False
    results = _results(tx, wish[0])
    return (0, False) if results.keys() >= set(targets) else (wish[0], wish[1])


def judge(tx: Transaction, request: JudgeRequest) -> JudgeReply:
    """Say of stored blobs what they are, and how long those are that will not change."""
    rows, unjudged = rows_of_blobs(tx, request.blobs)
    return JudgeReply([_verdict(blob, rows.get(blob), unjudged) for blob in request.blobs])


def _verdict(blob: int, row: Row | None, unjudged: set[int]) -> BlobVerdict:
    if row is None:
        return BlobVerdict(Verdict.LOST if blob in unjudged else Verdict.UNKNOWN, 0, 0)
    state, length, chunk_size_bytes = row
    if state != BlobState.LIVE:
        return BlobVerdict(Verdict.CHANGING, 0, 0)
    return BlobVerdict(Verdict.LIVE, length, chunk_size_bytes)


def done(tx: Transaction, request: ScanDoneRequest) -> Empty:
    """Keep the result of a target's scan, unless it is of one that was replaced."""
    wish = _wish(tx)
    if wish is None or wish[0] != request.scan:
        return Empty()
    encode = codec_of(TargetScan).encode
    tx.insert(
        "settings",
        ("name", "value"),
        [
            (f"{_RESULT}{result.target}", msgpack.packb((request.scan, encode(result))))
            for result in request.results
        ],
        conflict="(name) DO UPDATE SET value = excluded.value",
    )
    return Empty()


def _wish(tx: Transaction) -> tuple[int, bool, int] | None:
    """Return (scan, whether to drop, since when) of the scan that was asked for last."""
    row = tx.row("SELECT value FROM settings WHERE name = ?", (_SCAN,))
    if row is None:
        return None
    scan, drop, since_ns = msgpack.unpackb(row[0])
    return scan, drop, since_ns


def _results(tx: Transaction, scan: int) -> dict[int, TargetScan]:
    decode = codec_of(TargetScan).decode
    found: dict[int, TargetScan] = {}
    for (value,) in tx.rows("SELECT value FROM settings WHERE name LIKE ?", (_RESULT + "%",)):
        of, fields = msgpack.unpackb(value)
        if of == scan:
            result = decode(fields)
            found[result.target] = result
    return found
