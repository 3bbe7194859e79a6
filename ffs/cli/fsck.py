"""`ffs fsck`: names, blobs and stored chunks, held against each other and mended."""

from __future__ import annotations

import argparse
from typing import Any

from ffs.cli import output
from ffs.cli.action import Action
from ffs.cli.outcome import EXIT_DONE, EXIT_FAILED
from ffs.cli.progress import stages
from ffs.cli.remote import cluster
from ffs.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare fsck's arguments."""
    parser.add_argument("--repair", action="store_true", help="mend what can be mended")
    parser.add_argument(
        "--give-up-lost",
        action="store_true",
        help="with --repair: drop also what was written after the backup that was restored",
    )


def run(args: argparse.Namespace) -> int:
    """Check the metadata in itself, every stored chunk against it, and what is stored besides.

    The cluster may go on working meanwhile. The exit status is 1 if something is wrong and remains
    so. --repair never drops what a file refers to, and cannot bring back what no replica has.
    """
    if args.give_up_lost and not args.repair:
        raise ConfigError("--give-up-lost goes with --repair")
    from ffs.client.fsck import fsck

    fs = cluster(args)
    with stages(args) as tell:
        report = fsck(
            fs,
            repair=args.repair,
            give_up_lost=args.give_up_lost,
            on_progress=lambda at: tell(at.part, at.done, at.total),
        )
    if args.json:
        output.print_json(report.as_dict())
    else:
        _print(report)
    return EXIT_DONE if report.clean else EXIT_FAILED


def _print(report: Any) -> None:
    for problem in report.problems:
        mended = f", {problem.repaired} mended: {problem.action}" if problem.repaired else ""
        left = problem.count > problem.repaired
        hint = f" ({problem.hint})" if problem.hint and left else ""
        output.print_line(f"{problem.kind}: {problem.count}{mended}{hint}")
        for place in problem.places:
            where = f"{output.shown(place.path)}: " if place.path else ""
            output.print_line(f"  {where}{place.detail}")
        more = problem.count - len(problem.places)
        if more > 0:
            output.print_line(f"  and {more} more")
    looked = ", ".join(
        (
            output.counted(report.blobs, "blob"),
            output.counted(report.chunks, "chunk"),
            output.counted(report.targets, "target"),
        )
    )
    output.print_line(f"{looked}: {'all is well' if report.clean else 'something is wrong'}")


ACTIONS = {"": Action(run, add_arguments, "ffs fsck --repair")}
