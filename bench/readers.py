"""A client process that reads a file of a cluster in turns, for cases with several of them.

Used by bench/cases/read_scaling.py, which starts it as `python -m ffs.bench.readers` with one JSON
object as argument, and by itself as that process. It verifies every range once and says so by a
line; then each line on its standard input is a length in seconds, for which it reads, and is
answered with what it read and what that took. The end of the input ends it.

Failure: an error ends the process, which is an UnavailableError to who waits for its answer.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ffs.bench.cases.common import MIB, RECEIVE_BUFFER_BYTES
from ffs.bench.cases.reading import OVER_TCP, Caller, DataSet, in_order
from ffs.bench.cluster import Servers
from ffs.bench.machine import process_cpu_seconds
from ffs.bench.measure import Runner, Sample
from ffs.client.filesystem import FFSFileSystem
from ffs.errors import UnavailableError

END_S_MAX = 10.0


@dataclass(frozen=True, slots=True)
class Job:
    """What a process reads: 1 MiB ranges in file order, from its own place on."""

    url: str
    key_file: str
    congestion: str
    plain: str
    path: str
    size_bytes: int
    ranges_a_call: int
    share: float
    """Where it begins, from 0 to 1."""


@contextmanager
def caller(job: Job) -> Iterator[Caller]:
    """Have a client, one connection to each node, and its planned calls."""
    options: dict[str, Any] = {
        "url": job.url,
        "key_file": job.key_file,
        "congestion": job.congestion,
        "connections_per_node": 1,
        "receive_buffer_bytes": RECEIVE_BUFFER_BYTES,
        **OVER_TCP,
    }
    fs = FFSFileSystem(skip_instance_cache=True, **options)
    try:
        offsets = in_order(job.size_bytes, MIB, job.ranges_a_call)
        turned = np.roll(offsets, -int(len(offsets) * job.share), axis=0)
        where = Servers(job.url, job.key_file, None)
        yield Caller(fs, DataSet(where, Path(job.plain), job.path, job.size_bytes), turned)
    finally:
        fs.close()


class Readers:
    """Some of these processes, which read at the same time."""

    def __init__(self, jobs: Sequence[Job], pids: tuple[int, ...], stack: ExitStack) -> None:
        command = [sys.executable, "-m", "ffs.bench.readers"]
        self._servers = pids
        self._processes = []
        for job in jobs:
            process = subprocess.Popen(
                [*command, json.dumps(asdict(job))], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            stack.callback(_end, process)
            self._processes.append(process)

    def wait_ready(self) -> int:
        """Return once all have verified what they will read: how many bytes."""
        return sum(answer["verified"] for answer in self._answers())

    @property
    def runner(self) -> Runner:
        """The contestant that they are together."""

        def run(seconds: float) -> Sample:
            before = process_cpu_seconds(self._servers)
            for process in self._processes:
                assert process.stdin is not None
                process.stdin.write(f"{seconds}\n".encode())
                process.stdin.flush()
            found = list(self._answers())
            spent = process_cpu_seconds(self._servers) - before
            moved = sum(answer["bytes"] for answer in found)
            # From the first one's start to the last one's end, on the clock that they share.
            began = min(answer["began"] for answer in found)
            ended = max(answer["ended"] for answer in found)
            cpu_s = sum(answer["cpu_s"] for answer in found)
            return Sample(ended - began, moved, moved // MIB, cpu_s, spent)

        return run

    def _answers(self) -> Iterator[dict[str, Any]]:
        for process in self._processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise UnavailableError("a reading process has ended", hint="it wrote why above")
            yield json.loads(line)


def _end(process: subprocess.Popen[bytes]) -> None:
    with process:
        try:
            process.communicate(timeout=END_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()


def _serve(job: Job) -> None:
    def say(**facts: float) -> None:
        sys.stdout.write(json.dumps(facts) + "\n")
        sys.stdout.flush()

    with caller(job) as calls:
        say(verified=calls.verify(MIB))
        work = calls.batches(MIB)
        for line in sys.stdin:
            cpu_s, began = time.process_time(), time.perf_counter()
            moved, _, _ = work(began + float(line))
            ended = time.perf_counter()
            say(bytes=moved, began=began, ended=ended, cpu_s=time.process_time() - cpu_s)


if __name__ == "__main__":
    _serve(Job(**json.loads(sys.argv[1])))
