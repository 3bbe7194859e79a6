"""`ffs-bench copies`: how many payload bytes are copied in user space for each byte read.

Client and daemon run under bench/raw/copycount.c, which sees every memcpy, memmove and mempcpy of
512 bytes or more that goes through libc, whoever calls it: the engines, Python, NumPy. The loop
reads 1 MiB ranges with checksums on, over TCP; start-up is not counted. Beside it stands what the
client's engine says of itself (ffs._reader.counters): the two are independent, so a copy that one
misses shows in the other. Nothing here is timed against anything: under the counter, speeds mean
nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ffs import _reader
from ffs.bench import rawtools
from ffs.bench.cases.common import MIB, SEED, Context, Figure, Outcome
from ffs.bench.cases.reading import OVER_TCP, file_system
from ffs.bench.cluster import Servers, servers
from ffs.bench.measure import GB, Comparison, Interval, Verdict
from ffs.client.filesystem import FFSFileSystem
from ffs.client.planner import RANGE_DTYPE
from ffs.errors import ConfigError, NativeError

GOAL = 0.01
RANGES_A_CALL = 8
WORKER_S_MAX = 300
_FILE = "/copies.data"


def measure(context: Context) -> Outcome:
    """Run the loop in a process of its own under the counter, beside a daemon under it."""
    if context.url:
        raise ConfigError("copies are counted in a cluster of its own", hint="leave --url out")
    prefix = context.directory / "copies"
    environment = {
        "LD_PRELOAD": str(rawtools.build("copycount")),
        "COPYCOUNT_OUT": str(prefix),
    }
    with servers(context, environment=environment) as where, file_system(where, context) as fs:
        noise = np.random.default_rng(SEED).bytes(context.size_bytes)
        fs.pipe_file(_FILE, noise)
        found = _run_worker(context, where, environment)
    payload = found["payload_bytes"]
    shares = {
        "client, seen by the counter": found["client_copied"] / payload,
        "client, by its own count": found["engine_copied"] / payload,
        "daemon, seen by the counter": found["daemon_copied"] / payload,
    }
    return Outcome(
        command="copies",
        conditions=context.conditions(
            ranges=f"1 MiB, {RANGES_A_CALL} a call, CRC on", read=f"{payload} bytes"
        ),
        figures=[_figure(found)],
        comparisons=[_judge(name, share) for name, share in shares.items()],
        runs=[found],
        notes=["ratios are copied bytes per byte read; speeds under the counter mean nothing"],
    )


def _run_worker(context: Context, where: Servers, environment: dict[str, str]) -> dict[str, Any]:
    daemon = f"{environment['COPYCOUNT_OUT']}.{where.storage_pid}"
    passes = 2 if context.plan.smoke else 8
    command = [sys.executable, "-m", __name__, where.url, where.key_file, daemon, str(passes)]
    result = subprocess.run(
        command,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=WORKER_S_MAX,
    )
    if result.returncode:
        raise NativeError(f"the counted reader failed: {result.stderr.strip()}")
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def _figure(found: dict[str, Any]) -> Figure:
    return Figure(
        name="readv_into under the counter",
        bytes_rate=found["payload_bytes"] / found["seconds"] / GB,
        operation_rate=found["payload_bytes"] / MIB / found["seconds"],
        client_cpu=found["client_cpu_s"] / found["payload_bytes"] * GB,
        server_cpu=None,
        cpu_unit="CPU-s/GB",
        more={
            "copying calls": float(found["client_calls"] + found["daemon_calls"]),
            "copied_per_byte": (found["client_copied"] + found["daemon_copied"])
            / found["payload_bytes"],
        },
    )


def _judge(name: str, share: float) -> Comparison:
    verdict = Verdict.MET if share <= GOAL else Verdict.MISSED
    exact = Interval(share, share, share)
    return Comparison(
        name, name, "one copy per byte", exact, GOAL, verdict, 1, 0, "copies a byte", share, 1.0
    )


# --- the counted process ------------------------------------------------------------------------


def totals(path: str) -> tuple[int, int]:
    """Return (bytes, calls) that a process under the counter has copied so far."""
    copied, calls = struct.unpack("<QQ", Path(path).read_bytes())
    return copied, calls


def read_counted(fs: FFSFileSystem, passes: int, daemon: str) -> dict[str, float]:
    """Read the file `passes` times and return what was copied meanwhile."""
    own = f"{os.environ['COPYCOUNT_OUT']}.{os.getpid()}"
    ranges_total = fs.info(_FILE)["size"] // MIB
    ranges = np.zeros(ranges_total, dtype=RANGE_DTYPE)
    ranges["handle"] = fs.open_many([_FILE])[0]
    ranges["offset"] = np.arange(ranges_total, dtype=np.uint64) * np.uint64(MIB)
    ranges["length"] = MIB
    calls = [ranges[i : i + RANGES_A_CALL] for i in range(0, ranges_total, RANGES_A_CALL)]
    out = np.ones(RANGES_A_CALL * MIB, dtype=np.uint8)
    for call in calls:  # warm: connections, routing, imports on first use
        fs.readv_into(call, out)
    engine, client, server = _reader.counters(), totals(own), totals(daemon)
    cpu, start, payload = time.process_time(), time.perf_counter(), 0
    for _ in range(passes):
        for call in calls:
            payload += fs.readv_into(call, out)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    engine_after, client_after, server_after = _reader.counters(), totals(own), totals(daemon)
    return {
        "payload_bytes": payload,
        "seconds": seconds,
        "client_cpu_s": cpu,
        "client_copied": client_after[0] - client[0],
        "client_calls": client_after[1] - client[1],
        "daemon_copied": server_after[0] - server[0],
        "daemon_calls": server_after[1] - server[1],
        "engine_copied": engine_after["copied_bytes"] - engine["copied_bytes"],
        "engine_payload": engine_after["payload_bytes"] - engine["payload_bytes"],
    }


def _worker() -> None:
    parser = argparse.ArgumentParser(description="read a file while copies are counted")
    for name in ("url", "key_file", "daemon", "passes"):
        parser.add_argument(name)
    options = parser.parse_args()
    where: dict[str, Any] = {"url": options.url, "key_file": options.key_file, **OVER_TCP}
    fs = FFSFileSystem(**where)
    sys.stdout.write(json.dumps(read_counted(fs, int(options.passes), options.daemon)))
    fs.close()


if __name__ == "__main__":
    _worker()
