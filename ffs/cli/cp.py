"""`ffs cp`: between the local disk and a cluster, or within a cluster by reference.

Within one cluster no byte moves: the copy shares the blobs of its source.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
from dataclasses import dataclass, field

from ffs.cli import output
from ffs.cli.action import Action
from ffs.cli.outcome import complain
from ffs.cli.progress import Progress, progress_bar
from ffs.cli.remote import (
    STANDARD,
    Failures,
    expand,
    file_system,
    into_directory,
    is_remote,
    parse,
    same_cluster,
)
from ffs.cli.sides import Found, Kind, Links, LocalSide, RemoteSide, Side
from ffs.cli.standard import copy_standard
from ffs.cli.transfer import (
    Item,
    download,
    keep_attributes,
    refer,
    relay,
    upload,
)
from ffs.errors import ConfigError, FileExpectedError

JOBS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare cp's arguments."""
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="- for standard input")
    parser.add_argument("target", metavar="TARGET", help="- for standard output")
    parser.add_argument(
        "-r", "--recursive", action="store_true", help="directories with all in them"
    )
    parser.add_argument(
        "-p", "--preserve", action="store_true", help="copies get their source's mode and time"
    )
    parser.add_argument(
        "-a", "--archive", action="store_true", help="-r -p, and symbolic links stay such"
    )
    parser.add_argument(
        "-n", "--no-clobber", action="store_true", help="leave targets that exist as they are"
    )
    parser.add_argument(
        "-T", "--exactly", action="store_true", help="TARGET is the copy, not a directory for it"
    )
    parser.add_argument(
        "-j", "--jobs", type=_jobs, default=JOBS, metavar="N", help=f"at a time (default {JOBS})"
    )


def _jobs(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError("a number from 1 to 64 is needed")
    return int(text)


def copy(args: argparse.Namespace) -> int:
    """Copy SOURCE to TARGET, or every SOURCE into the directory TARGET.

    A path that starts with ffs:// is in a cluster, any other is local. Targets that exist are
    replaced, each at once: a file is there whole, as it was or as it will be. So `cp -rnT` takes up
    a copy that was interrupted. Symbolic links are followed unless -a is given. Within a cluster
    copies share their source's blobs: no byte moves.
    """
    if STANDARD in (*args.sources, args.target):
        return copy_standard(args)
    if not is_remote(args.target) and not all(map(is_remote, args.sources)):
        raise ConfigError(
            "source and target are both local", hint="write a path in the cluster as ffs:///path"
        )
    started = time.monotonic()
    target = _target(args)
    done = _Done()
    sources: list[Side] = []
    for text in args.sources:
        with done.failures.told(args):
            sources += _sources(text, args)
    if args.exactly and (len(args.sources) > 1 or len(sources) > 1):
        raise ConfigError("-T goes with one source", hint="several go into a directory")
    many = len(args.sources) > 1 or len(sources) > 1
    inside = not args.exactly and into_directory(args.target, target.isdir(), many)
    for source in sources:
        with done.failures.told(args):
            _copy_one(source, target.child(source.name) if inside else target, args, done)
    if args.json:
        report = {"files": done.files, "bytes": done.bytes, "skipped": done.skipped}
        report["failures"] = done.failures.count
        output.print_json(report | {"seconds": round(time.monotonic() - started, 3)})
    return done.failures.status


@dataclass(slots=True)
class _Done:
    """What was copied so far, and what could not be."""

    files: int = 0
    bytes: int = 0
    skipped: int = 0
    failures: Failures = field(default_factory=Failures)


def _target(args: argparse.Namespace) -> Side:
    if not is_remote(args.target):
        return LocalSide(args.target)
    remote = parse(args.target, args)
    return RemoteSide(file_system(remote, args), remote.path)


def _sources(text: str, args: argparse.Namespace) -> list[Side]:
    if not is_remote(text):
        return [LocalSide(text)]
    return [RemoteSide(fs, path) for fs, path in expand(text, args)]


def _copy_one(source: Side, goal: Side, args: argparse.Namespace, done: _Done) -> None:
    def left_out(message: str) -> None:
        done.failures.count += 1
        complain(args, message)

    links = Links.KEEP if args.archive else Links.FOLLOW
    recursive = args.recursive or args.archive
    # Without -r what is first is all there may be: a tree is not walked to be refused.
    found = list(itertools.islice(source.walk(links, left_out), None if recursive else 1))
    plan = plan_copy(source, goal, found, recursive=recursive)
    if args.no_clobber:
        done.skipped += leave_out_existing(plan, goal)
    goal.makedirs(goal.join(one.relative) for one in plan.directories)
    for link in plan.links:
        goal.symlink(link.leads_to, goal.join(link.relative))
    size = sum(item.size for item in plan.items)
    preserve = args.preserve or args.archive
    with progress_bar(args, source.name, size) as progress:
        transfer(source, goal, plan.items, args.jobs, progress)
        if preserve:
            files = [(goal.join(one.relative), one) for one in plan.files]
            asyncio.run(keep_attributes(goal, files, args.jobs))
            # Last, and from below: what is made in a directory changes its time.
            goal.preserve([(goal.join(d.relative), d) for d in reversed(plan.directories)])
    done.files += len(plan.items) + len(plan.links)
    done.bytes += size


# --- planning and doing ---------------------------------------------------------------------------


@dataclass(slots=True)
class Plan:
    """What one source turns into: directories to make first, then links and files."""

    directories: list[Found] = field(default_factory=list)
    links: list[Found] = field(default_factory=list)
    files: list[Found] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    """The files again, with their paths."""


def plan_copy(source: Side, goal: Side, found: list[Found], *, recursive: bool) -> Plan:
    """Sort what a source holds, before anything is changed."""
    if found and found[0].kind is Kind.DIRECTORY and not recursive:
        raise FileExpectedError("is a directory", hint="add -r", path=source.path)
    plan = Plan()
    lists = {Kind.DIRECTORY: plan.directories, Kind.LINK: plan.links, Kind.FILE: plan.files}
    for one in found:
        lists[one.kind].append(one)
    plan.items = [Item(source.join(f.relative), goal.join(f.relative), f.size) for f in plan.files]
    return plan


def leave_out_existing(plan: Plan, goal: Side) -> int:
    """Take files and links whose targets exist out of a plan; return how many there were."""
    wanted = [goal.join(one.relative) for one in (*plan.files, *plan.links)]
    there = goal.existing(wanted)
    plan.files = [one for one in plan.files if goal.join(one.relative) not in there]
    plan.links = [one for one in plan.links if goal.join(one.relative) not in there]
    plan.items = [item for item in plan.items if item.target not in there]
    return len(there)


def transfer(source: Side, goal: Side, items: list[Item], jobs: int, progress: Progress) -> None:
    """Copy files by the way that suits the two sides."""
    if isinstance(source, LocalSide):
        assert isinstance(goal, RemoteSide)
        asyncio.run(upload(goal.fs, items, jobs, progress))
    elif isinstance(goal, LocalSide):
        asyncio.run(download(source.fs, items, jobs, progress))
    elif same_cluster(source.fs, goal.fs):
        asyncio.run(refer(goal, items, jobs, progress))
    else:
        asyncio.run(relay(source.fs, goal.fs, items, jobs, progress))


ACTIONS = {"": Action(copy, add_arguments, "ffs cp -r ./train ffs:///data/train")}
