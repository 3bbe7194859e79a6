"""`ffs config`: the configuration that is in force, from all its sources."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from ffs.cli import output
from ffs.cli.action import Action
from ffs.cli.remote import overrides
from ffs.config import as_markdown, load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare config's arguments."""
    parser.add_argument("--explain", action="store_true", help="every option, its range and reason")


def run(args: argparse.Namespace) -> int:
    """Show every key as it stands after the file, the environment and --set."""
    if args.explain:
        output.print_line(as_markdown().rstrip())
        return 0
    tables = asdict(load(args.config_file, overrides=overrides(args)))
    if args.json:
        output.print_json(tables)
        return 0
    for table, values in tables.items():
        output.print_line(f"[{table}]")
        for key, value in values.items():
            output.print_line(f"{key} = {_toml(value)}")
        output.print_line("")
    return 0


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, int):
        return str(value)
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


ACTIONS = {"": Action(run, add_arguments, "ffs config --set client.stall_ms=40")}
