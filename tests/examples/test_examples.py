"""The example scripts, killed with -9 and started again on other numbers of ranks.

What each rank trained on is taken from the scripts' logs: together it must be one global order, the
sampler's, whatever ranks there were.
"""

from __future__ import annotations

import json
import os
import random
import runpy
import signal
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # what optimizers and checkpoints import late, once for all ranks
import torch.distributed.checkpoint.state_dict

import ffs.records
from ffs.torch import ElasticSampler, latest
from tests.harness import Cluster
from tests.ports import free_port

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SAMPLES, BATCH = 200, 4


def run_rank(script: str, words: Sequence[str], rank: int, world: int, port: int) -> int:
    """Fork a process that runs a script as a rank, as torchrun would; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        torch.set_num_threads(1)  # OpenMP's threads did not come along
        where = {"RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in where.items()})
        sys.argv = [script, *words]
        sys.path.insert(0, str(EXAMPLES))
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    raise AssertionError


def lines_of(log: Path) -> list[dict[str, Any]]:
    """Whole lines of all ranks' logs; a killed rank's last one may be half."""
    found = []
    for file in sorted(log.parent.glob(f"{log.name}.*")):
        found += [
            json.loads(x) for x in file.read_text().splitlines(keepends=True) if x[-1] == "\n"
        ]
    return found


def run_job(
    script: str, words: Sequence[str], world: int, kill_after: int | None, log: Path
) -> None:
    """Run a job to its end, or until its log has so many lines, and kill all of it then."""
    port = free_port()
    told = [*words, "--log", str(log)]
    ranks = [run_rank(script, told, rank, world, port) for rank in range(world)]
    if kill_after is not None:
        while len(lines_of(log)) < kill_after:
            assert os.waitpid(-1, os.WNOHANG)[0] not in ranks, "a rank ended by itself"
            time.sleep(0.01)
        for pid in ranks:
            os.kill(pid, signal.SIGKILL)
    for pid in ranks:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status == (0 if kill_after is None else -signal.SIGKILL)


def order_of(lines: list[dict[str, Any]]) -> dict[tuple[int, int], int]:
    """(epoch, position in the global order) -> the sample there; the same whenever it was read."""
    order: dict[tuple[int, int], int] = {}
    for line in lines:
        for i, sample in enumerate(line["samples"]):
            place = (line["epoch"], line["consumed"] + i * line["world"] + line["rank"])
            assert order.setdefault(place, sample) == sample, f"another sample at {place}"
    return order


@pytest.mark.parametrize("script", ["tokens.py", "images.py"])
def test_killed_and_resumed_on_other_ranks(
    cluster: Cluster,
    fs: Any,
    fs_dir: str,
    tmp_path: Path,
    script: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    data, run = f"ffs://{fs_dir}/data.ffr", f"ffs://{fs_dir}/run"
    dice = random.Random(script)
    made = run_rank(script, ["make", data, "--samples", str(SAMPLES)], 0, 1, 0)
    assert os.waitstatus_to_exitcode(os.waitpid(made, 0)[1]) == 0
    words = ["train", data, run, "--batch-size", str(BATCH), "--save-every", "5", "--epochs", "2"]
    lines: list[dict[str, Any]] = []
    for number, (world, killed) in enumerate([(2, True), (3, True), (1, False)]):
        log = tmp_path / f"log-{number}"
        workers = ["--workers", str(number % 2)]
        run_job(script, [*words, *workers], world, dice.randrange(18, 30) if killed else None, log)
        found = lines_of(log)
        first = min(line["step"] for line in found)
        assert (first > 1) == (number > 0), "goes on from a checkpoint, not from the start"
        lines += found
    newest = latest(run)
    assert newest is not None and newest.endswith("-end")
    records = ffs.records.open(data)
    sums = [zlib.crc32(records[i]) for i in range(SAMPLES)]
    whole = order_of(lines)
    for epoch in range(2):
        expected = [sums[i] for i in ElasticSampler(SAMPLES, epoch=epoch, rank=0, world=1)]
        seen = [whole[epoch, position] for position in range(SAMPLES)]
        assert seen == expected, "no sample lost, none twice, one order"
