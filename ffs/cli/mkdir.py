"""`ffs mkdir`: new directories."""

from __future__ import annotations

import argparse
from typing import Any

from ffs.cli import output
from ffs.cli.action import Action
from ffs.cli.remote import for_each
from ffs.errors import NotFoundError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare mkdir's arguments."""
    parser.add_argument("paths", nargs="+", metavar="PATH")
    parser.add_argument(
        "-p", "--parents", action="store_true", help="also missing parents; an existing one is fine"
    )


def run(args: argparse.Namespace) -> int:
    """Make directories; without -p an existing one or a missing parent is an error."""
    made: list[str] = []

    def one(fs: Any, path: str) -> None:
        if args.parents:
            fs.makedirs(path, exist_ok=True)
        else:
            try:
                fs.mkdir(path, create_parents=False)
            except NotFoundError as error:
                raise NotFoundError(error.message, hint="add -p", **error.where) from error
        made.append(path)

    status = for_each(args.paths, args, one, patterns=False)
    if args.json:
        output.print_json({"made": made})
    return status


ACTIONS = {"": Action(run, add_arguments, "ffs mkdir -p /data/2026/train")}
