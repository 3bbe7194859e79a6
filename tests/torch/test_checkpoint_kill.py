"""A job that is killed in the middle of a save: the checkpoint before it stays newest and whole.

FFS_ROUNDS says how many jobs are killed (`make soak`).
"""

from __future__ import annotations

import os
import random
import signal
import time
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver

from ffs.torch import StorageReader, StorageWriter, latest
from tests.harness import Cluster

ROUNDS = int(os.environ.get("FFS_ROUNDS", "3"))
ELEMENTS = 700_000

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


def train(directory: str, overwrite: bool, first: int, options: dict[str, Any], told: int) -> None:
    """Save checkpoints for ever, and tell the number of each that is done."""
    torch.set_num_threads(1)  # OpenMP's threads did not come along
    for step in range(first, first + 1_000):
        state = {f"w{i}": torch.full((ELEMENTS,), step + i) for i in range(4)}
        name = "last" if overwrite else f"step-{step}"
        writer = StorageWriter(f"{directory}/{name}", storage_options=options)
        state_dict_saver.save(state, storage_writer=writer, no_dist=True)
        os.write(told, step.to_bytes(4, "little"))


def killed_job(
    dice: random.Random, directory: str, overwrite: bool, first: int, options: dict[str, Any]
) -> int:
    """Run a job, kill it at some moment; return the last step whose save it was told is done."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            train(directory, overwrite, first, options, writing)
        finally:
            os._exit(1)
    os.close(writing)
    done = os.read(reading, 4)
    started = time.monotonic()
    done += os.read(reading, 4)
    time.sleep(dice.uniform(0, 1.5) * (time.monotonic() - started))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while more := os.read(reading, 4):
        done += more
    os.close(reading)
    assert len(done) >= 8, "the job died by itself"
    return int.from_bytes(done[-4:], "little")


def step_of(url: str, options: dict[str, Any]) -> int:
    """Load a checkpoint; all its tensors must be of one step."""
    state = {f"w{i}": torch.zeros(ELEMENTS, dtype=torch.int64) for i in range(4)}
    reader = StorageReader(url, storage_options=options)
    state_dict_loader.load(state, storage_reader=reader, no_dist=True)
    step = int(state["w0"][0])
    for i in range(4):
        assert bool((state[f"w{i}"] == step + i).all()), f"w{i} of step {step}"
    return step


@pytest.mark.parametrize("overwrite", [False, True], ids=["a directory each", "one replaced"])
def test_killed_in_a_save(cluster: Cluster, fs: Any, fs_dir: str, overwrite: bool) -> None:
    dice, options, step = random.Random(overwrite), cluster.storage_options, 0
    for _ in range(ROUNDS):
        acknowledged = killed_job(dice, fs_dir, overwrite, step + 1, options)
        newest = latest(fs_dir, storage_options=options)
        assert newest is not None
        step = step_of(newest, options)
        # The one after the last that was told may have been published, but not told of.
        assert step in (acknowledged, acknowledged + 1)
        if not overwrite:
            assert newest.endswith(f"/step-{step}")
    whole = StorageWriter(f"{fs_dir}/last", storage_options=options)
    state_dict_saver.save({"w": torch.ones(1)}, storage_writer=whole, no_dist=True)
    left = [name for name in fs.ls(fs_dir, detail=False) if "last" in name]
    assert left == [f"{fs_dir}/last"] and len(fs.ls(left[0])) == 2
