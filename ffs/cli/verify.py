"""`ffs verify`: every byte of files, read on every replica and held against its checksum."""

from __future__ import annotations

import argparse
import time
from typing import Any

from ffs.cli import output
from ffs.cli.action import Action
from ffs.cli.outcome import EXIT_FAILED
from ffs.cli.progress import Progress, progress_bar
from ffs.cli.remote import for_each
from ffs.client.verify import Checked, Finding, probe, verify


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare verify's arguments."""
    parser.add_argument("paths", nargs="+", metavar="PATH")
    parser.add_argument(
        "--fast", action="store_true", help="only whether each chunk is there and long enough"
    )


def run(args: argparse.Namespace) -> int:
    """Read the files at and below each path to the end, on every replica, and check every byte.

    What is wrong is told, one line each; the exit status is 1 then. --fast reads one block of each
    chunk: it finds what is missing or cut, not what has rotted.
    """
    report = _Report(args)
    with progress_bar(args, "checking") as progress:
        status = for_each(args.paths, args, lambda fs, path: report.check(fs, path, progress))
    report.show()
    return EXIT_FAILED if report.found else status


class _Report:
    """Gathers what was read and what is wrong with it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.found: list[Finding] = []
        self._args = args
        self._started = time.monotonic()
        self._totals = Checked()

    def check(self, fs: Any, path: str, progress: Progress) -> None:
        """Read one file or tree; findings are printed as they come."""
        fs.info(path)  # a path that leads nowhere is a mistake, no finding
        done = Checked()

        def advance(checked: Checked) -> None:
            progress.advance(checked.bytes_read - done.bytes_read)
            done.bytes_read = checked.bytes_read
            done.files, done.chunks = checked.files, checked.chunks

        examine = probe if self._args.fast else verify
        for finding in examine(fs, [path], on_progress=advance):
            self.found.append(finding)
            if not self._args.json:
                output.print_line(_line(finding))
        self._totals.files += done.files
        self._totals.chunks += done.chunks
        self._totals.bytes_read += done.bytes_read

    def show(self) -> None:
        """Print the sums, and with --json everything."""
        totals = self._totals
        if self._args.json:
            output.print_json(
                {
                    "files": totals.files,
                    "chunks": totals.chunks,
                    "bytes_read": totals.bytes_read,
                    "seconds": round(time.monotonic() - self._started, 3),
                    "findings": [_as_json(finding) for finding in self.found],
                }
            )
        elif totals.files or self.found:
            read = output.human_bytes(totals.bytes_read)
            wrong = output.counted(len(self.found), "finding") if self.found else "all is well"
            files = output.counted(totals.files, "file")
            chunks = output.counted(totals.chunks, "chunk")
            output.print_line(f"{files}, {chunks}, {read} read: {wrong}")


def _as_json(finding: Finding) -> dict[str, Any]:
    return {
        "path": finding.path,
        "error": type(finding.error).__name__,
        "message": finding.error.message,
        "blob": finding.blob,
        "chunk": finding.chunk,
        "target": finding.target,
        "node": finding.node,
    }


def _line(finding: Finding) -> str:
    facts = f" [chunk={finding.chunk} target={finding.target} node={finding.node}]"
    where = facts if finding.blob else ""
    return f"{output.shown(finding.path)}: {finding.error.message}{where}"


ACTIONS = {"": Action(run, add_arguments, "ffs verify /data/train")}
