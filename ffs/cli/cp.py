"""`ffs cp`: between the local disk and a cluster, or within a cluster by reference.

Within one cluster no byte moves: the copy shares the blobs of its source.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import posixpath
import stat as stat_bits
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ffs.cli import output
from ffs.cli.remote import Remote, file_system, into_directory, is_remote, parse
from ffs.cli.transfer import Item, download, relay, upload
from ffs.errors import FileExpectedError, InvalidError

JOBS = 4


@dataclass(slots=True)
class Plan:
    """What one source turns into: directories to make first, then files."""

    directories: list[str] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    skipped: int = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare cp's arguments."""
    parser.add_argument("sources", nargs="+", metavar="SOURCE")
    parser.add_argument("target", metavar="TARGET")
    parser.add_argument(
        "-r", "--recursive", action="store_true", help="directories with all in them"
    )
    parser.add_argument(
        "-n", "--no-clobber", action="store_true", help="leave targets that exist as they are"
    )
    parser.add_argument(
        "-j", "--jobs", type=_jobs, default=JOBS, help=f"at a time (default {JOBS})"
    )


def _jobs(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError("a number from 1 to 64 is needed")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Copy SOURCE to TARGET, or every SOURCE into the directory TARGET.

    A path that starts with ffs:// is in a cluster, any other is local.
    """
    for text in args.sources:
        if not is_remote(text) and not is_remote(args.target):
            raise InvalidError(
                "source and target are both local",
                hint="write a path in the cluster as ffs:///path",
                path=text,
            )
    started = time.monotonic()
    target = _side(args.target, args)
    inside = into_directory(args.target, target.isdir(), len(args.sources) > 1)
    files = total = skipped = 0
    for text in args.sources:
        source = _side(text, args)
        goal = target.child(source.name) if inside else target
        plan = plan_copy(source, goal, recursive=args.recursive, clobber=not args.no_clobber)
        goal.makedirs(plan.directories)
        size = sum(item.size for item in plan.items)
        with output.progress_bar(source.name, size) as progress:
            transfer(source, goal, plan.items, args.jobs, progress)
        files, total, skipped = files + len(plan.items), total + size, skipped + plan.skipped
    if args.json:
        seconds = round(time.monotonic() - started, 3)
        output.print_json({"files": files, "bytes": total, "skipped": skipped, "seconds": seconds})
    return 0


# --- the two kinds of sides -----------------------------------------------------------------------


class LocalSide:
    """A path on the local disk."""

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """The last component."""
        return os.path.basename(os.path.abspath(self.path))

    def child(self, name: str) -> LocalSide:
        """A name in this directory."""
        return LocalSide(os.path.join(self.path, name))

    def isdir(self) -> bool:
        """Whether it is a directory."""
        return os.path.isdir(self.path)

    def exists(self, path: str) -> bool:
        """Whether a path of this side exists."""
        return os.path.lexists(path)

    def makedirs(self, paths: list[str]) -> None:
        """Make directories that may exist already."""
        for path in paths:
            os.makedirs(path, exist_ok=True)

    def walk(self) -> Iterator[tuple[str, int | None]]:
        """(path relative to this one, size; None for a directory), parents first."""
        if not self.isdir():
            yield "", os.stat(self.path).st_size
            return
        for top, directories, names in os.walk(self.path):
            directories.sort()
            relative = os.path.relpath(top, self.path)
            yield ("" if relative == "." else relative), None
            for name in sorted(names):
                status = _regular(os.path.join(top, name))
                if status is not None:
                    yield os.path.normpath(os.path.join(relative, name)), status.st_size

    def join(self, relative: str) -> str:
        """The full path of a relative one."""
        return os.path.join(self.path, relative) if relative else self.path


def _regular(path: str) -> os.stat_result | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        sys.stderr.write(f"ffs cp: left out, a dangling link: {path}\n")
        return None
    if not stat_bits.S_ISREG(status.st_mode):
        sys.stderr.write(f"ffs cp: left out, not a regular file: {path}\n")
        return None
    return status


class RemoteSide:
    """A path in a cluster."""

    def __init__(self, fs: Any, remote: Remote) -> None:
        self.fs = fs
        self.remote = remote
        self.path = remote.path.rstrip("/") or "/"

    @property
    def name(self) -> str:
        """The last component."""
        return posixpath.basename(self.path)

    def child(self, name: str) -> RemoteSide:
        """A name in this directory."""
        return RemoteSide(self.fs, Remote(self.remote.url, posixpath.join(self.path, name)))

    def isdir(self) -> bool:
        """Whether it is a directory."""
        return bool(self.fs.isdir(self.path))

    def exists(self, path: str) -> bool:
        """Whether a path of this side exists."""
        return bool(self.fs.exists(path))

    def makedirs(self, paths: list[str]) -> None:
        """Make directories that may exist already."""
        for path in paths:
            self.fs.makedirs(path, exist_ok=True)

    def walk(self) -> Iterator[tuple[str, int | None]]:
        """(path relative to this one, size; None for a directory), parents first."""
        info = self.fs.info(self.path)
        if info["type"] != "directory":
            yield "", int(info["size"])
            return
        yield "", None
        waiting = [self.path]
        while waiting:
            for entry in sorted(self.fs.ls(waiting.pop(), detail=True), key=lambda e: e["name"]):
                directory = entry["type"] == "directory"
                yield (
                    posixpath.relpath(entry["name"], self.path),
                    None if directory else entry["size"],
                )
                if directory:
                    waiting.append(entry["name"])

    def join(self, relative: str) -> str:
        """The full path of a relative one."""
        return posixpath.join(self.path, relative) if relative else self.path


Side = LocalSide | RemoteSide


def _side(text: str, args: argparse.Namespace) -> Side:
    if not is_remote(text):
        return LocalSide(text)
    remote = parse(text, args)
    return RemoteSide(file_system(remote, args), remote)


# --- planning and doing ---------------------------------------------------------------------------


def plan_copy(source: Side, goal: Side, *, recursive: bool, clobber: bool = True) -> Plan:
    """List what copying `source` as `goal` means, before anything is changed."""
    plan = Plan()
    found = list(source.walk())
    if found[0][1] is None and not recursive:
        raise FileExpectedError("is a directory", hint="add -r", path=source.path)
    for relative, size in found:
        target = goal.join(relative)
        if size is None:
            plan.directories.append(target)
        elif clobber or not goal.exists(target):
            plan.items.append(Item(source.join(relative), target, size))
        else:
            plan.skipped += 1
    return plan


def transfer(
    source: Side, goal: Side, items: list[Item], jobs: int, progress: output.Progress
) -> None:
    """Copy files by the way that suits the two sides."""
    if isinstance(source, LocalSide) and isinstance(goal, RemoteSide):
        asyncio.run(upload(goal.fs, items, jobs, progress))
    elif isinstance(source, RemoteSide) and isinstance(goal, LocalSide):
        asyncio.run(download(source.fs, items, jobs, progress))
    else:
        assert isinstance(source, RemoteSide) and isinstance(goal, RemoteSide)
        if source.fs.fsid == goal.fs.fsid:
            for item in items:
                source.fs.cp_file(item.source, item.target)
                progress.advance(item.size)
        else:
            asyncio.run(relay(source.fs, goal.fs, items, jobs, progress))
