"""`ffs-bench planning`: what Python costs for each range of a call, beside the C engine alone.

The same 4 KiB ranges, 256 a call, are read in three ways: by `fs.readv_into` with a structured
array over a handle, with a list of (path, offset, length), and by calling the C engine directly
with the operations that the first way made of them. The last one is the same engine, connection,
daemon and bytes without planning, lookups and checks, so what the others spend beyond it, in CPU
seconds of the client for each range, is Python's. Nothing is estimated: it is a difference of two
measurements of one pair, and its interval says how well it is known.

Paths are looked up as always: once a second, when what the client remembers has become too old.

The operations are caught at the door of the engine during one `readv_into` each. Marking them as
pending again before each direct call is charged to the engine (some nanoseconds a range).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ffs import _reader
from ffs.bench.cases.common import Context, Outcome, figures, runs, take_turns
from ffs.bench.cases.reading import Caller, file_system, scattered, stored
from ffs.bench.cluster import Work
from ffs.bench.measure import Sample
from ffs.client.filesystem import FFSFileSystem
from ffs.errors import ProtocolError

RANGE_BYTES = 4096
RANGES_A_CALL = 256
CALLS = 64
ARRAY_GOAL_US, TUPLES_GOAL_US = 0.1, 0.5

_ARRAY, _TUPLES, _ENGINE = "structured array", "tuples with paths", "the C engine alone"


def by_client_us(sample: Sample) -> float:
    """Microseconds of the client's CPU for each range."""
    return sample.client_cpu_s / sample.operations * 1e6


def measure(context: Context) -> Outcome:
    """Store a file, verify that it comes back, and let the three contestants take turns."""
    calls = 4 if context.plan.smoke else CALLS
    offsets = scattered(context.size_bytes, RANGE_BYTES, (calls, RANGES_A_CALL))
    with stored(context) as data, file_system(data.where, context) as fs:
        caller = Caller(fs, data, offsets)
        verified = caller.verify(RANGE_BYTES)
        metered = data.where.metered
        series = take_turns(
            context,
            {
                _ARRAY: metered(caller.batches(RANGE_BYTES)),
                _TUPLES: metered(caller.tuples(RANGE_BYTES)),
                _ENGINE: metered(_engine_alone(fs, caller)),
            },
        )
    surplus, unit = series.surplus, "us a range"
    return Outcome(
        command="planning",
        conditions=context.conditions(
            ranges="4 KiB, aligned, random, cached, CRC on",
            calls=f"{RANGES_A_CALL} ranges, one call at a time, everywhere",
            connections="1",
            cost="the client's CPU time for each range beyond that of the engine alone",
            data=f"{context.size_bytes} bytes, {verified} delivered bytes verified beforehand",
        ),
        figures=figures(series, [_ARRAY, _TUPLES, _ENGINE]),
        comparisons=[
            surplus(
                "Python, structured array", _ARRAY, _ENGINE, by_client_us, ARRAY_GOAL_US, unit=unit
            ),
            surplus(
                "Python, tuples with paths",
                _TUPLES,
                _ENGINE,
                by_client_us,
                TUPLES_GOAL_US,
                unit=unit,
            ),
        ],
        runs=runs(series),
        notes=data.where.notes,
    )


@dataclass(frozen=True, slots=True)
class _EngineCall:
    """A call of the engine as the client made it."""

    connections: Any
    ops: Any
    pending: bytes
    out: Any
    keywords: Mapping[str, Any]

    def repeat(self) -> int:
        """Do it again; return how many operations are done."""
        memoryview(self.ops).cast("B")[:] = self.pending
        return _reader.read_batch(self.connections, self.ops, self.out, **self.keywords)


def _engine_alone(fs: FFSFileSystem, caller: Caller) -> Work:
    """Return a loop over the engine calls that the client makes of the planned calls."""
    slots = itertools.cycle(caller.slots(RANGES_A_CALL * RANGE_BYTES))
    caught: list[_EngineCall] = []
    with _caught(caught):
        for ranges in caller.plan(RANGE_BYTES):
            fs.readv_into(ranges, next(slots))
    if sum(len(call.pending) for call in caught) != caller.offsets.size * _reader.READ_OP_BYTES:
        raise ProtocolError("the client asked the engine for other operations than were planned")
    calls = itertools.cycle(caught)

    def work(until: float) -> tuple[int, int, Mapping[str, float]]:
        done = 0
        while time.perf_counter() < until:
            done += next(calls).repeat()
        return done * RANGE_BYTES, done, {}

    return work


@contextmanager
def _caught(calls: list[_EngineCall]) -> Iterator[None]:
    """Note every call of the engine meanwhile, and let it pass."""
    read_batch: Callable[..., int] = _reader.read_batch

    def noting(connections: Any, ops: Any, out: Any, **keywords: Any) -> int:
        pending = np.frombuffer(ops, dtype=np.uint8).tobytes()
        calls.append(_EngineCall(connections, ops, pending, out, keywords))
        return read_batch(connections, ops, out, **keywords)

    vars(_reader)["read_batch"] = noting
    try:
        yield
    finally:
        vars(_reader)["read_batch"] = read_batch
