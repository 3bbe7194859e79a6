"""What commands print on stdout: JSON or text, and nothing but the result, so it can be piped."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def print_json(value: Any) -> None:
    """Print one JSON document on one line; bytes of a name that are no UTF-8 are escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(", ", ": "))
    if any("\ud800" <= character <= "\udfff" for character in text):
        text = json.dumps(value, separators=(", ", ": "))
    sys.stdout.write(text + "\n")


def print_line(text: str) -> None:
    """Print one line of the result."""
    sys.stdout.write(text + "\n")


def shown(name: str) -> str:
    """A name as it is printed: on a terminal nothing in it may move the cursor or lie."""
    if not sys.stdout.isatty() or name.isprintable():
        return name
    return name.encode("unicode_escape", "surrogatepass").decode("ascii")


def print_table(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print columns that line up."""
    for line in table_lines(heading, rows):
        print_line(line)


def table_lines(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return columns that line up."""
    lines = [list(heading), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heading))]
    return ["  ".join(c.ljust(w) for c, w in zip(ln, widths, strict=True)).rstrip() for ln in lines]


def human_bytes(count: int) -> str:
    """`1536` -> `1.5 KiB`."""
    value = float(count)
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def counted(count: int, one: str, many: str = "") -> str:
    """`1 file`, `2 files`; `many` where an s is not enough."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def size_text(count: int, *, human: bool) -> str:
    """A size in bytes, or with `human` in the unit that suits it."""
    return human_bytes(count) if human else str(count)
