"""`ffs ln`: one more name for a file, or a symbolic link."""

from __future__ import annotations

import argparse

from ffs.cli import entries, output
from ffs.cli.action import Action
from ffs.cli.outcome import EXIT_DONE
from ffs.cli.remote import file_system, into_directory, is_remote, literal, parse, same_cluster
from ffs.errors import InvalidError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ln's arguments."""
    parser.add_argument("source", metavar="SOURCE", help="with -s: what the link holds, as it is")
    parser.add_argument("target", metavar="TARGET", help="the new name, or a directory for it")
    parser.add_argument("-s", "--symbolic", action="store_true", help="make a symbolic link")


def run(args: argparse.Namespace) -> int:
    """Give the file SOURCE the further name TARGET, or with -s make a link that leads to SOURCE.

    What a symbolic link holds need not exist; if it does not start with / it counts from the
    directory that the link is in.
    """
    target = parse(args.target, args)
    fs = file_system(target, args)
    path = target.path
    if into_directory(args.target, fs.isdir(path), many=False):
        path = f"{path.rstrip('/')}/{entries.last_name(args.source)}"
    if args.symbolic:
        text = parse(args.source, args).path if is_remote(args.source) else args.source
        fs.symlink(text, path)
        made = {"link": path, "destination": text}
    else:
        source_fs, source = literal(args.source, args)
        if not same_cluster(source_fs, fs):
            raise InvalidError("a name stays within one cluster", hint="use ffs cp", path=source)
        fs.link(source, path)
        made = {"link": path, "source": source}
    if args.json:
        output.print_json(made)
    return EXIT_DONE


ACTIONS = {"": Action(run, add_arguments, "ffs ln -s v2/train /data/current")}
