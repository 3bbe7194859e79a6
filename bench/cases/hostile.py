"""`ffs-bench hostile`: what each attack of bench/attacks.py costs a client that behaves.

For each attack, the client reads 4 KiB and 1 MiB ranges and asks for attributes in batches, with
and without the attackers, in turns; the goal is >= 0.9 of the calm speed, without an error. Where
an attack dials all the time, a third contestant has the same attackers dial a bare listener, which
accepts and closes: what is lost there is what dialling costs the machine, with any server. The
attackers are a process of their own, of the lowest priority, on the client's CPU: they only hold
connections and dial at the rates that bench/attacks.py states. What is timed begins when they are
in their places and the servers have digested their coming (or going).
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from enum import Enum

import numpy as np

from ffs.bench.attacks import ATTACKS
from ffs.bench.cases.common import MIB, SEED, Context, Outcome, figures, runs, take_turns
from ffs.bench.cases.reading import Caller, DataSet, file_system, stored
from ffs.bench.cluster import Servers, Work
from ffs.bench.machine import memory, process_cpu_seconds
from ffs.bench.measure import Runner, Sample, by_operations
from ffs.client.core import Core
from ffs.client.filesystem import FFSFileSystem
from ffs.client.meta import MetaClient
from ffs.client.options import client_config
from ffs.errors import FFSError, UnavailableError

GOAL = 0.9
CALL_PATHS = 1_000
_SMALL, _LARGE, _STAT = "4 KiB ranges", "1 MiB ranges", "stat_many"
_SMOKE_ATTACKS = ("strangers", "slow-loris")
_SMOKE_SCALE = 0.02
_QUIET_SHARE = 0.3
_PROBE_S, _QUIET_S_MAX = 0.3, 20.0


class Target(Enum):
    """At whom the attackers are let loose."""

    NOBODY = "calm"
    SERVERS = "attacked"
    BARE = "bare listener attacked"


class Attackers:
    """One attack that can be switched on and off; a switch returns when the servers are calm."""

    def __init__(self, name: str, data: DataSet, context: Context) -> None:
        host, port = data.where.address
        scale = _SMOKE_SCALE if context.plan.smoke else 1.0
        self._command = [sys.executable, "-m", "ffs.bench.attacks", "--nice", name]
        self._command += ["--meta", f"{host}:{port}", "--key-file", data.where.key_file]
        self._command += ["--path", data.path, "--scale", str(scale)]
        self._bare = ["--bare", str(context.placement.server_cpu)]
        self._pids = data.where.pids or ()
        self._target = Target.NOBODY
        self._process: subprocess.Popen[bytes] | None = None

    def switch(self, target: Target) -> None:
        """Have the attack go on against somebody, or not."""
        if target is self._target:
            return
        self.close()
        self._target = target
        if target is not Target.NOBODY:
            more = self._bare if target is Target.BARE else []
            self._process = subprocess.Popen(
                [*self._command, *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert self._process.stdout is not None
            if self._process.stdout.readline() != b"ready\n":
                raise UnavailableError("the attackers could not take their places")
        self._wait_for_calm()

    def close(self) -> None:
        """End the attack."""
        process, self._process, self._target = self._process, None, Target.NOBODY
        if process is not None:
            process.communicate()

    def _wait_for_calm(self) -> None:
        give_up = time.monotonic() + _QUIET_S_MAX
        while time.monotonic() < give_up:
            before = process_cpu_seconds(self._pids)
            time.sleep(_PROBE_S)
            if process_cpu_seconds(self._pids) - before < _QUIET_SHARE * _PROBE_S:
                return


def measure(context: Context) -> Outcome:
    """Run every attack against the same servers; one comparison for each kind of work."""
    names = _SMOKE_ATTACKS if context.plan.smoke else tuple(ATTACKS)
    found = Outcome(
        command="hostile",
        conditions=context.conditions(
            attacks="; ".join(
                f"{name}: {ATTACKS[name].connections} connections a port, {ATTACKS[name].text}, "
                f"{ATTACKS[name].dials_per_s} new ones a second at most"
                for name in names
            ),
            scale=str(_SMOKE_SCALE if context.plan.smoke else 1.0),
        ),
        figures=[],
        comparisons=[],
        runs=[],
    )
    with stored(context) as data, _works(data, context) as works:
        for name in names:
            _measure_one(context, name, data, works, found)
    return replace(found, notes=[*found.notes, *data.where.notes])


def _measure_one(
    context: Context, name: str, data: DataSet, works: Mapping[str, Work], found: Outcome
) -> None:
    """Let calm and attacked runs take turns, and add what comes out to the outcome."""
    attackers = Attackers(name, data, context)
    contestants: dict[str, Runner] = {}
    targets = [each for each in Target if ATTACKS[name].passing or each is not Target.BARE]
    for target, (what, work) in itertools.product(targets, works.items()):
        label = f"{name}: {what}, {target.value}"
        contestants[label] = _switched(attackers, target, data.where.metered(work))
    try:
        series = take_turns(context, contestants)
    finally:
        attackers.close()
    found.figures.extend(figures(series, list(contestants)))
    found.runs.extend(runs(series))
    for what in works:
        ours, title = f"{name}: {what}, attacked", f"{name}: {what}"
        for reference in targets:
            if reference is not Target.SERVERS:
                label = f"{title}, {reference.value}"
                found.comparisons.append(
                    series.compare(title, ours, label, by_operations, goal=GOAL)
                )
    errors = sum(s.more["errors"] for each in contestants for s in series.samples(each))
    most = max(s.more["anonymous_mib"] for each in contestants for s in series.samples(each))
    held = f"servers at most {most:.0f} MiB of anonymous memory"
    found.notes.append(f"{name}: {errors:.0f} errors, {held}")


def _switched(attackers: Attackers, target: Target, runner: Runner) -> Runner:
    def run(seconds: float) -> Sample:
        attackers.switch(target)
        return runner(seconds)

    return run


@contextmanager
def _works(data: DataSet, context: Context) -> Iterator[dict[str, Work]]:
    """Have the three kinds of work, each verified once before anything is timed."""
    with ExitStack() as stack:
        fs = stack.enter_context(file_system(data.where, context, verify=True))
        calls = 4 if context.plan.smoke else 256
        small = _caller(fs, data, 4_096, (calls, 256))
        large = _caller(fs, data, MIB, (calls, 4))
        core = Core(client_config({**data.where.options, "attr_ttl_ms": 0}))
        stack.callback(core.close)
        root = f"/ffs-bench-hostile-{os.getpid()}"
        fs.mkdir(root)
        stack.callback(core.meta.rmdir, root, recursive=True)
        paths = [f"{root}/d{i}" for i in range(100)]
        for path in paths:
            fs.mkdir(path)
        batch = list(itertools.islice(itertools.cycle(paths), CALL_PATHS))
        yield {
            _SMALL: _counted(small.batches(4_096), data.where),
            _LARGE: _counted(large.batches(MIB), data.where),
            _STAT: _counted(_stat(core.meta, batch), data.where),
        }


def _caller(fs: FFSFileSystem, data: DataSet, range_bytes: int, shape: tuple[int, int]) -> Caller:
    picks = np.random.default_rng(SEED).integers(0, data.size_bytes // range_bytes, shape)
    caller = Caller(fs, data, picks.astype(np.uint64) * np.uint64(range_bytes))
    caller.verify(range_bytes)
    return caller


def _stat(client: MetaClient, batch: list[str]) -> Work:
    def work(until: float) -> tuple[int, int, Mapping[str, float]]:
        done = 0
        while time.perf_counter() < until:
            answers = client.stat_many(batch)
            for answer in answers:
                if isinstance(answer, FFSError):
                    raise answer
            done += len(answers)
        return 0, done, {}

    return work


def _counted(work: Work, where: Servers) -> Work:
    """Go on after an error, and say how many there were; note the servers' memory at the end."""

    def run(until: float) -> tuple[int, int, Mapping[str, float]]:
        moved = operations = errors = 0
        while time.perf_counter() < until:
            try:
                more_bytes, more_operations, _ = work(until)
            except FFSError:
                errors += 1
                continue
            moved, operations = moved + more_bytes, operations + more_operations
        return moved, operations, {"errors": errors, "anonymous_mib": _anonymous_mib(where)}

    return run


def _anonymous_mib(where: Servers) -> float:
    """Return what the servers hold by themselves: files that they map cost nobody memory."""
    return sum(memory(pid).anonymous for pid in where.pids or ()) / MIB
