"""`ffs-bench planning`: what Python costs for each range of a call, beside the C engine alone.

The same 4 KiB ranges, 256 a call, are read in three ways: by `fs.readv_into` with a structured
array over a handle, with a list of (path, offset, length), and by calling the C engine directly
with the operations that the first way made of them. The last one is the same engine, connection,
daemon and bytes without planning, lookups and checks, so what the others spend beyond it, in CPU
seconds of the client for each range, is Python's: a difference of two measurements, not an
estimate.

The difference is a tenth of what is subtracted, so the three ways take turns call by call, and the
CPU clock is read around each: what slows one call slows its neighbours. The operations are caught
at the door of the engine during one `readv_into` each; marking them as pending again before each
direct call is charged to the engine (some nanoseconds a range). Paths are looked up as always: once
a second, when what the client remembers has become too old.
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
from ffs.bench.cases.reading import Caller, DataSet, file_system, scattered, stored
from ffs.bench.cluster import Work
from ffs.bench.measure import Better, Comparison, Metric, Sample, Series
from ffs.client.filesystem import FFSFileSystem
from ffs.errors import ProtocolError

RANGE_BYTES = 4096
RANGES_A_CALL = 256
CALLS = 64
GOALS_US = {"array": 0.1, "tuples": 0.5}
_TITLES = {"array": "structured array", "tuples": "tuples with paths"}
_NAME = "three kinds of calls in turn"

Call = Callable[[], int]
"""Reads the next call's ranges; returns the bytes."""


def measure(context: Context) -> Outcome:
    """Store a file, verify that it comes back, and let the three kinds of calls take turns."""
    calls = 4 if context.plan.smoke else CALLS
    offsets = scattered(context.size_bytes, RANGE_BYTES, (calls, RANGES_A_CALL))
    with stored(context) as data, file_system(data.where, context) as fs:
        caller = Caller(fs, data, offsets)
        verified = caller.verify(RANGE_BYTES)
        kinds = {
            "array": _arrays(fs, caller),
            "tuples": _tuples(fs, caller, data),
            "engine": _engine_alone(fs, caller),
        }
        series = take_turns(context, {_NAME: data.where.metered(_in_turn(kinds))})
    return Outcome(
        command="planning",
        conditions=context.conditions(
            ranges="4 KiB, aligned, random, cached, CRC on",
            calls=f"{RANGES_A_CALL} ranges, one call at a time, everywhere",
            connections="1",
            cost="the client's CPU time for each range beyond that of the engine alone",
            data=f"{context.size_bytes} bytes, {verified} delivered bytes verified beforehand",
        ),
        figures=figures(series, [_NAME]),
        comparisons=[_compare(series, kind) for kind in GOALS_US],
        runs=runs(series),
        notes=data.where.notes,
    )


def _compare(series: Series, kind: str) -> Comparison:
    return series.reach(
        f"Python, {_TITLES[kind]}",
        _NAME,
        _beyond_engine(kind),
        GOALS_US[kind],
        reference="the limit",
        better=Better.SMALLER,
        unit="us a range",
    )


def _beyond_engine(kind: str) -> Metric:
    def metric(sample: Sample) -> float:
        return sample.more[f"{kind}_us"] - sample.more["engine_us"]

    return metric


def _in_turn(kinds: Mapping[str, Call]) -> Work:
    """Return a loop that makes a call of each kind, again and again, and clocks each."""
    clock, order = time.process_time_ns, list(kinds)

    def work(until: float) -> tuple[int, int, Mapping[str, float]]:
        spent, moved, rounds = dict.fromkeys(kinds, 0), 0, 0
        while time.perf_counter() < until:
            order.append(order.pop(0))
            for kind in order:
                call, before = kinds[kind], clock()
                moved += call()
                spent[kind] += clock() - before
            rounds += 1
        ranges = max(1, rounds) * RANGES_A_CALL
        costs = {f"{kind}_us": took / ranges / 1e3 for kind, took in spent.items()}
        return moved, moved // RANGE_BYTES, costs

    return work


def _slots(caller: Caller) -> Iterator[memoryview]:
    return itertools.cycle(caller.slots(RANGES_A_CALL * RANGE_BYTES))


def _arrays(fs: FFSFileSystem, caller: Caller) -> Call:
    calls, slots, read = itertools.cycle(caller.plan(RANGE_BYTES)), _slots(caller), fs.readv_into
    return lambda: read(next(calls), next(slots))


def _tuples(fs: FFSFileSystem, caller: Caller, data: DataSet) -> Call:
    rows: list[list[int]] = caller.offsets.tolist()
    lists = [[(data.path, offset, RANGE_BYTES) for offset in row] for row in rows]
    calls, slots, read = itertools.cycle(lists), _slots(caller), fs.readv_into
    return lambda: read(next(calls), next(slots))


@dataclass(frozen=True, slots=True)
class _EngineCall:
    """A call of the engine as the client made it."""

    connections: Any
    ops: Any
    pending: bytes
    out: Any
    keywords: Mapping[str, Any]

    def repeat(self) -> int:
        """Do it again; return the bytes."""
        memoryview(self.ops).cast("B")[:] = self.pending
        done = _reader.read_batch(self.connections, self.ops, self.out, **self.keywords)
        return done * RANGE_BYTES


def _engine_alone(fs: FFSFileSystem, caller: Caller) -> Call:
    """Return what repeats the engine calls that the client makes of the planned calls."""
    slots, caught = _slots(caller), list[_EngineCall]()
    with _caught(caught):
        for ranges in caller.plan(RANGE_BYTES):
            fs.readv_into(ranges, next(slots))
    asked = [len(call.pending) for call in caught]
    if asked != [RANGES_A_CALL * _reader.READ_OP_BYTES] * len(caller.offsets):
        raise ProtocolError("the client asked the engine for other operations than were planned")
    calls = itertools.cycle(caught)
    return lambda: next(calls).repeat()


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
