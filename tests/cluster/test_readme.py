"""What the README says can be typed, typed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Cluster

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def own_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of its own, since the README's paths are fixed."""
    with Cluster(tmp_path_factory.mktemp("readme")) as cluster:
        yield cluster


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_example_runs(number: int, own_cluster: Cluster) -> None:
    subprocess.run(
        [sys.executable, "-c", blocks("python")[number]],
        check=True,
        cwd=ROOT,
        env={**os.environ, **own_cluster.environment},
        timeout=160,
    )


def test_shell_examples_run(own_cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "ffs").write_text(f'#!/bin/sh\nexec {sys.executable} -m ffs.cli "$@"\n')
    (tmp_path / "ffs").chmod(0o755)
    environment = {**os.environ, **own_cluster.environment}
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    bash = shutil.which("bash")
    assert bash is not None
    for block in blocks("bash"):
        subprocess.run(
            [bash, "-euo", "pipefail", "-c", block],
            check=True,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            timeout=160,
        )


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"\bmake ([a-z]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_demonstration_does_what_it_says(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ffs.demo"],
        check=False,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        timeout=160,
    )
    assert done.returncode == 0, done.stdout
    assert "the model learns" in done.stdout and "samples/s" in done.stdout
    copied = re.search(r"([0-9.]+) bytes copied in user space", done.stdout)
    assert copied is not None and float(copied.group(1)) <= 0.01
    assert not list(tmp_path.glob("ffs-demo-*")), "the demonstration left something behind"
