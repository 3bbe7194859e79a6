"""A PostgreSQL for measurements: a new database in a directory of its own, as durable as installed.

Used by bench/cases/meta. Next hop: PostgreSQL's own programs. Settings are the defaults, so every
commit is synced, but for memory that a server of this size would be given. It runs on the servers'
CPU, and as the user `postgres` where we are root, which PostgreSQL refuses to be.
Failure: UnavailableError with the end of its log. It ends with the `with` block; a watcher stops it
when this process dies before.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ffs.errors import UnavailableError

HOST = "127.0.0.1"
USER = "ffs"
READY_S_MAX = 60.0
STOP_S_MAX = 30.0
_SETTINGS = {
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "log_min_messages": "warning",
}
_WATCH = "cat >/dev/null; kill -INT $0 2>/dev/null"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Database:
    """A running server."""

    pid: int
    port: int
    binaries: Path
    directory: Path

    def create(self, name: str) -> str:
        """Make a database; return its URL."""
        command = ["createdb", "-h", HOST, "-p", str(self.port), "-U", USER, name]
        _call(self.binaries, command, self.directory)
        return f"postgres://{USER}@{HOST}:{self.port}/{name}"

    def cpu_seconds(self) -> float:
        """Return the time of the server and all its processes, dead ones included."""
        ticks = sum(_ticks(self.pid, reaped=True))
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return (ticks + sum(sum(_ticks(int(pid))) for pid in children)) / _TICKS_PER_S


def installed() -> Path | None:
    """Return the folder of PostgreSQL's programs, the newest there is."""
    if found := shutil.which("postgres"):
        return Path(found).resolve().parent
    versions = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    return max((path.parent for path in versions), default=None, key=lambda p: int(p.parts[-2]))


@contextmanager
def running(parent: Path, binaries: Path) -> Iterator[Database]:
    """Run a new server whose data lies under `parent`, or above where that is closed to it."""
    directory = Path(tempfile.mkdtemp(prefix="ffs-bench-postgres-", dir=_place(parent)))
    identity = _identity()
    if identity:
        os.chown(directory, identity["user"], identity["group"])
    try:
        _initialise(binaries, directory)
        with _started(binaries, directory) as database:
            yield database
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _place(parent: Path) -> Path:
    """Return the folder nearest to `parent` that the user `postgres` can reach and we can use."""
    if os.geteuid():
        return parent
    path = parent.resolve()
    closed = [one for one in (path, *path.parents) if not one.stat().st_mode & stat.S_IXOTH]
    return closed[-1].parent if closed else path


def _initialise(binaries: Path, directory: Path) -> None:
    command = ["initdb", "-D", str(directory / "data"), "-U", USER, "-A", "trust", "-E", "UTF8"]
    _call(binaries, [*command, "--locale=C"], directory)
    with (directory / "data" / "postgresql.conf").open("a") as file:
        file.writelines(f"{name} = '{value}'\n" for name, value in _SETTINGS.items())


@contextmanager
def _started(binaries: Path, directory: Path) -> Iterator[Database]:
    port = _free_port()
    command = [str(binaries / "postgres"), "-D", str(directory / "data"), "-p", str(port)]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=directory,
            **_identity(),
        )
    watch = ["sh", "-c", _WATCH, str(process.pid)]
    watcher = subprocess.Popen(watch, stdin=subprocess.PIPE, start_new_session=True)
    try:
        _wait_until(lambda: _answers(binaries, port), process, directory)
        yield Database(process.pid, port, binaries, directory)
    finally:
        watcher.kill()
        watcher.communicate()
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until(
    ready: Callable[[], bool], process: subprocess.Popen[bytes], directory: Path
) -> None:
    give_up = time.monotonic() + READY_S_MAX
    while not ready():
        if process.poll() is not None or time.monotonic() > give_up:
            log = (directory / "log").read_text(errors="replace")[-2_000:]
            raise UnavailableError(f"PostgreSQL did not get ready: {log.strip()}")
        time.sleep(0.05)


def _answers(binaries: Path, port: int) -> bool:
    ask = [str(binaries / "pg_isready"), "-q", "-h", HOST, "-p", str(port), "-U", USER]
    return subprocess.run(ask, check=False).returncode == 0


def _call(binaries: Path, command: Sequence[str], directory: Path) -> None:
    done = subprocess.run(
        [str(binaries / command[0]), *command[1:]],
        capture_output=True,
        check=False,
        cwd=directory,
        **_identity(),
    )
    if done.returncode:
        output = (done.stdout + done.stderr).decode(errors="replace")
        raise UnavailableError(f"{command[0]} failed: {output.strip()}")


def _identity() -> dict[str, Any]:
    if os.geteuid():
        return {}
    user = pwd.getpwnam("postgres")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _ticks(pid: int, *, reaped: bool = False) -> list[int]:
    """Return user and system time of a process, and of its dead children."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
    return [int(field) for field in fields[11 : 15 if reaped else 13]]
