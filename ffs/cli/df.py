"""`ffs df`: how full the cluster is."""

from __future__ import annotations

import argparse

from ffs.cli import output
from ffs.cli.action import Action
from ffs.cli.outcome import EXIT_DONE
from ffs.cli.remote import cluster

KEYS = ("capacity_bytes", "used_bytes", "available_bytes", "inodes", "replicas")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare df's arguments."""
    parser.add_argument("-h", "--human", action="store_true", help="sizes as 1.5 MiB")


def run(args: argparse.Namespace) -> int:
    """Show what the disks of the cluster hold and have room for, all replicas counted.

    A disk counts once however many targets it has; what others keep on it is used as well. A file
    takes its size times the replicas.
    """
    space = cluster(args).statfs()
    report = {key: space[key] for key in KEYS}
    if args.json:
        output.print_json(report)
        return EXIT_DONE
    capacity, used, available = (
        output.size_text(report[key], human=args.human) for key in KEYS[:3]
    )
    share = f"{100 * report['used_bytes'] / max(1, report['capacity_bytes']):.0f}%"
    output.print_table(
        ("capacity", "used", "available", "use", "inodes", "replicas"),
        [(capacity, used, available, share, report["inodes"], report["replicas"])],
    )
    return EXIT_DONE


ACTIONS = {"": Action(run, add_arguments, "ffs df -h")}
