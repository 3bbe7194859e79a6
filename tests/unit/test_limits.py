"""Bounds: the same numbers in Python, in C and in docs/limits.md."""

from __future__ import annotations

import re
from pathlib import Path

from ffs import limits, types

ROOT = Path(__file__).resolve().parents[2]
PYTHON = {k: v for k, v in vars(limits).items() if k.isupper()}


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
    assert {name: shared[name] for name in common} == {name: PYTHON[name] for name in common}


def test_documentation_lists_every_bound() -> None:
    text = (ROOT / "docs/limits.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\d,]+)[^|]* \|", text, re.M))
    assert {name: int(value.replace(",", "")) for name, value in rows.items()} == PYTHON


def test_bounds_fit_together() -> None:
    assert limits.RPC_BATCH_MAX <= limits.RPC_LIST_MAX
    assert limits.LIST_PAGE_MAX <= limits.RPC_LIST_MAX
    assert limits.CHAINS_PER_TABLE_MAX <= limits.RPC_LIST_MAX
    assert limits.CHUNK_BYTES_MAX <= limits.FRAME_PAYLOAD_BYTES_MAX
    assert limits.CHUNK_BYTES_MAX // types.BLOCK_BYTES * 4 <= limits.FRAME_BODY_BYTES_MAX
    assert limits.RPC_FRAME_BYTES_MAX <= limits.RPC_IN_FLIGHT_BYTES_MAX
