"""A PostgreSQL of the tests' own: its directory, its port, started, killed and stopped by them.

Used by `tests.harness` (clusters over a shared database) and by tests of the engine. The server
runs as the user `postgres` where tests run as root, which PostgreSQL refuses. It does not sync to
the disk: tests kill processes and never the machine, and what a commit wrote is in the page cache.
Nothing leaks: a watcher stops the server when this process dies, however that happens.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

from tests.ports import free_port

READY_S_MAX: Final = 60.0
STOP_S_MAX: Final = 30.0
HOST: Final = "127.0.0.1"
USER: Final = "ffs"
SETTINGS: Final = {
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum_naptime": "10s",
    "shared_buffers": "32MB",
    "max_connections": "100",
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "log_min_messages": "warning",
}
_WATCH: Final = """
cat >/dev/null
kill -QUIT $0 2>/dev/null
while kill -0 $0 2>/dev/null; do sleep 0.1; done
rm -rf "$1"
"""
"""What is left to do when the tests' process was killed: $0 is the postmaster, $1 its directory."""


class PostgresError(AssertionError):
    """The database server did not start, or did not stop."""


def binaries() -> Path:
    """Return the folder of PostgreSQL's programs; the newest version that is installed."""
    found = shutil.which("postgres")
    if found:
        return Path(found).resolve().parent
    installed = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    versions = sorted(installed, key=lambda path: float(path.parts[-3]))
    if not versions:
        raise PostgresError("PostgreSQL is not installed; run .ci/setup.sh test")
    return versions[-1].parent


class Postgres:
    """One database server in a directory of its own, on a port of its own.

    Args:    settings: more lines of postgresql.conf
    """

    def __init__(self, **settings: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ffs-postgres-"))
        self._remove = weakref.finalize(self, shutil.rmtree, self.directory, ignore_errors=True)
        self.port = free_port()
        self._settings = {**SETTINGS, **settings}
        self._bin = binaries()
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None

    def url(self, database: str = "ffs") -> str:
        """Return what `--database` takes."""
        return f"postgres://{USER}@{HOST}:{self.port}/{database}"

    @property
    def alive(self) -> bool:
        """Whether the postmaster runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id of the postmaster."""
        assert self._process is not None, "never started"
        return self._process.pid

    def start(self, *, database: str = "ffs") -> Self:
        """Make the data directory the first time, start, and return once connections are taken."""
        if not (self.directory / "data").exists():
            self._initialise()
        give_up = time.monotonic() + READY_S_MAX
        while not self._start_once(give_up):
            # The backends of one that was killed still hold its shared memory for a moment.
            if time.monotonic() > give_up:
                raise PostgresError(f"PostgreSQL did not start\n{self.log_tail()}")
            time.sleep(0.05)
        if not (self.directory / f"made-{database}").exists():
            self.create_database(database)
        return self

    def create_database(self, name: str) -> str:
        """Make one more database; return its URL."""
        command = ["createdb", "-h", HOST, "-p", str(self.port), "-U", USER, name]
        self._call(command)
        (self.directory / f"made-{name}").touch()
        return self.url(name)

    def kill(self) -> None:
        """kill -9 the postmaster; its backends end by themselves when they notice."""
        self._signal(signal.SIGKILL)

    def kill_backends(self, count: int = 1) -> int:
        """kill -9 backends that serve connections; the postmaster then restarts all of them."""
        killed = 0
        for pid in self.backends()[:count]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed += 1
        return killed

    def backends(self) -> list[int]:
        """Return the process ids of the backends that serve connections."""
        found = []
        for pid in _children(self.pid):
            with contextlib.suppress(OSError):
                if f"postgres: {USER} " in Path(f"/proc/{pid}/cmdline").read_text():
                    found.append(pid)
        return found

    def stop_at_once(self) -> None:
        """An immediate shutdown: no checkpoint, recovery at the next start."""
        self._signal(signal.SIGQUIT)

    def pause(self) -> None:
        """SIGSTOP everything: connections stay, nothing is answered."""
        for pid in (self.pid, *_children(self.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT everything."""
        for pid in (*_children(self.pid), self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        """Stop, and remove the directory."""
        if self.alive:
            self.resume()
            self.stop_at_once()
        self._remove()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def log_tail(self, limit: int = 6_000) -> str:
        """Return the end of the server's log."""
        path = self.directory / "log"
        return path.read_bytes()[-limit:].decode(errors="replace") if path.exists() else ""

    # --- processes --------------------------------------------------------------------------------

    def _initialise(self) -> None:
        identity = _identity()
        if identity:
            os.chown(self.directory, identity["user"], identity["group"])
        self._call(
            ["initdb", "-D", str(self.directory / "data"), "-U", USER, "-A", "trust"]
            + ["--no-sync", "-E", "UTF8", "--locale=C"]
        )
        with (self.directory / "data" / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in self._settings.items())

    def _start_once(self, give_up: float) -> bool:
        """Start the postmaster; tell whether it came up, or ended at once."""
        argv = [str(self._bin / "postgres"), "-D", str(self.directory / "data")]
        argv += ["-p", str(self.port)]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.directory,
                **_identity(),
            )
        self._watcher = subprocess.Popen(
            ["sh", "-c", _WATCH, str(self._process.pid), str(self.directory)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        ask = [str(self._bin / "pg_isready"), "-q", "-h", HOST, "-p", str(self.port), "-U", USER]
        while self._process.poll() is None and time.monotonic() < give_up:
            if subprocess.run(ask, check=False).returncode == 0:
                return True
            time.sleep(0.02)
        self._signal(signal.SIGQUIT)
        return False

    def _signal(self, number: int) -> None:
        """Send a signal that ends the postmaster, and wait for its end."""
        assert self._process is not None
        assert self._watcher is not None
        self._watcher.kill()
        self._watcher.communicate()
        if self._process.poll() is None:
            self._process.send_signal(number)
        try:
            self._process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise PostgresError(f"PostgreSQL did not stop\n{self.log_tail()}") from None

    def _call(self, command: Sequence[str]) -> None:
        done = subprocess.run(
            [str(self._bin / command[0]), *command[1:]],
            capture_output=True,
            check=False,
            cwd=self.directory,
            **_identity(),
        )
        if done.returncode != 0:
            output = (done.stdout + done.stderr).decode(errors="replace")
            raise PostgresError(f"{command[0]} failed\n{output}")


def _identity() -> dict[str, Any]:
    """Return how to start a process of PostgreSQL: as another user if we are root."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam("postgres")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]
