"""`ffs up`: a whole one-machine cluster in the foreground (see server/up.py)."""

from __future__ import annotations

import argparse

from ffs.cli.action import Action
from ffs.server import up


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare up's arguments, as the supervisor does."""
    up.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Start a cluster, print `ready ffs://HOST:PORT key=FILE`, run until told to stop."""
    return up.run(up.options_from(args))


ACTIONS = {
    "": Action(
        run, add_arguments, "ffs up --data /tmp/ffs --port 7411", cluster=False, reports=False
    )
}
