"""`ffs-bench memory`: what the daemon holds in memory while it serves ten gibibytes.

Two file system objects in two threads read 1 MiB, 64 KiB and 4 KiB ranges in turn, with checksums.
Twenty times a second the daemon's anonymous memory is read from /proc/PID/smaps_rollup, huge pages
included. Buffers that are registered with io_uring are anonymous memory too; what is pinned (VmPin)
is shown beside it. The page cache is not the daemon's and does not count.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ffs.bench import machine
from ffs.bench.cases.common import MIB, Context, Figure, Outcome
from ffs.bench.cases.reading import Caller, DataSet, file_system, scattered, stored
from ffs.bench.measure import GB, Sample, bounded
from ffs.errors import ConfigError

BYTES, SMOKE_BYTES = 10 << 30, 64 << 20
ANONYMOUS_BYTES_MAX = 200 << 20
THREADS = 2
TURN_S, SMOKE_TURN_S = 0.5, 0.02
SAMPLE_S = 0.05
_KINDS = ((MIB, 16), (64 << 10, 64), (4 << 10, 256))


@dataclass(slots=True)
class _Peak:
    """The most that was seen."""

    anonymous: int = 0
    pinned: int = 0

    def look(self, pid: int) -> None:
        """Look once."""
        now = machine.memory(pid)
        self.anonymous = max(self.anonymous, now.anonymous)
        self.pinned = max(self.pinned, now.pinned)


def measure(context: Context) -> Outcome:
    """Read until the bytes are served, and look at the daemon meanwhile."""
    if context.url:
        raise ConfigError("memory is measured in a cluster of its own", hint="leave --url out")
    wanted = SMOKE_BYTES if context.plan.smoke else BYTES
    with stored(context) as data:
        start = machine.memory(data.where.storage_pid)
        with _watched(data.where.storage_pid) as peak:
            samples = _serve(context, data, wanted)
    served = sum(sample.bytes for sample in samples)
    seconds = max(sample.seconds for sample in samples)
    figure = Figure(
        name="reads of every size",
        bytes_rate=served / seconds / GB,
        operation_rate=sum(sample.operations for sample in samples) / seconds,
        client_cpu=sum(sample.client_cpu_s for sample in samples) / served * GB,
        server_cpu=None,
        cpu_unit="CPU-s/GB",
        more={"pinned MiB": peak.pinned / MIB, "anonymous MiB before": start.anonymous / MIB},
    )
    return Outcome(
        command="memory",
        conditions=context.conditions(
            ranges="1 MiB, 64 KiB and 4 KiB, random, cached, CRC on",
            clients=f"{THREADS}, a thread and two connections each",
            served=f"{served} bytes",
        ),
        figures=[figure],
        comparisons=[
            bounded(
                "daemon's anonymous memory",
                figure.name,
                peak.anonymous / MIB,
                ANONYMOUS_BYTES_MAX / MIB,
                unit="MiB",
                smoke=context.plan.smoke,
            )
        ],
        runs=[],
        notes=data.where.notes,
    )


@contextmanager
def _watched(pid: int) -> Iterator[_Peak]:
    """Look at a process again and again meanwhile."""
    peak, ended = _Peak(), threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLE_S):
            peak.look(pid)

    thread = threading.Thread(target=watch, name="ffs-bench-memory")
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()
        peak.look(pid)


def _serve(context: Context, data: DataSet, wanted: int) -> list[Sample]:
    """Read `wanted` bytes with several clients at once; each one's share and time."""
    samples: list[Sample] = []
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            samples.append(_client(context, data, wanted // THREADS))
        except BaseException as error:  # noqa: BLE001  # raised again below, in the main thread
            failures.append(error)

    threads = [threading.Thread(target=serve, name="ffs-bench-client") for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return samples


def _client(context: Context, data: DataSet, wanted: int) -> Sample:
    moved, operations, turn_s = 0, 0, SMOKE_TURN_S if context.plan.smoke else TURN_S
    start, cpu = time.perf_counter(), time.thread_time()
    with file_system(data.where, context, connections_per_node=2) as fs:
        works = []
        for range_bytes, ranges_a_call in _KINDS:
            offsets = scattered(data.size_bytes, range_bytes, (4, ranges_a_call))
            caller = Caller(fs, data, offsets)
            caller.verify(range_bytes)
            works.append(caller.batches(range_bytes))
        while moved < wanted:
            for work in works:
                bytes_now, operations_now, _ = work(time.perf_counter() + turn_s)
                moved, operations = moved + bytes_now, operations + operations_now
    seconds, cpu = time.perf_counter() - start, time.thread_time() - cpu
    return Sample(seconds, moved, operations, cpu, None)
