"""`ffs-bench read-while-resync`: reads from a chain while a member catches up, and without.

Two daemons with two replicas. One of them is stopped, and a large file is written that it lacks.
The calm run reads another file from the one that is left; the other run does so while the member
that was started again fetches what it has missed from the same daemon, which answers reads alone
until that is over. What readers have in the second case, as a share of the first, is the goal; how
fast the member catches up is shown beside it.

Client and daemons may use all CPUs. On a machine with two of them, the work of the member that
catches up (to receive, to check and to store) takes its part, too, which on a cluster is another
machine's.
"""

from __future__ import annotations

import datetime
import itertools
import os
import re
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from ffs.bench.cases.common import (
    MIB,
    SEED,
    Context,
    Outcome,
    data_set,
    figures,
    runs,
    take_turns,
)
from ffs.bench.cases.reading import Caller, DataSet, file_system, in_order
from ffs.bench.cases.write import wait_for_drops
from ffs.bench.daemons import Members, Server, serving
from ffs.bench.measure import Runner, Sample, by_bytes, by_cpu
from ffs.client.filesystem import FFSFileSystem
from ffs.errors import ConfigError, UnavailableError
from ffs.wire.status import StatusReply

GOAL = 0.7
REPLICAS = 2
RANGES_A_CALL = 16
_READ_BYTES_MAX = 256 * MIB
_CALM, _BUSY = "calm", "while a member resyncs"
_LOOK_S = 0.02
_SETTINGS = {
    "meta.replicas": REPLICAS,
    "meta.min_replicas": 1,
    "meta.gc_delay_s": 0,
    "meta.heartbeat_ms": 200,
    "meta.node_lease_ms": 2_000,
    "meta.rereplicate_after_s": 3_600,
    "storage.scrub_bytes_per_s": 0,
}
_LINE = r"(\S+)Z info ffs\.storage\.recovery {} target=\d+ since=\d+(.*)$"
_STARTED = re.compile(_LINE.format("resync_started"), re.MULTILINE)
_ENDED = re.compile(_LINE.format("resync_ended"), re.MULTILINE)


def measure(context: Context) -> Outcome:
    """Verify what will be read, then let calm and busy runs take turns."""
    if context.url:
        raise ConfigError("it stops daemons of its own", hint="leave --url out")
    shared = replace(context, placement=replace(context.placement, shared=True))
    read_bytes = min(context.size_bytes, _READ_BYTES_MAX)
    with ExitStack() as stack:
        members = _members(shared)
        stack.callback(members.stop)
        members.start(REPLICAS)
        fs = stack.enter_context(file_system(members.servers, shared))
        plain = shared.directory / "plain.data"
        path = f"/ffs-bench-{os.getpid()}.data"
        fs.pipe_file(path, data_set(plain, read_bytes).data)
        data = DataSet(members.servers, plain, path, read_bytes)
        caller = Caller(fs, data, in_order(read_bytes, MIB, RANGES_A_CALL))
        verified = caller.verify(MIB)
        chain = _Chain(members, fs, context.size_bytes)
        series = take_turns(
            shared, {_CALM: chain.calm(caller), _BUSY: chain.busy(caller)}, warm=False
        )
    return Outcome(
        command="read-while-resync",
        conditions=shared.conditions(
            ranges=f"1 MiB, {RANGES_A_CALL} a call, in file order, cached, CRC on, one connection",
            resync=f"{context.size_bytes} bytes that the member lacks, cached at its only source",
            data=f"{verified} delivered bytes verified beforehand",
        ),
        figures=figures(series, [_CALM, _BUSY]),
        comparisons=[
            series.compare("speed", _BUSY, _CALM, by_bytes, goal=GOAL),
            series.compare("CPU, with the resync's", _BUSY, _CALM, by_cpu),
        ],
        runs=runs(series),
        notes=["resync_gb_s is the member's own rate over all of its resync"],
    )


def _members(context: Context) -> Members:
    directory = context.directory / "cluster"
    return Members(
        directory,
        context.placement.server_cpus,
        [[directory / f"target-{number}"] for number in range(REPLICAS)],
        settings={"storage.congestion": context.congestion, **_SETTINGS},
    )


class _Chain:
    """A chain whose last member is made to lack a file, and to catch up."""

    def __init__(self, members: Members, fs: FFSFileSystem, bulk_bytes: int) -> None:
        self._members = members
        self._fs = fs
        self._bulk = np.random.default_rng(SEED + 1).bytes(bulk_bytes)
        self._numbers = itertools.count()
        self._path = ""
        self._behind = False

    @property
    def _member(self) -> Server:
        return self._members.daemons[-1]

    def calm(self, caller: Caller) -> Runner:
        """Return the contestant that reads while the member is away."""

        def run(seconds: float) -> Sample:
            self._fall_behind()
            sample = self._members.servers.metered(caller.batches(MIB))(seconds)
            return replace(sample, more={**sample.more, "resync_gb_s": 0.0})

        return run

    def busy(self, caller: Caller) -> Runner:
        """Return the contestant that reads while it catches up, and no longer than that."""
        read = caller.batches(MIB)

        def run(seconds: float) -> Sample:
            self._fall_behind()
            self._behind = False
            self._member.start()
            _wait_for(self._member, _STARTED)
            slices = max(_LOOK_S, seconds / 50)

            def work(until: float) -> tuple[int, int, Mapping[str, float]]:
                moved = operations = 0
                while time.perf_counter() < until and not _ENDED.search(_log(self._member)):
                    more = read(min(until, time.perf_counter() + slices))
                    moved, operations = moved + more[0], operations + more[1]
                return moved, operations, {}

            sample = self._members.servers.metered(work)(seconds)
            self._members.wait_until(_all_serve, "the member that resyncs")
            rate = _resync_rate(_wait_for(self._member, _ENDED))
            return replace(sample, more={**sample.more, "resync_gb_s": rate})

        return run

    def _fall_behind(self) -> None:
        """Have the member stopped, and a file written since that it lacks."""
        if self._behind:
            return
        if self._path:
            self._fs.rm_file(self._path)
            wait_for_drops(self._members.servers)
        self._member.stop()
        self._members.wait_until(lambda status: serving(status) == REPLICAS - 1, "a short chain")
        self._path = f"/ffs-bench-{os.getpid()}-{next(self._numbers)}.bulk"
        self._fs.pipe_file(self._path, self._bulk)
        os.sync()
        self._behind = True


def _all_serve(status: StatusReply) -> bool:
    return serving(status) == REPLICAS


def _log(server: Server) -> str:
    return server.log.read_text(errors="replace")


def _wait_for(server: Server, line: re.Pattern[str]) -> str:
    """Return the daemon's log once it has such a line."""
    give_up = time.monotonic() + 60
    while not line.search(text := _log(server)):
        if time.monotonic() > give_up:
            raise UnavailableError("a daemon did not resync", hint=text[-500:])
        time.sleep(_LOOK_S)
    return text


def _resync_rate(log: str) -> float:
    """Return GB/s from the start to the end of the resync that a log tells of."""
    started, ended = _STARTED.search(log), _ENDED.search(log)
    assert started is not None and ended is not None
    copied = re.search(r"bytes=(\d+)", ended[2])
    assert copied is not None
    times = [datetime.datetime.fromisoformat(each[1]) for each in (started, ended)]
    return int(copied[1]) / 1e9 / max((times[1] - times[0]).total_seconds(), 1e-3)
