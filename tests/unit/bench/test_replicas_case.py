"""`ffs-bench replicas` runs against real daemons that are really stopped and killed."""

from __future__ import annotations

from pathlib import Path

from ffs.bench.cases.common import MIB, Context
from ffs.bench.cases.replicas import _PHASES, measure
from ffs.bench.machine import Placement
from ffs.bench.measure import Plan, Verdict


def test_replicas(tmp_path: Path) -> None:
    placement = Placement.choose(None, None)
    found = measure(Context(Plan.quick(), placement, tmp_path, size_bytes=8 * MIB))
    assert [each.name for each in found.figures] == ["SIGSTOP", "SIGKILL"]
    assert len(found.comparisons) == 2 * len(_PHASES)
    assert {each.verdict for each in found.comparisons} == {Verdict.UNRESOLVED}
    assert len(found.runs) == 4 and all(run["undisturbed_ms"] > 0 for run in found.runs)
