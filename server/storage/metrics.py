"""A storage daemon's metrics: what its data loop and its targets count, as Prometheus samples.

Previous hop: daemon.py starts it if `storage.metrics_address` says so. Next hop: `ffs.metrics`.
Scrapes are answered from the event loop's view of things: a loop that hangs answers none.

Cost: some microseconds of the event loop for each target and scrape.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import ffs
from ffs._storage import DataLoop
from ffs.metrics import Endpoint, counter, gauge, histogram
from ffs.server.storage.targets import Targets
from ffs.wire.membership import TargetReport

SCRAPE_S: Final = 5.0
WAYS: Final = ("mapped", "sendfile", "buffered", "disk", "direct")
_COUNTERS: Final = {
    "ranges_total": "Ranges that clients asked for.",
    "read_bytes_total": "Bytes of ranges that were sent.",
    "write_bytes_total": "Bytes of chunks that were received.",
    "errors_total": "Ranges answered with an error, damaged writes, connections closed for cause.",
    "direct_refused_total": "Ranges that the file system would not read past the page cache.",
    "frames_total": "Frames sent.",
    "send_calls_total": "System calls that sent them.",
    "short_sends_total": "Those of them that met a full socket.",
    "slow_reads_total": "Reads that took longer than storage.slow_read_ms.",
    "forwards_total": "Chunks sent on to other daemons.",
    "forward_bytes_total": "Bytes of chunks sent on to other daemons.",
    "forward_send_calls_total": "System calls that sent them.",
    "rdma_connections_total": "Connections that have gone over to RDMA.",
    "rdma_bytes_total": "Bytes written to clients by RDMA.",
}
_GAUGES: Final = {
    "connections": ("connections", "Data connections."),
    "located": ("located_chunks", "Chunks pinned for clients on this host."),
    "send_buffers": ("send_buffers", "Send buffers, in use and spare."),
    "buffer_bytes": ("receive_buffer_bytes", "Memory in use for chunks being received."),
    "read_buffer_bytes": ("read_buffer_bytes", "Memory in use for what comes from disks."),
    "ring": ("io_uring", "Whether disks are read by io_uring."),
}


class DaemonMetrics:
    """The endpoint of one daemon.

    Args:    amend: adds to a target's report how whole it is; node: tells our id
    Raises:  ConfigError if the address cannot be had
    Threads: made and closed by the event loop; scrapes come from others
    """

    def __init__(
        self,
        address: str,
        data: DataLoop,
        targets: Targets,
        *,
        amend: Callable[[TargetReport], TargetReport],
        node: Callable[[], int],
    ) -> None:
        self._data = data
        self._targets = targets
        self._amend = amend
        self._node = node
        self._loop = asyncio.get_running_loop()
        self._endpoint = Endpoint(address, self._scrape)

    def close(self) -> None:
        """Take no more scrapes."""
        self._endpoint.close()

    def _scrape(self) -> list[Any]:
        future = asyncio.run_coroutine_threadsafe(self._families(), self._loop)
        try:
            return future.result(SCRAPE_S)
        finally:
            future.cancel()

    async def _families(self) -> list[Any]:
        return [*self._of_data_loop(), *self._of_targets()]

    def _of_data_loop(self) -> Iterator[Any]:
        stats, latency = self._data.stats(), self._data.latency()
        info = {(str(self._node()), ffs.__version__): 1.0}
        yield gauge("ffs_storage_info", "The daemon.", info, "node", "version")
        for name, text in _COUNTERS.items():
            yield counter(f"ffs_storage_{name.removesuffix('_total')}", text, stats[name])
        for name, (shown, text) in _GAUGES.items():
            yield gauge(f"ffs_storage_{shown}", text, stats[name])
        ranges = {(way,): stats[f"{way}_ranges_total"] for way in WAYS}
        sent = {(way,): stats[f"{way}_bytes_total"] for way in WAYS}
        yield counter("ffs_storage_sent_ranges", "Ranges by how they were sent.", ranges, "way")
        yield counter("ffs_storage_sent_bytes", "Bytes by how they were sent.", sent, "way")
        copied = "Payload bytes that were copied in user space."
        yield counter("ffs_storage_copied_bytes", copied, stats["copied_bytes"])
        text = "READ requests, from their arrival until their last byte was with the kernel."
        yield histogram("ffs_storage_read_duration_seconds", text, {(): latency["read"]})
        text = "Ranges, from their request's arrival until their frame was made."
        yield histogram("ffs_storage_queue_duration_seconds", text, {(): latency["queued"]})

    def _of_targets(self) -> Iterator[Any]:
        reports = {(str(r.target),): self._amend(r) for r in self._targets.reports() if r.target}
        durations = {(str(t),): store.latency() for t, store in self._targets.stores.items()}

        def of(family: Callable[..., Any], name: str, text: str, value: _Value) -> Any:
            values = {target: value(report) for target, report in reports.items()}
            return family(f"ffs_storage_target_{name}", text, values, "target")

        yield of(gauge, "capacity_bytes", "Size of its disk.", lambda r: r.capacity_bytes)
        yield of(gauge, "used_bytes", "Used of its disk.", lambda r: r.used_bytes)
        yield of(gauge, "stored_bytes", "Bytes of its chunks.", lambda r: r.stored_bytes)
        yield of(gauge, "chunks", "Its chunks.", lambda r: r.chunks)
        yield of(gauge, "stopped", "Whether a disk error has stopped it.", lambda r: r.stopped)
        for name, text in _HEALTH.items():
            family = counter if name.endswith("_total") else gauge
            shown = name.removesuffix("_total")
            yield of(family, shown, text, lambda r, name=name: getattr(r.health, name, 0))
        text = "Ranges that the page cache did not have, from when the disk was asked."
        yield _durations("disk_read_duration_seconds", text, durations, "disk_read")
        text = "Changes, from when the first of their batch was queued until all were durable."
        yield _durations("commit_duration_seconds", text, durations, "commit")


_Value = Callable[..., float]
_HEALTH: Final = {
    "sync_bytes_left": "Bytes that it has yet to copy from its chain.",
    "scrubbed_chunks": "Chunks that the scrub pass under way has read.",
    "bad_total": "Chunks found damaged.",
    "missing_total": "Chunks found missing.",
    "repaired_total": "Chunks repaired.",
    "unrepairable": "Chunks that no replica has whole.",
}


def _durations(
    name: str, text: str, durations: Mapping[tuple[str], Mapping[str, tuple[int, ...]]], kind: str
) -> Any:
    values = {target: found[kind] for target, found in durations.items()}
    return histogram(f"ffs_storage_target_{name}", text, values, "target")
