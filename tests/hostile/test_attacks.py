"""Real servers under every attack of bench/attacks.py: others go on, and memory stays bounded.

How fast the others go on is measured by `ffs-bench hostile`; here it is that nothing of theirs
fails.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ffs.bench.attacks import ATTACKS
from ffs.client.filesystem import FFSFileSystem
from tests.harness import Cluster

MIB = 1 << 20
META_RSS_MAX = 1_536 * MIB
DAEMON_RSS_MAX = 2_048 * MIB
"""What docs/limits.md says that servers take at worst; of a daemon's 2,400 MiB less the chunks in
hops with a share that is smaller than a chunk: no attack comes by a chain."""


def over_tcp(cluster: Cluster) -> FFSFileSystem:
    """A client that the attacks on the ports can hinder."""
    return FFSFileSystem(same_host="off", skip_instance_cache=True, **cluster.storage_options)


@contextmanager
def attacked(cluster: Cluster, path: str, *names: str, scale: float = 1.0) -> Iterator[None]:
    """Have attackers, in a process of their own, in their places meanwhile."""
    host, port = cluster.address
    command = [sys.executable, "-m", "ffs.bench.attacks", "--meta", f"{host}:{port}"]
    command += ["--key-file", str(cluster.key_file), "--path", path, "--scale", str(scale), *names]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as attacker:
        assert attacker.stdin is not None
        assert attacker.stdout is not None
        try:
            assert attacker.stdout.readline() == b"ready\n"
            yield
            assert attacker.poll() is None, "the attackers gave up"
        finally:
            attacker.stdin.close()
            attacker.wait(30)


@pytest.fixture
def victim(new_cluster: Callable[..., Cluster]) -> Iterator[tuple[Cluster, Any, str]]:
    """A cluster of its own, a client, and a file of four megabytes in it."""
    cluster = new_cluster()
    fs = over_tcp(cluster)
    fs.mkdir("/data")
    fs.pipe_file("/data/file", os.urandom(4 * MIB))
    yield cluster, fs, "/data/file"
    fs.close()


def work(fs: Any, path: str, content: bytes, number: int) -> None:
    """Everything that a client does: stat, list, read small and large, write, remove."""
    assert fs.info(path)["size"] == len(content)
    assert path in fs.ls("/data", detail=False)
    at = number * 4_099 % (len(content) - 4_096)
    assert fs.cat_file(path, start=at, end=at + 4_096) == content[at : at + 4_096]
    assert fs.cat_file(path) == content
    fresh = f"/data/new-{number}"
    fs.pipe_file(fresh, content[: 100_000 + number])
    assert fs.cat_file(fresh) == content[: 100_000 + number]
    fs.rm_file(fresh)


def resident_most(pid: int) -> int:
    """The most memory that a process has had."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("name", ATTACKS)
def test_others_go_on_during_each_attack(cluster: Cluster, fs: Any, name: str) -> None:
    """A tenth of each attack's connections (2,000 idle ones), on servers that others use too."""
    fs.makedirs("/data", exist_ok=True)
    fs.pipe_file("/data/file", content := os.urandom(MIB))
    with attacked(cluster, "/data/file", name, scale=0.5 if name == "idle" else 0.1):
        for number in range(3):
            work(fs, "/data/file", content, number)
            fresh = FFSFileSystem(
                same_host="off", skip_instance_cache=True, **cluster.storage_options
            )
            assert fresh.cat_file("/data/file") == content
            fresh.close()


def test_all_attacks_at_once_stay_in_bounded_memory(
    victim: tuple[Cluster, Any, str],
) -> None:
    """Others go on, and no server outgrows its bound; in full size when FFS_ROUNDS is set."""
    cluster, fs, path = victim
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= 16_384, "attackers need descriptors"
    content = fs.cat_file(path)
    meta, daemon = cluster.process("meta").pid, cluster.process("storage").pid
    rounds = int(os.environ.get("FFS_ROUNDS", "1"))
    with attacked(cluster, path, scale=0.25 if rounds == 1 else 1.0):
        until = time.monotonic() + 4 * rounds
        number = 0
        while time.monotonic() < until or number < 5:
            work(fs, path, content, number)
            number += 1
    sys.stdout.write(f"meta {resident_most(meta) >> 20} MiB, ")
    sys.stdout.write(f"daemon {resident_most(daemon) >> 20} MiB, {number} rounds\n")
    assert resident_most(meta) < META_RSS_MAX
    assert resident_most(daemon) < DAEMON_RSS_MAX
    assert cluster.process("meta").alive
    assert cluster.process("storage").alive


def test_out_of_descriptors_is_survived(new_cluster: Callable[..., Cluster]) -> None:
    """Servers with few descriptors, all of them taken by strangers, let others in all the same.

    Only reading is asked for: a store opens files when chunks of a new size are written.
    """
    cluster = new_cluster()
    fs = over_tcp(cluster)
    fs.mkdir("/data")
    fs.pipe_file("/data/file", content := os.urandom(MIB))
    for role in ("meta", "storage"):
        pid = cluster.process(role).pid
        hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (100, hard))
    with attacked(cluster, "/data/file", "strangers", scale=0.2):
        for _ in range(20):
            assert fs.cat_file("/data/file") == content
        fresh = over_tcp(cluster)
        assert fresh.cat_file("/data/file") == content
        fresh.close()
    fs.close()
