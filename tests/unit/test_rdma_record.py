"""The record by which a long run over RDMA goes on where it ended (tests/rdma/record.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.rdma import record

ROOT = Path(__file__).resolve().parents[2]
TESTS = """
import os
import pytest

@pytest.fixture
def untidy():
    yield
    assert False

def test_good(): pass
def test_good_too(): pass
def test_bad(): assert False
def test_untidy(untidy): pass
def test_skipped(): pytest.skip("no")
def test_fatal(): os._exit(3)
def test_last(): pass
"""


def run(tests: Path, path: Path) -> str:
    """Run the tests in a worker; return what was printed."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "xdist.plugin",
        "-n",
        "1",
        "--dist",
        "loadfile",
    ]
    command += ["-v", "--max-worker-restart=0", "-p", record.__name__]
    command += ["--record", str(path), "-c", os.devnull, f"--rootdir={tests.parent}", str(tests)]
    own = {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    ran = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **own}, check=False
    )
    return ran.stdout


def test_what_has_ended_is_not_run_again(tmp_path: Path) -> None:
    tests, path = tmp_path / "test_it.py", tmp_path / "record"
    tests.write_text(TESTS)
    first = run(tests, path)
    known = {
        "test_it.py::test_good": "passed",
        "test_it.py::test_good_too": "passed",
        "test_it.py::test_bad": "failed",
        "test_it.py::test_untidy": "failed",
        "test_it.py::test_skipped": "skipped",
        "test_it.py::test_fatal": "crashed",
    }
    assert record.ended(path) == known, first
    second = run(tests, path)
    assert record.ended(path) == {**known, "test_it.py::test_last": "passed"}, second
    assert second.count("test_it.py::") == second.count("test_it.py::test_last") > 0
    with path.open("a") as file:
        file.write('{"test": "test_it.py::cut o')
    record.keep_passed(path)
    assert sorted(record.ended(path)) == [
        f"test_it.py::test_{name}" for name in ("good", "good_too", "last")
    ]
