"""`ffs-bench write-replicated`: three copies on three loop devices, beside the disk's own limit.

Three daemons, each with a file system of its own on a loop device, and three replicas: what one
client writes, in files of 32 MiB with several under way, is on all three devices when `pipe_file`
returns. The devices share one real disk, so that each byte of a file costs it three.

The limit is what fio writes to all three devices at once, each as many bytes as a file set has,
with fdatasync as often as a daemon's group commits: the same copies on the same disk, without a
network, a checksum or an index. A third of what it moves in all, which is a file set divided by
its time, is as much as any system could replicate. What fio writes to one device alone is shown
beside it, a third of that being the issue's other reading: it is the smaller one where one device
does not fill the disk, so the goal is held against the larger.

How long one more hop takes is measured at the end: a single chunk, one at a time, with three
members, then with two and one, the others being stopped.

A run writes a whole file set however long it takes; `--seconds` has no meaning here.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ffs.bench import fio, loop_disks, rawtools
from ffs.bench.cases.common import (
    MIB,
    SEED,
    Context,
    Figure,
    Outcome,
    figures,
    runs,
    take_turns,
)
from ffs.bench.cases.reading import file_system
from ffs.bench.cases.write import FIO_S_MAX, read_syncs, wait_for_drops
from ffs.bench.daemons import Members, serving
from ffs.bench.machine import FullCache, pinned
from ffs.bench.measure import Comparison, Runner, Sample, by_bytes, by_cpu
from ffs.client.filesystem import FFSFileSystem
from ffs.errors import ChecksumError, ConfigError, NativeError

GOAL = 0.7
REPLICAS = 3
FILE_BYTES = 32 * MIB
WRITERS = 4
TARGETS_EACH = 1
_SPARE_BYTES, _SMOKE_SPARE_BYTES = 256 * MIB, 64 * MIB
_OURS = f"{REPLICAS} replicas, {WRITERS} files under way"
_ALL, _ONE = "fio, all three devices at once", "fio, one device"
_HOP_WRITES = 60
_SETTINGS = {
    "meta.replicas": REPLICAS,
    "meta.min_replicas": 1,
    "meta.gc_delay_s": 0,
    "meta.heartbeat_ms": 200,
    "meta.node_lease_ms": 2_000,
    "meta.rereplicate_after_s": 3600,
    "storage.scrub_bytes_per_s": 0,
}


def measure(context: Context) -> Outcome:
    """Count the syncs of a calibration run, verify, take turns with fio, and time the hops."""
    fio.need()
    if context.url:
        raise ConfigError("it writes to daemons on disks of its own", hint="leave --url out")
    shared = replace(context, placement=replace(context.placement, shared=True))
    smoke = context.plan.smoke
    payload = np.random.default_rng(SEED).bytes(min(FILE_BYTES, context.size_bytes))
    count = max(1, context.size_bytes // len(payload))
    # What was just removed may still be there, and extent files grow by whole pieces.
    room = 2 * count * len(payload) + (_SMOKE_SPARE_BYTES if smoke else _SPARE_BYTES)
    with (
        loop_disks.loop_disks(context.directory, REPLICAS, room) as disks,
        _Cluster(shared, disks).running() as ours,
    ):
        verified = ours.verify(payload)
        cache = FullCache(context.directory, smoke=smoke)
        syncs = ours.count_syncs(payload, count)
        series = take_turns(
            shared,
            {
                _OURS: ours.runner(payload, count, cache),
                _ALL: _fio(disks, count * len(payload), syncs.every_mib, cache),
                _ONE: _fio(disks[:1], count * len(payload), syncs.every_mib, cache),
            },
            warm=not smoke,
        )
        hops = ours.hops(payload[:MIB], 2 if smoke else _HOP_WRITES)
    return Outcome(
        command="write-replicated",
        conditions=shared.conditions(
            files=f"{count} of {len(payload)} bytes, {WRITERS} at a time, one client process; "
            f"{verified} bytes read back from each replica beforehand",
            devices="ext4 on loop devices, files on one disk",
            fio=f"buffered 1 MiB writes, fdatasync every {syncs.every_mib} MiB; its rate is that "
            "of one device's bytes, so a third of what all devices take together",
            syncs=syncs.text,
            memory="full of clean page cache before each run",
        ),
        figures=[*figures(series, [_OURS, _ALL, _ONE]), *hops],
        comparisons=[
            series.compare("speed", _OURS, _ALL, by_bytes, goal=GOAL),
            _of_one_device(series.compare("speed", _OURS, _ONE, by_bytes)),
            series.compare("CPU", _OURS, _ALL, by_cpu),
        ],
        runs=runs(series),
    )


def _of_one_device(found: Comparison) -> Comparison:
    """Hold it against a third of what one device takes alone."""
    if found.ratio is None or found.reference_figure is None:
        return found
    ratio = found.ratio
    thirds = replace(
        ratio,
        median=ratio.median * REPLICAS,
        low=ratio.low * REPLICAS,
        high=ratio.high * REPLICAS,
    )
    return replace(
        found,
        reference=f"a third of {_ONE}",
        ratio=thirds,
        reference_figure=found.reference_figure / REPLICAS,
    )


@dataclass(frozen=True, slots=True)
class Syncs:
    """How often daemons ask for durability while a file set is written."""

    every_mib: int
    text: str


class _Cluster:
    """The daemons on their disks, and a client."""

    def __init__(self, context: Context, disks: Sequence[Path]) -> None:
        self._context = context
        self._disks = disks
        self._numbers = itertools.count()
        self._members: Members
        self._fs: FFSFileSystem

    @contextmanager
    def running(self) -> Iterator[_Cluster]:
        """Run it."""
        with self._cluster("cluster") as (self._members, self._fs):
            yield self

    @contextmanager
    def _cluster(
        self, name: str, environment: dict[str, str] | None = None
    ) -> Iterator[tuple[Members, FFSFileSystem]]:
        context = self._context
        members = Members(
            context.directory / name,
            context.placement.server_cpus,
            [[disk / name / str(n) for n in range(TARGETS_EACH)] for disk in self._disks],
            settings={"storage.congestion": context.congestion, **_SETTINGS},
            environment=environment,
        )
        with ExitStack() as stack:
            stack.callback(members.stop)
            members.start(REPLICAS)
            yield members, stack.enter_context(file_system(members.servers, context))

    def verify(self, payload: bytes) -> int:
        """Write a file and read it back from each replica by itself."""
        path = self._path()
        self._fs.pipe_file(path, payload)
        back = self._fs.cat_file(path)
        self._fs.rm_file(path)
        if back != payload:
            raise ChecksumError("the cluster delivered other bytes than were stored", path=path)
        return len(back)

    def count_syncs(self, payload: bytes, count: int) -> Syncs:
        """Write a file set to a cluster of its own whose syncs are counted."""
        prefix = self._context.directory / "syncs"
        environment = {
            "LD_PRELOAD": str(rawtools.build("synccount")),
            "SYNCCOUNT_OUT": str(prefix),
        }
        with self._cluster("calibration", environment) as (members, fs):
            totals = [Path(f"{prefix}.{daemon.pid}") for daemon in members.daemons]
            before = np.array([read_syncs(path) for path in totals])
            self._write(fs, payload, count)
            made = (np.array([read_syncs(path) for path in totals]) - before).sum(axis=0)
        for disk in self._disks:
            shutil.rmtree(disk / "calibration")
        written = count * len(payload) // MIB * len(totals)
        every = max(1, round(written / int(made[0])))
        return Syncs(
            every,
            f"{written} MiB on {len(totals)} daemons made {made[0]} syncs of extent files and "
            f"{made[1]} of checksums, indexes and others",
        )

    def runner(self, payload: bytes, count: int, cache: FullCache) -> Runner:
        """Return the contestant: a file set, gone before the next run."""
        servers = self._members.servers

        def run(seconds: float) -> Sample:
            os.sync()
            cache.fill()
            paths: list[str] = []

            def work(until: float) -> tuple[int, int, dict[str, float]]:
                paths.extend(self._write(self._fs, payload, count))
                return len(payload) * count, count, {}

            sample = servers.metered(work)(seconds)
            self._fs.rm(paths)
            wait_for_drops(servers)
            return sample

        return run

    def _write(self, fs: FFSFileSystem, payload: bytes, count: int) -> list[str]:
        paths = [self._path() for _ in range(count)]
        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(lambda path: fs.pipe_file(path, payload), paths))
        return paths

    def _path(self) -> str:
        return f"/ffs-bench-{os.getpid()}-{next(self._numbers)}.data"

    def hops(self, chunk: bytes, count: int) -> list[Figure]:
        """Time single chunks with all members, and with ever fewer."""
        found = []
        context = self._context
        with pinned(context.placement.client_cpus):
            for members in range(REPLICAS, 0, -1):
                self._stop_down_to(members)
                found.append(self._hop(chunk, count, members))
        return found

    def _stop_down_to(self, members: int) -> None:
        """Stop the last daemon until so many are left, and wait for the chains."""
        daemons = self._members.daemons
        while len(daemons) > members:
            daemons.pop().stop()
        wanted = members * TARGETS_EACH
        self._members.wait_until(lambda status: serving(status) == wanted, "shorter chains")

    def _hop(self, chunk: bytes, count: int, members: int) -> Figure:
        servers = self._members.servers
        took: list[float] = []

        def work(until: float) -> tuple[int, int, dict[str, float]]:
            with closing(self._fs.open(self._path(), "wb")) as file:
                for _ in range(count):
                    start = time.perf_counter()
                    file.write(chunk)
                    took.append(time.perf_counter() - start)
            p50, p90 = np.percentile(took, (50, 90)) * 1e3
            return len(chunk) * count, count, {"p50 ms": float(p50), "p90 ms": float(p90)}

        sample = servers.metered(work)(0)
        name = f"one chunk at a time, members: {members}"
        gb = sample.bytes / 1e9
        server_cpu = None if sample.server_cpu_s is None else sample.server_cpu_s / gb
        more = {key: value for key, value in sample.more.items() if key.endswith(" ms")}
        return Figure(
            name,
            sample.bytes_rate,
            sample.operation_rate,
            sample.client_cpu_s / gb,
            server_cpu,
            "CPU-s/GB",
            more,
        )


def _fio(disks: Sequence[Path], size_bytes: int, every_mib: int, cache: FullCache) -> Runner:
    """Return a contestant that writes so much to each disk at the same time.

    Its bytes are those of one disk: what a file set is to ours.
    """
    command = [
        "fio",
        "--rw=write",
        "--bs=1M",
        f"--size={size_bytes}",
        "--ioengine=psync",
        f"--fdatasync={every_mib}",
        "--end_fsync=1",
        "--fallocate=native",
        "--output-format=json",
    ]
    targets = [disk / "fio.data" for disk in disks]
    command += [f"--name={number} --filename={path}" for number, path in enumerate(targets)]

    def run(seconds: float) -> Sample:
        os.sync()
        cache.fill()
        result = subprocess.run(
            [word for part in command for word in part.split(" ")],
            capture_output=True,
            text=True,
            check=False,
            timeout=FIO_S_MAX,
        )
        for path in targets:
            path.unlink(missing_ok=True)
        if result.returncode:
            raise NativeError(f"fio failed: {result.stderr.strip()}")
        return _fio_sample(json.loads(result.stdout))

    return run


def _fio_sample(report: dict[str, Any]) -> Sample:
    """Turn the JSON of jobs that ran at the same time into a sample of one job's bytes."""
    jobs = report["jobs"]
    seconds = max(job["write"]["runtime"] for job in jobs) / 1e3
    cpu_s = sum((job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] / 1e3 for job in jobs)
    return Sample(seconds, jobs[0]["write"]["io_bytes"], 1, cpu_s, 0.0)
