"""What continuous integration relies on: `.ci/run` does what the README says and skips nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

SKIPPING = {
    "call": "import pytest\ndef test_x():\n    pytest.skip('no root')\n",
    "mark": "import pytest\n@pytest.mark.skip(reason='slow')\ndef test_x():\n    pass\n",
    "condition": "import pytest\n@pytest.mark.skipif(True, reason='x')\ndef test_x():\n    pass\n",
    "fixture": (
        "import pytest\n@pytest.fixture\ndef disk():\n    pytest.skip('no root')\n"
        "def test_x(disk):\n    pass\n"
    ),
    "module": "import pytest\npytest.importorskip('no_such_module')\ndef test_x():\n    pass\n",
    "unittest": "import unittest\nclass T(unittest.TestCase):\n    @unittest.skip('x')\n"
    "    def test_x(self):\n        pass\n",
}


def run_pytest(directory: Path, ci: str, *options: str) -> tuple[int, str]:
    """Run the tests in a directory under the suite's own conftest; return status and last line."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "-p", "tests.conftest"]
        + ["-p", "no:cacheprovider", "--continue-on-collection-errors"]
        + [*options, "--rootdir", str(directory), str(directory)],
        check=False,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "FFS_CI": ci, "PYTHONPATH": str(ROOT)},
    )
    return done.returncode, done.stdout.splitlines()[-1]


def test_a_skip_is_a_failure_under_ci_and_only_there(tmp_path: Path) -> None:
    for way, text in SKIPPING.items():
        (tmp_path / f"test_{way}.py").write_text(text)
    (tmp_path / "test_sound.py").write_text("def test_x():\n    pass\n")
    status, summary = run_pytest(tmp_path, ci="1")
    # Skipped before the call itself is an error, skipped inside it a failure.
    assert status == 1 and summary.startswith("2 failed, 1 passed, 4 errors in "), summary
    status, summary = run_pytest(tmp_path, ci="")
    assert status == 0 and summary.startswith("1 passed, 6 skipped in "), summary


def test_a_test_has_the_time_that_its_mark_says(tmp_path: Path) -> None:
    sleep = "import pytest, time\n@pytest.mark.timeout(60)\ndef test_x():\n    time.sleep(1.2)\n"
    (tmp_path / "test_long.py").write_text(sleep)
    names = ("timeout", "faulthandler_timeout", "faulthandler_exit_on_timeout")
    limits = [f"-o{name}={value}" for name, value in zip(names, (0.5, 0.6, "true"), strict=True)]
    status, summary = run_pytest(tmp_path, "", *limits)
    assert status == 0 and summary.startswith("1 passed in "), summary


def test_ci_runs_the_command_that_the_readme_names() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "\nexport FFS_CI=1\n" in script and "\nmake test\n" in script
    assert "    make test " in (ROOT / "README.md").read_text(encoding="utf-8")
