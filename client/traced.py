"""A read that is watched: where the time of each of its ranges went.

Role: `FFSFileSystem.trace_read` and `ffs trace read` call THIS; next hops: client/settle.py, and
ffs._reader with `timings`. It reads like any other read over several chunks does, by the same
connections, replicas and retries, and is asked to take down times besides: other reads pay nothing.

The parts of a range's time, in order; they add up to its whole but for what the clock misses:

    python   before and after the engine, the same for all ranges of a call: they wait together
    queue    in the engine until its request went out, tries before the last one included
    network  on the way, in sockets, and until this thread took the bytes
    server   at the daemon, until its answer was made
    disk     at the daemon, waiting for the disk; on the daemon's own host reading its files here
    crc      holding its blocks against their checksums

A daemon of an older version tells nothing of itself: its part is in `network` then.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from ffs import _reader
from ffs.client import planner, trace
from ffs.client.layouts import Content, Route
from ffs.client.planner import PENDING
from ffs.client.reader import Reader, ReadJob
from ffs.client.replicas import Patience
from ffs.seams import Clock

TIMING_DTYPE: Final = np.dtype(
    [
        ("asked", "<u8"),
        ("ended", "<u8"),
        ("queued", "<u8"),
        ("disk", "<u8"),
        ("crc", "<u8"),
        ("conn", "<u4"),
        ("reserved", "<u4"),
    ]
)
assert TIMING_DTYPE.itemsize == _reader.TIMING_BYTES

PARTS: Final = ("python", "queue", "network", "server", "disk", "crc")


@dataclass(frozen=True, slots=True)
class RangeTimes:
    """One range, by whom it was served and where its time went. Times in ns."""

    offset: int
    """In the file."""
    length: int
    chunk: int
    target: int
    node: int
    address: str
    connection: str
    """This end of the socket; empty on the daemon's own host."""
    transport: str
    tries: int
    asked_ns: int
    """When its request was made, of the monotonic clock."""
    took_ns: int
    python_ns: int
    queue_ns: int
    network_ns: int
    server_ns: int
    disk_ns: int
    crc_ns: int


@dataclass(frozen=True, slots=True)
class TracedRead:
    """One call: `began_ns` by the monotonic clock, `wall_ns` the same moment by the other one."""

    path: str
    trace_id: int
    began_ns: int
    wall_ns: int
    took_ns: int
    python_ns: int
    ranges: list[RangeTimes]

    @property
    def length(self) -> int:
        """How many bytes were read."""
        return sum(one.length for one in self.ranges)


@dataclass(slots=True)
class _Submission:
    """One run of the engine."""

    began_ns: int
    ended_ns: int
    ran: Any
    """Which operations were in it."""
    times: Any
    connections: list[tuple[str, str]] = field(default_factory=list)
    """Transport and local address of each."""


