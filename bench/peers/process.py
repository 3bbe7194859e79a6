"""A loader in a process of its own, as bench/cases see it: started, asked, held, ended.

Role: bench/cases/loading.py -> THIS -> bench/peers/loaders/child.py, over pipes. Between its turns
a loader is stopped (SIGSTOP) with all its workers: some go on polling when nobody asks for batches.

Failure: an error in the loader, its death or its silence is an UnavailableError with what it said.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ffs.errors import UnavailableError

OPEN_S_MAX = 900.0
ANSWER_S_MAX = 180.0
END_S_MAX = 10.0
_LOG_TAIL_BYTES = 600


class LoaderProcess:
    """One loader, named as its module in bench/peers/loaders."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.pid = process.pid
        self._process = process
        self._log = log

    def ask(self, operation: str, *, limit_s: float = ANSWER_S_MAX, **more: Any) -> dict[str, Any]:
        """Let it do one thing and return its answer."""
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None and answers is not None
        try:
            requests.write(json.dumps({"op": operation, **more}).encode() + b"\n")
            requests.flush()
        except BrokenPipeError as error:
            raise self._gone("ended") from error
        if not select.select([answers], [], [], limit_s)[0]:
            raise self._gone(f"did not answer {operation!r} for {limit_s:g} s")
        line = answers.readline()
        if not line:
            raise self._gone(f"ended while asked to {operation}")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise self._gone(f"failed to {operation}: {found['error']}")
        return found

    def _gone(self, what: str) -> UnavailableError:
        tail = self._log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
        return UnavailableError(f"the loader {self.name} {what}", hint=tail)

    def hold(self) -> None:
        """Stop it and all that it started."""
        os.killpg(self.pid, signal.SIGSTOP)

    def release(self) -> None:
        """Let it go on."""
        os.killpg(self.pid, signal.SIGCONT)

    def end(self) -> None:
        """End it, with whatever it left running."""
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        with suppress(ProcessLookupError):
            self.release()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S_MAX)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


@contextmanager
def loader_process(
    name: str, python: Path, directory: Path, environment: Mapping[str, str] | None = None
) -> Iterator[LoaderProcess]:
    """Start a loader of bench/peers/loaders with the interpreter that has its packages."""
    log = directory / f"{name}.log"
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("FFS_", "PYTHON", "RANK", "WORLD_SIZE"))
    }
    own = [path for path in sys.path if path and python == Path(sys.executable)]
    folders = [str(Path(__file__).parent), *own]
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [str(python), "-P", "-m", "loaders", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**clean, "PYTHONPATH": os.pathsep.join(folders), **(environment or {})},
            process_group=0,
        ) as process,
    ):
        found = LoaderProcess(name, process, log)
        try:
            yield found
        finally:
            found.end()
