"""`ffs meta`: one metadata server (see server/meta/__main__.py)."""

from __future__ import annotations

import argparse

from ffs.cli.action import Action


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the server takes."""
    from ffs.server.meta import __main__ as server

    server.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run one metadata server until it is told to stop; print `ready HOST:PORT` once it serves.

    `ffs meta backup` and `ffs meta restore` deal with its database.
    """
    from ffs.server.meta import __main__ as server

    return server.serve(args)


EXAMPLE = "ffs meta --data /var/lib/ffs --key-file cluster.key --host node1 --port 7411"
ACTIONS = {"": Action(run, add_arguments, EXAMPLE, cluster=False, reports=False)}
