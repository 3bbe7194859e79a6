"""`ffs-bench replicas`: what a read loses when one of two replicas stops or dies in its middle.

A cluster of two daemons with two replicas, whose leases outlast a round: what is measured is the
client's part, before any chain changes. Each round takes a client of its own, reads a batch
undisturbed a few times, and then once with SIGSTOP or SIGKILL sent to one of the daemons at a
random moment of it; the extra time is over the undisturbed median. The reads that follow, with the
daemon still gone, are measured likewise. Every byte is compared each time. One round in two begins
with a client that has just read; in the others it has yet to connect.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ffs.bench.cases.common import MIB, SEED, Context, Figure, Outcome
from ffs.bench.cases.reading import OVER_TCP
from ffs.bench.daemons import Members, Server
from ffs.bench.machine import pinned
from ffs.bench.measure import Comparison, Interval, Verdict, spinners
from ffs.client.filesystem import RANGE_DTYPE, FFSFileSystem
from ffs.errors import ChecksumError, ConfigError

GOAL_MS = 200.0
ROUNDS = 20
RANGE_BYTES = 256 << 10
RANGES = 128
_FILE = "/replicas.data"
_FILE_BYTES_MAX = 256 * MIB
_WARM_CALLS = 5
_AFTER_CALLS = 3
_SETTINGS = {"meta.replicas": 2, "meta.node_lease_ms": 25_000}
_SIGNALS = (signal.SIGSTOP, signal.SIGKILL)
_PHASES = ("struck", "after", "cold")


class Pair:
    """A metadata server, and two daemons with the same chunks."""

    def __init__(self, directory: Path, cpus: set[int]) -> None:
        targets = [[directory / f"target-{number}"] for number in range(2)]
        self._members = Members(directory, cpus, targets, settings=_SETTINGS)

    @property
    def daemons(self) -> list[Server]:
        """The two that hold the chunks."""
        return self._members.daemons

    @property
    def options(self) -> dict[str, Any]:
        """Keywords that lead a file system object here."""
        return {**self._members.servers.options, **OVER_TCP}

    def start(self, data: bytes) -> None:
        """Start it with a file that both daemons hold."""
        self._members.start(replicas=2)
        with closing(FFSFileSystem(skip_instance_cache=True, **self.options)) as fs:
            fs.pipe_file(_FILE, data)

    def stop(self) -> None:
        """Stop all of it."""
        self._members.stop()


class Batch:
    """The ranges of a round, and what they must come to."""

    def __init__(self, data: bytes, seed: int) -> None:
        dice = np.random.default_rng(seed)
        self.offsets = dice.integers(0, len(data) - RANGE_BYTES, RANGES)
        self.out = np.ones(RANGES * RANGE_BYTES, dtype=np.uint8)
        view = np.frombuffer(data, dtype=np.uint8)
        self._expected = np.concatenate([view[o : o + RANGE_BYTES] for o in self.offsets])

    def read_ms(self, fs: FFSFileSystem) -> float:
        """Read the batch, compare every byte, and return what the call took."""
        ranges = np.zeros(RANGES, dtype=RANGE_DTYPE)
        ranges["handle"] = fs.open_many([_FILE])[0]
        ranges["offset"], ranges["length"] = self.offsets, RANGE_BYTES
        self.out[:] = 0
        start = time.perf_counter()
        fs.readv_into(ranges, self.out)
        took_ms = (time.perf_counter() - start) * 1e3
        if not np.array_equal(self.out, self._expected):
            raise ChecksumError("a batch delivered wrong bytes")
        return took_ms


@dataclass(frozen=True, slots=True)
class Round:
    """Extra milliseconds: of the batch that was struck, of the worst of those after it, and of the
    first batch of a client that had not connected yet."""

    signal: str
    undisturbed_ms: float
    struck: float
    after: float
    cold: float


def measure(context: Context) -> Outcome:
    """Run the rounds of both signals and hold the worst extra time against the goal."""
    if context.url:
        raise ConfigError("replicas are stopped in a cluster of its own", hint="leave --url out")
    smoke = context.plan.smoke
    count = 2 if smoke else ROUNDS
    data = np.random.default_rng(SEED).bytes(min(context.size_bytes, _FILE_BYTES_MAX))
    rounds: list[Round] = []
    with ExitStack() as stack:
        running = Pair(context.directory / "pair", set(context.placement.server_cpus))
        stack.callback(running.stop)
        running.start(data)
        stack.enter_context(spinners(context.plan))
        for number, turn in itertools.product(_SIGNALS, range(count)):
            batch = Batch(data, SEED + turn)
            with pinned(context.placement.client_cpus):
                rounds.append(_round(running, batch, number, turn))
            context.progress(f"{number.name}: round {turn + 1} of {count}")
    return Outcome(
        command="replicas",
        conditions=context.conditions(
            ranges=f"{RANGES} of {RANGE_BYTES >> 10} KiB a call, two replicas, CRC on",
            rounds=f"{count} for each signal",
        ),
        figures=[_figure(rounds, number.name) for number in _SIGNALS],
        comparisons=[
            _judge(rounds, number.name, phase, smoke)
            for number, phase in itertools.product(_SIGNALS, _PHASES)
        ],
        runs=[{"contestant": r.signal, "extra_ms": r.struck, **_as_dict(r)} for r in rounds],
        notes=["extra ms over the undisturbed median of the same client; every byte compared"],
    )


def _round(running: Pair, batch: Batch, number: signal.Signals, turn: int) -> Round:
    victim = running.daemons[turn % 2]
    with ExitStack() as stack:
        warm, cold = (
            stack.enter_context(closing(FFSFileSystem(skip_instance_cache=True, **running.options)))
            for _ in range(2)
        )
        usual = float(np.median([batch.read_ms(warm) for _ in range(_WARM_CALLS)][1:]))
        delay_s = np.random.default_rng(turn).uniform(0, usual * 0.8) / 1e3
        strike = threading.Timer(delay_s, os.kill, (victim.pid, number))
        strike.start()
        struck = batch.read_ms(warm) - usual
        strike.join()
        after = max(batch.read_ms(warm) for _ in range(_AFTER_CALLS)) - usual
        first = batch.read_ms(cold) - usual
    if number == signal.SIGSTOP:
        os.kill(victim.pid, signal.SIGCONT)
    else:
        victim.stop()
        victim.start()
    return Round(number.name, usual, struck, after, first)


def _as_dict(one: Round) -> dict[str, float]:
    return {name: getattr(one, name) for name in ("undisturbed_ms", *_PHASES)}


def _figure(rounds: list[Round], name: str) -> Figure:
    mine = [r for r in rounds if r.signal == name]
    more: dict[str, float] = {}
    for phase in _PHASES:
        extra = [getattr(r, phase) for r in mine]
        more |= {f"{phase} p50 ms": float(np.median(extra)), f"{phase} max ms": max(extra)}
    usual_s = float(np.median([r.undisturbed_ms for r in mine])) / 1e3
    moved = RANGES * RANGE_BYTES
    return Figure(name, moved / usual_s / 1e9, RANGES / usual_s, 0.0, None, "CPU-s/GB", more)


def _judge(rounds: list[Round], name: str, phase: str, smoke: bool) -> Comparison:
    worst = max(getattr(r, phase) for r in rounds if r.signal == name)
    verdict = Verdict.MET if worst <= GOAL_MS else Verdict.MISSED
    share = worst / GOAL_MS
    return Comparison(
        name=f"{name}, {phase}: worst extra time",
        ours=name,
        reference="",
        ratio=Interval(share, share, share),
        goal=1.0,
        verdict=Verdict.UNRESOLVED if smoke else verdict,
        pairs=sum(r.signal == name for r in rounds),
        dropped=0,
        unit="ms",
        figure=worst,
    )
