"""How the command line is run here: in this process for speed, as a process where that matters."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ffs.cli.app import main
from tests.cli.support import Cli, Result
from tests.harness import Cluster


@pytest.fixture
def bare(
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
    tmp_path: Path,
) -> Cli:
    """Run `ffs ...` in this process, in an empty directory and with no cluster configured."""
    for variable in [name for name in os.environ if name.startswith("FFS_")]:
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)

    def run(*argv: str, check: bool = True, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsysbinary.readouterr()
        code = main(argv)
        out, err = capsysbinary.readouterr()
        result = Result(code, out, err.decode())
        if check:
            assert (result.code, result.err) == (0, ""), (argv, result)
        return result

    return run


@pytest.fixture
def ffs(bare: Cli, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run `ffs ...` in this process, led to the shared cluster by the environment."""
    for variable, value in cluster.environment.items():
        monkeypatch.setenv(variable, value)
    return bare


@pytest.fixture
def place(ffs: Cli, fs_dir: str) -> Callable[..., str]:
    """Make files in a fresh directory of the shared cluster; returns that directory."""

    def make(**contents: bytes) -> str:
        for name, data in contents.items():
            ffs("cp", "-", f"ffs://{fs_dir}/{name}", stdin=data)
        return fs_dir

    return make


@pytest.fixture
def environment(cluster: Cluster) -> dict[str, str]:
    """What leads a process to the shared cluster, and makes its terminal a known one."""
    usual = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    return {**usual, **cluster.environment, "TERM": "xterm", "COLUMNS": "120"}
