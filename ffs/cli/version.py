"""`ffs version`: what is installed and what this machine lets it use."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import platform

import ffs
from ffs.cli import output
from ffs.cli.action import Action


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Version has no arguments of its own."""


def run(args: argparse.Namespace) -> int:
    """Show the version, the interpreter, and which native parts are there."""
    facts = {
        "ffs": ffs.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}",
        "client_module": _installed("ffs._reader"),
        "server_module": _installed("ffs._storage"),
        "crc32c": _crc(),
    }
    if args.json:
        output.print_json(facts)
    else:
        for key, value in facts.items():
            output.print_line(f"{key:<14} {value}")
    return 0


def _crc() -> str:
    try:
        return str(importlib.import_module("ffs._reader").crc_implementation())
    except ImportError:
        return "none (not built)"


def _installed(module: str) -> str:
    return "yes" if importlib.util.find_spec(module) is not None else "no (not built)"


ACTIONS = {"": Action(run, add_arguments, "ffs version --json", cluster=False)}
