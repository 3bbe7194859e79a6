"""`ffs mv`: rename within a cluster, atomically."""

from __future__ import annotations

import argparse
from typing import Any

from ffs.cli import entries, output
from ffs.cli.action import Action
from ffs.cli.remote import file_system, for_each, into_directory, parse, same_cluster
from ffs.errors import InvalidError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare mv's arguments."""
    parser.add_argument("sources", nargs="+", metavar="SOURCE")
    parser.add_argument("target", metavar="TARGET")


def run(args: argparse.Namespace) -> int:
    """Rename SOURCE to TARGET, or move every SOURCE into the directory TARGET.

    A file at the target is replaced. Each rename is atomic: others see the old name or the new one.
    """
    target = parse(args.target, args)
    fs = file_system(target, args)
    inside = into_directory(args.target, fs.isdir(target.path), len(args.sources) > 1)
    moved: list[dict[str, str]] = []

    def one(source_fs: Any, source: str) -> None:
        if not same_cluster(source_fs, fs):
            raise InvalidError(
                "a rename stays within one cluster", hint="use ffs cp, then ffs rm", path=source
            )
        name = entries.last_name(source)
        goal = f"{target.path.rstrip('/')}/{name}" if inside else target.path
        fs.core.meta.rename(source, goal)
        moved.append({"source": source, "target": goal})

    status = for_each(args.sources, args, one)
    if args.json:
        output.print_json({"moved": moved})
    return status


ACTIONS = {"": Action(run, add_arguments, "ffs mv /data/train.tmp /data/train")}
