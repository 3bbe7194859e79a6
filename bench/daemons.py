"""A cluster of several storage daemons that a case stops, kills and starts again.

Used by bench/cases (replicas, write_replicated, read_scaling, read_while_resync), where one daemon
(bench/cluster.py) is not enough. A metadata server, and daemons with the target directories that
the case gives them, run on the servers' CPUs as a user would start them. A server that is started
again is at the same address. They end with `stop`, and with this process.

Failure: a server that does not get ready, or chains that do not come up, are an UnavailableError.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ffs.bench.cluster import HOST, READY_S_MAX, STOP_S_MAX, Servers
from ffs.bench.machine import pinned
from ffs.errors import UnavailableError
from ffs.handshake import ClusterKey
from ffs.rpc.blocking import RpcClient
from ffs.types import TargetState
from ffs.wire.status import STATUS, StatusReply, StatusRequest

CHAINS_S_MAX = 120.0
_LOOK_S = 0.02


class Server:
    """One process of the cluster, which can be killed and started again at the same address.

    Args:    environment: for it alone, beside ours without what begins with FFS_
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        log: Path,
        cpus: set[int],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._cpus = cpus
        self._command = [sys.executable, "-m", module, "--exit-with-parent", *arguments]
        self.log = log
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self.address = f"{HOST}:0"

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it was started, and not stopped since."""
        return self._process is not None

    def start(self) -> None:
        """Start it, and return once it serves."""
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Start it; `wait_ready` must follow."""
        host, port = self.address.rsplit(":", 1)
        clean = {key: value for key, value in os.environ.items() if not key.startswith("FFS_")}
        with self.log.open("wb") as out, pinned(self._cpus):
            self._process = subprocess.Popen(
                [*self._command, "--host", host, "--port", port],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**clean, "PYTHONUNBUFFERED": "1", **self._environment},
                process_group=0,  # of our session, for the spinners' sake (measure.spinners)
            )

    def wait_ready(self) -> None:
        """Return once it serves."""
        assert self._process is not None
        give_up = time.monotonic() + READY_S_MAX
        while not (found := re.search(rb"^ready (\S+)$", self.log.read_bytes(), re.MULTILINE)):
            if self._process.poll() is not None or time.monotonic() > give_up:
                raise UnavailableError(f"{self.log.stem} did not start, see its log")
            time.sleep(0.01)
        self.address = found[1].decode()

    def stop(self) -> None:
        """End it, in order unless it has ended already, and wait."""
        if self._process is not None:
            with self._process as process:
                process.send_signal(signal.SIGCONT)
                process.terminate()
                process.wait(STOP_S_MAX)
            self._process = None


class Members:
    """A metadata server, and storage daemons whose targets lie in given directories.

    Args:    targets: each daemon's directories, which are made; settings: configuration keys of
             all servers; environment: more for the daemons
    """

    def __init__(
        self,
        directory: Path,
        cpus: set[int],
        targets: Sequence[Sequence[Path]],
        *,
        settings: Mapping[str, object],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        directory.mkdir()
        key_file = directory / "cluster.key"
        ClusterKey.create(key_file)
        self.directory = directory
        self.key_file = str(key_file)
        self._cpus = cpus
        self._common = ["--key-file", self.key_file]
        for key, value in settings.items():
            self._common += ["--set", f"{key}={value}"]
        self._environment = environment
        self._targets = targets
        self._rpc: RpcClient | None = None
        self.meta = self._server("meta", "ffs.server.meta", "--data", str(directory / "meta"))
        self.daemons: list[Server] = []

    def start(self, replicas: int) -> None:
        """Start all; return once every target is in a chain of so many replicas that serve."""
        self.meta.start()
        self._rpc = self.servers.rpc()
        for number, paths in enumerate(self._targets):
            arguments = ["--meta", self.meta.address]
            for path in paths:
                path.mkdir(parents=True, exist_ok=True)
                arguments += ["--target", str(path)]
            self.daemons.append(self._server(f"storage-{number}", "ffs.server.storage", *arguments))
            self.daemons[-1].launch()
        for daemon in self.daemons:
            daemon.wait_ready()
        places = sum(map(len, self._targets)) // replicas * replicas
        self.wait_until(lambda status: serving(status) == places, "chains of all targets")

    @property
    def servers(self) -> Servers:
        """What clients and meters need to know of it, as it runs now."""
        pids = tuple(each.pid for each in (self.meta, *self.daemons) if each.running)
        return Servers(f"ffs://{self.meta.address}", self.key_file, pids)

    def status(self) -> StatusReply:
        """Return what the metadata server says of all."""
        assert self._rpc is not None
        return self._rpc.call(STATUS, StatusRequest(), deadline_ms=5_000)

    def wait_until(self, condition: Callable[[StatusReply], bool], what: str) -> StatusReply:
        """Look until it has come to something.

        Raises:  UnavailableError naming `what`
        """
        give_up = time.monotonic() + CHAINS_S_MAX
        while not condition(status := self.status()):
            if time.monotonic() > give_up:
                raise UnavailableError(f"{what} did not come up: {_states(status)}")
            time.sleep(_LOOK_S)
        return status

    def stop(self) -> None:
        """Stop all of it."""
        if self._rpc is not None:
            self._rpc.close()
        for server in (*self.daemons, self.meta):
            server.stop()

    def _server(self, name: str, module: str, *arguments: str) -> Server:
        environment = self._environment if module == "ffs.server.storage" else None
        log = self.directory / f"{name}.log"
        return Server(module, [*arguments, *self._common], log, self._cpus, environment)


def _states(status: StatusReply) -> str:
    """Return what there is instead, for people."""
    states = {target.target: target.state for target in status.routing.targets}
    chains = [chain.targets for chain in status.routing.chains]
    found = [[TargetState(states[target]).name for target in chain] for chain in chains]
    return f"{len(status.nodes)} nodes, {len(states)} targets, chains {found}"


def serving(status: StatusReply) -> int:
    """Return how many places in chains serve."""
    states = {target.target: target.state for target in status.routing.targets}
    members = [target for chain in status.routing.chains for target in chain.targets]
    return sum(states[target] == TargetState.SERVING for target in members)
