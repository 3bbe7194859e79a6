"""`ffs pin add|list|remove`: keep the content that files have now, for a job."""

from __future__ import annotations

import argparse
from typing import Any

from ffs.cli import output
from ffs.cli.action import Action
from ffs.cli.entries import time_text
from ffs.cli.outcome import EXIT_DONE
from ffs.cli.progress import progress_bar
from ffs.cli.remote import cluster, for_each
from ffs.cli.units import count, duration_s


def add_add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `pin add` takes."""
    parser.add_argument("paths", nargs="+", metavar="PATH")
    parser.add_argument(
        "--ttl", type=duration_s, default=None, metavar="TIME", help="90s, 12h, 7d; else for ever"
    )
    parser.add_argument("--owner", default="", metavar="NAME", help="for whom (else USER@HOST)")


def add(args: argparse.Namespace) -> int:
    """Keep what the files at and below each path hold now, whatever becomes of their names.

    Readers that have opened them go on reading, however long ago a file was replaced or removed.
    """
    made: list[dict[str, Any]] = []

    def one(fs: Any, path: str) -> None:
        made.append(fs.pin(path, args.ttl, owner=args.owner))
        progress.advance(1)

    with progress_bar(args, "pinning", unit="entries") as progress:
        status = for_each(args.paths, args, one)
    if made or args.json:
        _report(made, args)
    return status


def add_list_arguments(parser: argparse.ArgumentParser) -> None:
    """Pin list has no arguments of its own."""


def list_(args: argparse.Namespace) -> int:
    """Show all pins of the cluster."""
    _report(cluster(args).pins(), args)
    return EXIT_DONE


def add_remove_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `pin remove` takes."""
    parser.add_argument("pins", nargs="+", type=count, metavar="PIN")


def remove(args: argparse.Namespace) -> int:
    """Take pins off; content that only they kept dies."""
    fs = cluster(args)
    for pin in args.pins:
        fs.unpin(pin)
    if args.json:
        output.print_json({"removed": args.pins})
    return EXIT_DONE


def _report(pins: list[dict[str, Any]], args: argparse.Namespace) -> None:
    if args.json:
        output.print_json(pins)
        return
    rows = [
        (
            pin["pin"],
            pin["owner"],
            pin["files"],
            output.human_bytes(pin["stored_bytes"]),
            time_text(pin["expires"]) if pin["expires"] is not None else "never",
            output.shown(pin["path"]),
        )
        for pin in pins
    ]
    output.print_table(("pin", "owner", "files", "stored", "expires", "path"), rows)


ACTIONS = {
    "add": Action(add, add_add_arguments, "ffs pin add /data/train --ttl 7d"),
    "list": Action(list_, add_list_arguments, "ffs pin list"),
    "remove": Action(remove, add_remove_arguments, "ffs pin remove 3"),
}
