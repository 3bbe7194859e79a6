"""`ffs rm`: remove files and trees, into the trash or for good."""

from __future__ import annotations

import argparse
from typing import Any

from ffs.cli import output
from ffs.cli.action import Action
from ffs.cli.progress import progress_bar
from ffs.cli.remote import for_each
from ffs.errors import FileExpectedError, InvalidError
from ffs.types import FileType

_TRASH = "/.trash/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare rm's arguments."""
    parser.add_argument("paths", nargs="+", metavar="PATH")
    parser.add_argument(
        "-r", "--recursive", action="store_true", help="directories with all in them"
    )
    parser.add_argument("-f", "--force", action="store_true", help="a missing path is fine")
    parser.add_argument("--no-trash", action="store_true", help="for good, and at once")


def run(args: argparse.Namespace) -> int:
    """Remove files; with -r a whole directory at once, in one transaction.

    What is removed goes into the trash, from where `ffs trash restore` brings it back; with
    --no-trash, and from the trash itself, there is no way back. A symbolic link is removed, never
    what it leads to.
    """
    removed: list[str] = []
    entries: list[str] = []

    def one(fs: Any, path: str) -> None:
        if path.strip("/") == "":
            raise InvalidError("the root directory cannot be removed", path=path)
        if args.no_trash or path.startswith(_TRASH):
            _remove(fs, path, recursive=args.recursive)
        else:
            if not args.recursive and fs.core.meta.lstat(path).type == FileType.DIRECTORY:
                raise FileExpectedError("is a directory", hint="add -r", path=path)
            entries.append(fs.trash(path))
        removed.append(path)
        progress.advance(1)

    with progress_bar(args, "removing", unit="entries") as progress:
        status = for_each(args.paths, args, one, missing_ok=args.force)
    if args.json:
        output.print_json({"removed": removed, "trash": entries})
    return status


def _remove(fs: Any, path: str, *, recursive: bool) -> None:
    try:
        fs.rm_file(path)  # not fs.rm, which would take the letters * and [ for a pattern
    except FileExpectedError as error:
        if not recursive:
            raise FileExpectedError("is a directory", hint="add -r", path=path) from error
        fs.core.meta.rmdir(path, recursive=True)


ACTIONS = {"": Action(run, add_arguments, "ffs rm -r /data/old")}
