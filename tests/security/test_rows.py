"""docs/security.md names for each attempt the tests that show its outcome: they are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/security.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (S\d+) \|.*\| ([^|]+) \|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("row", "cell"), ROWS, ids=[row for row, _ in ROWS])
def test_what_shows_a_row_is_there(row: str, cell: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", cell)
    assert named, f"{row} names no test"
    for path, test in named:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert test in defined, f"{row}: {path} has no {test}"


def test_no_row_is_left_out() -> None:
    assert [row for row, _ in ROWS] == [f"S{number}" for number in range(1, 18)]
