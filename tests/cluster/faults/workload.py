"""A client that reads, or writes, all the time; run as a process by `clients.py`.

    python -m tests.cluster.faults.workload reader|writer URL KEY_FILE SEED

A reader reads ranges of files whose content follows from their names and compares every byte. A
writer writes files, reads each one back and compares, and removes old ones. A word on standard
input asks for a report: one line of JSON with the operations since the last report, each with its
start (monotonic, seconds) and how long it took, what went wrong, and what is acknowledged. An end
of standard input asks for the last report and ends the process.
"""

from __future__ import annotations

import hashlib
import json
import select
import sys
import time
from typing import Any, Final

import numpy as np

from ffs.client.filesystem import RANGE_DTYPE, FFSFileSystem
from ffs.errors import FFSError, NoSpaceError

FILES: Final = 6
FILE_BYTES: Final = 2 << 20
CHUNK: Final = 64 << 10
BATCH: Final = 6
READ_PAUSE_S: Final = 0.002
WRITE_PAUSE_S: Final = 0.02
KEPT: Final = 60
"""How many of its files a writer leaves in place."""


def path_of(number: int) -> str:
    """A file that readers read."""
    return f"/corpus-{number}"


def content_of(number: int) -> bytes:
    """What it holds."""
    return np.random.default_rng(number).bytes(FILE_BYTES)


class Reader:
    """Batches of ranges all over the corpus."""

    def __init__(self, fs: FFSFileSystem, seed: int) -> None:
        self._fs, self._dice = fs, np.random.default_rng(seed)
        self._contents = [content_of(i) for i in range(FILES)]
        self._handles = fs.open_many([path_of(i) for i in range(FILES)])

    def step(self) -> None:
        """Read one batch and compare it."""
        ranges = np.zeros(BATCH, dtype=RANGE_DTYPE)
        which = self._dice.integers(0, FILES, BATCH)
        ranges["handle"] = [self._handles[i] for i in which]
        ranges["length"] = self._dice.integers(1, 2 * CHUNK, BATCH)
        ranges["offset"] = self._dice.integers(0, FILE_BYTES - 2 * CHUNK, BATCH)
        wanted = b"".join(
            self._contents[i][o : o + n]
            for i, o, n in zip(
                which, ranges["offset"].tolist(), ranges["length"].tolist(), strict=True
            )
        )
        out = np.zeros(len(wanted), dtype=np.uint8)
        assert self._fs.readv_into(ranges, out) == len(wanted)
        assert out.tobytes() == wanted, "wrong bytes"

    def facts(self) -> dict[str, Any]:
        """What else there is to report."""
        return {"counters": self._fs.read_counters()}


class Writer:
    """Files of a few chunks, one after the other."""

    def __init__(self, fs: FFSFileSystem, seed: int) -> None:
        self._fs, self._dice, self._seed = fs, np.random.default_rng(seed), seed
        self._acknowledged: dict[str, str] = {}
        self._number = self._full = 0

    def step(self) -> None:
        """Write a file, read it back; a full disk is no error, and nothing was written then."""
        self._number += 1
        path = f"/writer-{self._seed}-{self._number}"
        data = self._dice.bytes(int(self._dice.integers(1, 5 * CHUNK)))
        try:
            self._fs.pipe_file(path, data, chunk_size_bytes=CHUNK)
        except NoSpaceError:
            self._full += 1
            return
        self._acknowledged[path] = hashlib.sha256(data).hexdigest()
        assert self._fs.cat_file(path) == data, "wrong bytes"
        if len(self._acknowledged) > KEPT:
            self._fs.rm_file(next(iter(self._acknowledged)))
            del self._acknowledged[next(iter(self._acknowledged))]

    def facts(self) -> dict[str, Any]:
        """What else there is to report."""
        return {"acknowledged": self._acknowledged, "full": self._full}


def main(role: str, url: str, key_file: str, seed: str) -> None:
    """Work until standard input ends."""
    fs = FFSFileSystem(url=url, key_file=key_file, skip_instance_cache=True)
    worker: Reader | Writer = (Reader if role == "reader" else Writer)(fs, int(seed))
    pause_s = READ_PAUSE_S if role == "reader" else WRITE_PAUSE_S
    operations: list[tuple[float, float]] = []
    errors: list[str] = []
    more = True
    while more:
        if select.select([sys.stdin], [], [], pause_s)[0]:
            more = bool(sys.stdin.readline())
            report = {"operations": operations, "errors": errors, **worker.facts()}
            sys.stdout.write(json.dumps(report) + "\n")
            sys.stdout.flush()
            operations, errors = [], []
            continue
        start = time.monotonic()
        try:
            worker.step()
        except (FFSError, OSError, AssertionError) as error:
            errors.append(f"{type(error).__name__}: {error}")
        operations.append((start, time.monotonic() - start))
    fs.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
