"""`ffs cat`: files' bytes to stdout."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ffs.cli.action import Action
from ffs.cli.remote import STANDARD, for_each
from ffs.cli.standard import stream, to_standard_output
from ffs.errors import FileExpectedError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare cat's arguments."""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="- for standard input")


def run(args: argparse.Namespace) -> int:
    """Stream files to stdout, one after the other, through one buffer of a few MiB."""

    def one(fs: Any, path: str) -> None:
        if fs.isdir(path):
            raise FileExpectedError("is a directory", path=path)
        to_standard_output(fs, path, args)

    status = 0
    for text in args.paths:
        if text == STANDARD:
            stream(sys.stdin.buffer, sys.stdout.buffer)
        else:
            status = for_each([text], args, one) or status
    sys.stdout.buffer.flush()
    return status


ACTIONS = {
    "": Action(run, add_arguments, "ffs cat /data/part-0 /data/part-1 | sha256sum", reports=False)
}
