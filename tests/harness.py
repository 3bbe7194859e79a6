"""A real cluster of real processes on this machine, for tests.

Every process is started by its module (`python -m ffs.server.meta`, `ffs.server.storage`), takes a
free port the first time and the same one after a restart, and logs into files that are shown when a
test fails. Nothing leaks: each process ends by itself when the write end of its stdin closes, which
happens however this process dies.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

from tests.ports import free_port
from tests.postgres import Postgres

SLOW = float(os.environ.get("FFS_TEST_SLOW", "1"))
"""How many times slower this machine is than what bounds are made for: tests.rdma.run says it of an
emulated one."""
READY_S_MAX = 30.0 * SLOW
"""How long a process may take to start."""
STOP_S_MAX = 15.0 * SLOW
LOG_TAIL_BYTES = 6_000
HOST = "127.0.0.1"

DATA_HOST = os.environ.get("FFS_TEST_DATA_HOST", HOST)
TRANSPORT = os.environ.get("FFS_TEST_TRANSPORT", "")
"""Where daemons listen and how clients reach them, in all clusters of this run: tests.rdma.run sets
both, so that any test can run over RDMA."""

_LIVE: weakref.WeakSet[Cluster] = weakref.WeakSet()


class ProcessError(AssertionError):
    """A process of the cluster did not start, died, or did not stop as it should."""


class Process:
    """One process of a cluster: started, waited for, killed, started again with the same arguments.

    Invariants: at most one operating-system process at a time; `ready` is the text after the word
    `ready` of the last start.
    """

    def __init__(self, name: str, argv: Sequence[str], log_dir: Path) -> None:
        self.name = name
        self.argv = list(argv)
        self.ready = ""
        self._out_path = log_dir / f"{name}.out"
        self._err_path = log_dir / f"{name}.err"
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of the running (or last) process."""
        assert self._popen is not None, f"{self.name} was never started"
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs (a stopped one, by SIGSTOP, counts as running)."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def returncode(self) -> int | None:
        """The exit status of the last process; None while it runs."""
        return None if self._popen is None else self._popen.poll()

    def start(self, *, wait: bool = True) -> None:
        """Start the process; with `wait`, return once it has printed its ready line."""
        assert not self.alive, f"{self.name} runs already"
        self._close_stdin()
        self._out_path.unlink(missing_ok=True)
        with self._out_path.open("wb") as out, self._err_path.open("ab") as err:
            self._popen = _spawn(self.argv, out, err)
        if wait:
            self.wait_ready()

    def wait_ready(self, timeout_s: float = READY_S_MAX) -> str:
        """Wait for the `ready ...` line and return what follows the word."""
        give_up = time.monotonic() + timeout_s
        while time.monotonic() < give_up:
            ended = self.returncode
            match = re.match(r"ready (.+)\n", self._out_path.read_text(errors="replace"))
            if match:
                self.ready = match.group(1)
                return self.ready
            if ended is not None:
                raise ProcessError(f"{self.name} exited with {ended} at start\n{self.log_tail()}")
            time.sleep(0.005)
        raise ProcessError(f"{self.name} not ready after {timeout_s} s\n{self.log_tail()}")

    def signal(self, number: int) -> None:
        """Send a signal; a process that has ended already is fine."""
        if self.alive:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process the hard way (also a stopped one) and wait until it is gone."""
        self.signal(signal.SIGKILL)
        if self._popen is not None:
            self._popen.wait(STOP_S_MAX)
        self._close_stdin()

    def terminate(self) -> int:
        """Ask the process to stop, wait for it, and return its exit status."""
        if self._popen is None:
            return 0
        self.signal(signal.SIGTERM)
        try:
            return self._popen.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ProcessError(f"{self.name} ignored SIGTERM\n{self.log_tail()}") from None
        finally:
            self._close_stdin()

    def log_tail(self, limit: int = LOG_TAIL_BYTES) -> str:
        """Return the end of what the process wrote to stdout and stderr, over all its lives."""
        parts = []
        for path in (self._out_path, self._err_path):
            text = path.read_bytes()[-limit:].decode(errors="replace") if path.exists() else ""
            if text:
                parts.append(f"--- {path.name}\n{text}")
        return "\n".join(parts)

    def _close_stdin(self) -> None:
        if self._popen is not None and self._popen.stdin is not None:
            self._popen.stdin.close()


def _spawn(argv: Sequence[str], out: BinaryIO, err: BinaryIO) -> subprocess.Popen[bytes]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FFS_")}
    environment["PYTHONUNBUFFERED"] = "1"
    return subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=out,
        stderr=err,
        env=environment,
        start_new_session=True,  # a Ctrl-C meant for the tests must not reach it
    )


class Cluster:
    """Metadata servers and some storage daemons in a directory of their own.

    Args:    directory: made if missing; storage: how many daemons; targets: directories each;
             config: configuration keys ("meta.gc_delay_s": 1) given to every process by --set, and
             "client.*" keys, which become keywords of `storage_options`;
             metas: how many metadata servers, over a PostgreSQL of their own if `postgres`;
             tell_all: name all of them to daemons and clients, not only the first
    Raises:  ProcessError with the ends of the logs when a process misbehaves
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        storage: int = 1,
        config: Mapping[str, object] | None = None,
        *,
        targets: int = 1,
        metas: int = 1,
        postgres: bool = False,
        tell_all: bool = True,
    ) -> None:
        assert metas == 1 or postgres, "SQLite has one server"
        self.directory = Path(directory)
        self.config = {**({"client.transport": TRANSPORT} if TRANSPORT else {}), **(config or {})}
        self.storage = storage
        self.targets = targets
        self.metas = metas
        self.told = metas if tell_all else 1
        self.postgres = Postgres() if postgres else None
        self.processes: dict[tuple[str, int], Process] = {}

    # --- what clients need ----------------------------------------------------------------------

    @property
    def key_file(self) -> Path:
        """The cluster key."""
        return self.directory / "cluster.key"

    @property
    def address(self) -> tuple[str, int]:
        """Where the first metadata server takes RPC connections."""
        host, port = self.meta_addresses[0].rsplit(":", 1)
        return host, int(port)

    @property
    def meta_addresses(self) -> list[str]:
        """HOST:PORT of every metadata server."""
        return [p.ready for (role, _), p in self.processes.items() if role == "meta"]

    @property
    def url(self) -> str:
        """`ffs://host:port`, without a slash at the end."""
        host, port = self.address
        return f"ffs://{host}:{port}"

    @property
    def storage_options(self) -> dict[str, Any]:
        """Keywords for fsspec: everything a client needs but the path."""
        options: dict[str, Any] = {"url": self.url, "key_file": str(self.key_file)}
        if self.told > 1:
            options["hosts"] = self.meta_addresses[1:]
        for key, value in self.config.items():
            table, _, name = key.partition(".")
            if table == "client":
                options[name] = value
        return options

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that lead a child process to this cluster."""
        way = {"FFS_CLIENT__TRANSPORT": TRANSPORT} if TRANSPORT else {}
        return {"FFS_URL": self.url, "FFS_KEY_FILE": str(self.key_file), **way}

    def target_dir(self, index: int = 0, target: int = 0) -> Path:
        """The directory of one target of one storage daemon."""
        return self.directory / f"storage-{index}" / f"target-{target}"

    @property
    def meta_dir(self) -> Path:
        """The metadata server's data directory."""
        return self.directory / "meta"

    # --- life -----------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start everything and return once every daemon is ready; on failure nothing stays."""
        from ffs.handshake import ClusterKey

        (self.directory / "log").mkdir(parents=True, exist_ok=True)
        if not self.key_file.exists():
            ClusterKey.create(self.key_file)
        _LIVE.add(self)
        try:
            if self.postgres is not None:
                self.postgres.start()
            for index in range(self.metas):
                self._start_process("meta", index)
            for index in range(self.storage):
                self._start_process("storage", index)
        except BaseException:
            self.kill_all()
            raise
        return self

    def stop(self, *, check: bool = True) -> None:
        """Stop everything cleanly, daemons first; `check` demands exit status 0 of each."""
        failures = []
        for process in reversed(self.processes.values()):
            was_alive = process.alive
            process.signal(signal.SIGCONT)
            try:
                status = process.terminate()
            except ProcessError as error:
                failures.append(str(error))
                continue
            if was_alive and status != 0:
                failures.append(f"{process.name} stopped with {status}\n{process.log_tail()}")
        if self.postgres is not None and self.postgres.alive:
            self.postgres.stop_at_once()
        _LIVE.discard(self)
        if check and failures:
            raise ProcessError("\n".join(failures))

    def kill_all(self) -> None:
        """Kill every process at once, as a power cut of the machine's processes would."""
        for process in self.processes.values():
            process.signal(signal.SIGKILL)
        for process in self.processes.values():
            process.kill()
        if self.postgres is not None and self.postgres.alive:
            self.postgres.kill()
        _LIVE.discard(self)

    def start_all(self) -> None:
        """Start every process that does not run, on the ports they had."""
        _LIVE.add(self)
        if self.postgres is not None and not self.postgres.alive:
            self.postgres.start()
        for process in self.processes.values():
            if not process.alive:
                process.start()

    def process(self, role: str, index: int = 0) -> Process:
        """The process of a role: ("meta", 0) or ("storage", i)."""
        return self.processes[role, index]

    def kill(self, role: str, index: int = 0) -> None:
        """kill -9 one process and wait until it is gone."""
        self.process(role, index).kill()

    def pause(self, role: str, index: int = 0) -> None:
        """SIGSTOP one process: it stays connected and says nothing."""
        self.process(role, index).signal(signal.SIGSTOP)

    def resume(self, role: str, index: int = 0) -> None:
        """SIGCONT one process."""
        self.process(role, index).signal(signal.SIGCONT)

    def restart(self, role: str, index: int = 0) -> None:
        """Kill one process if it runs, and start it again on the same port."""
        process = self.process(role, index)
        process.kill()
        process.start()

    def add_storage(self, targets: int) -> int:
        """Start one more storage daemon, with as many targets; return its index."""
        index, self.targets = self.storage, targets
        self.storage += 1
        self._start_process("storage", index)
        return index

    @property
    def pids(self) -> dict[tuple[str, int], int]:
        """(role, index) -> process id of those alive."""
        return {key: p.pid for key, p in self.processes.items() if p.alive}

    def log_tails(self) -> str:
        """The ends of all processes' logs."""
        tails = [p.log_tail() for p in self.processes.values()]
        return "\n".join([*tails, self.postgres.log_tail()] if self.postgres else tails)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stop(check=kind is None)

    # --- how a process is started -----------------------------------------------------------------

    def _start_process(self, role: str, index: int) -> None:
        argv = self._meta_argv() if role == "meta" else self._storage_argv(index)
        argv += ["--port", str(free_port()), *self._settings()]
        process = Process(f"{role}-{index}", argv, self.directory / "log")
        self.processes[role, index] = process
        process.start()

    def _meta_argv(self) -> list[str]:
        shared = self.postgres
        return [
            *_module("ffs.server.meta"),
            *(("--database", shared.url()) if shared else ("--data", str(self.meta_dir))),
            *("--host", HOST),
            *("--key-file", str(self.key_file)),
        ]

    def _storage_argv(self, index: int) -> list[str]:
        argv = _module("ffs.server.storage")
        for address in self.meta_addresses[: self.told]:
            argv += ["--meta", address]
        argv += ["--host", DATA_HOST, "--key-file", str(self.key_file)]
        for target in range(self.targets):
            path = self.target_dir(index, target)
            path.mkdir(parents=True, exist_ok=True)
            argv += ["--target", str(path)]
        return argv

    def _settings(self) -> list[str]:
        settings = []
        for key, value in self.config.items():
            if not key.startswith("client."):
                text = str(value).lower() if isinstance(value, bool) else str(value)
                settings += ["--set", f"{key}={text}"]
        return settings


