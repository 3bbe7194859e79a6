"""`ffs mv`: rename within a cluster, atomically."""

from __future__ import annotations

import argparse

from ffs.cli import output
from ffs.cli.remote import file_system, into_directory, parse
from ffs.errors import InvalidError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare mv's arguments."""
    parser.add_argument("sources", nargs="+", metavar="SOURCE")
    parser.add_argument("target", metavar="TARGET")


def run(args: argparse.Namespace) -> int:
    """Rename SOURCE to TARGET, or move every SOURCE into the directory TARGET."""
    target = parse(args.target, args)
    fs = file_system(target, args)
    many = len(args.sources) > 1
    is_directory = into_directory(args.target, fs.isdir(target.path), many)
    moved = []
    for text in args.sources:
        source = parse(text, args)
        if file_system(source, args).fsid != fs.fsid:
            raise InvalidError(
                "a rename stays within one cluster", hint="use ffs cp, then ffs rm", path=text
            )
        name = source.path.rstrip("/").rsplit("/", 1)[-1]
        goal = f"{target.path.rstrip('/')}/{name}" if is_directory else target.path
        fs.mv(source.path, goal, recursive=True)
        moved.append({"source": source.path, "target": goal})
    if args.json:
        output.print_json({"moved": moved})
    return 0
