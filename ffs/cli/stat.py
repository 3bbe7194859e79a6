"""`ffs stat`: everything known about paths."""

from __future__ import annotations

import argparse

from ffs.cli import output
from ffs.cli.remote import file_system, jsonable, parse, when


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare stat's arguments."""
    parser.add_argument("paths", nargs="+", metavar="PATH")


def run(args: argparse.Namespace) -> int:
    """Show the attributes of files and directories."""
    found = []
    for text in args.paths:
        remote = parse(text, args)
        found.append(file_system(remote, args).info(remote.path))
    if args.json:
        output.print_json([jsonable(info) for info in found])
        return 0
    for info in found:
        output.print_line(f"{info['name']}")
        for key, value in sorted(jsonable(info).items()):
            if key == "mode":
                value = f"{int(value) & 0o7777:04o}"
            if key == "size" and value is not None:
                value = f"{value} ({output.human_bytes(int(value))})"
            if key != "name":
                output.print_line(f"  {key:<12} {value}")
        output.print_line(f"  {'modified':<12} {when(info)}")
    return 0