class UpCluster:
    """A cluster that `ffs up` runs: what a user types, with the same surface as far as it goes."""

    def __init__(
        self, directory: str | os.PathLike[str], storage: int = 1, replicas: int = 1
    ) -> None:
        self.directory = Path(directory)
        log_dir = self.directory.with_name(self.directory.name + "-log")
        log_dir.mkdir(parents=True, exist_ok=True)
        argv = [
            *_module("ffs.cli", parent=False),
            "up",
            "--data",
            str(self.directory),
            "--port",
            "0",
        ]
        argv += ["--storage", str(storage), "--replicas", str(replicas), "--exit-with-parent"]
        self.up = Process("up", argv, log_dir)

    @property
    def url(self) -> str:
        """`ffs://host:port`, as the ready line said."""
        return self.up.ready.split()[0]

    @property
    def key_file(self) -> Path:
        """The key file, as the ready line said."""
        return Path(self.up.ready.split("key=", 1)[1])

    @property
    def storage_options(self) -> dict[str, Any]:
        """Keywords for fsspec."""
        return {"url": self.url, "key_file": str(self.key_file)}

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that lead a child process to this cluster."""
        return {"FFS_URL": self.url, "FFS_KEY_FILE": str(self.key_file)}

    def __enter__(self) -> Self:
        self.up.start()
        return self

    def __exit__(self, *_: object) -> None:
        status = self.up.terminate()
        if status != 0:
            raise ProcessError(f"ffs up stopped with {status}\n{self.up.log_tail()}")


def _module(name: str, *, parent: bool = True) -> list[str]:
    return [sys.executable, "-m", name, *(["--exit-with-parent"] if parent else [])]


def close_idle(fs: Any) -> None:
    """Close a file system's data connections that no call is using."""
    connections = fs.core.connections
    for pool in connections._pools.values():
        connections._drop_idle(pool)


def live_clusters() -> list[Cluster]:
    """Clusters that have been started and not stopped, for the report of a failed test."""
    return list(_LIVE)


@contextlib.contextmanager
def stopped_at_exit(cluster: Cluster) -> Iterator[Cluster]:
    """Run a cluster that a test may kill and restart at will; what is left is killed at the end."""
    try:
        yield cluster.start()
    finally:
        for process in cluster.processes.values():
            process.signal(signal.SIGCONT)
        cluster.kill_all()
