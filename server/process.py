"""What every server process does alike: keep its key, say that it is ready, know when to stop.

Used by the process entry points (`python -m ffs.server.*`) and by `ffs up`.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_STDIN: Final = 0
_PR_SET_DUMPABLE: Final = 4
_FILES_MAX: Final = 65_536
"""Open files that a server may need: every connection that it lets in, and its stores' files."""


def add_auth_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what a server proves itself by: the cluster key, or nothing (ffs.auth.insecure)."""
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--key-file", metavar="FILE", help="the cluster key")
    group.add_argument(
        "--insecure", action="store_true", help="ask nobody for a key; on loopback alone"
    )


def leave_no_core() -> None:
    """Write no core file when this process crashes: the cluster key would be in it.

    Nor may other processes of the same user read its memory or /proc files; root still may. Where
    the kernel refuses, the limit alone holds.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def allow_many_files() -> None:
    """Raise the soft limit of open files: 1,024, as is usual, is less than the connections we take.

    Why: beyond it nobody is let in or told why, and a store cannot open the files of a new class.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, _FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def announce_ready(host: str, port: int) -> None:
    """Print the one line on stdout that says the process serves, and where."""
    shown = f"[{host}]" if ":" in host else host
    sys.stdout.write(f"ready {shown}:{port}\n")
    sys.stdout.flush()


def call_on_stop(action: Callable[[], None], *, exit_with_parent: bool) -> None:
    """Call `action` at each SIGINT and SIGTERM and, if wanted, when standard input has ended.

    Standard input is a pipe that whoever started us holds open, so it ends however they end.
    """
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, action)
    if exit_with_parent:
        _call_at_end_of_stdin(loop, action)


def stop_no_more() -> None:
    """Undo `call_on_stop` before the loop ends."""
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.remove_signal_handler(number)


def _call_at_end_of_stdin(loop: asyncio.AbstractEventLoop, action: Callable[[], None]) -> None:
    def readable() -> None:
        if not os.read(_STDIN, 4096):
            loop.remove_reader(_STDIN)
            action()

    try:
        loop.add_reader(_STDIN, readable)
    except OSError:  # a regular file or /dev/null, which cannot be waited for: it has ended already
        loop.call_soon(action)
