"""The micro benchmarks run: a broken one would be noticed only when it is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_micro_benchmarks_pass_as_tests() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "bench/micro"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=160,
    )
    assert result.returncode == 0, result.stdout + result.stderr
