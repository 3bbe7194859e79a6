"""`ffs cat`: files' bytes to stdout."""

from __future__ import annotations

import argparse
import sys

from ffs.cli.remote import file_system, parse

PIECE_BYTES = 4 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare cat's arguments."""
    parser.add_argument("paths", nargs="+", metavar="PATH")


def run(args: argparse.Namespace) -> int:
    """Stream files to stdout, one after the other, through one buffer of a few MiB."""
    buffer = memoryview(bytearray(PIECE_BYTES))
    for text in args.paths:
        remote = parse(text, args)
        with file_system(remote, args).open(remote.path, "rb") as file:
            while landed := file.readinto(buffer):
                sys.stdout.buffer.write(buffer[:landed])
    sys.stdout.buffer.flush()
    return 0
