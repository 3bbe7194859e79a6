"""The reader and the writer of a fault test, seen from the test, and how late they were."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from tests.harness import Cluster

ROOT: Final = Path(__file__).parents[3]
STOP_S_MAX: Final = 70.0
"""More than the longest deadline of a client."""
USUAL: Final = 50
"""So many operations before a fault tell how long one takes."""


class Client:
    """A process of `workload.py`."""

    def __init__(self, role: str, cluster: Cluster, seed: int) -> None:
        command = [sys.executable, "-m", "tests.cluster.faults.workload", role]
        self._process = subprocess.Popen(
            [*command, cluster.url, str(cluster.key_file), str(seed)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def report(self) -> dict[str, Any]:
        """What it did since the last report; waits for the operation under way."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("report\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the client ended with {self._process.wait()}"
        report: dict[str, Any] = json.loads(line)
        return report

    def finish(self) -> dict[str, Any]:
        """Have it end after the operation under way; return its last report."""
        out, _ = self._process.communicate(timeout=STOP_S_MAX)
        report: dict[str, Any] = json.loads(out)
        return report

    def kill(self) -> None:
        """End it if it has not ended."""
        self._process.kill()
        self._process.communicate()


@dataclass
class Lateness:
    """How long operations took that a fault affected, beyond what they usually take (seconds)."""

    late: list[float] = field(default_factory=list)

    def add(self, operations: list[list[float]], strike: float, usual: float) -> None:
        """Take in what ended after the strike."""
        self.late += [
            max(0.0, took - usual) for start, took in operations if start + took >= strike
        ]

    def quantile(self, share: float) -> float:
        """A quantile of the lateness."""
        return float(np.quantile(self.late, share)) if self.late else 0.0

    @property
    def worst(self) -> float:
        """The latest of all."""
        return max(self.late, default=0.0)


class Clients:
    """A reader and a writer at work; what each saw over the rounds."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self._reader = Client("reader", cluster, seed)
        self._writer = Client("writer", cluster, seed)
        self._usual = {"reads": 0.0, "writes": 0.0}
        self.reads, self.writes = Lateness(), Lateness()
        self.acknowledged: dict[str, str] = {}
        self.counters: dict[str, int] = {}
        self.full = 0

    def warm_up(self) -> None:
        """Have both work as usual, and learn how long that takes."""
        for name, client in (("reads", self._reader), ("writes", self._writer)):
            took: list[float] = []
            while len(took) < USUAL:
                time.sleep(0.2)
                report = client.report()
                assert not report["errors"], report["errors"]
                took += [seconds for _, seconds in report["operations"]]
            self._usual[name] = float(np.median(took))

    def take_stock(self, strike: float) -> None:
        """Learn what happened since the strike; nobody may have seen an error."""
        self._learn(self._reader.report(), self._writer.report(), strike)

    def finish(self) -> None:
        """End both, and learn what they did at last."""
        self._learn(self._reader.finish(), self._writer.finish(), math.inf)

    def kill(self) -> None:
        """End what has not ended."""
        self._reader.kill()
        self._writer.kill()

    def _learn(self, read: dict[str, Any], wrote: dict[str, Any], strike: float) -> None:
        assert not read["errors"], read["errors"]
        assert not wrote["errors"], wrote["errors"]
        self.reads.add(read["operations"], strike, self._usual["reads"])
        self.writes.add(wrote["operations"], strike, self._usual["writes"])
        self.counters, self.acknowledged = read["counters"], wrote["acknowledged"]
        self.full = wrote["full"]


@contextlib.contextmanager
def at_work(cluster: Cluster, seed: int) -> Iterator[Clients]:
    """Have a reader and a writer work meanwhile."""
    clients = Clients(cluster, seed)
    try:
        yield clients
    finally:
        clients.kill()
