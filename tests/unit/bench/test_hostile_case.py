"""`ffs-bench hostile` runs against real processes and says something sane. Never how fast."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ffs.bench import cli
from ffs.bench.cases import hostile


def test_hostile(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostile, "_SMOKE_ATTACKS", ("truncated",))
    arguments = ["--quick", "--pairs", "1", "--json", "--no-spinners", "--dir", str(tmp_path)]
    assert cli.main(["hostile", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in found["comparisons"]] == [
        *("truncated: 4 KiB ranges", "truncated: 4 KiB ranges"),  # calm, and a bare listener
        *("truncated: 1 MiB ranges", "truncated: 1 MiB ranges"),
        *("truncated: stat_many", "truncated: stat_many"),
    ]
    assert len(found["figures"]) == 9
    assert all(each["operation_rate"] > 0 for each in found["figures"])
    assert "truncated: 0 errors" in found["notes"][0]
    assert "half a handshake, then gone" in found["conditions"]["attacks"]
    assert not list(tmp_path.iterdir())


def test_all_leaves_the_long_case_out() -> None:
    assert "hostile" not in cli._chosen("all")
    assert cli._chosen("hostile") == ["hostile"]
    assert {"seq", "meta"} <= set(cli._chosen("all"))
