"""`ffs-bench report`: results as one self-contained HTML page, charts drawn as SVG.

Reads the JSON objects that the cases print with --json and draws them as they are: every ratio with
its interval and goal, every system's throughput and CPU for each range size, and latencies as
cumulative distributions. Nothing is left out, losing cases included; nothing is fetched when the
page is opened. Text and marks take their colours from CSS, for light and for dark.

Failure: a file that is not such a result raises ConfigError and names it.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from ffs.errors import ConfigError

Result: TypeAlias = Mapping[str, Any]

WIDTH = 900
LABEL_WIDTH = 330
VALUE_WIDTH = 120
LEGEND_WIDTH = 240
ROW_HEIGHT = 24
AXIS_HEIGHT = 30
CURVES_HEIGHT = 260
TICKS_MIN, TICKS_MAX = 4, 10
_STEPS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), tuple(n / 10 for n in range(10, 100)))
_DASHES = ("none", "6 3", "2 3", "9 3 2 3")

_STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --muted: #5c6570; --line: #d8dde3; --back: #fff;
  --ours: #0b62d6; --other: #7a838d; --met: #14794a; --missed: #b3261e; --unresolved: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --text: #e6eaef; --muted: #9aa5b1; --line: #343b44;
  --back: #14181d; --ours: #6aaeff; --other: #98a2ad; --met: #55c98d; --missed: #ff8a80;
  --unresolved: #e6b450; } }
body { background: var(--back); color: var(--text); font: 15px/1.5 system-ui, sans-serif;
  max-width: 940px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
p, dt, figcaption { color: var(--muted); } figure { margin: 1rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; font-size: 13px; }
dd { margin: 0; } svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; }
svg text { fill: var(--text); } .muted { fill: var(--muted); } .grid { stroke: var(--line); }
.ours { fill: var(--ours); stroke: var(--ours); }
.other { fill: var(--other); stroke: var(--other); }
.met { fill: var(--met); } .missed { fill: var(--missed); } .unresolved { fill: var(--unresolved); }
.goal { stroke: var(--text); stroke-width: 2; } .interval { stroke-width: 4; opacity: .5; }
.curve { fill: none; stroke-width: 2; }
"""


def load(paths: Iterable[Path]) -> list[Result]:
    """Read results, one or several JSON objects a file."""
    found: list[Result] = []
    for path in paths:
        text = _content(path).strip()
        decoder = json.JSONDecoder()
        try:
            while text:
                value, end = decoder.raw_decode(text)
                found.append(value if "figures" in value else _not_ours(path))
                text = text[end:].lstrip()
        except (ValueError, TypeError):
            _not_ours(path)
    return found


def _content(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise ConfigError("the result cannot be read", path=str(path)) from error


def _not_ours(path: Path) -> Result:
    raise ConfigError("not a result of ffs-bench", hint="write it with --json", path=str(path))


def page(results: Sequence[Result]) -> str:
    """Return the page of some results."""
    body = "".join(_section(result) for result in results)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>ffs-bench</title>'
        f"<style>{_STYLE}</style></head><body><h1>ffs-bench</h1>"
        "<p>Each figure stands beside a reference that took turns with it. A dot is the median of "
        "the pairs' ratios, its bar the 95 % interval, a tick the goal.</p>"
        f"{body}</body></html>\n"
    )


def _section(result: Result) -> str:
    facts = {**result["machine"], **result["conditions"]}
    parts = [f"<section><h2>{_text(result['command'])}</h2>"]
    if result["comparisons"]:
        parts.append(_figure("Ratio to the reference", _ratios(result["comparisons"])))
    ours = {each["ours"] for each in result["comparisons"]}
    figures = [
        {**each, "kind": "ours" if each["name"] in ours or "FFS" in each["name"] else "other"}
        for each in result["figures"]
    ]
    moved = [each for each in figures if each["bytes_rate"]]
    if moved:
        parts.append(_figure("Throughput, GB/s", _dots(moved, _speed)))
        parts.append(_figure("CPU-seconds per GB, client and server together", _dots(moved, _cpu)))
    timed = [each for each in figures if each.get("latency_us")]
    if timed:
        parts.append(
            _figure("Latency, share of the operations done by then", _distributions(timed))
        )
    notes = "".join(f"<p>{_text(note)}</p>" for note in result["notes"])
    rows = "".join(f"<dt>{_text(key)}</dt><dd>{_text(value)}</dd>" for key, value in facts.items())
    return (
        "".join(parts)
        + f"{notes}<details><summary>Conditions</summary><dl>{rows}</dl></details></section>"
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _figure(caption: str, drawing: str) -> str:
    return f"<figure><figcaption>{_text(caption)}</figcaption>{drawing}</figure>"


# ---------------------------------------------------------------------------------------- elements


def _element(name: str, text: str = "", **attributes: Any) -> str:
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_text(_short(value))}"'
        for key, value in attributes.items()
    )
    return f"<{name}{written}>{_text(text)}</{name}>"


def _short(value: object) -> object:
    return f"{value:.1f}" if isinstance(value, float) else value


def _line(x1: float, y1: float, x2: float, y2: float, **more: Any) -> str:
    return _element("line", x1=x1, y1=y1, x2=x2, y2=y2, **more)


def _words(text: str, x: float, y: float, **more: Any) -> str:
    return _element("text", text, x=x, y=y + 4, **more)


def _svg(height: float, content: str, title: str) -> str:
    box = f'viewBox="0 0 {WIDTH} {height:.0f}"'
    return f'<svg {box} role="img" aria-label="{_text(title)}">{content}</svg>'


