"""`ffs trash list|restore|empty`: what `ffs rm` removed, for as long as it can come back."""

from __future__ import annotations

import argparse
from typing import Any

from ffs.cli import output
from ffs.cli.action import Action
from ffs.cli.entries import time_text
from ffs.cli.outcome import EXIT_DONE
from ffs.cli.progress import progress_bar
from ffs.cli.remote import cluster, for_each
from ffs.cli.units import duration_s
from ffs.errors import ConfigError


def add_list_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `trash list` takes."""
    _add_everyone(parser)


def list_(args: argparse.Namespace) -> int:
    """Show what you have removed, oldest first."""
    found = cluster(args).trashed(everyone=args.all)
    if args.json:
        output.print_json(found)
        return EXIT_DONE
    rows = [
        (
            time_text(one["removed"]),
            one["type"],
            output.shown(one["origin"]),
            output.shown(one["entry"]),
        )
        for one in found
    ]
    output.print_table(("removed", "type", "path", "entry"), rows)
    return EXIT_DONE


def add_restore_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `trash restore` takes."""
    parser.add_argument("entries", nargs="+", metavar="ENTRY", help="as `ffs trash list` shows it")
    parser.add_argument("--to", metavar="PATH", help="another name than it had (one entry)")


def restore(args: argparse.Namespace) -> int:
    """Bring removed files and directories back to where they were.

    A name that something else has by now is left alone: --to takes another one.
    """
    if args.to is not None and len(args.entries) > 1:
        raise ConfigError("--to is the name of one entry", hint="restore them one by one")
    restored: list[dict[str, Any]] = []

    def one(fs: Any, path: str) -> None:
        restored.append({"entry": path, "path": fs.restore(path, args.to)})
        progress.advance(1)

    with progress_bar(args, "restoring", unit="entries") as progress:
        status = for_each(args.entries, args, one)
    if args.json:
        output.print_json({"restored": restored})
    else:
        for done in restored:
            output.print_line(output.shown(done["path"]))
    return status


def add_empty_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `trash empty` takes."""
    parser.add_argument(
        "--older-than", type=duration_s, default=0.0, metavar="TIME", help="12h, 7d; else all"
    )
    _add_everyone(parser)


def empty(args: argparse.Namespace) -> int:
    """Remove what is in the trash for good.

    By itself the cluster does so once `meta.trash_ttl_s` is over.
    """
    removed = cluster(args).empty_trash(args.older_than, everyone=args.all)
    if args.json:
        output.print_json({"removed": removed})
    return EXIT_DONE


def _add_everyone(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="of all users (for root)")


ACTIONS = {
    "list": Action(list_, add_list_arguments, "ffs trash list"),
    "restore": Action(
        restore,
        add_restore_arguments,
        "ffs trash restore /.trash/0/20261123T084242.012345Z-1f3a9c2e --to /data/old",
    ),
    "empty": Action(empty, add_empty_arguments, "ffs trash empty --older-than 1d"),
}
