"""One loader's side of the conversation: a JSON object a line on stdin, an answer each on stdout.

    {"op": "open", ...Job}     write the samples, make the loader; answers with its version
    {"op": "verify"}           loop over one epoch: {"count": ..., "crc_sum": ...}
    {"op": "run", "seconds", "touch"}  loop for so long: what it delivered and what it took

The end of stdin ends the process. An error is answered as {"error": text}. Start-up, writing and
imports are over when `open` is answered. A run's clock starts once the batches that were read ahead
before it are used up, so nothing that a run delivers was made before it.

CPU seconds and minor faults are those of this process and all that it started, also of those that
have ended meanwhile.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import resource
import sys
import time
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

AHEAD = 2
"""Batches that every loader reads ahead for each worker: torch's default."""

PAGE = 4096


@dataclass(frozen=True)
class Job:
    """What is to be loaded, and how."""

    plain: str
    """The samples back to back in one file."""
    directory: str
    """Where the loader's own files go; empty at first."""
    sample_bytes: int
    count: int
    batch: int
    workers: int
    seed: int = 0
    more: dict[str, Any] = field(default_factory=dict)
    """What this loader alone is told."""

    def samples(self) -> npt.NDArray[np.uint8]:
        """Return the samples, a row each."""
        mapped = np.memmap(self.plain, dtype=np.uint8, mode="r")
        return mapped[: self.count * self.sample_bytes].reshape(self.count, self.sample_bytes)

    @property
    def path(self) -> Path:
        """Return `directory` as a path."""
        return Path(self.directory)

    @property
    def loading(self) -> dict[str, Any]:
        """Return the arguments that all loaders made of torch's take."""
        found: dict[str, Any] = {"batch_size": self.batch, "num_workers": self.workers}
        if self.workers:
            found |= {"persistent_workers": True, "prefetch_factor": AHEAD}
        return found


@dataclass
class Usage:
    """CPU seconds and page faults so far."""

    cpu_s: float
    main_faults: int
    worker_faults: int

    @classmethod
    def now(cls) -> Usage:
        """Count this process, what it waited for, and its living descendants."""
        own = resource.getrusage(resource.RUSAGE_SELF)
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu, faults = time.process_time() + ended.ru_utime + ended.ru_stime, ended.ru_minflt
        for process in descendants(os.getpid()):
            try:
                fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
                cpu += time.clock_gettime(~process << 3 | 2)  # see process_cpu_seconds
            except OSError:
                continue  # it ended since it was listed
            cpu += (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
            faults += int(fields[7]) + int(fields[8])
        return cls(cpu, own.ru_minflt, faults)


def descendants(process: int) -> list[int]:
    """Return the processes that one started, and those that they started."""
    found: list[int] = []
    try:
        for task in Path(f"/proc/{process}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    except OSError:
        return found
    return found + [each for child in list(found) for each in descendants(child)]


class Loop:
    """The endless loop over a loader's epochs, taken up again by each request."""

    def __init__(self, job: Job, loader: Any) -> None:
        self._job = job
        self._loader = loader
        self._batches = self._endless()

    def _endless(self) -> Iterator[Any]:
        for epoch in itertools.count():
            set_epoch = getattr(getattr(self._loader, "sampler", None), "set_epoch", None)
            if set_epoch is not None:
                set_epoch(epoch)
            yield from self._loader

    def verify(self) -> dict[str, int]:
        """Return how many samples an epoch has and the sum of their CRCs, whatever their order."""
        count = crc_sum = 0
        for batch in self._loader:
            for row in rows(batch):
                crc_sum += zlib.crc32(row)
                count += 1
        return {"count": count, "crc_sum": crc_sum}

    def run(self, seconds: float, touch: bool) -> dict[str, Any]:
        """Loop for so long.

        Args:    touch: read a byte of each page, as whatever is done with a batch would; memory
                 that is new to this process costs it a fault then

        `share` is that of the timed batches among all that this request took: servers cannot know
        when the clock started. `crcs` are those of the last batch.
        """
        early = AHEAD * max(self._job.workers, 1) + 1
        for _ in range(early):
            found = rows(next(self._batches))
        before, start = Usage.now(), time.perf_counter()
        batches = samples = moved = 0
        while time.perf_counter() < start + seconds:
            found = rows(next(self._batches))
            batches += 1
            samples += len(found)
            moved += found.nbytes
            if touch:
                found[:, ::PAGE].max()
        passed, after = time.perf_counter() - start, Usage.now()
        return {
            "seconds": passed,
            "batches": batches,
            "share": batches / (batches + early),
            "crcs": [zlib.crc32(row) for row in found],
            "samples": samples,
            "bytes": moved,
            "cpu_s": after.cpu_s - before.cpu_s,
            "main_faults": after.main_faults - before.main_faults,
            "worker_faults": after.worker_faults - before.worker_faults,
        }


def rows(batch: Any) -> npt.NDArray[np.uint8]:
    """Return a batch's samples, a row each, without copying."""
    if isinstance(batch, dict):
        batch = batch["x"]
    if isinstance(batch, list | tuple):
        (batch,) = batch
    found: npt.NDArray[np.uint8] = batch.numpy()
    return found.reshape(len(found), -1)


def _answers(name: str) -> Iterator[dict[str, Any]]:
    """Yield an answer to each line of stdin."""
    loop: Loop | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        operation = asked.pop("op")
        if operation == "open":
            module, job = importlib.import_module(f".{name}", __package__), Job(**asked)
            module.write(job)
            loop = Loop(job, module.loader(job))
            yield {"version": module.version()}
        elif loop is None:
            raise RuntimeError("nothing is open")
        elif operation == "verify":
            yield loop.verify()
        else:
            yield loop.run(**asked)


def serve(name: str) -> None:
    """Answer until stdin ends. Whatever libraries print goes to stderr."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        for found in _answers(name):
            answer.write(json.dumps(found) + "\n")
            answer.flush()
    except Exception as error:
        answer.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
        answer.flush()
        raise
    os._exit(0)  # loaders' threads are not waited for
