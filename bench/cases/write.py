"""`ffs-bench write`: write one file of 1 GiB, beside fio with the same fsync pattern.

Ours is `fs.pipe_file`: the client cuts and checksums, the daemon stores and syncs, and the call
returns when all is durable and published. The reference is fio on the same disk: buffered 1 MiB
writes with fdatasync once per so many MiB as one group commit of the chunk store covers. That
number is observed, not assumed: a calibration run counts the daemon's syncs of extent files
(bench/raw/synccount.c). fio syncs data only; what the chunk store syncs beyond that, checksums and
index, is part of what is measured.

A run writes the whole file however long it takes; `--seconds` has no meaning here.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ffs.bench import rawtools
from ffs.bench.cases.common import MIB, Context, Outcome, data_set, figures, runs, take_turns
from ffs.bench.cases.reading import file_system
from ffs.bench.cluster import Servers, servers
from ffs.bench.machine import FullCache
from ffs.bench.measure import Runner, Sample, by_bytes
from ffs.client.filesystem import FFSFileSystem
from ffs.errors import ChecksumError, ConfigError, NativeError
from ffs.wire.status import STATUS, StatusRequest

GOAL = 0.5
CALIBRATION_BYTES = 256 * MIB
FIO_S_MAX = 600
DROP_S_MAX = 20

_OURS, _FIO = "pipe_file", "fio"
# Data that nobody refers to goes at once, so that a run does not find the last one's on the disk.
_SETTINGS = {"meta.gc_delay_s": 0}


@dataclass(frozen=True, slots=True)
class Cadence:
    """How often the chunk store syncs extent files while a large file is written."""

    every_mib: int
    text: str


def measure(context: Context) -> Outcome:
    """Observe the cadence, verify what is written once, then take turns with fio."""
    if shutil.which("fio") is None:
        raise ConfigError("fio is not installed", hint="apt-get install fio")
    data = data_set(context.directory / "source.data", context.size_bytes).data
    cadence = _cadence(context, data)
    cache = FullCache(context.directory, smoke=context.plan.smoke)
    with (
        servers(context, settings=_SETTINGS) as where,
        file_system(where, context) as fs,
    ):
        verified = _verify(fs, data)
        series = take_turns(
            context,
            {_OURS: _ours(fs, where, data, cache), _FIO: _fio(context, cadence, cache)},
        )
    return Outcome(
        command="write",
        conditions=context.conditions(
            file=f"{context.size_bytes} bytes, {verified} delivered bytes verified beforehand",
            fio=f"buffered 1 MiB writes, fdatasync every {cadence.every_mib} MiB, on both CPUs",
            cadence=cadence.text,
            memory="full of clean page cache before each run",
            checksums="CRC32C of every 4 KiB made, sent, checked and stored by ours",
        ),
        figures=figures(series, [_OURS, _FIO]),
        comparisons=[series.compare("speed", _OURS, _FIO, by_bytes, goal=GOAL)],
        runs=runs(series),
        notes=where.notes,
    )


def _cadence(context: Context, data: memoryview) -> Cadence:
    """Count the daemon's syncs over a write that is not timed."""
    if context.sync_every_mib:
        return Cadence(context.sync_every_mib, "given by --sync-every-mib")
    if context.url:
        raise ConfigError(
            "the syncs of a running cluster cannot be observed", hint="give --sync-every-mib"
        )
    prefix = context.directory / "syncs"
    environment = {
        "LD_PRELOAD": str(rawtools.build("synccount")),
        "SYNCCOUNT_OUT": str(prefix),
    }
    part = data[:CALIBRATION_BYTES]
    with (
        servers(context, environment=environment, name="calibration") as where,
        file_system(where, context) as fs,
    ):
        totals = Path(f"{prefix}.{where.storage_pid}")
        before = read_syncs(totals)
        fs.pipe_file("/calibration", part)
        after = read_syncs(totals)
    synced, other = after[0] - before[0], after[1] - before[1]
    if not synced:
        raise NativeError(
            "no sync of an extent file was seen", hint="give --sync-every-mib to set fio's cadence"
        )
    every = max(1, round(part.nbytes / MIB / synced))
    return Cadence(
        every, f"{part.nbytes // MIB} MiB made {synced} syncs of extent files, {other} of others"
    )


def read_syncs(totals: Path) -> tuple[int, int]:
    """Return what bench/raw/synccount.c has counted: syncs of extent files, and of others."""
    data, other = struct.unpack("<QQ", totals.read_bytes())
    return data, other


def _verify(fs: FFSFileSystem, data: memoryview) -> int:
    """Write the file, read it back and compare: the only run whose bytes are looked at."""
    path = _path(0)
    fs.pipe_file(path, data)
    back = np.empty(data.nbytes, dtype=np.uint8)
    read = fs.readv_into([(path, 0, data.nbytes)], back)
    fs.rm_file(path)
    if read != data.nbytes or not np.array_equal(back, np.frombuffer(data, dtype=np.uint8)):
        raise ChecksumError("the cluster delivered other bytes than were stored", path=path)
    return read


def _path(number: int) -> str:
    return f"/ffs-bench-{os.getpid()}-{number}.data"


def _ours(fs: FFSFileSystem, where: Servers, data: memoryview, cache: FullCache) -> Runner:
    numbers = itertools.count(1)

    def work(path: str) -> tuple[int, int, Mapping[str, float]]:
        fs.pipe_file(path, data)
        return data.nbytes, 1, {}

    def run(seconds: float) -> Sample:
        path = _path(next(numbers))
        os.sync()
        cache.fill()
        sample = where.metered(lambda until: work(path))(seconds)
        fs.rm_file(path)
        wait_for_drops(where)
        return sample

    return run


def wait_for_drops(where: Servers) -> None:
    """Wait, outside the timed part, until the daemon has let go of removed files' chunks."""
    rpc = where.rpc()
    give_up = time.monotonic() + DROP_S_MAX
    try:
        while time.monotonic() < give_up:
            status = rpc.call(STATUS, StatusRequest(), deadline_ms=5_000)
            if status.dead_blobs == 0:
                return
            time.sleep(0.05)
    finally:
        rpc.close()


def _fio(context: Context, cadence: Cadence, cache: FullCache) -> Runner:
    target = context.directory / "fio.data"
    cpus = sorted({context.placement.client_cpu, context.placement.server_cpu})
    command = [
        "fio",
        "--name=write",
        f"--filename={target}",
        "--rw=write",
        "--bs=1M",
        f"--size={context.size_bytes}",
        "--ioengine=psync",
        f"--fdatasync={cadence.every_mib}",
        "--end_fsync=1",
        "--fallocate=native",
        f"--cpus_allowed={','.join(map(str, cpus))}",
        "--output-format=json",
    ]

    def run(seconds: float) -> Sample:
        os.sync()
        cache.fill()
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=FIO_S_MAX
        )
        target.unlink(missing_ok=True)
        if result.returncode:
            raise NativeError(f"fio failed: {result.stderr.strip()}")
        return fio_sample(json.loads(result.stdout))

    return run


def fio_sample(report: Mapping[str, Any]) -> Sample:
    """Turn fio's JSON into a sample; its run time includes every fdatasync and the last fsync."""
    job = report["jobs"][0]
    seconds = job["write"]["runtime"] / 1e3
    cpu_s = (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] / 1e3
    return Sample(seconds, job["write"]["io_bytes"], 1, cpu_s, 0.0)
