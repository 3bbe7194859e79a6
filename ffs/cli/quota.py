"""`ffs quota get|set|rm`: how many bytes and files there may be below a directory."""

from __future__ import annotations

import argparse
from typing import Any

from ffs.cli import output
from ffs.cli.action import Action
from ffs.cli.remote import for_each
from ffs.cli.units import count, size_bytes
from ffs.errors import ConfigError


def add_get_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `quota get` takes."""
    parser.add_argument("paths", nargs="+", metavar="PATH")


def get(args: argparse.Namespace) -> int:
    """Show the quotas that hold at each path, the nearest first, and what they have left.

    Each directory above with a quota counts. Files are whatever has a name below it, directories
    and links among them; a file with several names counts once.
    """
    found: list[dict[str, Any]] = []

    def one(fs: Any, path: str) -> None:
        found.append({"path": path, "quotas": fs.quotas(path)})

    return _report(for_each(args.paths, args, one), found, args)


def add_set_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `quota set` takes."""
    parser.add_argument("paths", nargs="+", metavar="DIRECTORY")
    parser.add_argument("--bytes", type=size_bytes, metavar="SIZE", help="file sizes added up: 10G")
    parser.add_argument("--files", type=count, metavar="N", help="files, directories and links")


def set_(args: argparse.Namespace) -> int:
    """Bound what is below a directory, instead of what was said before.

    What is there already stays, if it is more. Copies by reference take their size, as files do.
    """
    if args.bytes is None and args.files is None:
        raise ConfigError("say --bytes, --files, or both", hint="`ffs quota rm` takes bounds away")
    found: list[dict[str, Any]] = []

    def one(fs: Any, path: str) -> None:
        set_ = fs.set_quota(path, bytes_max=args.bytes, files_max=args.files)
        found.append({"path": path, "quotas": set_})

    return _report(for_each(args.paths, args, one), found, args)


def add_rm_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `quota rm` takes."""
    parser.add_argument("paths", nargs="+", metavar="DIRECTORY")


def rm(args: argparse.Namespace) -> int:
    """Take a directory's own quota away; those above it go on counting."""
    found: list[dict[str, Any]] = []

    def one(fs: Any, path: str) -> None:
        found.append({"path": path, "quotas": fs.set_quota(path)})

    status = for_each(args.paths, args, one)
    return _report(status, found, args) if args.json else status


def print_quotas(quotas: list[dict[str, Any]], *, human: bool) -> None:
    """Print one line for each quota."""
    rows = []
    for quota in quotas:
        used, most = quota["bytes_used"], quota["bytes_max"]
        rows.append(
            (
                output.size_text(used, human=human),
                "any" if most is None else output.size_text(most, human=human),
                _share(used, most),
                quota["files_used"],
                "any" if quota["files_max"] is None else quota["files_max"],
                _share(quota["files_used"], quota["files_max"]),
                output.shown(quota["path"]),
            )
        )
    output.print_table(("bytes", "of", "use", "files", "of", "use", "quota of"), rows)


def _share(used: int, most: int | None) -> str:
    return "-" if most is None else f"{100 * used / max(1, most):.0f}%"


def _report(status: int, found: list[dict[str, Any]], args: argparse.Namespace) -> int:
    if args.json:
        output.print_json(found)
        return status
    quotas = {quota["path"]: quota for one in found for quota in one["quotas"]}
    if quotas:
        print_quotas(list(quotas.values()), human=True)
    return status


ACTIONS = {
    "get": Action(get, add_get_arguments, "ffs quota get /data/team"),
    "set": Action(set_, add_set_arguments, "ffs quota set /data/team --bytes 500G --files 1000000"),
    "rm": Action(rm, add_rm_arguments, "ffs quota rm /data/team"),
}
