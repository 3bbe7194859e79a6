"""`ffs-bench crowd`: 10, 100 and 1,000 connections, beside the plainest epoll server.

bench/raw/crowd.c keeps one 64 KiB range outstanding on each connection. It drives the daemon (the
connections are made and authenticated here and handed to it) and an epoll server of its own that
answers the same frames from a mapping or by sendfile, whichever is the faster one in a short trial:
the client does the same work on both sides. Checksums travel and are not verified; a round of
replies is compared with the file after each run.

What an idle connection costs is the daemon's anonymous memory with 1,000 of them, after each has
been used and has nothing outstanding, less what it had with ten, for each of the others.
"""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ffs.bench import machine, rawtools
from ffs.bench.cases.common import (
    DEST_BYTES,
    RECEIVE_BUFFER_BYTES,
    Context,
    Figure,
    Outcome,
    figures,
    raw_options,
    raw_runner,
    raw_sample,
    runs,
    take_turns,
)
from ffs.bench.cases.reading import DataSet, file_system, stored
from ffs.bench.measure import (
    Better,
    Comparison,
    Plan,
    Runner,
    Sample,
    bounded,
    by_cpu,
    by_operations,
)
from ffs.errors import ConfigError
from ffs.handshake import ClusterKey, HandshakeKind, connect

RANGE_BYTES = 64 << 10
COUNTS, SMOKE_COUNTS = (10, 100, 1_000), (4, 40)
GOAL = 0.9
IDLE_BYTES_MAX = 64 << 10
_CONNECT_MS = 10_000
_SETTLE_S = 0.5
_WARM_S, _SMOKE_WARM_S = 0.1, 0.02


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the file lies, as the data port knows it."""

    address: tuple[str, int]
    blob: int
    target: int
    chunk_bytes: int


def measure(context: Context) -> Outcome:
    """Store a file, then measure each number of connections, the smallest first."""
    if context.url:
        raise ConfigError("a crowd needs a cluster of its own", hint="leave --url out")
    counts = SMOKE_COUNTS if context.plan.smoke else COUNTS
    _allow_descriptors(counts[-1] + 256)
    found_figures: list[Figure] = []
    comparisons: list[Comparison] = []
    found_runs: list[dict[str, Any]] = []
    held: dict[int, int] = {}
    with stored(context) as data:
        place = _place(context, data)
        for count in counts:
            with _connections(context, data, place, count) as fds:
                one = _measure_one(context, data, place, fds)
                time.sleep(_SETTLE_S)
                held[count] = machine.memory(data.where.storage_pid).anonymous
            found_figures += one.figures
            comparisons += one.comparisons
            found_runs += one.runs
    idle = max(0, held[counts[-1]] - held[counts[0]]) / (counts[-1] - counts[0])
    comparisons.append(
        bounded(
            f"daemon's memory for each of {counts[-1]} idle connections",
            "anonymous memory",
            idle,
            IDLE_BYTES_MAX,
            unit="bytes",
            smoke=context.plan.smoke,
        )
    )
    return Outcome(
        command="crowd",
        conditions=context.conditions(
            ranges="64 KiB, aligned, random, cached, one outstanding on each connection",
            checksums="sent on both sides, not verified by the client",
            data=f"{context.size_bytes} bytes, a reply of each connection verified after each run",
        ),
        figures=found_figures,
        comparisons=comparisons,
        runs=found_runs,
        notes=data.where.notes,
    )


def _measure_one(context: Context, data: DataSet, place: _Place, fds: list[int]) -> Outcome:
    count = len(fds)
    ours = f"{count} connections, daemon"
    plain = {
        f"{count} connections, plain epoll, {mode}": raw_runner(
            context, "crowd", **_options(context, data, place, count), mode=mode
        )
        for mode in ("sendfile", "mmap")
    }
    trial = take_turns(replace(context, plan=_trial_plan(context.plan)), plain)
    best = trial.best(list(plain), by_operations)
    series = take_turns(context, {ours: _driven(context, data, place, fds), best: plain[best]})
    compare, smaller = series.compare, Better.SMALLER
    return Outcome(
        command="crowd",
        conditions={},
        figures=figures(series, [ours, best]),
        comparisons=[
            compare(f"{count} connections, speed", ours, best, by_operations, goal=GOAL),
            compare(f"{count} connections, CPU", ours, best, by_cpu, better=smaller),
        ],
        runs=runs(series),
    )


def _trial_plan(plan: Plan) -> Plan:
    """Return a plan that is long enough to tell which plain server is the better one."""
    return replace(plan, pairs=1 if plan.smoke else 3, seconds=min(plan.seconds, 0.3), smoke=True)


def _options(
    context: Context, data: DataSet, place: _Place, count: int
) -> dict[str, rawtools.Option]:
    return {
        "warm_seconds": _SMOKE_WARM_S if context.plan.smoke else _WARM_S,
        "file": data.plain,
        "connections": count,
        "range_bytes": RANGE_BYTES,
        "window": 1,
        "chunk_bytes": place.chunk_bytes,
        "dest_bytes": max(DEST_BYTES, count * RANGE_BYTES),
    }


def _driven(context: Context, data: DataSet, place: _Place, fds: list[int]) -> Runner:
    """Return a contestant that drives the daemon over connections that stay open."""
    options = raw_options(context, **_options(context, data, place, len(fds)))
    options |= {"mode": "ffs", "blob": place.blob, "target": place.target}
    options["server_pid"] = data.where.storage_pid

    def run(seconds: float) -> Sample:
        return raw_sample(rawtools.run_with("crowd", {**options, "seconds": seconds}, fds))

    return run


def _place(context: Context, data: DataSet) -> _Place:
    with file_system(data.where, context) as fs:
        meta = fs.core.meta
        piece = meta.open(data.path).pieces[0]
        route = meta.route()
        target = route.target(piece.chain(0))
        address = route.address_of_node[route.node_of_target[target]]
    return _Place(address, piece.blob, target, piece.mask + 1)


@contextmanager
def _connections(context: Context, data: DataSet, place: _Place, count: int) -> Iterator[list[int]]:
    """Open authenticated data connections; they end with the block."""
    key, (host, port) = ClusterKey.load(data.where.key_file), place.address
    with ExitStack() as stack:
        opened: list[socket.socket] = [
            stack.enter_context(
                connect(
                    host,
                    port,
                    key,
                    HandshakeKind.DATA,
                    timeout_ms=_CONNECT_MS,
                    congestion=context.congestion,
                    receive_buffer_bytes=RECEIVE_BUFFER_BYTES,
                )
            )
            for _ in range(count)
        ]
        yield [sock.fileno() for sock in opened]


def _allow_descriptors(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))
