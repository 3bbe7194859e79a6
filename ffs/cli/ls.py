"""`ffs ls`: the entries of directories."""

from __future__ import annotations

import argparse
import stat as stat_bits
from typing import Any

from ffs.cli import output
from ffs.cli.remote import file_system, jsonable, parse, when


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ls's arguments."""
    parser.add_argument("paths", nargs="*", default=["/"], metavar="PATH")
    parser.add_argument("-l", "--long", action="store_true", help="with mode, size and time")


def run(args: argparse.Namespace) -> int:
    """List directories in name order; a file is listed as itself."""
    everything: list[dict[str, Any]] = []
    for number, text in enumerate(args.paths):
        remote = parse(text, args)
        entries = sorted(file_system(remote, args).ls(remote.path, detail=True), key=_name)
        if args.json:
            everything += [jsonable(entry) for entry in entries]
            continue
        if len(args.paths) > 1:
            output.print_line(f"{'' if number == 0 else chr(10)}{text}:")
        for entry in entries:
            output.print_line(_long(entry) if args.long else _short(entry))
    if args.json:
        output.print_json(everything)
    return 0


def _name(entry: dict[str, Any]) -> str:
    return str(entry["name"])


def _short(entry: dict[str, Any]) -> str:
    slash = "/" if entry["type"] == "directory" else ""
    return _name(entry).rstrip("/").rsplit("/", 1)[-1] + slash


def _long(entry: dict[str, Any]) -> str:
    kind = stat_bits.S_IFDIR if entry["type"] == "directory" else stat_bits.S_IFREG
    mode = stat_bits.filemode(kind | int(entry.get("mode", 0)))
    return f"{mode} {entry['size'] or 0:>14} {when(entry)} {_short(entry)}"
