"""From the socket to the loop's tensor nothing is copied, and warm loops hardly fault.

A preloaded library counts the copies, so this is not for sanitizers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ffs.records
from ffs.bench import rawtools
from tests.harness import Cluster

SAMPLES, SAMPLE = 1024, 16_384


@pytest.fixture(scope="module")
def url(cluster: Cluster) -> str:
    """Some records, read over TCP as from another machine."""
    data = np.random.default_rng(2).integers(0, 256, (SAMPLES, SAMPLE), dtype=np.uint8)
    options = cluster.storage_options
    with ffs.records.create("ffs:///counted.ffr", storage_options=options) as file:
        for row in data:
            file.append(row)
    return f"{cluster.url}/counted.ffr"


WORKERS = (0, 1, 2)


def test_no_copies_and_few_faults(cluster: Cluster, url: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.torch.counted", url, str(cluster.key_file)]
        + [str(number) for number in WORKERS],
        env={
            **os.environ,
            "FFS_CLIENT__SAME_HOST": "off",
            "LD_PRELOAD": str(rawtools.build("copycount")),
            "COPYCOUNT_OUT": str(tmp_path / "copies"),
        },
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(WORKERS)
    for workers, each in zip(WORKERS, found, strict=True):
        assert each["right"] and each["fallbacks"] == 0, workers
        assert each["copied"] <= 0.01, workers
        assert each["main_faults"] <= 3, workers
        assert each["worker_faults"] <= 150, workers
