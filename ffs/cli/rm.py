"""`ffs rm`: remove files and trees."""

from __future__ import annotations

import argparse

from ffs.cli import output
from ffs.cli.remote import file_system, parse
from ffs.errors import FileExpectedError, InvalidError, NotFoundError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare rm's arguments."""
    parser.add_argument("paths", nargs="+", metavar="PATH")
    parser.add_argument(
        "-r", "--recursive", action="store_true", help="directories with all in them"
    )
    parser.add_argument("-f", "--force", action="store_true", help="a missing path is fine")


def run(args: argparse.Namespace) -> int:
    """Remove files; with -r a whole directory at once (in one transaction)."""
    removed = []
    for text in args.paths:
        remote = parse(text, args)
        fs = file_system(remote, args)
        if remote.path.strip("/") == "":
            raise InvalidError("the root directory cannot be removed", path=remote.path)
        try:
            is_directory = fs.info(remote.path)["type"] == "directory"
            if is_directory and not args.recursive:
                raise FileExpectedError("is a directory", hint="add -r", path=remote.path)
            fs.rm(remote.path, recursive=is_directory)
            removed.append(remote.path)
        except NotFoundError:
            if not args.force:
                raise
    if args.json:
        output.print_json({"removed": removed})
    return 0
