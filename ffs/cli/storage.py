"""`ffs storage`: one storage daemon (see server/storage/__main__.py)."""

from __future__ import annotations

import argparse

from ffs.cli.action import Action


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the daemon takes."""
    from ffs.server.storage import __main__ as daemon

    daemon.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run one storage daemon until it is told to stop; print `ready HOST:PORT` once it serves.

    Each --target is a directory on a disk of its own. The daemon registers with the metadata
    server, so it may be on any machine that reaches it; clients connect to --host and --port, or
    to storage.advertise_host behind NAT.
    """
    from ffs.server.storage import __main__ as daemon

    return daemon.serve(args)


EXAMPLE = "ffs storage --meta node1:7411 --key-file cluster.key --host node2 --target /disk1/ffs"
ACTIONS = {"": Action(run, add_arguments, EXAMPLE, cluster=False, reports=False)}
