"""`ffs ls`: the entries of directories."""

from __future__ import annotations

import argparse
from typing import Any

from ffs.cli import entries, output
from ffs.cli.action import Action
from ffs.cli.remote import for_each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ls's arguments."""
    parser.add_argument("paths", nargs="*", default=["/"], metavar="PATH", help="/ if left out")
    parser.add_argument("-l", "--long", action="store_true", help="with mode, size and time")
    parser.add_argument("-h", "--human", action="store_true", help="sizes as 1.5 MiB")
    parser.add_argument("-d", "--directory", action="store_true", help="directories themselves")
    parser.add_argument("-R", "--recursive", action="store_true", help="and all below them")


def run(args: argparse.Namespace) -> int:
    """List directories in name order; a file is listed as itself.

    A name ends in / for a directory and in @ for a symbolic link. Patterns (*, ?, [a-z], **) are
    expanded in the cluster: quote them.
    """
    listing = _Listing(args)
    status = for_each(args.paths, args, listing.path)
    if args.json:
        output.print_json([entries.as_json(info) for info in listing.found])
    return status


class _Listing:
    """Prints as it goes, or gathers for --json."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.found: list[dict[str, Any]] = []
        self._args = args
        self._headed = len(args.paths) > 1 or args.recursive
        self._sections = 0

    def path(self, fs: Any, path: str) -> None:
        """List one path."""
        if self._args.directory or not fs.isdir(path):
            self._show([entries.own(fs, path)])
            return
        inside = sorted(fs.ls(path, detail=True), key=_name)
        if self._headed and not self._args.json:
            output.print_line(f"{chr(10) if self._sections else ''}{output.shown(path)}:")
        self._sections += 1
        self._show(inside)
        if self._args.recursive:
            for info in inside:
                if entries.kind(info) == "directory":
                    self.path(fs, _name(info))

    def _show(self, infos: list[dict[str, Any]]) -> None:
        if self._args.json:
            self.found += infos
            return
        for info in infos:
            long = entries.long(info, human=self._args.human) if self._args.long else ""
            output.print_line(long or entries.short(info))


def _name(info: dict[str, Any]) -> str:
    return str(info["name"])


ACTIONS = {"": Action(run, add_arguments, "ffs ls -lh '/data/*.tar'")}
