"""`ffs-bench cold`: reads of what no cache holds, over TCP, beside fio on the same file system.

1 MiB ranges in file order and 4 KiB ranges at random places. fio reads a plain file of the same
size with O_DIRECT and 32 requests in flight. Ours is `fs.readv_into` over one connection with CRC
on, calls of 32 and 256 ranges, one call at a time; how many requests the daemon keeps in flight is
its own matter. The daemon runs with `storage.io = "direct"`, and before every run its files are
dropped from the page cache (posix_fadvise), as are the plain ones. A run reads each place at most
once, so nothing can come from a cache that the run itself has filled.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ffs.bench import fio
from ffs.bench.cases.common import (
    MIB,
    SEED,
    Context,
    Outcome,
    figures,
    runs,
    take_turns,
)
from ffs.bench.cases.reading import Caller, DataSet, file_system, in_order, stored
from ffs.bench.measure import Better, Runner, Sample, by_bytes, by_cpu, by_operations
from ffs.errors import ConfigError, NativeError, UnavailableError

GOAL = 0.95
DEPTH = 32
LARGE_A_CALL, SMALL_A_CALL = 32, 256
SMALL_BYTES = 4096
_VERIFIED_CALLS = 32
CACHED_SHARE_MAX = 0.02

_LARGE, _SMALL = "1 MiB, readv_into", "4 KiB, readv_into"
_FIO_LARGE, _FIO_SMALL = "1 MiB, fio, O_DIRECT", "4 KiB, fio, O_DIRECT"


def evict(paths: Iterable[Path]) -> None:
    """Have the kernel forget what it caches of these files."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)  # only clean pages can be dropped
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def cached_bytes(path: Path) -> int:
    """Return how much of a file lies in the page cache."""
    with path.open("rb") as file:
        if not (size := os.fstat(file.fileno()).st_size):
            return 0
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as view:
            pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
            start = ctypes.c_ubyte.from_buffer(view)
            failed = ctypes.CDLL(None).mincore(
                ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), pages
            )
            del start
    if failed:
        raise NativeError("mincore failed", path=str(path))
    return sum(page & 1 for page in pages) * mmap.PAGESIZE


def measure(context: Context) -> Outcome:
    """Store a file, verify a part of what comes back, and take turns with fio."""
    fio.need()
    if context.url:
        raise ConfigError("cold reads need a cluster of their own", hint="leave --url out")
    settings = {"storage.io": "direct"}
    blocks = context.size_bytes // SMALL_BYTES // SMALL_A_CALL * SMALL_A_CALL
    order = np.random.default_rng(SEED).permutation(blocks).astype(np.uint64)
    scattered = (order * np.uint64(SMALL_BYTES)).reshape(-1, SMALL_A_CALL)
    with stored(context, settings=settings) as data, file_system(data.where, context) as fs:
        evict(_extents(data))  # before the first read: what was sent from a mapping stays cached
        large = Caller(fs, data, in_order(context.size_bytes, MIB, LARGE_A_CALL))
        small = Caller(fs, data, scattered)
        verified = large.verify(MIB, calls_max=_VERIFIED_CALLS)
        verified += small.verify(SMALL_BYTES, calls_max=_VERIFIED_CALLS)
        metered = data.where.metered
        contestants = {
            _LARGE: metered(large.once(MIB)),
            _FIO_LARGE: fio.runner(context, data.plain, fio.Pattern("read", MIB, DEPTH)),
            _SMALL: metered(small.once(SMALL_BYTES)),
            _FIO_SMALL: fio.runner(
                context, data.plain, fio.Pattern("randread", SMALL_BYTES, DEPTH)
            ),
        }
        series = take_turns(
            context, {name: _cold(data, runner) for name, runner in contestants.items()}
        )
        _must_be_cold(data)
    compare, smaller = series.compare, Better.SMALLER
    return Outcome(
        command="cold",
        conditions=context.conditions(
            ranges=f"1 MiB in file order, {LARGE_A_CALL} a call; 4 KiB at random places, "
            f"{SMALL_A_CALL} a call; each place at most once a run; CRC on",
            fio=f"O_DIRECT, {DEPTH} in flight, on both CPUs",
            daemon='io = "direct"',
            connections="1",
            data=f"{context.size_bytes} bytes, {verified} delivered bytes verified beforehand",
        ),
        figures=figures(series, list(contestants)),
        comparisons=[
            compare("1 MiB, speed", _LARGE, _FIO_LARGE, by_bytes, goal=GOAL),
            compare("4 KiB, speed", _SMALL, _FIO_SMALL, by_operations, goal=GOAL),
            compare("1 MiB, CPU", _LARGE, _FIO_LARGE, by_cpu, better=smaller),
            compare("4 KiB, CPU", _SMALL, _FIO_SMALL, by_cpu, better=smaller),
        ],
        runs=runs(series),
        notes=data.where.notes,
    )


def _cold(data: DataSet, runner: Runner) -> Runner:
    """Return the contestant with all caches emptied before each of its runs."""

    def run(seconds: float) -> Sample:
        evict([data.plain, *_extents(data)])
        return runner(seconds)

    return run


def _extents(data: DataSet) -> list[Path]:
    """Return the files that hold the daemon's chunks."""
    directory = data.where.directory
    return [] if directory is None else sorted(directory.rglob("*.data"))


def _must_be_cold(data: DataSet) -> None:
    """Refuse figures of files that the kernel would not forget: what a process has mapped and used.

    Raises:  UnavailableError
    """
    evict(_extents(data))
    sizes = [(cached_bytes(path), path.stat().st_size) for path in _extents(data)]
    share = sum(cached for cached, _ in sizes) / max(1, sum(size for _, size in sizes))
    if share > CACHED_SHARE_MAX:
        raise UnavailableError(f"{share:.0%} of the daemon's files stayed in the page cache")
