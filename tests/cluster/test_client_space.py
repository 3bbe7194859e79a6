"""Attributes, usage, quotas, layouts and pins of the file system object."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ffs.client.filesystem import RANGE_DTYPE, FFSFileSystem
from ffs.errors import (
    DirectoryExpectedError,
    InvalidError,
    NotFoundError,
    QuotaBorderError,
    QuotaExceededError,
    StaleFileError,
)
from tests.harness import Cluster

NewCluster = Callable[..., Cluster]
KIB = 1 << 10
FAST = {"meta.heartbeat_ms": 50, "meta.node_lease_ms": 300, "meta.gc_delay_s": 0}


# --- attributes --------------------------------------------------------------------------------


def test_attributes(fs: Any, fs_dir: str) -> None:
    path = f"{fs_dir}/x"
    fs.pipe_file(path, b"1")
    fs.chmod(path, 0o640)
    fs.chown(path, 5, 6)
    fs.chown(path, gid=7)
    info = fs.info(path)
    assert (info["mode"] & 0o7777, info["uid"], info["gid"]) == (0o640, 5, 7)
    fs.utime(path, (1.5, 2.5))
    assert fs.info(path)["mtime"] == 2.5
    fs.utime(path, ns=(1, 2_000_000_000))
    assert fs.modified(path).timestamp() == 2
    before = time.time()
    fs.utime(path)
    assert fs.modified(path).timestamp() >= before - 1
    with pytest.raises(InvalidError):
        fs.utime(path, (1, 2), ns=(1, 2))
    fs.chmod(fs_dir, 0o700)
    assert fs.info(fs_dir)["mode"] & 0o7777 == 0o700
    with pytest.raises(FileNotFoundError):
        fs.chmod(f"{fs_dir}/nowhere", 0o600)


def test_attributes_are_whole_numbers(fs: Any, fs_dir: str) -> None:
    fs.touch(f"{fs_dir}/x")
    with pytest.raises(TypeError):
        fs.chmod(f"{fs_dir}/x", "600")
    with pytest.raises(TypeError):
        fs.truncate(f"{fs_dir}/x", 1.5)


def test_attributes_of_a_link_and_of_what_it_leads_to(fs: Any, fs_dir: str) -> None:
    fs.pipe_file(f"{fs_dir}/x", b"1")
    fs.symlink("x", f"{fs_dir}/l")
    fs.chown(f"{fs_dir}/l", 5, 5)
    fs.chown(f"{fs_dir}/l", 6, 6, follow_symlinks=False)
    (link,) = [i for i in fs.ls(fs_dir) if i["islink"]]
    assert fs.info(f"{fs_dir}/x")["uid"] == 5 and link["uid"] == 6
    assert fs.info(f"{fs_dir}/l")["uid"] == 5


def test_truncate(fs: Any, fs_dir: str) -> None:
    path, data = f"{fs_dir}/x", bytes(range(256)) * 1_000
    fs.pipe_file(path, data, chunk_size_bytes=64 * KIB)
    with fs.open(path, "rb") as opened:
        fs.truncate(path, 70_000)
        assert fs.cat_file(path) == data[:70_000]
        fs.truncate(path, 80_000)
        assert fs.cat_file(path) == data[:70_000] + bytes(10_000)
        assert opened.read() == data, "an open file keeps its content"
    fs.truncate(path, 0)
    assert fs.cat_file(path) == b"" and fs.info(path)["size"] == 0
    for bad in (-1, 1 << 63):
        with pytest.raises(InvalidError):
            fs.truncate(path, bad)
    with pytest.raises(IsADirectoryError):
        fs.truncate(fs_dir, 0)


# --- usage -------------------------------------------------------------------------------------


def test_usage(fs: Any, fs_dir: str) -> None:
    fs.pipe({f"{fs_dir}/d/{i}": b"x" * 1_000 for i in range(5)})
    fs.cp_file(f"{fs_dir}/d/0", f"{fs_dir}/d/copy")
    fs.link(f"{fs_dir}/d/1", f"{fs_dir}/d/e/again")
    fs.symlink("d", f"{fs_dir}/l")
    fs.truncate(f"{fs_dir}/d/2", 2_000)
    usage = fs.usage(fs_dir)
    assert usage == {
        "files": 6,
        "directories": usage["directories"],
        "symlinks": 1,
        "size_bytes": 7_000,
        "stored_bytes": 5_000,
    }
    assert fs.usage(f"{fs_dir}/d/2")["size_bytes"] == 2_000
    assert fs.du(fs_dir) == 7_000 and fs.disk_usage(f"{fs_dir}/d/2") == 2_000
    sizes = fs.du(fs_dir, total=False)
    assert sizes[f"{fs_dir}/d/2"] == 2_000 and sizes[f"{fs_dir}/l"] == 0 and len(sizes) == 8
    assert set(fs.du(fs_dir, total=False, withdirs=True)) - set(sizes) == {
        fs_dir,
        f"{fs_dir}/d",
        f"{fs_dir}/d/e",
    }
    assert fs.du(fs_dir, maxdepth=1) == 0 and fs.du(fs_dir, maxdepth=2) == 7_000
    assert fs.du(f"{fs_dir}/nowhere") == 0 and fs.du(f"{fs_dir}/nowhere", total=False) == {}
    with pytest.raises(NotFoundError):
        fs.usage(f"{fs_dir}/nowhere")


def test_statfs(fs: Any, fs_dir: str) -> None:
    fs.pipe_file(f"{fs_dir}/x", b"1")
    found = fs.statfs()
    assert found["capacity_bytes"] >= found["used_bytes"] + found["available_bytes"] > 0
    assert found["inodes"] >= 2 and found["replicas"] >= 1


# --- quotas ------------------------------------------------------------------------------------


def test_quotas(fs: Any, fs_dir: str) -> None:
    top = f"{fs_dir}/q"
    fs.mkdir(f"{top}/below")
    fs.pipe_file(f"{top}/below/f", b"x" * 600)
    (own,) = fs.set_quota(top, bytes_max=1_000, files_max=3)
    assert own == {
        "path": top,
        "bytes_max": 1_000,
        "bytes_used": 600,
        "files_max": 3,
        "files_used": 2,
    }
    assert fs.quotas(f"{top}/below/f") == [own]
    attempts: tuple[Callable[[], object], ...] = (
        lambda: fs.pipe_file(f"{top}/g", b"y" * 401),
        lambda: fs.pipe_file(f"{top}/below/f", b"y" * 1_001),
        lambda: fs.cp_file(f"{top}/below/f", f"{top}/g"),
        lambda: fs.truncate(f"{top}/below/f", 1_001),
        lambda: fs.makedirs(f"{top}/x/y"),
    )
    for attempt in attempts:
        with pytest.raises(OSError) as caught:
            attempt()
        assert caught.value.errno == errno.EDQUOT
        assert isinstance(caught.value, QuotaExceededError)
    assert fs.cat_file(f"{top}/below/f") == b"x" * 600
    fs.pipe_file(f"{top}/g", b"y" * 400)
    with pytest.raises(QuotaExceededError), fs.open(f"{top}/g", "ab") as file:
        file.write(b"z")
    with pytest.raises(QuotaBorderError):
        fs.link(f"{top}/g", f"{fs_dir}/outside")
    fs.mv(f"{top}/g", f"{fs_dir}/g")
    assert fs.quotas(top)[0]["bytes_used"] == 600
    assert fs.set_quota(top) == fs.quotas(f"{top}/below") == []
    fs.pipe_file(f"{top}/g", b"y" * 4_000)
    for bounds in ({"bytes_max": -1}, {"files_max": -5}):
        with pytest.raises(InvalidError):
            fs.set_quota(top, **bounds)


# --- layouts -----------------------------------------------------------------------------------


def test_layouts_are_inherited_and_told(fs: Any, fs_dir: str) -> None:
    default = fs.get_layout(fs_dir)
    assert default["origin"] == ""
    fs.mkdir(f"{fs_dir}/a/b")
    fs.set_layout(f"{fs_dir}/a", chunk_size_bytes=128 * KIB)
    assert fs.get_layout(f"{fs_dir}/a/b") == {
        "chunk_size_bytes": 128 * KIB,
        "stripe": default["stripe"],
        "origin": f"{fs_dir}/a",
    }
    cases = [
        ({}, 128 * KIB),
        ({"chunk_size_bytes": 64 * KIB}, 64 * KIB),
        ({"chunk_size_bytes": 64 * KIB, "stripe": 1}, 64 * KIB),
    ]
    for index, (layout, wanted) in enumerate(cases):
        path = f"{fs_dir}/a/b/{index}"
        with fs.open(path, "wb", **layout) as file:
            file.write(b"x" * 200 * KIB)
        fs.pipe({f"{path}-small": b"x", f"{path}-large": b"y" * (5 << 20)}, **layout)
        for name in (path, f"{path}-small", f"{path}-large"):
            assert fs.get_layout(name)["chunk_size_bytes"] == wanted
            assert fs.core.meta.open(name) and fs.info(name)["chunk_size"] == wanted
    fs.set_layout(f"{fs_dir}/a")
    assert fs.get_layout(f"{fs_dir}/a/b") == default
    assert fs.get_layout(f"{fs_dir}/a/b/0")["chunk_size_bytes"] == 128 * KIB
    with pytest.raises(InvalidError):
        fs.set_layout(f"{fs_dir}/a", chunk_size_bytes=100)
    with pytest.raises(DirectoryExpectedError):
        fs.set_layout(f"{fs_dir}/a/b/0", stripe=1)
    with pytest.raises(NotFoundError):
        fs.get_layout(f"{fs_dir}/nowhere")


# --- pins --------------------------------------------------------------------------------------


def test_a_pin_keeps_what_handles_read(new_cluster: NewCluster) -> None:
    cluster = new_cluster(config=FAST)
    fs = FFSFileSystem(skip_instance_cache=True, **cluster.storage_options)
    fs.pipe({f"/d/{i}": b"%d" % i * 1_000 for i in range(4)})
    pin = fs.pin("/d", owner="job 7")
    assert pin["owner"] == "job 7" and pin["path"] == "/d" and pin["expires"] is None
    assert pin["files"] == 4 and pin["stored_bytes"] == 4_000 and fs.pins() == [pin]
    handles = fs.open_many([f"/d/{i}" for i in range(4)])
    ranges = np.zeros(4, dtype=RANGE_DTYPE)
    ranges["handle"], ranges["length"] = handles, 1_000
    fs.rm("/d", recursive=True)
    out, deadline = bytearray(4_000), time.monotonic() + 60
    time.sleep(1)
    assert fs.readv_into(ranges, out) == 4_000 and out[::1_000] == b"0123"
    fs.unpin(pin["pin"])
    assert fs.pins() == []

    def read_until_dropped() -> None:
        while time.monotonic() < deadline:
            fs.readv_into(ranges, out)
            time.sleep(0.05)

    with pytest.raises(StaleFileError):
        read_until_dropped()
    with pytest.raises(NotFoundError):
        fs.unpin(pin["pin"])


def test_pins_that_end_by_themselves(fs: Any, fs_dir: str) -> None:
    fs.pipe_file(f"{fs_dir}/x", b"1")
    pin = fs.pin(f"{fs_dir}/x", ttl_s=1_000)
    assert 900 < pin["expires"] - pin["created"] <= 1_001 and "@" in pin["owner"]
    fs.unpin(pin["pin"])
    for bad in (0, -1):
        with pytest.raises(InvalidError):
            fs.pin(fs_dir, ttl_s=bad)
    with pytest.raises(NotFoundError):
        fs.pin(f"{fs_dir}/nowhere")


# --- snapshots and the trash -------------------------------------------------------------------


def test_a_snapshot_keeps_its_bytes_and_the_trash_lets_go(new_cluster: NewCluster) -> None:
    cluster = new_cluster(config={**FAST, "meta.trash_ttl_s": 1})
    fs = FFSFileSystem(skip_instance_cache=True, **cluster.storage_options)
    wanted = {f"/d/{i}": b"%d" % i * 1_000 for i in range(4)}
    fs.pipe({**wanted, "/gone": b"x" * 1_000})
    (handle,) = fs.open_many(["/gone"])
    fs.snapshot("/d", "v1")
    fs.rm([*wanted])
    entry = fs.trash("/gone")
    assert [one["entry"] for one in fs.trashed()] == [entry]
    deadline, out = time.monotonic() + 60, bytearray(1_000)

    def read_until_dropped() -> None:
        while time.monotonic() < deadline:
            fs.readv_into([(handle, 0, 1_000)], out)
            time.sleep(0.05)

    with pytest.raises(StaleFileError):
        read_until_dropped()
    assert fs.trashed() == [] and not fs.exists("/gone")
    for path, data in wanted.items():
        assert fs.cat_file(f"/d/.snapshots/v1{path.removeprefix('/d')}") == data
    fs.clone("/d/.snapshots/v1", "/again")
    assert fs.cat("/again", recursive=True) == {
        path.replace("/d", "/again"): data for path, data in wanted.items()
    }
    assert fs.find("/d") == [] and [one["name"] for one in fs.snapshots("/d")] == ["v1"]
