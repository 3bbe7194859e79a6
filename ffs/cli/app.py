"""Parse the command line, run one subcommand, turn whatever goes wrong into one line and a status.

Next hop: the subcommand's module (ffs/cli/ls.py, ...), which has `add_arguments` and `run`. Only
the module of the command that was typed is imported.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import ffs
from ffs.cli import output
from ffs.errors import ConfigError, FFSError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE


COMMANDS = {
    "up": "run a whole cluster on this machine",
    "ls": "list directories",
    "cp": "copy files in, out and within",
    "cat": "write files to stdout",
    "rm": "remove files, with -r directories",
    "mv": "rename files and directories",
    "mkdir": "make directories",
    "stat": "show attributes",
    "status": "show nodes, chains and totals",
    "config": "show the configuration in force",
    "version": "show versions and what this machine can use",
}
"""Name -> what it does; the module ffs.cli.NAME does it."""

OWN_OPTIONS = ("up",)
"""Commands that start servers: --config and --set are passed on, there is no cluster to find."""


SHORT = ("ls", "rm", "mv", "mkdir", "stat", "status")
"""Commands that take long only when the cluster does not answer."""


def build_parser(chosen: str) -> argparse.ArgumentParser:
    """Return the parser of the command line, complete for the command `chosen`."""
    parser = argparse.ArgumentParser(
        prog="ffs", description="FFS: a dataset file system for training.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"ffs {ffs.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        if name == chosen:
            _add_command(commands, name, summary)
        else:
            commands.add_parser(name, help=summary)
    return parser


def _add_command(commands: Any, name: str, summary: str) -> None:
    module = importlib.import_module(f"ffs.cli.{name}")
    debug = argparse.ArgumentParser(add_help=False)
    debug.add_argument("--debug", action="store_true", help="show tracebacks")
    parents = [debug] if name in OWN_OPTIONS else [_shared_options(), debug]
    command = commands.add_parser(
        name, help=summary, description=module.run.__doc__, parents=parents, allow_abbrev=False
    )
    module.add_arguments(command)
    command.set_defaults(run=module.run)


def _shared_options() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    group = shared.add_argument_group("everywhere")
    group.add_argument("--url", help="ffs://HOST:PORT of the cluster (else $FFS_URL)")
    group.add_argument("--key-file", help="the cluster key (else $FFS_KEY_FILE)")
    group.add_argument("--config", dest="config_file", help="a configuration file (TOML)")
    group.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="one configuration key"
    )
    group.add_argument("--json", action="store_true", help="report as JSON on stdout")
    return shared


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (sys.argv by default) and return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        args = build_parser(words[0] if words else "").parse_args(words)
    except SystemExit as stop:  # argparse has said what is wrong, or printed the help
        return stop.code if isinstance(stop.code, int) else EXIT_USAGE
    try:
        with output.waiting_notice(args.command) if args.command in SHORT else nullcontext():
            code: int = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        return _broken_pipe()
    except KeyboardInterrupt:
        return _failed(args, "interrupted", EXIT_INTERRUPTED)
    except ConfigError as error:
        return _failed(args, str(error), EXIT_USAGE)
    except (FFSError, OSError) as error:
        return _failed(args, describe(error), EXIT_FAILED)
    return code


def describe(error: BaseException) -> str:
    """One line that says what failed, on what, and what to do."""
    if isinstance(error, FFSError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f" [path={error.filename}]" if error.filename is not None else ""
        return f"{error.strerror.lower()}{where}"
    return f"{type(error).__name__}: {error}"


def _failed(args: argparse.Namespace, message: str, code: int) -> int:
    if args.debug:
        traceback.print_exc()
    sys.stderr.write(f"ffs {args.command}: {' '.join(message.split())}\n")
    return code


def _broken_pipe() -> int:
    """The reader of our output went away: end quietly, with nothing left to flush at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_BROKEN_PIPE
