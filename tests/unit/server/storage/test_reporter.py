"""What a daemon says of itself: its disks of late, its clock as far as an answer tells."""

from __future__ import annotations

from pathlib import Path

import pytest

import ffs
from ffs import _reader
from ffs._storage import ChunkStore, DataLoop
from ffs.latency import BUCKETS
from ffs.server.storage.reporter import WINDOW_NS, Reporter
from ffs.server.storage.targets import Targets

CLUSTER = bytes(16)


def test_a_daemons_report(tmp_path: Path) -> None:
    targets = Targets([tmp_path / "t"])
    targets.open_existing()
    targets.create_new(CLUSTER, [7])
    data = DataLoop(targets.stores)
    report = Reporter(targets, "reno").report(data, 0)
    assert (report.version, report.congestion) == (ffs.__version__, "reno")
    assert Reporter(targets, "").report(data, 0).congestion, "the kernel's"
    assert report.reads == [0] * BUCKETS and report.slowest == []
    assert [(disk.target, disk.reads) for disk in report.disks] == [(7, [0] * BUCKETS)]
    data.close()
    targets.close()


class Disk(Targets):
    """Targets of which one has counted so many slow reads."""

    def __init__(self) -> None:
        self.counted = 0

    def disk_reads(self) -> dict[int, tuple[int, ...]]:
        return {7: (0, self.counted, *[0] * (BUCKETS - 2))}


def test_disks_are_told_of_the_last_minute_at_most(tmp_path: Path) -> None:
    disk, data = Disk(), DataLoop({})
    reporter = Reporter(disk, "reno")

    def told(now_ns: int, counted: int) -> int:
        disk.counted = counted
        return sum(reporter.report(data, now_ns).disks[0].reads)

    assert told(0, 5) == 5
    assert told(WINDOW_NS - 1, 6) == 6
    assert told(WINDOW_NS, 8) == 8, "the first window is the one before now"
    assert told(2 * WINDOW_NS, 9) == 1, "of the second window"
    assert told(3 * WINDOW_NS, 9) == 0
    assert told(4 * WINDOW_NS, 2) == 2, "the store was opened anew"
    data.close()


@pytest.mark.parametrize(
    ("asked", "told", "now", "ahead"),
    [
        (10, 15, 20, 0),
        (10, 10, 20, 0),
        (10, 25, 20, -5),
        (10, 3, 20, 7),
        (10, 0, 20, 0),
    ],
)
def test_a_clock_is_off_by_what_no_delay_explains(
    asked: int, told: int, now: int, ahead: int
) -> None:
    reporter = Reporter(Disk(), "reno")
    reporter.answered(asked, told, now)
    assert reporter.clock_ahead_ns == ahead


def test_commits_are_timed(tmp_path: Path) -> None:
    store = ChunkStore(str(tmp_path), cluster_id=CLUSTER, target_id=1, create=True)
    block = bytes(4096)
    assert store.put(5, 0, block, _reader.block_crcs(block, 5, 0)) == 0
    total_ns, *buckets = store.latency()["commit"]
    assert total_ns > 0 and sum(buckets) == 1 and len(buckets) == BUCKETS
    assert store.latency()["disk_read"] == (0,) * (BUCKETS + 1)
    store.close()
