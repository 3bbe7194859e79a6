"""The plain C limits work, deliver the right bytes, and report sane numbers. Never how fast."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ffs.bench import rawtools
from ffs.bench.machine import Placement
from ffs.errors import ConfigError, NativeError

MIB = 1 << 20


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "data"
    path.write_bytes(os.urandom(4 * MIB))
    return path


def options(path: Path, **more: rawtools.Option) -> dict[str, rawtools.Option]:
    where = rawtools.placed(Placement.choose())
    common: dict[str, rawtools.Option] = {"file": path, "seconds": 0.05, "dest_bytes": 4 * MIB}
    return {**common, **where, "congestion": "cubic", **more}


@pytest.mark.parametrize("mode", ["sendfile", "mmap", "read"])
def test_stream_delivers_the_files_bytes(data: Path, mode: str) -> None:
    found = rawtools.run("stream", mode=mode, range_bytes=MIB, window=2, check=4, **options(data))
    assert found["checked"] == 4
    assert found["operations"] > 0
    assert found["bytes"] == found["operations"] * MIB
    assert found["seconds"] >= 0.05
    assert found["client_cpu_s"] > 0
    assert found["server_cpu_s"] > 0


@pytest.mark.parametrize("call", [0, 3])
def test_two_connections_deliver_the_files_bytes(data: Path, call: int) -> None:
    found = rawtools.run(
        "stream",
        mode="sendfile",
        range_bytes=MIB,
        window=2,
        check=3,
        connections=2,
        call=call,
        **options(data),
    )
    assert found["checked"] == 6
    assert found["operations"] % max(1, call) == 0
    assert found["operations"] >= 2


@pytest.mark.parametrize("mode", ["sendfile", "mmap"])
def test_the_plain_epoll_server_delivers_the_files_bytes(data: Path, mode: str) -> None:
    found = rawtools.run(
        "crowd",
        mode=mode,
        connections=50,
        range_bytes=65_536,
        window=1,
        chunk_bytes=MIB,
        **options(data),
    )
    assert found["checked"] == 50
    assert found["operations"] >= 50
    assert found["server_cpu_s"] > 0


@pytest.mark.parametrize("name", ["stream", "small", "roofline", "crowd", "idlespin"])
def test_programs_compile_without_a_warning(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("CFLAGS", "-O1 -Werror -Wconversion -Wshadow -Wvla")
    assert rawtools.build(name).exists()


def test_latencies_of_every_call_are_left_behind(data: Path, tmp_path: Path) -> None:
    left = tmp_path / "latencies"
    found = rawtools.run(
        "small", mode="mmap", range_bytes=4096, window=1, latencies=left, **options(data)
    )
    taken = np.fromfile(left, dtype=np.float32)
    assert len(taken) == found["operations"]
    middle = np.sort(taken)[len(taken) // 2]  # one that was measured, as the program's figure is
    assert middle == pytest.approx(found["p50_us"], abs=0.001)


@pytest.mark.parametrize("mode", ["mmap", "pread", "sendfile"])
@pytest.mark.parametrize("window", [1, 100])
def test_small_delivers_the_files_bytes(data: Path, mode: str, window: int) -> None:
    found = rawtools.run(
        "small", mode=mode, range_bytes=4096, window=window, check=300, **options(data)
    )
    assert found["checked"] >= 300
    assert found["operations"] % window == 0
    assert 0 < found["p50_us"] <= found["p99_us"]


@pytest.mark.parametrize("mode", ["memcpy", "pread", "crc"])
def test_roofline_moves_bytes(data: Path, mode: str) -> None:
    found = rawtools.run("roofline", mode=mode, range_bytes=MIB, window=1, **options(data))
    assert found["bytes"] == found["operations"] * MIB > 0


@pytest.mark.parametrize(
    "wrong",
    [{"mode": "carrier-pigeon"}, {"window": 0}, {"range_bytes": 8 * MIB}, {"nonsense": 1}],
)
def test_wrong_options_are_errors(data: Path, wrong: dict[str, rawtools.Option]) -> None:
    right = options(data, mode="sendfile", range_bytes=MIB, window=2)
    with pytest.raises(NativeError):
        rawtools.run("stream", **{**right, **wrong})


def test_sources_elsewhere_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FFS_BENCH_RAW", str(tmp_path))
    with pytest.raises(ConfigError, match="FFS_BENCH_RAW"):
        rawtools.build("stream")


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(ConfigError, match="compiler"):
        rawtools.build("stream")


def test_a_spinner_is_idle_class_and_dies_with_its_block() -> None:
    cpu = min(os.sched_getaffinity(0))
    with rawtools.spinner(cpu, limit_s=20) as pid:
        deadline = time.monotonic() + 30
        while os.sched_getscheduler(pid) != os.SCHED_IDLE and time.monotonic() < deadline:
            time.sleep(0.005)
        assert os.sched_getscheduler(pid) == os.SCHED_IDLE
        assert os.sched_getaffinity(pid) == {cpu}
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_spinner_ends_when_its_parent_is_killed() -> None:
    """A harness that dies by SIGKILL leaves no spinner behind."""
    code = (
        "import os, time\nfrom ffs.bench import rawtools\n"
        "with rawtools.spinner(min(os.sched_getaffinity(0)), 60) as pid:\n"
        "    time.sleep(0.2)\n    print(pid, flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 30
    while _running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _running(pid)


def _running(pid: int) -> bool:
    """Whether the process still runs: one that nobody reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_spinner_ends_by_itself() -> None:
    started = time.monotonic()
    command = [str(rawtools.build("idlespin")), "0", "1", str(os.getpid())]
    assert subprocess.run(command, check=False).returncode < 0
    assert time.monotonic() - started < 20


