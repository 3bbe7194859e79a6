"""`ffs rm`: remove files and trees."""

from __future__ import annotations

import argparse
from typing import Any

from ffs.cli import output
from ffs.cli.action import Action
from ffs.cli.progress import progress_bar
from ffs.cli.remote import for_each
from ffs.errors import FileExpectedError, InvalidError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare rm's arguments."""
    parser.add_argument("paths", nargs="+", metavar="PATH")
    parser.add_argument(
        "-r", "--recursive", action="store_true", help="directories with all in them"
    )
    parser.add_argument("-f", "--force", action="store_true", help="a missing path is fine")


def run(args: argparse.Namespace) -> int:
    """Remove files; with -r a whole directory at once, in one transaction.

    A symbolic link is removed, never what it leads to. There is no way back.
    """
    removed: list[str] = []

    def one(fs: Any, path: str) -> None:
        if path.strip("/") == "":
            raise InvalidError("the root directory cannot be removed", path=path)
        try:
            fs.rm_file(path)  # not fs.rm, which would take the letters * and [ for a pattern
        except FileExpectedError as error:
            if not args.recursive:
                raise FileExpectedError("is a directory", hint="add -r", path=path) from error
            fs.core.meta.rmdir(path, recursive=True)
        removed.append(path)
        progress.advance(1)

    with progress_bar(args, "removing", unit="entries") as progress:
        status = for_each(args.paths, args, one, missing_ok=args.force)
    if args.json:
        output.print_json({"removed": removed})
    return status


ACTIONS = {"": Action(run, add_arguments, "ffs rm -r /data/old")}
