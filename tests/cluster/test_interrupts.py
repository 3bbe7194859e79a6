"""Ctrl-C ends every kind of call within 200 ms, whatever the servers are doing."""

from __future__ import annotations

import gc
import linecache
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from ffs.client.filesystem import FFSFileSystem
from tests.harness import Cluster, close_idle
from tests.promptly import promptly

INTERRUPT_S_MAX = 0.2
"""What design and documentation promise."""
SETTLED_S = 0.5
CLIENT_FILES = (
    "rpc/blocking.py",
    "client/connections.py",
    "client/settle.py",
    "client/reader.py",
) + ("client/calls.py", "client/meta.py", "handshake.py")

CALLER = """
import os, sys, time
from ffs.client.filesystem import FFSFileSystem
fs = FFSFileSystem(same_host="HOW")
if WARM:
    assert fs.cat_file("/old", 0, 3) == b"old"
print("prepared", flush=True)
sys.stdin.readline()
try:
    print("calling", flush=True)
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
            line = process.stdout.readline()
            assert line, f"it ended with {process.wait()}"
            word, at = line.split()
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
    for watch in promptly(INTERRUPT_S_MAX):
        watch.seconds, said = interrupt(
            own_cluster,
            script,
            lambda: own_cluster.pause(server),
            lambda: own_cluster.resume(server),
        )
        assert said == "works False\n"


class _Interrupter:
    """Presses Ctrl-C at the n-th line that the client comes through."""

    def __init__(self, line: int) -> None:
        self.left = line

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.endswith(CLIENT_FILES):
            return None
        # A block's end is told as its `with` line once more, and cannot be broken off there.
        source = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and not source.lstrip().startswith("with "):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self


class _Nitpicker(_Interrupter):
    """Presses Ctrl-C at the n-th step of Python's where a connection is made, within lines too."""

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        code = frame.f_code
        if not code.co_filename.endswith("client/connections.py"):
            return None
        if "connect" not in code.co_name:
            return self
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # some go by themselves
@pytest.mark.parametrize("how", ["auto", "off"])
def test_control_c_within_any_line_of_connecting_leaks_no_descriptor(
    how: str, own_cluster: Cluster
) -> None:
    fs = FFSFileSystem(skip_instance_cache=True, same_host=how, **own_cluster.storage_options)
    assert fs.cat_file("/old", 0, 3) == b"old"
    close_idle(fs)
    before = descriptors()
    interrupted, step = True, 0
    while interrupted:
        step += 1
        interrupted = False
        sys.settrace(_Nitpicker(step))
        try:
            fs.cat_file("/old", start=0, end=1000)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            sys.settrace(None)
        close_idle(fs)
        if descriptors() > before:
            gc.collect()
            assert descriptors() <= before, f"at step {step} of connecting"
    assert step > 40
    fs.close()


@pytest.mark.parametrize("what", ["names", "bytes"])
def test_control_c_at_any_line_leaks_no_descriptor(what: str, own_cluster: Cluster) -> None:
    fs = FFSFileSystem(skip_instance_cache=True, attr_ttl_ms=0, **own_cluster.storage_options)
    calls: dict[str, Callable[[], object]] = {
        "names": lambda: fs.exists("/old"),
        "bytes": lambda: fs.cat_file("/old", start=0, end=1000),
    }
    call = calls[what]
    call()
    before = descriptors()
    interrupted = True
    line = 0
    while interrupted:
        line += 1
        interrupted = False
        sys.settrace(_Interrupter(line))
        try:
            call()
        except KeyboardInterrupt:
            interrupted = True
        finally:
            sys.settrace(None)
        call()
        if descriptors() > before:
            gc.collect()
            assert descriptors() <= before, f"at line {line} of the call"
    print(f"{line - 1} lines")
    assert line > 20
    fs.close()


def descriptors() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))
