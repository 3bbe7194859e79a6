"""How commands end: exit statuses, and errors as one line on stderr."""

from __future__ import annotations

import argparse
import signal
import sys
import traceback
from typing import Final

from ffs.errors import FFSError

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 128 + signal.SIGINT
EXIT_BROKEN_PIPE: Final = 128 + signal.SIGPIPE


def describe(error: BaseException) -> str:
    """One line that says what failed, on what, and what to do."""
    if isinstance(error, OSError) and not isinstance(error, FFSError) and error.strerror:
        where = f" [path={error.filename}]" if error.filename is not None else ""
        return f"{error.strerror.lower()}{where}"
    return " ".join(str(error).split()) or type(error).__name__


def complain(args: argparse.Namespace, message: str) -> None:
    """Write one line to stderr; with --debug the traceback of what is being handled comes first."""
    if args.debug and sys.exc_info()[0] is not None:
        traceback.print_exc()
    sys.stderr.write(f"ffs {args.command}: {_printable(message)}\n")


def _printable(text: str) -> str:
    """What a name holds must not move a terminal's cursor; bytes that are no text stay bytes."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or "\udc80" <= c <= "\udcff" else c.encode("unicode_escape").decode()
        for c in text
    )
