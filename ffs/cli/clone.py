"""`ffs clone`: a directory by reference."""

from __future__ import annotations

import argparse

from ffs.cli import output
from ffs.cli.action import Action
from ffs.cli.outcome import EXIT_DONE
from ffs.cli.remote import literal, same_cluster
from ffs.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare clone's arguments."""
    parser.add_argument("source", metavar="SOURCE", help="a directory, or a snapshot of one")
    parser.add_argument("target", metavar="TARGET", help="a name that is free")


def run(args: argparse.Namespace) -> int:
    """Make a tree of its own that is what a directory is now: no byte moves.

    Source and clone are changed each for itself from then on. Missing parents of TARGET are made.
    """
    fs, source = literal(args.source, args)
    other, target = literal(args.target, args)
    if not same_cluster(fs, other):
        raise ConfigError("a clone is in its source's cluster", hint="`ffs cp -r` copies bytes")
    made = fs.clone(source, target)
    if args.json:
        output.print_json({"source": source, "target": target, **made})
    return EXIT_DONE


ACTIONS = {"": Action(run, add_arguments, "ffs clone /data/train/.snapshots/v1 /data/try")}
