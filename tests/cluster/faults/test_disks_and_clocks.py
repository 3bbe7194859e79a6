"""Three replicas of which one lies on a disk that fails, fills or crawls; and a clock that jumps.

Under each: no failed read, no wrong byte, nothing acknowledged lost, and full redundancy again. A
disk that failed needs a repairman, who mounts it anew and starts its daemon; the others nobody.
See `rig.py` for the rounds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from ffs import chains
from ffs.client.filesystem import FFSFileSystem
from ffs.types import TargetState
from tests.cluster.faults.clients import at_work
from tests.cluster.faults.disk import FaultyDisk
from tests.cluster.faults.network import Network
from tests.cluster.faults.rig import (
    ROUNDS,
    SEED,
    SHORT_LEASE,
    FaultCluster,
    Rounds,
    started,
    until,
)
from tests.cluster.faults.workload import FILES, content_of, path_of

pytestmark = pytest.mark.timeout(110 + 60 * ROUNDS)

VICTIM: Final = 1
DISK_MIB: Final = 96
SLOW_BYTES_PER_S: Final = 300_000
HOUR_S: Final = 3600
SLOW: Final[dict[str, Any]] = {"storage.hung_disk_ms": 30_000}
"""A change that waits for 300 KB/s, or for a processor that nbdkit does not get, is not hung."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FaultyDisk]:
    """The victim's disk."""
    made = FaultyDisk(tmp_path / "disk", DISK_MIB)
    try:
        yield made
    finally:
        made.close()


class DiskWeak:
    """The victim's disk is full, or slow, for a while."""

    felt, hold_leases = False, 3.0

    def __init__(self, name: str, disk: FaultyDisk) -> None:
        self.name = name
        self._disk = disk

    def strike(self, victim: int) -> None:
        if self.name == "disk full":
            self._disk.fill()
        else:
            self._disk.slow_down(SLOW_BYTES_PER_S)

    def heal(self, victim: int) -> None:
        self._disk.recover()


class DiskHangs:
    """The victim's disk answers nothing, without an error; once it does its targets come back."""

    name, felt, hold_leases = "disk hangs", False, 4.0

    def __init__(self, disk: FaultyDisk) -> None:
        self._disk = disk

    def strike(self, victim: int) -> None:
        self._disk.hang()

    def heal(self, victim: int) -> None:
        self._disk.recover()


class DiskFails:
    """Chunks cannot be read, or nothing be written: the first change stops the target, for good."""

    felt, hold_leases = False, 3.0

    def __init__(self, call: str, cluster: FaultCluster, disk: FaultyDisk) -> None:
        self.name = f"EIO of every {call}"
        self._call, self._cluster, self._disk = call, cluster, disk

    def strike(self, victim: int) -> None:
        self._disk.fail(self._call)

    def heal(self, victim: int) -> None:
        self._disk.recover()
        self._cluster.kill("storage", victim)
        self._disk.remount()
        self._cluster.process("storage", victim).start()


class ClockJump:
    """The metadata server's wall clock jumps by an hour and back, ahead and behind in turn."""

    name, felt, hold_leases = "wall clock jumps", False, 3.0

    def __init__(self, offset: Path) -> None:
        self._offset = offset
        self._sign = 1

    def strike(self, victim: int) -> None:
        self._offset.write_text(f"{self._sign * HOUR_S:+d}")

    def heal(self, victim: int) -> None:
        self._offset.write_text("+0")
        self._sign = -self._sign


@contextlib.contextmanager
def on_disk(
    tmp_path: Path,
    network: Network,
    disk: FaultyDisk,
    *,
    alone: bool = False,
    **options: object,
) -> Iterator[FaultCluster]:
    """A cluster whose daemon VICTIM has its targets on the disk; `alone`: the last one of them."""
    cluster = FaultCluster(tmp_path / "cluster", network, {**SHORT_LEASE, **options})
    last = cluster.target_dir(VICTIM, cluster.targets - 1)
    place = last if alone else last.parent
    place.parent.mkdir(parents=True)
    (disk.mount / "targets").mkdir()
    place.symlink_to(disk.mount / "targets")
    with started(cluster):
        yield cluster


