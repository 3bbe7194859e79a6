"""What a command left behind, and commands with a terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

PROCESS_S_MAX = 150.0
Cli = Callable[..., "Result"]


@dataclass(frozen=True)
class Result:
    """What a command left: exit status, stdout, stderr."""

    code: int
    raw: bytes
    err: str

    @property
    def out(self) -> str:
        """stdout as text."""
        return self.raw.decode()

    def json(self) -> Any:
        """stdout as the one JSON document that it must be, on one line."""
        assert self.raw.count(b"\n") == 1, self.raw
        return json.loads(self.raw)


def one_line(result: Result, command: str, code: int) -> str:
    """Demand that a command failed with a status, one line on stderr, and nothing on stdout."""
    assert (result.code, result.raw) == (code, b""), result
    assert result.err.startswith(f"ffs {command}: "), result.err
    assert result.err.count("\n") == 1 and result.err.endswith("\n"), result.err
    return result.err


def command(*argv: str) -> list[str]:
    """The command line of a process that runs `ffs ...`."""
    return [sys.executable, "-m", "ffs.cli", *argv]


class Terminal:
    """A process whose stderr, and with `screen` stdout, is a terminal, and what it draws there."""

    def __init__(
        self, argv: Sequence[str], environment: dict[str, str], *, screen: bool = False, **how: Any
    ) -> None:
        self._screen, inner = pty.openpty()
        self.drawn = b""
        self.process = subprocess.Popen(
            command(*argv),
            stdout=inner if screen else subprocess.PIPE,
            stderr=inner,
            env=environment,
            **how,
        )
        os.close(inner)

    def read(self) -> bytes:
        """Some more of what is drawn; nothing once the process has let its terminal go."""
        try:
            piece = os.read(self._screen, 4096)
        except OSError:  # EIO is how a terminal says that its other side was closed
            piece = b""
        self.drawn += piece
        return piece

    def wait_for(self, text: bytes) -> None:
        """Read until something is drawn."""
        while text not in self.drawn:
            assert self.read(), self.drawn

    def finish(self) -> tuple[int, bytes, str]:
        """Wait for the end; returns exit status, stdout, and all that was drawn."""
        while self.read():
            pass
        out, _ = self.process.communicate(timeout=PROCESS_S_MAX)
        return self.process.returncode, out, self.drawn.decode()

    def close(self) -> None:
        """End the process if it still runs."""
        os.close(self._screen)
        self.process.kill()
        self.process.communicate()


@contextmanager
def terminal(argv: Sequence[str], environment: dict[str, str], **how: Any) -> Iterator[Terminal]:
    """Run `ffs ...` with a terminal as its stderr."""
    running = Terminal(argv, environment, **how)
    try:
        yield running
    finally:
        running.close()
