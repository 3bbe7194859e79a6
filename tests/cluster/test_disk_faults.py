"""Disks that are full or fail: typed errors, nothing acknowledged that is not durable.

The full disk is a 64 MiB ext4 image on a loop device (needs root); failing calls are injected into
the daemon's system call wrappers by `--inject-fault CALL:NTH:ERRNO`.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ffs.client.filesystem import FFSFileSystem
from ffs.errors import FFSError, NoSpaceError, StorageIOError, TargetStoppedError
from ffs.key import ClusterKey
from ffs.rpc.blocking import RpcClient
from ffs.types import TargetState
from ffs.wire.status import STATUS, StatusReply, StatusRequest
from tests.harness import Cluster

IMAGE_BYTES = 64 << 20
FILE_BYTES = 4 << 20
WAIT_S = 60.0
FAST: dict[str, object] = {
    "meta.heartbeat_ms": 100,
    "meta.node_lease_ms": 1_000,
    "meta.gc_delay_s": 0,
    "client.write_deadline_ms": 15_000,
}


@pytest.fixture(autouse=True)
def _short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let clients know that this cluster fails over fast, so that they may give up fast."""
    monkeypatch.setenv("FFS_META__NODE_LEASE_MS", "1000")
    monkeypatch.setenv("FFS_META__HEARTBEAT_MS", "100")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted file system of 64 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting an image needs root")
    image, mount = tmp_path / "disk.img", tmp_path / "mount"
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    mount.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", "--lazy", str(mount)], check=True)


def status(cluster: Cluster) -> StatusReply:
    client = RpcClient([cluster.address], ClusterKey.load(cluster.key_file), connect_ms=2_000)
    try:
        return client.call(STATUS, StatusRequest(), deadline_ms=5_000)
    finally:
        client.close()


def states(cluster: Cluster) -> list[int]:
    return [target.state for target in status(cluster).routing.targets]


