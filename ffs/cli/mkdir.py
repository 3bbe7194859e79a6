"""`ffs mkdir`: new directories."""

from __future__ import annotations

import argparse

from ffs.cli import output
from ffs.cli.remote import file_system, parse
from ffs.errors import NotFoundError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare mkdir's arguments."""
    parser.add_argument("paths", nargs="+", metavar="PATH")
    parser.add_argument(
        "-p", "--parents", action="store_true", help="also missing parents; an existing one is fine"
    )


def run(args: argparse.Namespace) -> int:
    """Make directories; without -p an existing one or a missing parent is an error."""
    made = []
    for text in args.paths:
        remote = parse(text, args)
        fs = file_system(remote, args)
        if args.parents:
            fs.makedirs(remote.path, exist_ok=True)
        else:
            try:
                fs.mkdir(remote.path, create_parents=False)
            except NotFoundError as error:
                raise NotFoundError(error.message, hint="add -p", **error.where) from error
        made.append(remote.path)
    if args.json:
        output.print_json({"made": made})
    return 0
