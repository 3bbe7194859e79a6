"""`ffs df`: how full the cluster is."""

from __future__ import annotations

import argparse
from typing import Any

from ffs.cli import output
from ffs.cli.action import Action
from ffs.cli.quota import print_quotas
from ffs.cli.remote import cluster, file_system, for_each, parse

KEYS = ("capacity_bytes", "used_bytes", "available_bytes", "inodes", "replicas")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare df's arguments."""
    parser.add_argument("paths", nargs="*", metavar="PATH", help="the quotas that hold there too")
    parser.add_argument("-h", "--human", action="store_true", help="sizes as 1.5 MiB")


def run(args: argparse.Namespace) -> int:
    """Show what the disks of the cluster hold and have room for, all replicas counted.

    A disk counts once however many targets it has; what others keep on it is used as well. A file
    takes its size times the replicas. With paths, what quotas leave there is shown first: sizes of
    files, without replicas.
    """
    quotas: dict[str, dict[str, Any]] = {}

    def one(fs: Any, path: str) -> None:
        quotas.update((quota["path"], quota) for quota in fs.quotas(path))

    status = for_each(args.paths, args, one)
    fs = file_system(parse(args.paths[0], args), args) if args.paths else cluster(args)
    space = fs.statfs()
    report = {key: space[key] for key in KEYS}
    if args.json:
        with_quotas = {"quotas": list(quotas.values())} if args.paths else {}
        output.print_json({**report, **with_quotas})
        return status
    if quotas:
        print_quotas(list(quotas.values()), human=args.human)
    capacity, used, available = (
        output.size_text(report[key], human=args.human) for key in KEYS[:3]
    )
    share = f"{100 * report['used_bytes'] / max(1, report['capacity_bytes']):.0f}%"
    output.print_table(
        ("capacity", "used", "available", "use", "inodes", "replicas"),
        [(capacity, used, available, share, report["inodes"], report["replicas"])],
    )
    return status


ACTIONS = {"": Action(run, add_arguments, "ffs df -h")}
