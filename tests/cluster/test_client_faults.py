"""The client when something is wrong: typed errors in time that say what to do, or none at all."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ffs.client.filesystem import RANGE_DTYPE, FFSFileSystem
from ffs.client.trace import tracing
from ffs.errors import (
    AuthError,
    ChecksumError,
    ClosedError,
    DeadlineError,
    StaleFileError,
    UnavailableError,
)
from ffs.key import ClusterKey
from tests.harness import Cluster
from tests.promptly import promptly

MIB = 1 << 20
NewCluster = Callable[..., Cluster]
FAST = {"meta.heartbeat_ms": 50, "meta.node_lease_ms": 300}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let clients have short deadlines: the cluster they believe in fails over quickly."""
    monkeypatch.setenv("FFS_META__HEARTBEAT_MS", "50")
    monkeypatch.setenv("FFS_META__NODE_LEASE_MS", "300")


def client(cluster: Cluster, **options: Any) -> FFSFileSystem:
    return FFSFileSystem(skip_instance_cache=True, **{**cluster.storage_options, **options})


INTERRUPTED = """
import sys, time
from ffs.client.filesystem import FFSFileSystem
fs = FFSFileSystem()
out = bytearray(64 << 20)
fs.readv_into([("/big", 0, 1 << 20)], out)
print("warm", flush=True)
sys.stdin.readline()
try:
    print("reading", flush=True)
    fs.readv_into([("/big", 0, len(out))], out)
except KeyboardInterrupt:
    print("interrupted", time.time(), flush=True)
    poison = bytes([0xA5]) * len(out)
    out[:] = poison
    sys.stdin.readline()
    assert out == poison, "a byte arrived late"
    print("intact", flush=True)
"""


def test_control_c_ends_a_read_from_a_stopped_daemon(new_cluster: NewCluster) -> None:
    cluster = new_cluster()
    client(cluster).pipe_file("/big", b"x" * (64 * MIB))
    for watch in promptly(0.2):
        watch.seconds = interrupted_read(cluster)


def interrupted_read(cluster: Cluster) -> float:
    """Press Ctrl-C in a read from a stopped daemon; return how long it took to end."""
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**cluster.environment, "PATH": "/usr/bin:/bin"},
        cwd=Path(__file__).parents[2],
    )
    with process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "warm\n"
        cluster.pause("storage")
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "reading\n"
        time.sleep(0.5)
        sent = time.time()
        process.send_signal(signal.SIGINT)
        word, at = process.stdout.readline().split()
        assert word == "interrupted"
        cluster.resume("storage")
        time.sleep(0.5)
        process.stdin.write("check\n")
        process.stdin.flush()
        assert process.stdout.readline() == "intact\n"
    assert process.returncode == 0
    return float(at) - sent


def test_a_wrong_key_is_refused_at_once_with_a_hint(cluster: Cluster, tmp_path: Path) -> None:
    ClusterKey.create(tmp_path / "other.key")
    for watch in promptly(2):
        with watch, pytest.raises(AuthError) as caught:
            client(cluster, key_file=str(tmp_path / "other.key")).ls("/")
    assert "key_file" in caught.value.hint and isinstance(caught.value, PermissionError)


@pytest.mark.usefixtures("impatient")
def test_a_metadata_server_that_is_down_is_unavailable_in_time(new_cluster: NewCluster) -> None:
    cluster = new_cluster(config=FAST)
    fs = client(cluster, meta_deadline_ms=1_500)
    fs.ls("/")
    cluster.kill("meta")
    for watch in promptly(1.7):
        with watch, pytest.raises(UnavailableError, match="cannot connect") as caught:
            fs.exists("/x")
        assert watch.seconds > 0.3, "it was tried again for as long as allowed"
    assert caught.value.where["address"] == "{}:{}".format(*cluster.address)
    cluster.restart("meta")
    assert fs.exists("/x") is False


@pytest.mark.usefixtures("impatient")
def test_a_file_that_cannot_be_published_waits_once(new_cluster: NewCluster) -> None:
    cluster = new_cluster(config=FAST)
    fs = client(cluster, meta_deadline_ms=1_500)
    for watch in promptly(2.5):  # more if giving the session up waited for the server again
        file = fs.open("/x", "wb")
        file.write(b"x")
        cluster.kill("meta")
        with watch, pytest.raises(UnavailableError):
            file.close()
        cluster.restart("meta")
    fs.close()
    assert client(cluster).exists("/x") is False


def test_a_closed_client_says_so_at_once(cluster: Cluster) -> None:
    fs = client(cluster)
    file = fs.open("/closed", "wb")
    file.write(b"x")
    meta = fs.core.meta
    fs.close()
    start = time.monotonic()
    with pytest.raises(ClosedError):
        file.close()
    with pytest.raises(ClosedError):
        meta.list_dir("/")
    assert time.monotonic() - start < 5


@pytest.mark.usefixtures("impatient")
def test_a_daemon_that_is_down_is_named_in_time(new_cluster: NewCluster) -> None:
    cluster = new_cluster(config=FAST)
    fs = client(cluster, read_deadline_ms=1_500, write_deadline_ms=1_500)
    fs.pipe_file("/x", b"abc")
    cluster.kill("storage")
    for watch in promptly(1.8):
        with watch, pytest.raises(UnavailableError) as caught:
            fs.cat_file("/x")
    assert caught.value.where["path"] == "/x" and "ffs status" in caught.value.hint
    with pytest.raises((UnavailableError, DeadlineError)):
        fs.pipe_file("/y", b"abc")
    cluster.restart("storage")
    assert fs.cat_file("/x") == b"abc"
    assert not fs.exists("/y")


