"""Bounds: the same numbers in Python, in C and in docs/limits.md, and a test for each."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from ffs import limits, types

ROOT = Path(__file__).resolve().parents[2]
PYTHON = {k: v for k, v in vars(limits).items() if k.isupper()}
ROW = re.compile(r"^\| `(\w+)` \| ([\d,]+)[^|]*\|[^|]*\|[^|]*\| ([^|]*) \|$", re.M)
"""A row of docs/limits.md: bound, value, (what, where), tests."""


def documented(text: str) -> dict[str, tuple[int, list[str]]]:
    """Bound -> (value, names of its tests), from the tables of a page."""
    return {
        name: (int(value.replace(",", "")), re.findall(r"`(\w+)`", tests))
        for name, value, tests in ROW.findall(text)
    }


def test_native_limits_are_the_same_numbers() -> None:
    header = (ROOT / "native/core/limits.h").read_text()
    shared = {}
    for name, left, shift in re.findall(
        r"#define FFS_(\w+) \(?(\d+)u?(?: << (\d+)\))?(?=\s)", header
    ):
        shared[name] = int(left) << int(shift or 0)
    assert shared.pop("BLOCK_BYTES") == types.BLOCK_BYTES
    common = shared.keys() & PYTHON.keys()
    assert {"FRAME_HEADER_BYTES", "FRAME_DESCRIPTORS_MAX", "FRAME_BODY_BYTES_MAX"} <= common
    assert {"FRAME_PAYLOAD_BYTES_MAX", "CHUNK_BYTES_MAX", "CONNECTIONS_PER_DAEMON_MAX"} <= common
    assert {"SEND_BUFFERS_MAX", "FRAME_GRACE_MS", "FRAME_RATE_MIN"} <= common
    assert {"CROWDED_GRACE_MS", "CROWDED_RATE_MIN"} <= common
    assert {name: shared[name] for name in common} == {name: PYTHON[name] for name in common}


def test_documentation_lists_every_bound() -> None:
    found = documented((ROOT / "docs/limits.md").read_text())
    assert {name: value for name, (value, _) in found.items()} == PYTHON


def test_every_bound_has_a_test() -> None:
    """The tests that the page names exist, and no bound is without one."""
    there = {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    found = documented((ROOT / "docs/limits.md").read_text())
    named = {test for _, tests in found.values() for test in tests}
    assert named <= there
    assert [name for name, (_, tests) in found.items() if not tests] == []


@pytest.mark.parametrize(
    ("row", "tests"),
    [("| `X` | 1,024 (1 KiB) | a | b | `test_x` |", ["test_x"]), ("| `X` | 7 | a | b |  |", [])],
)
def test_a_bound_without_a_test_is_seen(row: str, tests: list[str]) -> None:
    assert documented(row)["X"][1] == tests


def test_bounds_fit_together() -> None:
    assert limits.RPC_BATCH_MAX <= limits.RPC_LIST_MAX
    assert limits.LIST_PAGE_MAX <= limits.RPC_LIST_MAX
    assert limits.CHAINS_PER_TABLE_MAX <= limits.RPC_LIST_MAX
    assert limits.CHUNK_BYTES_MAX <= limits.FRAME_PAYLOAD_BYTES_MAX
    assert limits.CHUNK_BYTES_MAX // types.BLOCK_BYTES * 4 <= limits.FRAME_BODY_BYTES_MAX
    assert limits.RPC_FRAME_BYTES_MAX <= limits.RPC_IN_FLIGHT_BYTES_MAX
    assert limits.RPC_FRAME_BYTES_MAX <= limits.RPC_REPLY_BYTES_MAX
    assert limits.RPC_IN_FLIGHT_BYTES_MAX <= limits.RPC_SERVER_BYTES_MAX
    assert limits.LIST_PAGE_BYTES_MAX <= limits.RPC_REPLY_RESERVE_BYTES
