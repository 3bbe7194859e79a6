"""The reads that took longest of late, as `ffs status --slow` and `ffs top` show them.

Previous hop: a status, with what each daemon's last heartbeat told. Which file a read was of is
asked of the metadata server, by the blob of its first range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ffs import latency
from ffs.cli import output
from ffs.client.meta import MetaClient
from ffs.errors import FFSError
from ffs.wire.maintenance import BLOB_PATHS, BlobPathsRequest
from ffs.wire.status import NodeStatus

HEADING: Final = (
    *("node", "ago", "took", "server", "disk", "sending", "size", "ranges"),
    *("connection", "trace", "file"),
)


def slow_reads(nodes: Sequence[NodeStatus], meta: MetaClient) -> list[dict[str, Any]]:
    """Return the slowest reads of all daemons, the slowest first."""
    found: list[dict[str, Any]] = [
        {
            "node": node.id,
            "age_us": one.age_us,
            "took_us": one.took_us,
            "server_us": max(0, one.queued_us - one.disk_us),
            "disk_us": one.disk_us,
            "sending_us": max(0, one.took_us - one.queued_us),
            "bytes": one.size,
            "ranges": one.ranges,
            "connection": one.connection,
            "trace_id": f"{one.trace_id:016x}",
            "blob": one.blob,
        }
        for node in nodes
        if node.counters is not None and node.counters.daemon is not None
        for one in node.counters.daemon.slowest
    ]
    paths = _paths({one["blob"] for one in found}, meta)
    for one in found:
        one["path"] = paths.get(one["blob"], "")
    return sorted(found, key=lambda one: -one["took_us"])


def rows(found: Sequence[dict[str, Any]]) -> list[tuple[object, ...]]:
    """Return them as cells under `HEADING`."""
    return [
        (
            one["node"],
            *(
                latency.text_of(1e3 * one[f"{part}_us"])
                for part in ("age", "took", "server", "disk", "sending")
            ),
            output.human_bytes(one["bytes"]),
            one["ranges"],
            one["connection"],
            one["trace_id"],
            output.shown(one["path"] or f"blob {one['blob']}"),
        )
        for one in found
    ]


def _paths(blobs: set[int], meta: MetaClient) -> dict[int, str]:
    """Return a path of each blob that has one and that we may know of."""
    wanted = sorted(blob for blob in blobs if blob > 0)
    try:
        reply = meta.call(BLOB_PATHS, BlobPathsRequest(wanted, limit=1)) if wanted else None
    except FFSError:
        return {}
    answered = zip(wanted, reply.blobs if reply is not None else [], strict=True)
    return {
        blob: one.paths[0].decode(errors="surrogateescape") for blob, one in answered if one.paths
    }
