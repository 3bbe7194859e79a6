"""Ctrl-C ends every kind of call within 200 ms, whatever the servers are doing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ffs.client.filesystem import FFSFileSystem
from tests.harness import Cluster

INTERRUPT_S_MAX = 0.2
"""What design and documentation promise."""
SETTLED_S = 0.5

CALLER = """
import os, sys, time
from ffs.client.filesystem import FFSFileSystem
fs = FFSFileSystem(same_host="HOW")
if WARM:
    assert fs.cat_file("/old", 0, 3) == b"old"
print("prepared", flush=True)
sys.stdin.readline()
print("calling", flush=True)
try:
    CALL
except KeyboardInterrupt:
    print("interrupted", time.time(), flush=True)
    sys.stdin.readline()
    assert fs.cat_file("/old", 0, 3) == b"old"
    print("works", fs.exists("/new"), flush=True)
"""

CALLS = {
    "read": ("storage", True, 'fs.readv_into([("/old", 0, 1 << 20)], bytearray(1 << 20))'),
    "read, same host": (
        "storage",
        True,
        'fs.readv_into([("/old", 2 << 20, 1 << 20)], bytearray(1 << 20))',
    ),
    "read, same host, not connected yet": ("storage", False, 'fs.cat_file("/old")'),
    "read, not connected yet": ("storage", False, 'fs.cat_file("/old")'),
    "write": ("storage", True, 'fs.pipe_file("/new", bytes(32 << 20))'),
    "create": ("meta", True, 'fs.pipe_file("/new", b"x")'),
    "metadata": ("meta", True, 'fs.ls("/elsewhere")'),
    "metadata, not connected yet": ("meta", False, 'fs.ls("/")'),
}
"""What is called -> (the server that hangs, whether there are connections, the call)."""


@pytest.fixture(scope="module")
def own_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose servers may be stopped."""
    with Cluster(tmp_path_factory.mktemp("interrupts")) as cluster:
        fs = FFSFileSystem(skip_instance_cache=True, **cluster.storage_options)
        fs.pipe_file("/old", b"old" * (1 << 20))
        fs.close()
        yield cluster


def interrupt(
    cluster: Cluster, script: str, hang: Callable[[], None], resume: Callable[[], None]
) -> tuple[float, str]:
    """Interrupt `script` in its call; return how long that took and what it said afterwards."""
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**cluster.environment, "PATH": "/usr/bin:/bin"},
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            assert process.stdout.readline() == "prepared\n"
            hang()
            process.stdin.write("go\n")
            process.stdin.flush()
            assert process.stdout.readline() == "calling\n"
            time.sleep(SETTLED_S)
            sent = time.time()
            process.send_signal(signal.SIGINT)
            word, at = process.stdout.readline().split()
            assert word == "interrupted"
        finally:
            resume()
        process.stdin.write("go on\n")
        process.stdin.flush()
        said = process.stdout.readline()
    assert process.returncode == 0
    return float(at) - sent, said


@pytest.mark.parametrize("name", CALLS)
def test_control_c_ends_a_call_in_time_and_leaves_a_client_that_works(
    name: str, own_cluster: Cluster
) -> None:
    server, warm, call = CALLS[name]
    script = CALLER.replace("WARM", str(warm)).replace("CALL", call)
    script = script.replace("HOW", "auto" if "same host" in name else "off")
    took_s, said = interrupt(
        own_cluster,
        script,
        lambda: own_cluster.pause(server),
        lambda: own_cluster.resume(server),
    )
    assert took_s <= INTERRUPT_S_MAX
    assert said == "works False\n"
