"""What the harness asks of the machine: who it is, CPU clocks, stolen time, where things run.

Used by bench/measure.py (clocks, steal) and bench/cases (pinning). Linux only. Nothing here retries
or guesses: a fact that cannot be read is an error, except in `describe`, which says "unknown".
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PROC = Path("/proc")
FREE_BYTES_MAX = 600 << 20


@dataclass(frozen=True, slots=True)
class Ticks:
    """The machine's CPU time so far, all CPUs together, in clock ticks."""

    total: int
    stolen: int

    def __sub__(self, earlier: Ticks) -> Ticks:
        return Ticks(self.total - earlier.total, self.stolen - earlier.stolen)

    def __add__(self, other: Ticks) -> Ticks:
        return Ticks(self.total + other.total, self.stolen + other.stolen)

    @property
    def steal(self) -> float:
        """The share of the time that the host gave to somebody else."""
        return self.stolen / self.total if self.total else 0.0


def parse_ticks(line: str) -> Ticks:
    """Read the first line of /proc/stat: cpu user nice system idle iowait irq softirq steal ...

    The guest columns after `steal` are part of `user` and `nice` already.
    """
    name, *columns = line.split()
    if name != "cpu" or len(columns) < 8:
        raise ValueError(f"not the cpu line of /proc/stat: {line!r}")
    numbers = [int(column) for column in columns[:8]]
    return Ticks(sum(numbers), numbers[7])


def ticks() -> Ticks:
    """Return the machine's CPU time so far."""
    with (_PROC / "stat").open() as stat:
        return parse_ticks(stat.readline())


def process_cpu_seconds(pids: Iterable[int]) -> float:
    """Return user and system time of processes with all their threads, dead ones included.

    It is the sum that /proc/PID/stat shows as utime + stime, read from the process's CPU clock
    (clock_getcpuclockid(3): the id is ~pid << 3 | 2), which counts nanoseconds where /proc has
    ticks of 10 ms.
    """
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in pids)


def minor_faults(pids: Iterable[int]) -> int:
    """Return how many pages processes have touched first, their dead threads included."""
    return sum(int(_fields(pid)[7]) for pid in pids)


def _fields(pid: int) -> list[str]:
    """Return the columns of /proc/PID/stat from the third on: the second may contain blanks."""
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


@dataclass(frozen=True, slots=True)
class Memory:
    """What a process holds by itself, in bytes: anonymous pages, and pages pinned for devices.

    Buffers that are registered with io_uring are anonymous pages like others: they are in both.
    """

    anonymous: int
    pinned: int


def memory(pid: int) -> Memory:
    """Return the anonymous (huge ones included) and the pinned memory of a process."""
    rollup = _sizes(_PROC / str(pid) / "smaps_rollup")
    kinds = ("Anonymous", "Private_Hugetlb", "Shared_Hugetlb")
    pinned = _sizes(_PROC / str(pid) / "status")["VmPin"]
    return Memory(sum(rollup[kind] for kind in kinds), pinned)


def _sizes(path: Path) -> dict[str, int]:
    """Return the lines `name: N kB` of a file under /proc as bytes."""
    words = [line.split() for line in path.read_text().splitlines()]
    return {w[0].rstrip(":"): int(w[1]) << 10 for w in words if len(w) == 3 and w[2] == "kB"}


def threads(pid: int) -> list[int]:
    """Return the ids of a process's threads."""
    return [int(entry.name) for entry in (_PROC / str(pid) / "task").iterdir()]


def pin_process(pid: int, *cpus: int) -> None:
    """Bind every thread of a process to these CPUs; threads started later inherit it."""
    for thread in threads(pid):
        try:
            os.sched_setaffinity(thread, cpus)
        except ProcessLookupError:
            continue  # the thread ended since it was listed