def wait_for(condition: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up, what
        time.sleep(0.05)


@contextlib.contextmanager
def filesystem(cluster: Cluster, **options: object) -> Iterator[FFSFileSystem]:
    fs = FFSFileSystem(skip_instance_cache=True, **{**cluster.storage_options, **options})
    try:
        yield fs
    finally:
        fs.close()


def restart_with_fault(cluster: Cluster, fault: str) -> None:
    """Start the storage daemon again so that one of its system calls will fail."""
    process = cluster.process("storage")
    process.kill()
    process.argv += ["--inject-fault", fault]
    process.start()
    del process.argv[-2:]


def test_full_disk_is_a_typed_error_and_space_comes_back(small_disk: Path, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "cluster", config=FAST)
    target = cluster.target_dir()
    target.parent.mkdir(parents=True)
    target.symlink_to(small_disk / "target")
    (small_disk / "target").mkdir()
    chance = random.Random(1)
    written: dict[str, bytes] = {}
    try:
        cluster.start()
        with filesystem(cluster) as fs:
            full = fill(fs, written, chance)
            assert full.where["target"] == 1
            assert len(written) >= 8
            for path, data in written.items():
                assert fs.cat_file(path) == data
            assert sorted(fs.ls("/", detail=False)) == sorted(written)
            assert not any(report.stopped for report in status(cluster).reports)
            doomed = list(written)[: len(written) // 2]
            for path in doomed:
                fs.rm_file(path)
                del written[path]
            wait_for(lambda: used_bytes(cluster) < IMAGE_BYTES // 2, "space did not come back")
            wait_for(lambda: takes_files(fs), "the chain was not opened for new files again")
            for path in doomed:
                written[path] = chance.randbytes(FILE_BYTES)
                fs.pipe_file(path, written[path])
            for path, data in written.items():
                assert fs.cat_file(path) == data
        cluster.stop()
    finally:
        cluster.kill_all()


def fill(fs: FFSFileSystem, written: dict[str, bytes], chance: random.Random) -> NoSpaceError:
    """Write files until the disk is full; return how that was told."""
    for i in range(2 * IMAGE_BYTES // FILE_BYTES):
        data = chance.randbytes(FILE_BYTES)
        try:
            fs.pipe_file(f"/file-{i}", data)
        except NoSpaceError as error:
            return error
        written[f"/file-{i}"] = data
    pytest.fail("the disk never filled")


def takes_files(fs: FFSFileSystem) -> bool:
    """Whether the manager has learnt that there is room."""
    try:
        fs.pipe_file("/probe", b"")
    except NoSpaceError:
        return False
    return True


def used_bytes(cluster: Cluster) -> int:
    return sum(report.used_bytes for report in status(cluster).reports)


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("call", ["fdatasync", "pwritev"])
def test_failed_disk_write_is_not_acknowledged_and_stops_the_target(
    new_cluster: Callable[..., Cluster], call: str, nth: int
) -> None:
    """The bytes, their CRCs, the index entry: whichever the disk does not take."""
    cluster = new_cluster(config={**FAST, "storage.hung_disk_ms": 600_000})
    with filesystem(cluster) as fs:
        fs.pipe_file("/before", b"kept" * 1000)
        restart_with_fault(cluster, f"{call}:{nth}:EIO")
        acknowledged = {"/before": b"kept" * 1000}
        failure: FFSError | None = None
        for i in range(4):
            try:
                fs.pipe_file(f"/file-{i}", bytes([i]) * 5_000)
            except FFSError as error:
                failure = error
                break
            acknowledged[f"/file-{i}"] = bytes([i]) * 5_000
        assert isinstance(failure, StorageIOError | TargetStoppedError), failure
        wait_for(lambda: any(r.stopped for r in status(cluster).reports), "stop not reported")
        # What is reported is known at once, what the manager makes of it when it is committed.
        wait_for(lambda: states(cluster) == [TargetState.LASTSRV], "not the last that served")
        assert cluster.process("storage").alive
        assert set(fs.ls("/", detail=False)) == set(acknowledged)
    # The fault is over, yet the target is stopped: a second sync would lie about the first.
    with filesystem(cluster, write_deadline_ms=1_500) as fs, pytest.raises(FFSError):
        fs.pipe_file("/after", b"x")
    cluster.restart("storage")
    with filesystem(cluster) as fs:
        for path, data in acknowledged.items():
            assert fs.cat_file(path) == data
        fs.pipe_file("/after", b"x")
        assert fs.cat_file("/after") == b"x"


def read_or_error(fs: FFSFileSystem, path: str) -> bytes | StorageIOError:
    try:
        return fs.cat_file(path)
    except StorageIOError as error:
        return error


@pytest.mark.parametrize("fault", ["pread:1:EIO", "pread:2:EIO", "sendfile:1:EIO"])
@pytest.mark.parametrize("length", [20_000, 600_000])
def test_failed_read_is_healed_or_a_typed_error(
    new_cluster: Callable[..., Cluster], fault: str, length: int
) -> None:
    cluster = new_cluster(config=FAST)
    data = random.Random(2).randbytes(length)
    with filesystem(cluster) as fs:
        fs.pipe_file("/file", data)
    restart_with_fault(cluster, fault)
    with filesystem(cluster) as fs:
        # The one failed call is healed by the client's repetition, or told by its type, once.
        results = [read_or_error(fs, "/file") for _ in range(4)]
    failures = [result for result in results if isinstance(result, StorageIOError)]
    assert len(failures) <= 1 and all(f.where["path"] == "/file" for f in failures)
    assert results.count(data) == len(results) - len(failures)
    assert cluster.process("storage").alive


def test_target_whose_write_failed_comes_back_by_itself(
    new_cluster: Callable[..., Cluster],
) -> None:
    cluster = new_cluster(config={**FAST, "storage.hung_disk_ms": 200})
    with filesystem(cluster) as fs:
        fs.pipe_file("/before", b"kept")
        restart_with_fault(cluster, "fdatasync:1:EIO")
        with pytest.raises((StorageIOError, TargetStoppedError)):
            fs.pipe_file("/lost", b"x")

    wait_for(lambda: "target_back" in cluster.process("storage").log_tail(), "it is not tried")
    wait_for(lambda: states(cluster) == [TargetState.SERVING], "the target was not taken back")
    with filesystem(cluster) as fs:
        assert fs.cat_file("/before") == b"kept"
        fs.pipe_file("/after", b"y")
        assert fs.cat_file("/after") == b"y"


def test_a_daemon_ends_although_its_disk_hangs(new_cluster: Callable[..., Cluster]) -> None:
    cluster = new_cluster(config={**FAST, "storage.hung_disk_ms": 200})
    with filesystem(cluster) as fs:
        fs.pipe_file("/before", b"kept")
        restart_with_fault(cluster, "fdatasync:1:HANG")
    with filesystem(cluster, write_deadline_ms=1_500) as fs, pytest.raises(FFSError):
        fs.pipe_file("/lost", b"x")
    assert cluster.process("storage").terminate() == 0
    assert "disk_left_behind" in cluster.process("storage").log_tail()
    cluster.process("storage").start()
    with filesystem(cluster) as fs:
        assert fs.cat_file("/before") == b"kept"
