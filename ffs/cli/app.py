"""Find the typed command, run it, turn whatever goes wrong into one line and an exit status.

Next hop: the command's module (ffs/cli/ls.py, ...), whose `ACTIONS` say what there is to do; only
that of the command that was typed is imported. An action returns the exit status, and its docstring
is the help's text.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import io
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NoReturn

import ffs
from ffs.cli import remote
from ffs.cli.action import Action
from ffs.cli.outcome import (
    EXIT_BROKEN_PIPE,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    complain,
    describe,
)
from ffs.errors import ConfigError, FFSError

GROUPS: Final[Mapping[str, Mapping[str, str]]] = {
    "files": {
        "ls": "list directories",
        "tree": "draw directories with all below them",
        "stat": "show attributes",
        "cat": "write files to stdout",
        "cp": "copy files in, out and within",
        "mv": "rename files and directories",
        "ln": "give a file one more name, or make a symbolic link",
        "mkdir": "make directories",
        "rm": "remove files, with -r directories",
        "trash": "what rm removed: list it, restore it, remove it for good",
        "snapshot": "keep what a directory is now, under a name",
        "clone": "copy a directory by reference",
        "pack": "make records of other formats, and back",
        "du": "add up what lies below a path",
        "verify": "read files to the end and check every byte",
        "pin": "keep a dataset's content for a job",
        "layout": "how new files are cut and spread",
        "quota": "how much may lie below a directory",
        "trace": "read a file and show where the time goes",
    },
    "the cluster": {
        "up": "run a whole cluster on this machine",
        "meta": "run one metadata server; back its database up",
        "storage": "run one storage daemon",
        "status": "show nodes, targets, chains and totals",
        "top": "watch what the daemons do",
        "doctor": "find what is wrong with a host and the cluster",
        "cluster": "let the cluster grow, shrink and even out",
        "auth": "users, their tokens, and certificates",
        "df": "show how full the cluster is",
        "fsck": "find and mend what names and stored chunks disagree about",
    },
    "this program": {
        "config": "show the configuration in force",
        "version": "show versions and what this machine can use",
    },
}
COMMANDS: Final = {name: text for group in GROUPS.values() for name, text in group.items()}
"""Name -> what it does; the module ffs.cli.NAME does it. Its `ACTIONS` are by second word (`ffs pin
add`); an empty one stands for the command alone."""


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        where = " ".join(self.prog.split()[1:])
        self.exit(EXIT_USAGE, f"{self.prog}: {message} (see `ffs help {where}`)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (sys.argv by default) and return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    _open_standard_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names are bytes, and leave as they came
    try:
        with _quiet_library():
            code = _interpret(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return _broken_pipe()
    except OSError as error:  # of the help: a command has told its own
        _drop_output()
        sys.stderr.write(f"ffs: {describe(error)}\n")
        return EXIT_FAILED


@contextlib.contextmanager
def _quiet_library() -> Iterator[None]:
    """Keep what the client logs off stderr, where a command tells its errors.

    A command that runs a server sets up logging by itself; that is undone, since a program that
    calls `main` has a log of its own.
    """
    logger = logging.getLogger("ffs")
    before = logger.handlers[:], logger.propagate, logger.level
    logger.addHandler(logging.NullHandler())
    try:
        yield
    finally:
        logger.handlers[:], logger.propagate, logger.level = before


def _open_standard_streams() -> None:
    """Open those that whoever started us closed, so that using them fails as it would have.

    Why: else the next file or connection gets their number, and what we print.
    """
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # Read-only where one writes and the other way round: no silent success. The lowest
            # free number is this one; stderr is for words that nobody wants then.
            opened = os.open(os.devnull, (os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)[fd])
            if opened != fd:
                os.dup2(opened, fd)
                os.close(opened)
            setattr(sys, name, os.fdopen(fd, "w" if fd else "r", closefd=False))


def _interpret(words: list[str]) -> int:
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if not words or words[0].startswith("-"):
        return _without_command(words)
    try:
        name, action, rest = _find(words)
        args = _parser(name, action).parse_args(rest)
    except SystemExit as stop:  # argparse has said what is wrong, or printed the help
        return stop.code if isinstance(stop.code, int) else EXIT_USAGE
    args.command = name
    code = EXIT_INTERRUPTED
    try:
        code = _run(action, args)
    finally:
        # Whoever pressed Ctrl-C waits for the prompt, not for words with a server.
        remote.close_all(say_goodbye=code != EXIT_INTERRUPTED)
    return code


def _run(action: Action, args: argparse.Namespace) -> int:
    try:
        code = action.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        return _broken_pipe()
    except KeyboardInterrupt:
        return _failed(args, "interrupted", EXIT_INTERRUPTED)
    except ConfigError as error:
        return _failed(args, describe(error), EXIT_USAGE)
    except ModuleNotFoundError as error:
        message = f"this installation lacks {error.name} (pip install 'ffs[cli,server]')"
        return _failed(args, message, EXIT_FAILED)
    except (FFSError, OSError) as error:
        return _failed(args, describe(error), EXIT_FAILED)
    return code


def _failed(args: argparse.Namespace, message: str, code: int) -> int:
    complain(args, message)
    try:
        sys.stdout.flush()
    except OSError:  # what failed may be this, and has been told
        _drop_output()
    return code


def _broken_pipe() -> int:
    """The reader of our output went away: end quietly."""
    _drop_output()
    return EXIT_BROKEN_PIPE


def _drop_output() -> None:
    """Leave nothing that the interpreter's exit would try to write once more, and tell again."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# --- words and parsers ----------------------------------------------------------------------------


