"""A loop over a loader, with what it copied and how often it faulted (see test_copies.py).

Arguments: a URL of records of 16 KiB, a key file, numbers of workers. Prints a line of JSON for
each number: for the training process and for the workers together, per batch of warm epochs: bytes
copied for each byte of the batch, minor faults, and whether the samples were right. Workers are
forked, so they count their copies in this process's file.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import torch

from ffs.bench.cases.copies import totals
from ffs.torch import DataLoader, RecordDataset

SAMPLE, BATCH, EPOCHS_WARM, EPOCHS = 16_384, 32, 3, 3


def faults(process: int) -> int:
    """Minor faults of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(fields[7])


def children() -> list[int]:
    """The processes that this one started."""
    tasks = Path("/proc/self/task")
    return [int(x) for task in tasks.iterdir() for x in (task / "children").read_text().split()]


def epoch(loader: Any) -> tuple[int, int]:
    """Loop once; return the batches and the sum of some of their bytes."""
    batches = found = 0
    for batch in loader:
        batches += 1
        found += int(batch[:, ::4096].sum(dtype=torch.int64))
    return batches, found


def main(url: str, key_file: str, workers: int) -> None:
    """Loop until all is warm, then count."""
    torch.set_num_threads(1)
    own = f"{os.environ['COPYCOUNT_OUT']}.{os.getpid()}"
    data = RecordDataset(
        url, dtype="uint8", shape=(SAMPLE,), storage_options={"key_file": key_file}
    )
    loader = DataLoader(
        data,
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="fork" if workers else None,
    )
    for _ in range(EPOCHS_WARM):
        batches, found = epoch(loader)
    gc.collect()
    copied = totals(own)[0]
    own_faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    before = {child: faults(child) for child in children()}
    right = all(epoch(loader)[1] == found for _ in range(EPOCHS))
    total = EPOCHS * batches
    print(
        json.dumps(
            {
                "right": right,
                "copied": (totals(own)[0] - copied) / (total * BATCH * SAMPLE),
                "main_faults": (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - own_faults)
                / total,
                "worker_faults": sum(faults(c) - n for c, n in before.items()) / total,
                **loader.ring_counters(),
            }
        )
    )


if __name__ == "__main__":
    for number in sys.argv[3:]:
        main(sys.argv[1], sys.argv[2], int(number))
