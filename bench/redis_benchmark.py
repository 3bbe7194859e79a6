"""Redis GET with its own benchmark as client: 4 KiB reads of a well-known in-memory store.

Used by bench/cases/random.py. The keys that `redis-benchmark -r` asks for hold blocks of the data
set, and one of them is read back and compared before anything is timed.
"""

from __future__ import annotations

import csv
import resource
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ffs.bench.cases.common import Context
from ffs.bench.machine import pinned, process_cpu_seconds
from ffs.bench.measure import Runner, Sample
from ffs.bench.peers import servers
from ffs.errors import ChecksumError, NativeError

KEYS, SMOKE_KEYS = 100_000, 2_000
PIPELINE = 256
_FIRST_REQUESTS = 50_000
_FILL_KEYS = 500
_EXTRA_S = 60


@contextmanager
def contestant(
    context: Context, plain: npt.NDArray[np.uint8], value_bytes: int
) -> Iterator[Runner]:
    """Run a Redis on the servers' CPU and yield what measures it.

    Raises:  ConfigError when Redis is not installed
    """
    keys = SMOKE_KEYS if context.plan.smoke else KEYS
    with ExitStack() as stack:
        with pinned(context.placement.server_cpus):
            server = stack.enter_context(servers.redis(context.directory / "redis"))
        _fill(server.port, plain, keys, value_bytes)
        yield _Benchmark(server, keys, value_bytes).run


def _key(number: int) -> bytes:
    return b"key:%012d" % number


def _fill(port: int, plain: npt.NDArray[np.uint8], keys: int, value_bytes: int) -> None:
    """Give every key a block of the data set."""
    blocks = len(plain) // value_bytes
    values = [plain[i * value_bytes : (i + 1) * value_bytes] for i in range(min(blocks, keys))]
    with socket.create_connection((servers.HOST, port), 20) as sock, sock.makefile("rb") as replies:
        for first in range(0, keys, _FILL_KEYS):
            batch = range(first, min(first + _FILL_KEYS, keys))
            sock.sendall(
                b"".join(
                    b"*3\r\n$3\r\nSET\r\n$16\r\n%b\r\n$%d\r\n%b\r\n"
                    % (_key(i), value_bytes, values[i % len(values)].tobytes())
                    for i in batch
                )
            )
            if any(replies.readline() != b"+OK\r\n" for _ in batch):
                raise NativeError("redis refused a value", hint="it may be out of memory")
        sock.sendall(b"*2\r\n$3\r\nGET\r\n$16\r\n%b\r\n" % _key(keys - 1))
        replies.readline()
        if replies.read(value_bytes) != values[(keys - 1) % len(values)].tobytes():
            raise ChecksumError("redis delivered other bytes than were stored")


class _Benchmark:
    """Runs of redis-benchmark, each as long as the last one's speed lets it be."""

    def __init__(self, server: servers.PeerServer, keys: int, value_bytes: int) -> None:
        self._server = server
        self._value_bytes = value_bytes
        self._command = ["redis-benchmark", "-h", servers.HOST, "-p", str(server.port), "--csv"]
        self._command += ["-t", "get", "-c", "1", "-P", str(PIPELINE)]
        self._command += ["-d", str(value_bytes), "-r", str(keys)]
        self._rate = 0.0

    def run(self, seconds: float) -> Sample:
        """Measure about so long; the first time, what tells how fast it is."""
        count = max(PIPELINE, int(self._rate * seconds)) if self._rate else _FIRST_REQUESTS
        served = process_cpu_seconds((self._server.pid,))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = subprocess.run(
            [*self._command, "-n", str(count)],
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds + _EXTRA_S,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if result.returncode:
            raise NativeError(f"redis-benchmark failed: {result.stderr.strip()}")
        self._rate = parse_rate(result.stdout)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        served = process_cpu_seconds((self._server.pid,)) - served
        return Sample(count / self._rate, count * self._value_bytes, count, spent, served)


def parse_rate(report: str) -> float:
    """Return the requests a second that `redis-benchmark --csv` reports."""
    for row in csv.reader(report.splitlines()):
        if row and row[0].startswith("GET"):
            return float(row[1])
    raise NativeError(f"redis-benchmark reported no GET: {report.strip()[-200:]}")


def installed() -> bool:
    """Whether both programs are here."""
    folders = map(Path, ("/usr/bin", "/usr/local/bin"))
    return any(
        all((folder / name).exists() for name in ("redis-server", "redis-benchmark"))
        for folder in folders
    )
