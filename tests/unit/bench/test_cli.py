"""`ffs-bench`: options, output, errors. Smoke runs only: that it works, never how fast."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ffs.bench import cli
from ffs.bench.measure import Plan


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
    found = smoke(capsys, "roofline", "--dir", str(tmp_path))
    assert found["command"] == "roofline"
    assert found["machine"]["kernel"]
    assert "smoke run" in found["conditions"]["plan"]
    assert [figure["bytes_rate"] > 0 for figure in found["figures"]] == [True] * 5
    assert len(found["runs"]) == 5 * 2
    assert not list(tmp_path.iterdir())


def test_text_has_machine_conditions_and_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["roofline", "--quick"]) == 0
    text = capsys.readouterr().out
    for part in ("kernel:", "congestion control: cubic", "GB/s", "CPU-s/GB", "memcpy", "pairs"):
        assert part in text


def test_what_cannot_run_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["roofline", "--quick", "--congestion", "pigeon"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ffs-bench: ")
    assert error.count("\n") == 1


def test_a_plan_that_makes_no_sense_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["roofline", "--pairs", "0"]) == 2
    assert "at least one pair" in capsys.readouterr().err