class _Axis:
    """A logarithmic horizontal axis over some positive values, with a little room on each side."""

    def __init__(self, values: Iterable[float], *, left: float, right: float) -> None:
        logs = [math.log10(value) for value in values if value > 0]
        low, high = min(logs, default=0.0), max(logs, default=1.0)
        margin = max(0.05, (high - low) * 0.04)
        self._low, self._high = low - margin, high + margin
        self._left, self._right = left, right

    def at(self, value: float) -> float:
        """Where a value lies on the page."""
        share = (math.log10(max(value, 1e-12)) - self._low) / (self._high - self._low)
        return self._left + share * (self._right - self._left)

    def draw(self, height: float) -> str:
        """Draw the axis: lines down to `height` and the numbers below it."""
        return "".join(
            _line(x, 0, x, height, class_="grid")
            + _words(f"{tick:g}", x, height + 12, class_="muted", text_anchor="middle")
            for tick, x in ((tick, self.at(tick)) for tick in self._ticks())
        )

    def _ticks(self) -> list[float]:
        inside: list[float] = []
        for steps in _STEPS:
            exponents = range(math.floor(self._low), math.ceil(self._high) + 1)
            found = [step * 10.0**exponent for exponent in exponents for step in steps]
            inside = [tick for tick in found if self._low <= math.log10(tick) <= self._high]
            if len(inside) >= TICKS_MIN:
                break
        return inside[:: 1 + len(inside) // TICKS_MAX]


# ------------------------------------------------------------------------------------------ charts


def _ratios(comparisons: Sequence[Result]) -> str:
    """Draw one row a comparison: interval, median, goal, verdict."""
    drawn = [each for each in comparisons if each["ratio"] is not None]
    values = [each["ratio"][key] for each in drawn for key in ("low", "high")]
    values += [each["goal"] for each in drawn if each["goal"] is not None]
    axis = _Axis([*values, 1.0], left=LABEL_WIDTH, right=WIDTH - VALUE_WIDTH)
    rows = [_ratio_row(each, axis, (row + 0.5) * ROW_HEIGHT) for row, each in enumerate(drawn)]
    return _rows(axis, rows, "ratios to the reference")


def _ratio_row(each: Result, axis: _Axis, y: float) -> str:
    ratio, goal, verdict = each["ratio"], each["goal"], each["verdict"] or ""
    beside = f" / {each['reference'].split(': ')[-1]}" if each["reference"] else ""
    low, middle, high = (axis.at(ratio[key]) for key in ("low", "median", "high"))
    row = _label(each["name"] + beside, y) + _line(low, y, high, y, class_="ours interval")
    row += _element("circle", class_="ours", cx=middle, cy=y, r=4)
    row += _value(f"{ratio['median']:.3g} {verdict}", y, class_=verdict)
    if goal is not None:
        row += _line(axis.at(goal), y - 8, axis.at(goal), y + 8, class_="goal")
    return row


def _speed(figure: Result) -> float:
    return float(figure["bytes_rate"])


def _cpu(figure: Result) -> float:
    return float(figure["client_cpu"] + (figure["server_cpu"] or 0.0))


def _dots(figures: Sequence[Result], value: Callable[[Result], float]) -> str:
    """Draw one row a contestant."""
    axis = _Axis([value(each) for each in figures], left=LABEL_WIDTH, right=WIDTH - VALUE_WIDTH)
    rows = []
    for row, each in enumerate(figures):
        y, x = (row + 0.5) * ROW_HEIGHT, axis.at(value(each))
        dot = _element("circle", class_=each["kind"], cx=x, cy=y, r=5)
        line = _line(LABEL_WIDTH, y, x, y, class_="grid")
        rows.append(_label(each["name"], y) + line + dot + _value(f"{value(each):.3g}", y))
    return _rows(axis, rows, "one dot each")


def _rows(axis: _Axis, rows: Sequence[str], title: str) -> str:
    height = len(rows) * ROW_HEIGHT
    return _svg(height + AXIS_HEIGHT, axis.draw(height) + "".join(rows), title)


def _label(text: str, y: float) -> str:
    return _words(text, LABEL_WIDTH - 12, y, text_anchor="end")


def _value(text: str, y: float, **more: Any) -> str:
    return _words(text, WIDTH - VALUE_WIDTH + 12, y, **more)


def _distributions(figures: Sequence[Result]) -> str:
    """Draw the share of the operations, 0 at the bottom, that took at most so long."""
    left, right = 40, WIDTH - LEGEND_WIDTH
    axis = _Axis([us for each in figures for us, _ in each["latency_us"]], left=left, right=right)
    drawing = axis.draw(CURVES_HEIGHT)
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = CURVES_HEIGHT * (1 - share)
        drawing += _line(left, y, right, y, class_="grid")
        drawing += _words(f"{share:g}", left - 6, y, class_="muted", text_anchor="end")
    for row, each in enumerate(figures):
        points = " ".join(
            f"{axis.at(us):.1f},{CURVES_HEIGHT * (1 - share):.1f}"
            for us, share in each["latency_us"]
        )
        look: dict[str, Any] = {
            "class_": f"curve {each['kind']}",
            "stroke_dasharray": _DASHES[row % 4],
        }
        drawing += _element("polyline", points=points, **look)
        y = 20.0 + row * ROW_HEIGHT
        drawing += _line(right + 12, y, right + 42, y, **look) + _words(each["name"], right + 50, y)
    return _svg(CURVES_HEIGHT + AXIS_HEIGHT, drawing, "cumulative distributions of latency")
