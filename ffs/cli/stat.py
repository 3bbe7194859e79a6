"""`ffs stat`: everything known about paths."""

from __future__ import annotations

import argparse
from typing import Any

from ffs.cli import entries, output
from ffs.cli.action import Action
from ffs.cli.remote import for_each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare stat's arguments."""
    parser.add_argument("paths", nargs="+", metavar="PATH")
    parser.add_argument(
        "-L", "--follow", action="store_true", help="of a symbolic link: what it leads to"
    )


def run(args: argparse.Namespace) -> int:
    """Show the attributes of files, directories and symbolic links."""
    found: list[dict[str, Any]] = []

    def one(fs: Any, path: str) -> None:
        meant = fs.realpath(path, strict=True) if args.follow else path
        info = entries.as_json(entries.own(fs, meant))
        found.append(info)
        if not args.json:
            _print(info)

    status = for_each(args.paths, args, one)
    if args.json:
        output.print_json(found)
    return status


def _print(info: dict[str, Any]) -> None:
    output.print_line(output.shown(info["name"]))
    rows = {
        "type": info["type"],
        "size": f"{info['size']} ({output.human_bytes(int(info['size']))})",
        "mode": f"{int(info['mode']) & 0o7777:04o} ({entries.mode_text(info)})",
        "owner": f"{info['uid']}:{info['gid']}",
        "links": info["nlink"],
        "inode": info["ino"],
        "version": info["version"],
        "modified": entries.time_text(info["mtime"]),
        "changed": entries.time_text(info["created"]),
    }
    if "destination" in info:
        rows["leads to"] = output.shown(info["destination"])
    for key, value in rows.items():
        output.print_line(f"  {key:<9} {value}")


ACTIONS = {"": Action(run, add_arguments, "ffs stat /data/train.bin")}
