"""What commands print: JSON or text on stdout, progress on stderr where a person watches.

Invariant: stdout holds only the result, so that it can be piped; a progress bar is drawn only on a
terminal, and rich is imported only then.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

NOTICE_S = 3.0
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def print_json(value: Any) -> None:
    """Print one JSON document on one line."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, separators=(", ", ": ")) + "\n")


def print_line(text: str) -> None:
    """Print one line of the result."""
    sys.stdout.write(text + "\n")


def print_table(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print columns that line up."""
    lines = [list(heading), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heading))]
    for line in lines:
        print_line("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())


def human_bytes(count: int) -> str:
    """`1536` -> `1.5 KiB`."""
    value = float(count)
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


@contextlib.contextmanager
def waiting_notice(command: str) -> Iterator[None]:
    """Say on a terminal that the cluster has not answered yet, should the block take long."""
    if not sys.stderr.isatty():
        yield
        return
    text = f"ffs {command}: no answer from the cluster yet, still trying (Ctrl-C stops)\n"
    timer = threading.Timer(NOTICE_S, sys.stderr.write, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Progress(Protocol):
    """Told about bytes as they are done."""

    def advance(self, count: int) -> None:
        """`count` more bytes are done."""


class _Silent:
    def advance(self, count: int) -> None:
        pass


@contextlib.contextmanager
def progress_bar(label: str, total_bytes: int) -> Iterator[Progress]:
    """A bar on stderr while the block runs, if stderr is a terminal; else nothing at all."""
    if not sys.stderr.isatty():
        yield _Silent()
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.DownloadColumn(binary_units=True),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=Console(stderr=True)) as drawn:
        task = drawn.add_task(label, total=total_bytes)

        class _Bar:
            def advance(self, count: int) -> None:
                drawn.update(task, advance=count)

        yield _Bar()