def test_copies_of_a_known_size_are_counted(tmp_path: Path) -> None:
    """Large copies count byte for byte, those below 512 bytes do not."""
    code = (
        "import ctypes, os, struct, sys\nlibc = ctypes.CDLL(None)\n"
        "source, target = bytes(1000), ctypes.create_string_buffer(1000)\n"
        "totals = sys.argv[1] + '.' + str(os.getpid())\n"
        "read = lambda: struct.unpack('<QQ', open(totals, 'rb').read(16))\n"
        "before = read()\n"
        "for name in ('memcpy', 'memmove', 'mempcpy'):\n"
        "    getattr(libc, name)(target, source, ctypes.c_size_t(1000))\n"
        "    getattr(libc, name)(target, source, ctypes.c_size_t(511))\n"
        "after = read()\nprint(after[0] - before[0], after[1] - before[1])\n"
    )
    prefix = str(tmp_path / "copies")
    environment = {
        **os.environ,
        "LD_PRELOAD": str(rawtools.build("copycount")),
        "COPYCOUNT_OUT": prefix,
    }
    result = subprocess.run(
        [sys.executable, "-c", code, prefix],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    copied, calls = map(int, result.stdout.split())
    # The interpreter may copy a little of its own between the two readings.
    assert 3000 <= copied <= 3000 + 64 * 1024
    assert calls >= 3


def test_the_copy_counter_moves_overlapping_bytes_right(tmp_path: Path) -> None:
    library = ctypes.CDLL(str(rawtools.build("copycount")))
    buffer = ctypes.create_string_buffer(bytes(range(256)) * 8, 2048)
    address = ctypes.addressof(buffer)
    library.memmove.restype = ctypes.c_void_p
    library.memmove(ctypes.c_void_p(address + 1), ctypes.c_void_p(address), ctypes.c_size_t(2047))
    assert buffer.raw[:3] == b"\x00\x00\x01"
    assert buffer.raw[1:] == (bytes(range(256)) * 8)[:2047]


def test_syncs_are_counted_by_kind(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "for name, times in (('extent.data', 3), ('extent.index', 2)):\n"
        "    fd = os.open(os.path.join(sys.argv[1], name), os.O_RDWR | os.O_CREAT)\n"
        "    for i in range(times):\n        (os.fdatasync if i else os.fsync)(fd)\n"
    )
    environment = {
        **os.environ,
        "LD_PRELOAD": str(rawtools.build("synccount")),
        "SYNCCOUNT_OUT": str(tmp_path / "syncs"),
    }
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=True)
    (totals,) = tmp_path.glob("syncs.*")
    assert struct.unpack("<QQ", totals.read_bytes()) == (3, 2)
