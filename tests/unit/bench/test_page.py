"""`ffs-bench report`: the page shows everything that the results hold, and needs nothing else."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ffs.bench import cli, page
from ffs.errors import ConfigError

RATIO = {"median": 0.92, "low": 0.9, "high": 0.95}


def figure(name: str, **more: Any) -> dict[str, Any]:
    numbers = {"bytes_rate": 2.5, "operation_rate": 10.0, "client_cpu": 0.2, "server_cpu": 0.1}
    return {"name": name, "cpu_unit": "CPU-s/GB", "more": {}, **numbers, **more}


def comparison(name: str, **more: Any) -> dict[str, Any]:
    sides = {"ours": "FFS", "reference": "plain C"}
    return {"name": name, "ratio": RATIO, "goal": 0.85, "verdict": "met", **sides, **more}


def result(**more: Any) -> dict[str, Any]:
    return {
        "command": "seq",
        "machine": {"cpu": "a <b>fast</b> one"},
        "conditions": {"plan": "15 pairs"},
        "figures": [figure("FFS"), figure("plain C", server_cpu=None)],
        "comparisons": [comparison("speed"), comparison("CPU", ratio=None, verdict="unresolved")],
        "notes": ["it rained"],
        "runs": [],
        **more,
    }


class Parsed(HTMLParser):
    """The page's text, and every tag that was opened but not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.open: list[str] = []
        self.addresses: list[str | None] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "!doctype"):
            self.open.append(tag)
        self.addresses += [value for key, value in attrs if key in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_everything_is_shown_and_nothing_is_fetched() -> None:
    latency = [[10.0, 0.0], [12.0, 0.5], [90.0, 0.99]]
    found = result(figures=[figure("FFS", latency_us=latency), figure("plain C")])
    text = page.page([found, result(command="random", comparisons=[])])
    parsed = Parsed(text)
    assert not parsed.open
    assert not parsed.addresses
    words = " ".join(parsed.words)
    for wanted in ("seq", "random", "speed / plain C", "0.92 met", "2.5", "0.3", "it rained"):
        assert wanted in words
    assert "a <b>fast</b> one" in words
    assert "<b>" not in text
    assert text.count("<polyline") == 1


@pytest.mark.parametrize("values", [[0.003, 900.0], [0.99, 1.0], [1.0, 1.0], [2.0, 3.0]])
def test_axes_have_a_few_numbers_and_keep_values_on_the_page(values: list[float]) -> None:
    figures = [figure(str(i), bytes_rate=value) for i, value in enumerate(values)]
    text = page.page([result(figures=figures, comparisons=[])])
    places = [float(part.partition('"')[0]) for part in text.split('cx="')[1:]]
    assert len(places) == 2 * len(values)
    assert all(page.LABEL_WIDTH <= at <= page.WIDTH for at in places)
    assert 2 <= text.count('text-anchor="middle"') / 2 <= page.TICKS_MAX + 1


def test_the_command_reads_what_json_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two, out = tmp_path / "two.json", tmp_path / "page.html"
    two.write_text(f"{json.dumps(result(), indent=2)}\n{json.dumps(result(command='meta'))}\n")
    assert cli.main(["report", str(two), "--out", str(out)]) == 0
    assert "meta" in Parsed(out.read_text()).words
    assert cli.main(["report", str(out), "--out", str(out)]) == 2
    assert cli.main(["report", str(tmp_path / "none"), "--out", str(out)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [str(out) in errors[0], "none" in errors[1]] == [True, True]


@pytest.mark.parametrize("text", ["", "[1]", "3", '{"other": 1}', '{"figures": '])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    if text:
        with pytest.raises(ConfigError):
            page.load([path])
    else:
        assert page.load([path]) == []
