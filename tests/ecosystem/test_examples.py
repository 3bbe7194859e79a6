"""The examples, run as a user types them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.harness import Cluster

ROOT = Path(__file__).resolve().parent.parent.parent


def run(name: str, url: str, cluster: Cluster, home: Path) -> str:
    """Run an example on the cluster; return what it printed."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), url],
        check=False,
        cwd=home,
        env={**os.environ, **cluster.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=160,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_ray_data(url: str, fs: Any, fs_dir: str, cluster: Cluster, tmp_path: Path) -> None:
    printed = run("ray_data.py", url, cluster, tmp_path)
    mean = float(np.sqrt(np.arange(20_000)).mean())
    assert f"20000 roots, mean {mean:.3f}" in printed
    assert fs.ls(f"{fs_dir}/numbers") and fs.ls(f"{fs_dir}/roots")


def test_lightning(url: str, fs: Any, fs_dir: str, cluster: Cluster, tmp_path: Path) -> None:
    printed = run("lightning_training.py", url, cluster, tmp_path)
    told = re.search(r"stopped at step 32, resumed from (\S+), at 48 now", printed)
    assert told, printed
    assert fs.isfile(told[1])
    names = [entry.rpartition("/")[2] for entry in fs.ls(f"{fs_dir}/checkpoints", detail=False)]
    assert sorted(names) == [f"epoch={n}.ckpt" for n in range(3)]
    assert not list(tmp_path.iterdir()), "something landed beside FFS"
