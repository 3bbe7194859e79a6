"""A pytest plugin that keeps a record of which tests have ended, so that a long run can go on.

Role: run.py loads it on both sides. Here it writes a line of JSON for each test as it ends; the
workers in the guests leave out what the record that was sent to them names. So neither a guest that
dies nor an end of the whole run costs what had passed before.

Failure: a test that took its worker along is recorded as "crashed" (and never tried twice in a
run); a line that was cut off by the end of a run is none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest

PASSED: Final = "passed"
CRASHED: Final = "crashed"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Say where the record is."""
    parser.addoption("--record", type=Path, help="file of the tests that are not to run again")


def pytest_configure(config: pytest.Config) -> None:
    """Take the side that this process is on."""
    path = config.getoption("record")
    if path is None:
        return
    leaving_out = hasattr(config, "workerinput")
    config.pluginmanager.register(_Reader(path) if leaving_out else _Writer(path))


def ended(path: Path) -> dict[str, str]:
    """Return how each test of the record has ended."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        found[entry["test"]] = entry["outcome"]
    return found


def keep_passed(path: Path) -> None:
    """Forget all but what has passed, so that the rest runs again."""
    passed = {test for test, outcome in ended(path).items() if outcome == PASSED}
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["test"] in passed]
    path.write_text("".join(kept))


class _Reader:
    """A worker's side: runs what has not ended yet."""

    def __init__(self, path: Path) -> None:
        self._ended = ended(path)

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Leave out what has ended."""
        out = [item for item in items if item.nodeid in self._ended]
        items[:] = [item for item in items if item.nodeid not in self._ended]
        config.hook.pytest_deselected(items=out)


class _Writer:
    """The side that hears of all workers' tests."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._so_far: dict[str, tuple[str, float]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take one part of a test: its set-up, its call or its end; "???" is a worker's death."""
        before, seconds = self._so_far.pop(report.nodeid, (PASSED, 0.0))
        crashed = report.when not in ("setup", "call", "teardown")
        outcome = CRASHED if crashed else report.outcome
        told = (outcome if before == PASSED else before, seconds + report.duration)
        if crashed or report.when == "teardown":
            self._write(report.nodeid, *told)
        else:
            self._so_far[report.nodeid] = told

    def _write(self, test: str, outcome: str, seconds: float) -> None:
        line = {"test": test, "outcome": outcome, "seconds": round(seconds, 1)}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