@pytest.mark.usefixtures("impatient")
def test_a_stopped_daemon_ends_at_the_deadline(new_cluster: NewCluster) -> None:
    cluster = new_cluster()
    fs = client(cluster, read_deadline_ms=1_200)
    fs.pipe_file("/x", b"abc" * MIB)
    for watch in promptly(1.6):
        cluster.pause("storage")
        with watch, pytest.raises(DeadlineError) as caught:
            fs.cat_file("/x")
        assert watch.seconds >= 1.0
        assert caught.value.where["path"] == "/x"
        cluster.resume("storage")
        assert fs.cat_file("/x") == b"abc" * MIB


def test_restarts_are_not_noticed(new_cluster: NewCluster) -> None:
    cluster = new_cluster()
    fs = client(cluster)
    data = np.random.default_rng(1).bytes(8 * MIB)
    fs.pipe_file("/x", data)
    stop = threading.Event()
    failures: list[BaseException] = []
    reads = [0]

    def read() -> None:
        try:
            while not stop.is_set():
                assert fs.cat_file("/x") == data
                reads[0] += 1
        except BaseException as error:
            failures.append(error)

    def write() -> None:
        try:
            turn = 0
            while not stop.is_set():
                with fs.open(f"/w{turn % 3}", "wb") as file:
                    for start in range(0, len(data), MIB // 2):
                        file.write(data[start : start + MIB // 2])
                assert fs.cat_file(f"/w{turn % 3}") == data
                turn += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=t) for t in (read, read, write)]
    for thread in threads:
        thread.start()
    for role in ("storage", "meta", "storage", "meta"):
        time.sleep(0.4)
        cluster.restart(role)
    time.sleep(0.4)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures and reads[0] > 2


def test_damage_is_named_and_never_delivered(new_cluster: NewCluster) -> None:
    cluster = new_cluster()
    fs = client(cluster)
    fs.pipe_file("/x", bytes(range(256)) * 8192)
    cluster.process("storage").terminate()
    marks = 0
    for extents in cluster.target_dir().rglob("*.data"):
        data = bytearray(extents.read_bytes())
        if len(data) > MIB + 5 * 4096 + 77 and data[MIB + 5 * 4096 + 77] == 77:
            data[MIB + 5 * 4096 + 77] ^= 1
            extents.write_bytes(data)
            marks += 1
    assert marks == 1
    cluster.restart("storage")
    out = bytearray(2 * MIB)
    with tracing(0xABC), pytest.raises(ChecksumError) as caught:
        fs.readv_into([("/x", 0, 2 * MIB)], out)
    where = caught.value.where
    assert where["trace_id"] == "0000000000000abc"
    assert where["path"] == "/x" and where["target"] == 1 and where["node"] == 1
    assert {"blob", "chunk", "offset"} <= where.keys() and caught.value.hint
    chunk = where["chunk"]
    good = bytearray(MIB)
    assert fs.readv_into([("/x", (1 - chunk) * MIB, MIB)], good) == MIB
    assert good == bytes(range(256)) * 4096


def test_dropped_content(new_cluster: NewCluster) -> None:
    """Handles and open files become stale; paths are resolved once more and just work."""
    cluster = new_cluster(config={**FAST, "meta.gc_delay_s": 0, "meta.attr_ttl_ms": 600_000})
    writer, reader = client(cluster), client(cluster, attr_ttl_ms=600_000)
    writer.pipe_file("/x", b"old" * MIB)
    (handle,) = reader.open_many(["/x"])
    opened = reader.open("/x", "rb")
    out = bytearray(6)
    ranges = np.array([(handle, 0, 6)], dtype=RANGE_DTYPE)
    assert reader.readv_into(ranges, out) == 6 and out == b"oldold"
    writer.pipe_file("/x", b"NEW" * MIB)

    def stale() -> bool:
        try:
            reader.readv_into(ranges, out)
        except StaleFileError:
            return True
        return False

    give_up = time.monotonic() + 60
    while not stale():
        assert time.monotonic() < give_up, "the old content was never dropped"
        time.sleep(0.05)
    with pytest.raises(StaleFileError, match="dropped") as caught:
        opened.read(6)
    assert caught.value.where["path"] == "/x" and "open the path again" in caught.value.hint
    with pytest.raises(StaleFileError):
        reader.readv_into([(int(handle), 0, 3)], out)
    fresh = client(cluster, attr_ttl_ms=600_000)
    assert fresh.cat_file("/x", 0, 3) == b"NEW"
    writer.pipe_file("/x", b"two" * MIB)
    time.sleep(1.5)
    assert fresh.cat_file("/x", 0, 6) == b"twotwo"
    writer.pipe_file("/x", b"333" * MIB)
    time.sleep(1.5)
    assert fresh.readv_into([("/x", 0, 3), ("/x", 3 * MIB - 3, 3)], out) == 6 and out == b"333333"


def sessions_threads() -> int:
    return sum(t.name == "ffs-sessions" for t in threading.enumerate())


def test_sessions_are_kept_alive_while_files_are_open(new_cluster: NewCluster) -> None:
    cluster = new_cluster(config={**FAST, "meta.session_ttl_ms": 2_500})
    fs = client(cluster)
    before = sessions_threads()
    with fs.open("/x", "wb") as file:
        file.write(b"slow")
        assert sessions_threads() == before + 1
        time.sleep(4.0)
    assert fs.cat_file("/x") == b"slow"
    give_up = time.monotonic() + 60
    while sessions_threads() > before:
        assert time.monotonic() < give_up, "the thread outlives its work"
        time.sleep(0.05)