@contextmanager
def pinned(cpus: set[int]) -> Iterator[None]:
    """Run the calling thread, and all that it starts meanwhile, on `cpus` only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True, slots=True)
class Placement:
    """Which CPU the client runs on and which one the servers share, on both sides of a pair."""

    client_cpu: int
    server_cpu: int
    shared: bool = False
    """Both sides may use both CPUs: for more than one connection, which has a thread each."""

    @property
    def client_cpus(self) -> set[int]:
        """Where the client may run."""
        return {self.client_cpu, self.server_cpu} if self.shared else {self.client_cpu}

    @property
    def server_cpus(self) -> set[int]:
        """Where the servers may run."""
        return {self.client_cpu, self.server_cpu} if self.shared else {self.server_cpu}

    @classmethod
    def choose(cls, client_cpu: int | None = None, server_cpu: int | None = None) -> Placement:
        """Take the first two CPUs that this process may use, or what the caller says."""
        allowed = sorted(os.sched_getaffinity(0))
        client = allowed[0] if client_cpu is None else client_cpu
        others = [cpu for cpu in allowed if cpu != client] or [client]
        return cls(client, others[0] if server_cpu is None else server_cpu)

    def __str__(self) -> str:
        if self.shared:
            return f"client and servers on CPUs {self.client_cpu} and {self.server_cpu}"
        return f"client on CPU {self.client_cpu}, servers on CPU {self.server_cpu}"


def describe(directory: Path) -> dict[str, str]:
    """Return the facts that a figure means nothing without. `directory` is where the data lies."""
    return {
        "cpu": _cpu_model(),
        "cpus": str(len(os.sched_getaffinity(0))),
        "kernel": platform.release(),
        "virtual": "yes" if "hypervisor" in _cpuinfo("flags").split() else "no",
        "congestion_default": _read(_PROC / "sys/net/ipv4/tcp_congestion_control"),
        "compiler": _compiler(),
        "python": platform.python_version(),
        "disk": _file_system(directory),
    }


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return "unknown"


def _cpuinfo(key: str) -> str:
    for line in _read(_PROC / "cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _cpu_model() -> str:
    return _cpuinfo("model name") or platform.machine()


def _compiler() -> str:
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return "none"
    result = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return (result.stdout.splitlines() or ["unknown"])[0]


def _file_system(directory: Path) -> str:
    """Return "type on device" of the mount that holds `directory`: the longest matching one."""
    place = str(directory.resolve())
    best, found = "", "unknown"
    for line in _read(_PROC / "mounts").splitlines():
        device, mount, kind = line.split()[:3]
        inside = place == mount or place.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, found = mount, f"{kind} on {device}"
    return found


_SMOKE_CACHE_BYTES: Final = 64 << 20
_PIECE_BYTES: Final = 4 << 20


class FullCache:
    """Keeps memory full of clean page cache, as it is on a machine that has served for a while.

    Why: a virtual machine hands free pages back to its host, and the first touch of such a page
    costs five times what copying into it does. Who writes after the other has freed its files would
    be fast or slow by chance. With no page free, each side takes its pages from the cache.
    """

    def __init__(self, directory: Path, *, smoke: bool = False) -> None:
        self._path = directory / "cache.sparse"
        self._bytes = _SMOKE_CACHE_BYTES if smoke else _meminfo("MemTotal")
        self._at = 0
        with self._path.open("wb") as file:
            file.truncate(self._bytes)

    def fill(self) -> None:
        """Have holes cached until nearly no page is free: no disk I/O, and no copy."""
        with self._path.open("rb", buffering=0) as file:
            for _ in range(self._bytes // _PIECE_BYTES):
                if _meminfo("MemFree") < FREE_BYTES_MAX:
                    return
                os.posix_fadvise(file.fileno(), self._at, _PIECE_BYTES, os.POSIX_FADV_WILLNEED)
                self._at = (self._at + _PIECE_BYTES) % self._bytes


def _meminfo(key: str) -> int:
    line = next(x for x in _read(Path("/proc/meminfo")).splitlines() if x.startswith(f"{key}:"))
    return int(line.split()[1]) << 10