def _without_command(words: Sequence[str]) -> int:
    if "--version" in words:
        sys.stdout.write(f"ffs {ffs.__version__}\n")
        return EXIT_DONE
    if words and words[0] not in ("-h", "--help"):
        sys.stderr.write(f"ffs: the command comes before {words[0]} (see `ffs help`)\n")
        return EXIT_USAGE
    (sys.stdout if words else sys.stderr).write(_overview())
    return EXIT_DONE if words else EXIT_USAGE


def _overview() -> str:
    lines = ["usage: ffs COMMAND ...", "", "FFS: a dataset file system for training."]
    for heading, group in GROUPS.items():
        lines += ["", f"{heading}:", *(f"  {name:<9}{text}" for name, text in group.items())]
    lines += ["", "`ffs help COMMAND` explains one; `ffs --version` says which FFS this is."]
    return "\n".join(lines) + "\n"


def _find(words: Sequence[str]) -> tuple[str, Action, Sequence[str]]:
    """Return the command's full name, what it does, and the words after it."""
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "see `ffs help`"
        sys.stderr.write(f"ffs: there is no command {name!r} ({hint})\n")
        raise SystemExit(EXIT_USAGE)
    module = importlib.import_module(f"ffs.cli.{name}")
    actions: Mapping[str, Action] = module.ACTIONS
    if rest and rest[0] and rest[0] in actions:
        return f"{name} {rest[0]}", actions[rest[0]], rest[1:]
    if "" in actions:
        return name, actions[""], rest
    if "--help" in rest or "-h" in rest:
        sys.stdout.write(_overview_of(name, actions))
        raise SystemExit(EXIT_DONE)
    sys.stderr.write(f"ffs {name}: say what: {', '.join(actions)} (see `ffs help {name}`)\n")
    raise SystemExit(EXIT_USAGE)


def _overview_of(name: str, actions: Mapping[str, Action]) -> str:
    lines = [f"usage: ffs {name} {'|'.join(actions)} ...", "", COMMANDS[name], ""]
    width = max(9, *(len(word) + 2 for word in actions))
    lines += [f"  {word:<{width}}{_first_line(action)}" for word, action in actions.items()]
    lines += ["", f"`ffs help {name} {next(iter(actions))}` explains one."]
    return "\n".join(lines) + "\n"


def _first_line(action: Action) -> str:
    return (action.run.__doc__ or "").partition("\n")[0]


def _parser(name: str, action: Action) -> argparse.ArgumentParser:
    # A command may use -h for something else ("resolve"); --help is always there.
    parser = _Parser(
        prog=f"ffs {name}",
        description=_paragraphs(action.run.__doc__ or ""),
        epilog=f"example:\n  {action.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        conflict_handler="resolve",
        allow_abbrev=False,
    )
    action.add_arguments(parser)
    group = parser.add_argument_group("everywhere")
    group.add_argument("--debug", action="store_true", help="show tracebacks")
    if action.cluster:
        _add_cluster_options(group)
    if action.reports:
        group.add_argument("--json", action="store_true", help="report as JSON on stdout")
    if action.cluster or action.reports:
        group.add_argument("-q", "--quiet", action="store_true", help="draw no progress")
    return parser


def _paragraphs(text: str) -> str:
    """A docstring as it is shown: its indentation gone."""
    first, _, rest = text.partition("\n")
    return "\n".join([first, *(line.strip() for line in rest.splitlines())]).strip()


def _add_cluster_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--url", help="ffs://HOST:PORT of the cluster (else $FFS_URL)")
    group.add_argument("--key-file", metavar="FILE", help="the cluster key (else $FFS_KEY_FILE)")
    group.add_argument(
        "--token-file", metavar="FILE", help="a token instead (else $FFS_TOKEN_FILE)"
    )
    group.add_argument(
        "--config", dest="config_file", metavar="FILE", help="a configuration file (TOML)"
    )
    group.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="one configuration key"
    )
    group.add_argument(
        "--timeout", type=_seconds, metavar="S", help="give an operation up after S seconds"
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError("a number of seconds above 0 is needed")
    return seconds
