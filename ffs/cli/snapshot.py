"""`ffs snapshot create|list|remove`: what a directory was, under a name."""

from __future__ import annotations

import argparse
from typing import Any

from ffs.cli import output
from ffs.cli.action import Action
from ffs.cli.entries import time_text
from ffs.cli.outcome import EXIT_DONE
from ffs.cli.remote import for_each, literal


def add_create_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `snapshot create` takes."""
    _add_path_and_name(parser)


def create(args: argparse.Namespace) -> int:
    """Keep what a directory is now, as PATH/.snapshots/NAME, which nothing changes.

    No byte moves. Programs read it by that path, also as ffs:///PATH/.snapshots/NAME; a pin of the
    path keeps the snapshot from being removed.
    """
    fs, path = literal(args.path, args)
    made = fs.snapshot(path, args.name)
    if args.json:
        output.print_json(made)
    else:
        output.print_line(output.shown(made["path"]))
    return EXIT_DONE


def add_list_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `snapshot list` takes."""
    parser.add_argument("paths", nargs="+", metavar="PATH")


def list_(args: argparse.Namespace) -> int:
    """Show the snapshots of directories."""
    found: list[dict[str, Any]] = []
    status = for_each(args.paths, args, lambda fs, path: found.extend(fs.snapshots(path)))
    if args.json:
        output.print_json(found)
    elif found or status == EXIT_DONE:
        rows = [
            (time_text(one["created"]), output.shown(one["name"]), output.shown(one["path"]))
            for one in found
        ]
        output.print_table(("created", "name", "path"), rows)
    return status


def add_remove_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `snapshot remove` takes."""
    _add_path_and_name(parser)


def remove(args: argparse.Namespace) -> int:
    """Remove a snapshot of a directory, for good; what only it kept dies."""
    fs, path = literal(args.path, args)
    removed = fs.remove_snapshot(path, args.name)
    if args.json:
        output.print_json({"removed": removed})
    return EXIT_DONE


def _add_path_and_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("name", metavar="NAME")


ACTIONS = {
    "create": Action(create, add_create_arguments, "ffs snapshot create /data/train v1"),
    "list": Action(list_, add_list_arguments, "ffs snapshot list /data/train"),
    "remove": Action(remove, add_remove_arguments, "ffs snapshot remove /data/train v1"),
}
