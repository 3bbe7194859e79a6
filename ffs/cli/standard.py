"""Standard input and output as places to copy from and to: `ffs cp - PATH`, `ffs cp PATH -`."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any, Final

from ffs.cli import output
from ffs.cli.outcome import EXIT_DONE
from ffs.cli.progress import Progress, progress_bar, waiting_notice
from ffs.cli.remote import STANDARD, expand, file_system, is_remote, parse
from ffs.errors import ConfigError

PIECE_BYTES: Final = 4 << 20


def copy_standard(args: argparse.Namespace) -> int:
    """Copy with standard input as the source or standard output as the target."""
    if args.target == STANDARD:
        if args.json:
            raise ConfigError("--json and - both want standard output", hint="leave out --json")
        for text in args.sources:
            _need_remote(text)
            for fs, path in expand(text, args):
                to_standard_output(fs, path, args)
        sys.stdout.buffer.flush()
        return EXIT_DONE
    if args.sources != [STANDARD]:
        raise ConfigError("standard input (-) is one source, alone")
    _need_remote(args.target)
    return _from_standard_input(args)


def _need_remote(text: str) -> None:
    if not is_remote(text):
        raise ConfigError("- goes with a path in a cluster", hint="write it as ffs:///path")


def _from_standard_input(args: argparse.Namespace) -> int:
    remote = parse(args.target, args)
    fs = file_system(remote, args)
    if fs.isdir(remote.path) or args.target.endswith("/"):
        raise ConfigError("standard input has no name", hint=f"write {args.target}/NAME")
    report = {"files": 0, "bytes": 0, "skipped": 0, "failures": 0}
    started = time.monotonic()
    if args.no_clobber and fs.exists(remote.path):
        report["skipped"] = 1
    else:
        with (
            progress_bar(args, "standard input") as progress,
            fs.open(remote.path, "wb") as out,
        ):
            stream(sys.stdin.buffer, out, progress)
            report |= {"files": 1, "bytes": out.tell()}
    if args.json:
        output.print_json(report | {"seconds": round(time.monotonic() - started, 3)})
    return EXIT_DONE


def to_standard_output(fs: Any, path: str, args: argparse.Namespace) -> None:
    """Write a file of a cluster to standard output; tell on a terminal if a piece takes long."""
    buffer = memoryview(bytearray(PIECE_BYTES))
    with fs.open(path, "rb") as source:
        landed = -1
        while landed:
            with waiting_notice(args, f"the storage daemons of {path}"):
                landed = source.readinto(buffer)
            sys.stdout.buffer.write(buffer[:landed])


def stream(source: Any, target: Any, progress: Progress | None = None) -> None:
    """Copy from one open file to another through one buffer of a few MiB."""
    buffer = memoryview(bytearray(PIECE_BYTES))
    while landed := source.readinto(buffer):
        target.write(buffer[:landed])
        if progress is not None:
            progress.advance(landed)
