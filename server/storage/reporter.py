"""What a daemon says of itself besides counts: version, clock, its slowest reads, its disks.

Previous hop: membership.py, once a heartbeat. Next hop: the metadata server, which hands the last
report to `ffs status`, `ffs top` and `ffs doctor`.

How long disks took is told of the last half minute to minute, so that one that has become slow
stands out at once, and one that was slow is forgiven.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import ffs
from ffs import latency
from ffs._storage import DataLoop
from ffs.server.storage.targets import Targets
from ffs.wire.membership import DaemonReport, DiskLatency, SlowRead

WINDOW_NS: Final = 30_000_000_000
_KERNEL_CONGESTION: Final = Path("/proc/sys/net/ipv4/tcp_congestion_control")


@dataclass(slots=True)
class _Window:
    """What a disk had counted when this window began, and the one before it."""

    began_ns: int
    before: Sequence[int]
    base: Sequence[int]

    def recent(self, counted: Sequence[int], now_ns: int) -> list[int]:
        """Return what was counted in this window and the one before it."""
        if now_ns - self.began_ns >= WINDOW_NS:
            self.began_ns, self.before, self.base = now_ns, self.base, counted
        return latency.since(counted, self.before)


class Reporter:
    """Makes the daemon's reports.

    Threads: the event loop's alone
    """

    def __init__(self, targets: Targets, congestion: str) -> None:
        self._targets = targets
        self._congestion = congestion or _kernel_congestion()
        self._windows: dict[int, _Window] = {}
        self.clock_ahead_ns = 0

    def report(self, data: DataLoop, now_ns: int) -> DaemonReport:
        """Return what is so at `now_ns` of the monotonic clock."""
        return DaemonReport(
            version=ffs.__version__,
            congestion=self._congestion,
            clock_ahead_ns=self.clock_ahead_ns,
            reads=list(data.latency()["read"][1:]),
            slowest=[_slow_read(read) for read in data.slowest()],
            disks=[
                DiskLatency(target, self._recent(target, counted, now_ns))
                for target, counted in self._targets.disk_reads().items()
            ],
        )

    def answered(self, asked_ns: int, told_ns: int, now_ns: int) -> None:
        """A server whose clock was at `told_ns` has answered what was asked by our clock's
        `asked_ns`: it said so some time between that and `now_ns`."""
        if told_ns > now_ns:
            self.clock_ahead_ns = now_ns - told_ns
        else:
            self.clock_ahead_ns = max(0, asked_ns - told_ns) if told_ns else 0

    def _recent(self, target: int, counted: Sequence[int], now_ns: int) -> list[int]:
        window = self._windows.get(target)
        if window is None:
            nothing = [0] * latency.BUCKETS
            window = self._windows[target] = _Window(now_ns, nothing, nothing)
        return window.recent(counted, now_ns)


def _slow_read(read: tuple[int, ...]) -> SlowRead:
    age_ns, took_ns, queued_ns, disk_ns, trace_id, connection, blob, size, ranges = read
    return SlowRead(
        age_us=age_ns // 1_000,
        took_us=took_ns // 1_000,
        queued_us=queued_ns // 1_000,
        disk_us=disk_ns // 1_000,
        trace_id=trace_id,
        connection=connection,
        blob=blob,
        size=size,
        ranges=ranges,
    )


def _kernel_congestion() -> str:
    try:
        return _KERNEL_CONGESTION.read_text().strip()
    except OSError:
        return ""
