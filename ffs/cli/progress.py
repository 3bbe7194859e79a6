"""What a person at a terminal sees while a command works: progress, and whom it waits for.

Everything here is drawn on stderr, and only if that is a terminal that can be drawn on: nothing in
a pipe, with --json or --quiet, or on TERM=dumb. NO_COLOR takes the colours away. rich is imported
only when something is drawn.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal, Protocol

NOTICE_S: Final = 1.0
Unit = Literal["bytes", "entries"]


class Progress(Protocol):
    """Told what is done."""

    def advance(self, count: int) -> None:
        """`count` more are done."""


class _Silent:
    def advance(self, count: int) -> None:
        pass


def on_terminal() -> bool:
    """Whether stderr is a terminal that can be drawn on."""
    return sys.stderr.isatty() and os.environ.get("TERM") not in (None, "", "dumb")


def watched(args: argparse.Namespace) -> bool:
    """Whether a person watches stderr and wants to see how it goes."""
    return on_terminal() and not getattr(args, "json", False) and not args.quiet


@contextlib.contextmanager
def silence() -> Iterator[Progress]:
    """Draw nothing."""
    yield _Silent()


@contextlib.contextmanager
def progress_bar(
    args: argparse.Namespace, label: str, total: int | None = None, unit: Unit = "bytes"
) -> Iterator[Progress]:
    """Draw how far the block is, if somebody watches; `total` None: nobody knows how much it is."""
    with draw(label, total, unit) if watched(args) else silence() as progress:
        yield progress


@contextlib.contextmanager
def draw(label: str, total: int | None, unit: Unit = "bytes") -> Iterator[Progress]:
    """Draw how far the block is."""
    try:
        from rich import progress as bars
        from rich.console import Console
    except ModuleNotFoundError:  # an installation without the extra `cli` works, unseen
        yield _Silent()
        return
    console = Console(stderr=True)
    with bars.Progress(*_columns(bars, total, unit), console=console) as drawn:
        task = drawn.add_task(label, total=total)

        class _Bar:
            def advance(self, count: int) -> None:
                drawn.update(task, advance=count)

        yield _Bar()


Tell = Callable[[str, int, int], None]
"""Called with the name of a stage, how much of it is done, and of how much (0: not known)."""


@contextlib.contextmanager
def stages(args: argparse.Namespace) -> Iterator[Tell]:
    """Draw a bar for each stage of the block, one below the other, if somebody watches."""
    if not watched(args):
        yield lambda stage, done, total: None
        return
    try:
        from rich import progress as bars
        from rich.console import Console
    except ModuleNotFoundError:
        yield lambda stage, done, total: None
        return
    columns = (
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
    )
    tasks: dict[str, bars.TaskID] = {}
    with bars.Progress(*columns, console=Console(stderr=True)) as drawn:

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = drawn.add_task(stage, total=None)
            drawn.update(tasks[stage], completed=done, total=total or None)

        yield tell


def _columns(bars: Any, total: int | None, unit: Unit) -> list[Any]:
    label = bars.TextColumn("{task.description}", markup=False)
    if total is None:
        done = (
            bars.TextColumn("{task.completed:.0f}") if unit == "entries" else bars.FileSizeColumn()
        )
        return [bars.SpinnerColumn(), label, done, bars.TimeElapsedColumn()]
    if unit == "entries":
        return [label, bars.BarColumn(), bars.MofNCompleteColumn(), bars.TimeRemainingColumn()]
    return [
        label,
        bars.BarColumn(),
        bars.DownloadColumn(binary_units=True),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
    ]


@contextlib.contextmanager
def waiting_notice(args: argparse.Namespace, whom: str) -> Iterator[None]:
    """Say on a terminal whom the command waits for, should the block take longer than a second."""
    if not watched(args):
        yield
        return
    text = f"ffs {args.command}: waiting for {whom} (Ctrl-C stops, --timeout S limits it)\n"
    timer = threading.Timer(NOTICE_S, sys.stderr.write, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
