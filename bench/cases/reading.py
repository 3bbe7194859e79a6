"""What the read cases share: a file stored on both sides, and loops over `readv_into`.

The same noise lies in a plain file (for the C programs) and in a file of the cluster (for us), both
in the page cache. Before anything is timed, every range that will be read is read once and compared
with the plain file: a benchmark of wrong bytes would be worthless. Calls are planned beforehand as
structured arrays over an `open_many` handle: the loop that is timed does nothing but `readv_into`.
"""

from __future__ import annotations

import itertools
import os
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ffs.bench.cases.common import (
    DEST_BYTES,
    RECEIVE_BUFFER_BYTES,
    SEED,
    Context,
    data_set,
    touched,
)
from ffs.bench.cluster import Servers, Work, servers
from ffs.bench.latency import Latencies
from ffs.client.filesystem import FFSFileSystem
from ffs.client.planner import RANGE_DTYPE
from ffs.errors import ChecksumError

Ranges = npt.NDArray[Any]
OVER_TCP = {"same_host": "off"}


@dataclass(frozen=True, slots=True)
class DataSet:
    """The same bytes twice: `plain` on this machine, `path` in the cluster."""

    where: Servers
    plain: Path
    path: str
    size_bytes: int


@contextmanager
def stored(context: Context, *, settings: Mapping[str, object] | None = None) -> Iterator[DataSet]:
    """Store the data set in a cluster and beside it.

    Args:    settings: of the servers, as `cluster.servers` takes them
    """
    plain = context.directory / "plain.data"
    bytes_there = data_set(plain, context.size_bytes)
    path = f"/ffs-bench-{os.getpid()}.data"
    with servers(context, settings=settings) as where, file_system(where, context) as fs:
        fs.pipe_file(path, bytes_there.data)
        try:
            yield DataSet(where, plain, path, context.size_bytes)
        finally:
            fs.rm_file(path)


@contextmanager
def file_system(where: Servers, context: Context, **keywords: object) -> Iterator[FFSFileSystem]:
    """Have a client over TCP with one data connection and the congestion control of this run."""
    options: dict[str, Any] = {
        **where.options,
        **OVER_TCP,
        "connections_per_node": 1,
        "congestion": context.congestion,
        "receive_buffer_bytes": RECEIVE_BUFFER_BYTES,
        "skip_instance_cache": True,
        **keywords,
    }
    fs = FFSFileSystem(**options)
    try:
        yield fs
    finally:
        fs.close()


class Caller:
    """Calls of `readv_into` over one file, planned beforehand, into one destination.

    Args:    calls: each a structured array of ranges of equal total length
    """

    def __init__(self, fs: FFSFileSystem, data: DataSet, offsets: npt.NDArray[np.uint64]) -> None:
        self._fs = fs
        handle = fs.open_many([data.path])[0]
        self.offsets = offsets
        self._plain = data.plain
        self._handle = int(handle)
        self._dest = touched(DEST_BYTES)

    def plan(self, range_bytes: int) -> list[Ranges]:
        """Return one structured array for each row of offsets."""
        planned = np.zeros(self.offsets.shape, dtype=RANGE_DTYPE)
        planned["handle"] = self._handle
        planned["offset"] = self.offsets
        planned["length"] = range_bytes
        return list(planned)

    def slots(self, call_bytes: int) -> list[memoryview]:
        """Return the places that calls land in, one after the other."""
        view = self._dest.data
        return [view[i : i + call_bytes] for i in range(0, DEST_BYTES - call_bytes + 1, call_bytes)]

    def verify(self, range_bytes: int, *, calls_max: int | None = None) -> int:
        """Read every planned range once and compare it with the plain file; return the bytes.

        Args:    calls_max: leave it at so many calls, where all would take too long
        """
        plain = np.memmap(self._plain, dtype=np.uint8, mode="r")
        checked = 0
        calls = zip(self.offsets, self.plan(range_bytes), strict=True)
        for offsets, ranges in itertools.islice(calls, calls_max):
            call_bytes = len(ranges) * range_bytes
            self._dest[:call_bytes] = 0
            read = self._fs.readv_into(ranges, self._dest.data[:call_bytes])
            wanted = np.concatenate([plain[at : at + range_bytes] for at in offsets.tolist()])
            if read != call_bytes or not np.array_equal(self._dest[:call_bytes], wanted):
                raise ChecksumError("the cluster delivered other bytes than were stored")
            checked += read
        return checked

    def once(self, range_bytes: int) -> Work:
        """Return a loop over the planned calls that begins anew each run and ends with them."""
        call_bytes = self.offsets.shape[1] * range_bytes
        planned, slots = self.plan(range_bytes), itertools.cycle(self.slots(call_bytes))
        read = self._fs.readv_into

        def work(until: float) -> tuple[int, int, Mapping[str, float]]:
            moved = 0
            for call in planned:
                moved += read(call, next(slots))
                if time.perf_counter() >= until:
                    break
            return moved, moved // range_bytes, {}

        return work

    def batches(self, range_bytes: int) -> Work:
        """Return a loop over the planned calls."""
        ranges_a_call = self.offsets.shape[1]
        call_bytes = ranges_a_call * range_bytes
        calls = itertools.cycle(self.plan(range_bytes))
        slots = itertools.cycle(self.slots(call_bytes))
        read = self._fs.readv_into

        def work(until: float) -> tuple[int, int, Mapping[str, float]]:
            moved = 0
            while time.perf_counter() < until:
                moved += read(next(calls), next(slots))
            return moved, moved // range_bytes, {}

        return work

    def singles(self, range_bytes: int) -> Work:
        """Return a loop that reads one range a call, as a list of one tuple, and times each."""
        flat: Sequence[int] = self.offsets.ravel().tolist()
        offsets = itertools.cycle(flat)
        slots = itertools.cycle(self.slots(range_bytes))
        read, handle, now = self._fs.readv_into, self._handle, time.perf_counter_ns

        def work(until: float) -> tuple[int, int, Latencies]:
            until_ns, taken = int(until * 1e9), array("q")
            before = now()
            while before < until_ns:
                read([(handle, next(offsets), range_bytes)], next(slots))
                after = now()
                taken.append(after - before)
                before = after
            found = Latencies()
            found.add_ns(np.frombuffer(taken, dtype=np.int64))
            return len(taken) * range_bytes, len(taken), found

        return work


def in_order(data_bytes: int, range_bytes: int, ranges_a_call: int) -> npt.NDArray[np.uint64]:
    """Return offsets that walk through a file, a row for each call; whole calls only."""
    count = min(ranges_a_call, data_bytes // range_bytes)
    whole = data_bytes // range_bytes // count * count
    return (np.arange(whole, dtype=np.uint64) * np.uint64(range_bytes)).reshape(-1, count)


def scattered(
    data_bytes: int, range_bytes: int, shape: tuple[int, int], *, seed: int = SEED
) -> npt.NDArray[np.uint64]:
    """Return random offsets that are multiples of the ranges' length, a row for each call."""
    picks = np.random.default_rng(seed).integers(0, data_bytes // range_bytes, shape)
    return picks.astype(np.uint64) * np.uint64(range_bytes)
