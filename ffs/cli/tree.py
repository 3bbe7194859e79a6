"""`ffs tree`: directories with all below them, drawn."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ffs.cli import entries, output
from ffs.cli.action import Action
from ffs.cli.remote import for_each
from ffs.cli.units import count


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare tree's arguments."""
    parser.add_argument("paths", nargs="*", default=["/"], metavar="PATH", help="/ if left out")
    parser.add_argument("-L", "--depth", type=count, default=None, metavar="N", help="N levels")
    parser.add_argument("-d", "--directories", action="store_true", help="only directories")
    parser.add_argument("-s", "--size", action="store_true", help="with the sizes of files")
    parser.add_argument("-h", "--human", action="store_true", help="-s, with sizes as 1.5 MiB")


def run(args: argparse.Namespace) -> int:
    """Draw what lies below each path, and count it. Symbolic links are not followed."""
    drawn: list[dict[str, Any]] = []
    counts = {"directories": 0, "files": 0}

    def one(fs: Any, path: str) -> None:
        for entry in _below(fs, path, args):
            if entry.depth:
                counts["directories" if entry.directory else "files"] += 1
            if args.json:
                drawn.append({"depth": entry.depth, **entries.as_json(entry.info)})
            else:
                output.print_line(_line(entry, args))

    status = for_each(args.paths, args, one)
    if args.json:
        output.print_json(drawn)
    else:
        directories = output.counted(counts["directories"], "directory", "directories")
        output.print_line(f"\n{directories}, {output.counted(counts['files'], 'file')}")
    return status


@dataclass(frozen=True, slots=True)
class _Entry:
    """A name, how deep it is, and the lines that lead to it."""

    info: dict[str, Any]
    depth: int
    lines: str

    @property
    def directory(self) -> bool:
        return entries.kind(self.info) == "directory"


def _below(fs: Any, path: str, args: argparse.Namespace) -> Iterator[_Entry]:
    """The path and all below it, parents first; one directory is asked for at a time."""
    todo = [(entries.own(fs, path), 0, "", "")]
    while todo:
        info, depth, lines, stem = todo.pop()
        entry = _Entry(info, depth, lines)
        yield entry
        if entry.directory and (args.depth is None or depth < args.depth):
            inside = sorted(fs.ls(info["name"], detail=True), key=lambda e: str(e["name"]))
            if args.directories:
                inside = [one for one in inside if entries.kind(one) == "directory"]
            for number, child in reversed(list(enumerate(inside, 1))):
                last = number == len(inside)
                branch, trunk = ("└── ", "    ") if last else ("├── ", "│   ")
                todo.append((child, depth + 1, stem + branch, stem + trunk))


def _line(entry: _Entry, args: argparse.Namespace) -> str:
    info = entry.info
    name = output.shown(str(info["name"])) if entry.depth == 0 else entries.short(info)
    if entries.kind(info) == "link":
        name += f" -> {output.shown(entries.text(info['destination']))}"
    if (args.size or args.human) and entries.kind(info) == "file":
        name += f" ({output.size_text(int(info['size']), human=args.human)})"
    return entry.lines + name


ACTIONS = {"": Action(run, add_arguments, "ffs tree -L 2 /data")}
