"""How much memory the index of records takes in a process and its workers together.

A process of its own: `python -m ffs.bench.cases.index_memory URL KEY_FILE START_METHOD`, for
bench/cases/records.py. It opens the records, starts workers, and when all are up, it and then each
worker asks for the length of every sample. What all of them together take beyond what they took
before (the Pss of /proc/PID/smaps_rollup, which counts a page that n share as 1/n in each) is the
index. Prints JSON: bytes, and how many samples there are.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

import ffs.records

WORKERS = 2
_PIECE = 1 << 18


def ask_all(records: ffs.records.Records) -> None:
    """Ask for every sample's length."""
    total = len(records)
    for first in range(0, total, _PIECE):
        records.lengths(np.arange(first, min(first + _PIECE, total), dtype=np.int64))


def _work(records: ffs.records.Records, orders: Connection) -> None:
    records.lengths(np.array([0]))
    while True:
        orders.send(os.getpid())
        orders.recv()
        ask_all(records)


def shared_bytes(processes: list[int]) -> int:
    """Return what processes take together."""
    return sum(_pss(process) for process in processes)


def _pss(process: int) -> int:
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    raise ValueError("smaps_rollup has no Pss")


def main(url: str, key_file: str, method: str) -> None:
    """Measure and print."""
    options = {"key_file": key_file, "same_host": "off"}
    records = ffs.records.open(url, storage_options=options)
    records.lengths(np.array([0]))
    context = multiprocessing.get_context(method)
    orders = []
    for _ in range(WORKERS):
        here, there = context.Pipe()
        worker = context.Process(target=_work, args=(records, there), daemon=True)  # type: ignore[attr-defined]
        worker.start()
        orders.append(here)
    processes = [os.getpid(), *(each.recv() for each in orders)]
    before = shared_bytes(processes)
    ask_all(records)
    for each in orders:
        each.send(None)
        each.recv()
    print(json.dumps({"bytes": shared_bytes(processes) - before, "samples": len(records)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