@pytest.mark.parametrize("name", ["disk slow", "disk full"])
def test_a_disk_that_is_slow_or_full(
    tmp_path: Path, network: Network, disk: FaultyDisk, name: str
) -> None:
    with on_disk(tmp_path, network, disk, **SLOW) as cluster, at_work(cluster, SEED) as clients:
        Rounds(cluster, clients, (VICTIM,)).play(DiskWeak(name, disk))
        if name == "disk full":
            assert clients.full > 0, "the disk was never full"
        else:
            assert clients.counters["failed_over"] > 0, "readers never met the fault"


def test_a_disk_that_hangs(tmp_path: Path, network: Network, disk: FaultyDisk) -> None:
    with on_disk(tmp_path, network, disk) as cluster, at_work(cluster, SEED) as clients:
        Rounds(cluster, clients, (VICTIM,)).play(DiskHangs(disk))
        assert clients.counters["failed_over"] > 0, "readers never met the fault"
        assert "disk_hangs" in cluster.process("storage", VICTIM).log_tail(1 << 30)


def test_a_disk_that_hangs_while_nobody_writes(
    tmp_path: Path, network: Network, disk: FaultyDisk
) -> None:
    with on_disk(tmp_path, network, disk) as cluster:
        disk.hang()
        until(lambda: not cluster.redundant(), "nobody noticed it")
        fs = FFSFileSystem(skip_instance_cache=True, **cluster.storage_options)
        assert all(fs.cat_file(path_of(number)) == content_of(number) for number in range(FILES))
        fs.close()
        disk.recover()
        until(cluster.redundant, "its targets do not come back")
        assert "target_back" in cluster.process("storage", VICTIM).log_tail(1 << 30)


def test_a_daemon_starts_while_one_of_its_disks_hangs(
    tmp_path: Path, network: Network, disk: FaultyDisk
) -> None:
    def served() -> list[bool]:
        """Whether the victim's targets serve: the one beside the disk, the one on it."""
        states = chains.target_states(cluster.status().routing)
        return [states[target] == TargetState.SERVING for target in targets]

    patience: dict[str, Any] = {"storage.hung_disk_ms": 3_000}
    with on_disk(tmp_path, network, disk, alone=True, **patience) as cluster:
        labels = [str(cluster.target_dir(VICTIM, number)) for number in range(cluster.targets)]
        ids = {report.label: report.target for report in cluster.status().reports}
        targets = [ids[label] for label in labels]
        nodes = [node.node for node in cluster.status().routing.nodes]
        cluster.kill("storage", VICTIM)
        disk.hang()
        cluster.process("storage", VICTIM).start()
        until(lambda: served() == [True, False], "the other disk's target does not serve")
        fs = FFSFileSystem(skip_instance_cache=True, **cluster.storage_options)
        assert all(fs.cat_file(path_of(number)) == content_of(number) for number in range(FILES))
        fs.pipe_file("/meanwhile", b"written")
        disk.recover()
        until(cluster.redundant, "its target does not come back")
        assert fs.cat_file("/meanwhile") == b"written"
        fs.close()
        assert [node.node for node in cluster.status().routing.nodes] == nodes


@pytest.mark.parametrize("call", ["pread", "pwrite"])
def test_a_disk_that_fails(tmp_path: Path, network: Network, disk: FaultyDisk, call: str) -> None:
    with on_disk(tmp_path, network, disk, **SLOW) as cluster, at_work(cluster, SEED) as clients:
        Rounds(cluster, clients, (VICTIM,)).play(DiskFails(call, cluster, disk))
        assert clients.counters["failed_over"] > 0, "readers never met the fault"


def test_the_wall_clock_jumps(tmp_path: Path, network: Network) -> None:
    offset = tmp_path / "offset"
    offset.write_text("+0")
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
    moved = {
        "LD_PRELOAD": library,
        "FAKETIME_TIMESTAMP_FILE": offset,
        "FAKETIME_CACHE_DURATION": 1,
        "FAKETIME_DONT_FAKE_MONOTONIC": 1,
    }
    wrap = ("env", *(f"{name}={value}" for name, value in moved.items()))
    cluster = FaultCluster(tmp_path / "cluster", network, SHORT_LEASE, wrap)
    with started(cluster), at_work(cluster, SEED) as clients:
        Rounds(cluster, clients).play(ClockJump(offset))
