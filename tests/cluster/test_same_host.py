"""Reading from daemons on the same host, through fsspec: found by itself, and safe to fall off."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ffs import _reader
from ffs.client.filesystem import FFSFileSystem
from ffs.errors import AuthError, ChecksumError, ProtocolError
from ffs.handshake import ClusterKey, HandshakeKind, connect
from ffs.same_host import connect_local, socket_name
from tests.harness import Cluster

MIB = 1 << 20


def client(cluster: Cluster, **options: Any) -> FFSFileSystem:
    return FFSFileSystem(skip_instance_cache=True, **{**cluster.storage_options, **options})


@pytest.fixture
def data() -> bytes:
    return random.Random(9).randbytes(5 * MIB + 77)


def local_bytes() -> int:
    return _reader.counters()["local_bytes"]


def test_reads_take_the_files_and_off_takes_the_network(
    cluster: Cluster, fs: Any, fs_dir: str, data: bytes
) -> None:
    path = f"{fs_dir}/f"
    fs.pipe_file(path, data)
    before = local_bytes()
    assert fs.cat_file(path) == data
    assert fs.cat_file(path, 3, 5_000) == data[3:5_000]
    assert local_bytes() - before >= len(data) + 4_997
    far = client(cluster, same_host="off")
    before = local_bytes()
    assert far.cat_file(path) == data
    assert local_bytes() == before
    far.close()


def storage_address(fs: Any) -> tuple[str, int]:
    """Where the only daemon takes data connections."""
    (address,) = fs._core.meta.route().address_of_node.values()
    return str(address[0]), int(address[1])


def test_without_the_key_there_is_nothing(cluster: Cluster, fs: Any, tmp_path: Path) -> None:
    fs.pipe_file("/secret", b"x")
    address, key = storage_address(fs), ClusterKey.load(cluster.key_file)
    wrong = ClusterKey.create(tmp_path / "wrong.key")
    with pytest.raises(OSError):
        connect_local(wrong, address, timeout_ms=5_000)
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(socket_name(key, address))
        stranger.sendall(b"GET / HTTP/1.1\r\n" + bytes(64))
        stranger.settimeout(20)
        data, descriptors, _, _ = socket.recv_fds(stranger, 4_096, 16)
        assert len(data) <= 40 and descriptors == []
    # A proof for one door is good for no other.
    with pytest.raises((AuthError, ProtocolError)):
        connect(*address, key, HandshakeKind.LOCAL, timeout_ms=5_000)
    connect_local(key, address, timeout_ms=5_000).close()


def test_who_took_the_name_is_not_believed(fs: Any, fs_dir: str, data: bytes) -> None:
    """A daemon's name in another's hands costs a client nothing but the attempt."""
    path = f"{fs_dir}/f"
    fs.pipe_file(path, data)
    connections = fs._core.connections
    other = ClusterKey.create(Path(os.devnull).parent / "shm" / f"ffs-{os.getpid()}.key")
    connections._key, right = other, connections._key
    try:
        pool = connections.pool(storage_address(fs))
        assert connections._connect_local(pool, 1_000) is None and pool.elsewhere
    finally:
        connections._key = right
        os.unlink(f"/dev/shm/ffs-{os.getpid()}.key")
    before = local_bytes()
    assert fs.cat_file(path) == data
    assert local_bytes() == before, "read over TCP"


def test_a_daemon_that_restarts_is_found_again(new_cluster: Callable[..., Cluster]) -> None:
    cluster = new_cluster()
    fs = client(cluster)
    content = random.Random(3).randbytes(3 * MIB)
    fs.pipe_file("/x", content)
    assert fs.cat_file("/x") == content
    for _ in range(4):
        cluster.restart("storage")
        assert fs.cat_file("/x") == content
    before = local_bytes()
    assert fs.cat_file("/x") == content
    assert local_bytes() - before >= len(content)
    fs.close()


def test_a_forked_child_has_its_own(fs: Any, fs_dir: str, data: bytes) -> None:
    path = f"{fs_dir}/f"
    fs.pipe_file(path, data)
    assert fs.cat_file(path) == data
    pid = os.fork()
    if pid == 0:
        try:
            right = fs.cat_file(path) == data and local_bytes() >= len(data)
            os._exit(0 if right else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    before = _reader.counters()
    assert fs.cat_file(path) == data
    after = _reader.counters()
    assert after["frames"] == before["frames"], "the parent's locations are what they were"


READER = """
import sys, time
from ffs.client.filesystem import FFSFileSystem
fs = FFSFileSystem()
assert len(fs.cat_file("/x")) == 3 << 20
print("read", flush=True)
time.sleep(600)
"""


def test_a_killed_clients_space_comes_back(new_cluster: Callable[..., Cluster]) -> None:
    config = {"meta.gc_delay_s": 0, "meta.heartbeat_ms": 100, "meta.node_lease_ms": 1_000}
    cluster = new_cluster(config=config)
    fs = client(cluster)
    fs.pipe_file("/x", bytes(3 * MIB))
    reader = subprocess.Popen(
        [sys.executable, "-c", READER],
        stdout=subprocess.PIPE,
        env={**os.environ, **cluster.environment},
        cwd=Path(__file__).parents[2],
    )
    with reader:
        assert reader.stdout is not None and reader.stdout.readline() == b"read\n"
        os.kill(reader.pid, signal.SIGKILL)
    files = [p for p in cluster.target_dir().iterdir() if p.suffix == ".data"]
    full = sum(p.stat().st_blocks for p in files)
    fs.rm_file("/x")
    give_up = time.monotonic() + 60
    while sum(p.stat().st_blocks for p in files) >= full:
        assert time.monotonic() < give_up
        time.sleep(0.1)
    fs.close()


def test_a_file_is_mapped_and_its_bytes_stay(new_cluster: Callable[..., Cluster]) -> None:
    config = {"meta.gc_delay_s": 0, "meta.heartbeat_ms": 100, "meta.node_lease_ms": 1_000}
    cluster = new_cluster(config=config)
    fs = client(cluster)
    content = random.Random(5).randbytes(5 * MIB + 77)
    fs.pipe_file("/x", content, chunk_size_bytes=MIB)
    views = [fs.read_buffer("/x", 12_345, map=True), fs.read_buffer("/x", map=True)]
    assert all(view.readonly for view in views)
    cluster.kill("storage")
    cluster.restart("storage")
    used = stored_blocks(cluster)
    fs.rm_file("/x")
    for _ in range(10):
        fs.pipe_file("/y", bytes(5 * MIB))
        fs.rm_file("/y")
    cluster.kill("storage")
    cluster.restart("storage")
    for i in range(3):
        fs.pipe_file(f"/z{i}", bytes(5 * MIB))
    assert views[0] == content[12_345:]
    assert views[1] == content
    del views
    for i in range(3):
        fs.rm_file(f"/z{i}")
    give_up = time.monotonic() + 60
    while stored_blocks(cluster) > used // 4:
        assert time.monotonic() < give_up
        time.sleep(0.1)
    fs.close()


def stored_blocks(cluster: Cluster) -> int:
    files = [p for p in cluster.target_dir().iterdir() if p.suffix == ".data"]
    return sum(p.stat().st_blocks for p in files)


def test_what_cannot_be_mapped_is_read(cluster: Cluster, fs: Any, fs_dir: str, data: bytes) -> None:
    path = f"{fs_dir}/f"
    fs.pipe_file(path, data)
    far = client(cluster, same_host="off")
    assert not far.read_buffer(path, map=True).readonly
    far.close()
    with fs.open(path, "ab") as file:
        file.write(b"more")
    assert fs.read_buffer(path, map=True) == data + b"more"
    assert not fs.read_buffer(path, map=True).readonly, "two segments between pages"
    assert fs.read_buffer(path, 5, 70_000, map=True).readonly
    assert fs.read_buffer(path, 5, 0, map=True) == b""
    fs.truncate(path, len(data) + 100)
    assert fs.read_buffer(path, map=True) == data + b"more" + bytes(96)


def test_a_damaged_file_is_not_mapped(new_cluster: Callable[..., Cluster]) -> None:
    cluster = new_cluster()
    fs, content = client(cluster), random.Random(6).randbytes(MIB)
    fs.pipe_file("/x", content, chunk_size_bytes=MIB)
    with open(cluster.target_dir() / f"{MIB}.data", "r+b") as file:
        file.seek(70_000)
        file.write(bytes([content[70_000] ^ 1]))
    with pytest.raises(ChecksumError):
        fs.read_buffer("/x", map=True)
    unchecked = client(cluster, verify=False)
    assert unchecked.read_buffer("/x", map=True).readonly
    unchecked.close()
    fs.close()
