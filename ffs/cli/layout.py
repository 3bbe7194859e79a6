"""`ffs layout get|set`: how new files are cut into chunks and spread over chains."""

from __future__ import annotations

import argparse
from typing import Any

from ffs.cli import output
from ffs.cli.action import Action
from ffs.cli.remote import for_each
from ffs.cli.units import count, size_bytes
from ffs.errors import ConfigError


def add_get_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `layout get` takes."""
    parser.add_argument("paths", nargs="+", metavar="PATH")


def get(args: argparse.Namespace) -> int:
    """Show how files below a directory will be laid out, or how a file is.

    The nearest directory above that says something decides, then the cluster's configuration.
    """
    found: list[dict[str, Any]] = []

    def one(fs: Any, path: str) -> None:
        found.append({"path": path, **fs.get_layout(path)})

    return _report(for_each(args.paths, args, one), found, args)


def add_set_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `layout set` takes."""
    parser.add_argument("paths", nargs="+", metavar="DIRECTORY")
    parser.add_argument(
        "--chunk-size", type=size_bytes, default=0, metavar="SIZE", help="64K to 64M, power of two"
    )
    parser.add_argument(
        "--stripe", type=count, default=-1, metavar="N", help="chains of one file; 0: all"
    )
    parser.add_argument("--unset", action="store_true", help="say nothing: inherit again")


def set_(args: argparse.Namespace) -> int:
    """Say how files made below a directory from now on are laid out.

    Files that exist stay as they are. What is left out is taken from above.
    """
    if args.unset == bool(args.chunk_size or args.stripe >= 0):
        raise ConfigError("say --chunk-size and --stripe, one of them, or --unset")
    found: list[dict[str, Any]] = []

    def one(fs: Any, path: str) -> None:
        layout = fs.set_layout(path, chunk_size_bytes=args.chunk_size, stripe=args.stripe)
        found.append({"path": path, **layout})

    return _report(for_each(args.paths, args, one), found, args)


def _report(status: int, found: list[dict[str, Any]], args: argparse.Namespace) -> int:
    if args.json:
        output.print_json(found)
        return status
    rows = [
        (
            output.human_bytes(one["chunk_size_bytes"]),
            one["stripe"] or "all",
            output.shown(one["origin"]) or "the cluster's default",
            output.shown(one["path"]),
        )
        for one in found
    ]
    if rows:
        output.print_table(("chunk size", "stripe", "said by", "path"), rows)
    return status


ACTIONS = {
    "get": Action(get, add_get_arguments, "ffs layout get /data"),
    "set": Action(set_, add_set_arguments, "ffs layout set /data/video --chunk-size 16M"),
}
