"""The cases of `ffs-bench cluster` run against several real daemons. Never how fast."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ffs.bench.cases import read_scaling, read_while_resync, write_replicated
from ffs.bench.cases.common import MIB, Context, Outcome
from ffs.bench.machine import Placement
from ffs.bench.measure import Plan, Verdict


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(Plan.quick(), Placement.choose(None, None), tmp_path, size_bytes=8 * MIB)


def must_be_sane(found: Outcome, comparisons: int) -> None:
    """A smoke run decides nothing, and everybody has moved bytes."""
    assert len(found.comparisons) == comparisons
    assert {each.verdict for each in found.comparisons} <= {None, Verdict.UNRESOLVED}
    assert found.runs and all(run["bytes"] > 0 for run in found.runs)


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("fio") is None, reason="needs root for loop devices, and fio"
)
def test_write_replicated(context: Context) -> None:
    found = write_replicated.measure(context)
    must_be_sane(found, comparisons=3)
    hops = [each for each in found.figures if "p50 ms" in each.more]
    assert [each.name[-1] for each in hops] == ["3", "2", "1"]
    assert " 0 syncs" not in found.conditions["syncs"]
    assert not [path for path in context.directory.rglob("*") if path.is_mount()]


def test_read_scaling(context: Context) -> None:
    found = read_scaling.measure(context)
    must_be_sane(found, comparisons=2 * (2 + 3))
    ours = {each.ours for each in found.comparisons}
    assert ours == {
        f"{daemons}, {processes}"
        for daemons in ("1 daemon", "2 daemons")
        for processes in ("1 process", "2 processes")
    }


def test_read_while_resync(context: Context) -> None:
    found = read_while_resync.measure(context)
    must_be_sane(found, comparisons=2)
    rates = [run["resync_gb_s"] for run in found.runs if "resync" in run["contestant"]]
    assert len(rates) == 2 and min(rates) > 0