class TracedJob(ReadJob):
    """A plan on its way through the engine, with the times of each submission."""

    __slots__ = ("_clock", "submissions")

    def __init__(self, clock: Clock, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._clock = clock
        self.submissions: list[_Submission] = []

    def submit(
        self, connections: Sequence[_reader.Connection], deadline_ms: int, patience: Patience
    ) -> int:
        """Run what is pending, and take its times down."""
        ran = self.ops["status"] == PENDING
        times = np.zeros(len(self.ops), dtype=TIMING_DTYPE)
        who = [_describe(connection) for connection in connections]
        self.timings = times
        began_ns = self._clock.monotonic_ns()
        try:
            return super().submit(connections, deadline_ms, patience)
        finally:
            ended_ns = self._clock.monotonic_ns()
            self.submissions.append(_Submission(began_ns, ended_ns, ran, times, who))


def read(reader: Reader, content: Content, offset: int, length: int, clock: Clock) -> TracedRead:
    """Read a range into memory that is dropped, and return where the time went.

    Raises:  as any read
    Copies:  0 in user space; Threads: the engine releases the GIL; Fork: as any read
    """
    planner.check_range(content, offset, length)
    out = np.empty(length, dtype=np.uint8).data
    wall_ns, began_ns = clock.wall_ns(), clock.monotonic_ns()
    trace_id = trace.take()
    job, route, plan = _run(reader, content, offset, length, out, trace_id, clock)
    took_ns = clock.monotonic_ns() - began_ns
    engine_ns = sum(one.ended_ns - one.began_ns for one in job.submissions)
    python_ns = max(0, took_ns - engine_ns)
    ranges = [
        _times(job, index, content, route, python_ns) for index in range(len(plan.packed) // _OP)
    ]
    return TracedRead(content.path, trace_id, began_ns, wall_ns, took_ns, python_ns, ranges)


_OP: Final = planner.OP.size


def _run(
    reader: Reader,
    content: Content,
    offset: int,
    length: int,
    out: memoryview,
    trace_id: int,
    clock: Clock,
) -> tuple[TracedJob, Route, planner.Plan]:
    settler = reader.settler
    route = settler.route()
    plan = planner.plan_ranges((content,), (offset,), (length,), route)
    planner.zero_fill(out, plan.zeros)
    job = TracedJob(clock, plan, out, settler.replicas, verify=reader.verify, trace_id=trace_id)
    if plan.packed:
        if route.replicated:
            settler.replicas.spread(plan.ops, plan.chains, route)
        settler.settle(job, reader.deadline_ns(length))
    return job, route, plan


def _times(
    job: TracedJob, index: int, content: Content, route: Route, python_ns: int
) -> RangeTimes:
    op = job.ops[index]
    tries = [one for one in job.submissions if one.ran[index] and one.times["asked"][index]]
    last = tries[-1]
    asked, ended, queued, disk, crc, leg, _ = last.times[index].tolist()
    transport, connection = last.connections[leg]
    if transport == SAME_HOST:
        disk = max(0, disk - crc)
        queued = disk
    # The daemon counts from the beginning of its loop's round, which may be before we asked.
    queued = max(0, min(queued, ended - asked - crc))
    disk = min(disk, queued)
    target = int(op["target"])
    node = route.node_of_target.get(target, 0)
    address = route.address(target)
    piece = next(p for p in content.pieces if p.blob == int(op["blob"]))
    return RangeTimes(
        offset=piece.start + (int(op["chunk"]) << piece.shift) + int(op["offset"]),
        length=int(op["length"]),
        chunk=int(op["chunk"]),
        target=target,
        node=node,
        address="" if address is None else f"{address[0]}:{address[1]}",
        connection=connection,
        transport=transport,
        tries=len(tries),
        asked_ns=asked,
        took_ns=python_ns + ended - job.submissions[0].began_ns,
        python_ns=python_ns,
        queue_ns=asked - job.submissions[0].began_ns,
        network_ns=max(0, ended - asked - queued - crc),
        server_ns=queued - disk,
        disk_ns=disk,
        crc_ns=crc,
    )


SAME_HOST: Final = "same host"


@dataclass(frozen=True, slots=True)
class SlowCall:
    """A call of this process's engine that took long; `blob` is that of its first range."""

    age_ns: int
    took_ns: int
    trace_id: int
    blob: int
    length: int
    ranges: int


def slow_calls() -> list[SlowCall]:
    """Return the calls that took longest of those that ended in the last minute, a few."""
    return [
        SlowCall(age_ns, took_ns, trace_id, blob, length, ranges)
        for age_ns, took_ns, _, _, trace_id, _, blob, length, ranges in _reader.slowest()
    ]


def _describe(connection: _reader.Connection) -> tuple[str, str]:
    """Return the transport of a connection that we have, and this end of it."""
    if connection.local:
        return SAME_HOST, ""
    with socket.socket(fileno=os.dup(connection.fileno())) as ours:
        host, port, *_ = ours.getsockname()
    transport = "tcp" if connection.rdma is None else f"rdma {connection.rdma}"
    return transport, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
