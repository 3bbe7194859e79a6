"""A cluster run by `ffs up` for as long as a block lasts."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

READY_S_MAX = 60.0


class ClusterStartError(Exception):
    """`ffs up` did not become ready."""


@contextlib.contextmanager
def cluster(directory: Path) -> Iterator[dict[str, Any]]:
    """Run `ffs up` on a directory; yields the keywords of a file system that uses it.

    The cluster ends with the block, and also when this process dies: its standard input ends then.
    """
    argv = [sys.executable, "-m", "ffs.cli", "up", "--data", str(directory), "--port", "0"]
    process = subprocess.Popen(
        [*argv, "--exit-with-parent"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        url, key = _ready_line(process.stdout).removeprefix("ready ").split(" key=", 1)
        yield {"url": url, "key_file": key}
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _ready_line(stdout: IO[bytes]) -> str:
    give_up = time.monotonic() + READY_S_MAX
    seen = b""
    while b"\n" not in seen:
        left = give_up - time.monotonic()
        if left <= 0 or not select.select([stdout], [], [], left)[0]:
            raise ClusterStartError(f"ffs up is not ready after {READY_S_MAX:.0f} s")
        piece = os.read(stdout.fileno(), 4096)
        if not piece:
            raise ClusterStartError("ffs up ended at once; its message is above")
        seen += piece
    return seen.split(b"\n", 1)[0].decode()
