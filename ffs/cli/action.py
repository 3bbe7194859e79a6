"""What a command is to ffs/cli/app.py: what it takes, what it does, how its help ends."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Action:
    """One command, or one second word of a command (`ffs pin add`).

    `cluster`: it talks to a cluster, so it takes the options that find one; servers take their own.
    `reports`: it has something to say as JSON.
    """

    run: Callable[[argparse.Namespace], int]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    example: str
    cluster: bool = True
    reports: bool = True
