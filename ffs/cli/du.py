"""`ffs du`: what lies at and below paths, added up by the metadata server."""

from __future__ import annotations

import argparse
from typing import Any

from ffs.cli import output
from ffs.cli.action import Action
from ffs.cli.progress import progress_bar
from ffs.cli.remote import for_each
from ffs.cli.units import count
from ffs.errors import FFSError
from ffs.types import FileType

KEYS = ("size_bytes", "stored_bytes", "files", "directories", "symlinks")
PATHS_AT_ONCE = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare du's arguments."""
    parser.add_argument("paths", nargs="*", default=["/"], metavar="PATH", help="/ if left out")
    parser.add_argument("-h", "--human", action="store_true", help="sizes as 1.5 MiB")
    parser.add_argument(
        "-d", "--depth", type=count, default=0, metavar="N", help="also N levels of directories"
    )


def run(args: argparse.Namespace) -> int:
    """Add up files below each path: their sizes, and what is stored for them.

    Stored is before replication: copies by reference and zeros cost nothing, a file with several
    names counts once. Symbolic links are not followed.
    """
    found: list[dict[str, Any]] = []

    def one(fs: Any, path: str) -> None:
        paths = _down_to(fs, path, args.depth)
        for first in range(0, len(paths), PATHS_AT_ONCE):
            part = paths[first : first + PATHS_AT_ONCE]
            for name, usage in zip(part, fs.core.meta.usage_many(part), strict=True):
                if isinstance(usage, FFSError):
                    raise usage
                found.append({"path": name, **{key: getattr(usage, key) for key in KEYS}})
            progress.advance(len(part))

    with progress_bar(args, "adding up", unit="entries") as progress:
        status = for_each(args.paths, args, one)
    if args.json:
        output.print_json(found)
    elif found:
        _print(found, human=args.human)
    return status


def _down_to(fs: Any, path: str, depth: int) -> list[str]:
    """The path and the directories below it, to a depth, in the order of their names."""
    paths, level = [path], [path] if depth and fs.isdir(path) else []
    for _ in range(depth):
        level = [
            name
            for directory in level
            for name, attr in fs.core.meta.list_dir(directory)
            if attr.type == FileType.DIRECTORY
        ]
        paths += level
    return sorted(paths, key=lambda name: name.split("/"))


def _print(found: list[dict[str, Any]], *, human: bool) -> None:
    heading = ("size", "stored", "files", "directories", "path")
    rows = [
        (
            output.size_text(one["size_bytes"], human=human),
            output.size_text(one["stored_bytes"], human=human),
            one["files"],
            one["directories"],
            output.shown(one["path"]),
        )
        for one in found
    ]
    output.print_table(heading, rows)


ACTIONS = {"": Action(run, add_arguments, "ffs du -h -d 1 /data")}
