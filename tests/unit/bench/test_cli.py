"""`ffs-bench`: options, output, errors. Smoke runs only: that it works, never how fast."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ffs.bench import cli, report
from ffs.bench.cases.common import Figure, Outcome
from ffs.bench.measure import Comparison, Interval, Plan, Verdict


def parse(*arguments: str) -> Plan:
    return cli.plan_of(cli.parser().parse_args(arguments))


def smoke(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert cli.main([*arguments, "--quick", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_plans() -> None:
    assert parse("seq") == Plan(pairs=15, seconds=2.0, spinners=True, smoke=False)
    assert parse("seq", "--pairs", "3", "--seconds", "0.5", "--no-spinners") == Plan(3, 0.5, False)
    assert parse("seq", "--quick").smoke
    assert parse("seq", "--quick", "--pairs", "4").pairs == 4


def test_roofline(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = smoke(capsys, "roofline", "--pairs", "1", "--dir", str(tmp_path))
    assert found["command"] == "roofline"
    assert found["machine"]["kernel"]
    assert "smoke run" in found["conditions"]["plan"]
    names = [figure["name"] for figure in found["figures"]]
    assert {"memcpy", "cached pread + CRC32C", "4 KiB x 1, mmap"} <= set(names)
    for congestion in (
        Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    ):
        assert f"loopback, sendfile, 2 connections, {congestion}" in names
    assert all(figure["bytes_rate"] > 0 for figure in found["figures"])
    assert len(found["runs"]) == len(names)
    recorded = {each["ours"]: each for each in found["records"]}
    assert recorded["64 KiB x 64, mmap"]["costs"]["server_cpu_s_per_gb"] > 0
    assert recorded["64 KiB x 64, mmap"]["goal"] is None
    assert not list(tmp_path.iterdir())


def test_text_has_machine_conditions_figures_and_verdicts() -> None:
    ratio = Interval(0.8, 0.75, 0.85)
    outcome = Outcome(
        command="seq",
        conditions={"congestion control": "cubic"},
        figures=[
            Figure("ours", 4.0, 4000.0, 0.2, 0.1, "CPU-s/GB"),
            Figure("one", 0.1, 9000.0, 0.2, None, "CPU-s/GB", {"p50_us": 14.5}),
        ],
        comparisons=[
            Comparison("speed", "ours", "raw", ratio, 0.7, Verdict.MET, 15, 2),
            Comparison("rate", "ours", "", None, 1.0, Verdict.UNRESOLVED, 0, 17),
        ],
        runs=[],
        notes=["so it is"],
    )
    lines = report.as_text(outcome, {"kernel": "6.1", "cpu": "one"}).splitlines()
    assert lines[:2] == ["kernel: 6.1  cpu: one", "congestion control: cubic"]
    assert lines[3] == "ours  4.000 GB/s  4,000 /s  client 0.200 + server 0.100 CPU-s/GB"
    assert lines[4].endswith("client 0.200 + server ? CPU-s/GB      p50_us 14.50")
    assert lines[6] == (
        "speed: 0.800 [0.750, 0.850] of raw, goal 0.7: met (15 pairs, 2 dropped for steal)"
    )
    assert lines[7] == "rate: no quiet pair, goal 1: unresolved (0 pairs, 17 dropped for steal)"
    assert lines[8] == "note: so it is"


def test_the_table_of_goals_has_a_line_for_each_and_for_what_could_not_run() -> None:
    ratio = Interval(0.8, 0.75, 0.85)
    sides = ("ours", "plain C")
    met = Comparison("speed", *sides, ratio, 0.7, Verdict.MET, 15, 2, "GB/s", 4.0, 5.0)
    reported = Comparison("CPU", *sides, ratio, None, None, 15, 2)
    outcomes = {
        "seq": Outcome("seq", {}, [], [met, reported], []),
        "cold": Outcome("cold", {}, [], [], [], ["not run: fio is not installed"]),
    }
    head, seq, cold = report.goals_table(outcomes).splitlines()
    assert head.split()[:2] == ["case", "goal"]
    wanted = ["seq", "speed", "4 GB/s", "plain C 5", "0.800 [0.750, 0.850]", "0.7"]
    assert re.split("  +", seq) == [*wanted, "met, 2 dropped"]
    assert cold.split(maxsplit=1) == ["cold", "not run: fio is not installed"]


def test_what_cannot_run_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["roofline", "--quick", "--congestion", "pigeon"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ffs-bench: ")
    assert error.count("\n") == 1


def test_a_plan_that_makes_no_sense_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["roofline", "--pairs", "0"]) == 2
    assert "at least one pair" in capsys.readouterr().err
