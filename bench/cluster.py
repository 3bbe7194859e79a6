"""The cluster that a case measures: one of its own made of real processes, or a running one.

Used by bench/cases. An own cluster is a metadata server and one storage daemon in the case's
directory, started on the servers' CPU (so that every thread of theirs inherits it), as a user would
start them: `python -m ffs.server.meta`, `python -m ffs.server.storage`. They end with the `with`
block, and also when this process dies, since each watches its standard input.

Failure: a server that does not get ready raises UnavailableError with the end of its log.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

from ffs import _reader
from ffs.bench.cases.common import Context
from ffs.bench.latency import Latencies
from ffs.bench.machine import minor_faults, pin_process, pinned, process_cpu_seconds
from ffs.bench.measure import GB, Runner, Sample
from ffs.errors import ConfigError, UnavailableError
from ffs.handshake import ClusterKey
from ffs.rpc.blocking import RpcClient
from ffs.wire.status import STATUS, StatusRequest

HOST = "127.0.0.1"
READY_S_MAX = 30.0
STOP_S_MAX = 15.0
LOG_TAIL_BYTES = 2_000

Found: TypeAlias = Mapping[str, float] | Latencies
Work: TypeAlias = Callable[[float], tuple[int, int, Found]]
"""Works until a time of time.perf_counter(); returns bytes, operations, and other figures or what
each operation took."""


@dataclass(frozen=True, slots=True)
class Servers:
    """A cluster to be measured. `pids` is None where its processes are not on this machine."""

    url: str
    key_file: str
    pids: tuple[int, ...] | None
    storage_pid: int = 0
    directory: Path | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Where the metadata server takes calls."""
        parts = urlsplit(self.url)
        if not parts.hostname or not parts.port:
            raise ConfigError("the url has no host and port", hint="ffs://HOST:PORT", url=self.url)
        return parts.hostname, parts.port

    @property
    def options(self) -> dict[str, str]:
        """Keywords that lead a file system object here."""
        return {"url": self.url, "key_file": self.key_file}

    def rpc(self) -> RpcClient:
        """Return a client of the metadata server that makes single attempts."""
        return RpcClient([self.address], ClusterKey.load(self.key_file))

    @property
    def notes(self) -> list[str]:
        """What a reader of the figures must know about these servers."""
        if self.pids is None:
            return ["the servers are not on this machine: their CPU time is not counted"]
        return []

    def metered(self, work: Work) -> Runner:
        """Turn work into a contestant that charges CPU to this process and to the servers."""
        return metered(work, self.pids)


def metered(
    work: Work, pids: tuple[int, ...] | None, more_cpu: Callable[[], float] = lambda: 0.0
) -> Runner:
    """Turn work into a contestant.

    Args:    pids: of those that serve it, none of them or not known; more_cpu: returns the CPU
             seconds so far of others that serve it
    """

    def run(seconds: float) -> Sample:
        server = process_cpu_seconds(pids or ()) + more_cpu()
        extras = _Extras(pids or ())
        client, start = time.process_time(), time.perf_counter()
        moved, operations, found = work(start + seconds)
        passed = time.perf_counter() - start
        client = time.process_time() - client
        spent = None if pids is None else process_cpu_seconds(pids) + more_cpu() - server
        more = extras.of(moved)
        if isinstance(found, Latencies):
            more |= found.percentiles()
            return Sample(passed, moved, operations, client, spent, more, found)
        return Sample(passed, moved, operations, client, spent, more | dict(found))

    return run


class _Extras:
    """What a run costs beside time: pages touched first, bytes on the wire."""

    def __init__(self, pids: tuple[int, ...]) -> None:
        self._pids = (*pids, os.getpid())
        self._faults = minor_faults(self._pids)
        self._wire = self._on_wire()

    def of(self, moved: int) -> dict[str, float]:
        """Return it for each byte that was delivered since this object was made."""
        if not moved:
            return {}
        faults = minor_faults(self._pids) - self._faults
        found = {"faults_per_gb": faults / moved * GB}
        if wire := self._on_wire() - self._wire:
            found["wire_per_byte"] = wire / moved
        return found

    @staticmethod
    def _on_wire() -> int:
        counters = _reader.counters()
        return counters["wire_bytes_received"] + counters["wire_bytes_sent"]


@contextmanager
def servers(
    context: Context,
    *,
    settings: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
    name: str = "cluster",
) -> Iterator[Servers]:
    """Run (or, with `context.url`, attach to) the cluster that a case measures.

    Args:    settings: configuration keys for --set (`meta.database`: another engine);
             environment: more for the storage daemon
    """
    if context.url:
        yield _attach(context)
        return
    root = context.directory / name
    with ExitStack() as stack:
        yield _start(stack, context, root, dict(settings or {}), dict(environment or {}))


def _start(
    stack: ExitStack,
    context: Context,
    root: Path,
    settings: dict[str, object],
    environment: dict[str, str],
) -> Servers:
    target = root / "target"
    target.mkdir(parents=True)
    key_file = root / "cluster.key"
    ClusterKey.create(key_file)
    chosen = {"storage.congestion": context.congestion, **settings}
    extra = [part for key, value in chosen.items() for part in ("--set", f"{key}={value}")]
    host = context.link.server_host if context.link else HOST
    common = ["--host", host, "--port", "0", "--key-file", str(key_file), *extra]
    where = context.link.at_server() if context.link else contextlib.nullcontext()
    with pinned(context.placement.server_cpus), where:
        meta = stack.enter_context(
            _process("ffs.server.meta", ["--data", str(root / "meta"), *common], root, {})
        )
        address = _ready(meta, root / "ffs.server.meta.out")
        storage = stack.enter_context(
            _process(
                "ffs.server.storage",
                ["--meta", address, "--target", str(target), *common],
                root,
                environment,
            )
        )
        _ready(storage, root / "ffs.server.storage.out")
    return Servers(f"ffs://{address}", str(key_file), (meta.pid, storage.pid), storage.pid, target)


@contextmanager
def _process(
    module: str, arguments: Sequence[str], root: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server with its output in files; stop it at the end, the hard way if it must be.

    Raises:  UnavailableError when it had ended by itself: what was measured is worth nothing then
    """
    command = [sys.executable, "-m", module, "--exit-with-parent", *arguments]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("FFS_")}
    with (
        (root / f"{module}.out").open("wb") as out,
        (root / f"{module}.err").open("wb") as err,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=err,
            env={**clean, "PYTHONUNBUFFERED": "1", **environment},
            # A Ctrl-C for the benchmark reaches it by its end, in order. Of our session, for the
            # spinners' sake (measure.spinners).
            process_group=0,
        ) as process,
    ):
        try:
            yield process
        finally:
            if process.poll() is not None:
                raise UnavailableError(
                    f"{module} ended with {process.returncode}: {_log_tail(root, module)}"
                )
            process.terminate()
            try:
                process.wait(STOP_S_MAX)
            except subprocess.TimeoutExpired:
                process.kill()


def _ready(process: subprocess.Popen[bytes], out: Path) -> str:
    """Wait for the line `ready HOST:PORT`; return the address."""
    give_up = time.monotonic() + READY_S_MAX
    while time.monotonic() < give_up:
        ended = process.poll() is not None
        if found := re.match(rb"ready (\S+)", out.read_bytes()):
            return found.group(1).decode()
        if ended:
            break
        time.sleep(0.005)
    raise UnavailableError(f"{out.stem} did not get ready: {_log_tail(out.parent, out.stem)}")


def _log_tail(root: Path, module: str) -> str:
    log = (root / f"{module}.err").read_bytes()[-LOG_TAIL_BYTES:]
    return log.decode(errors="replace").strip() or "its log is empty"


def _attach(context: Context) -> Servers:
    """Find a running cluster's processes, if they are here, and put them on the servers' CPU."""
    key_file = context.key_file or os.environ.get("FFS_KEY_FILE", "")
    if not key_file:
        raise ConfigError("a cluster needs its key", hint="give --key-file or set FFS_KEY_FILE")
    found = Servers(context.url, key_file, None)
    if not _is_here(found.address[0]):
        return found
    rpc = found.rpc()
    try:
        nodes = rpc.call(STATUS, StatusRequest(), deadline_ms=5_000).nodes
    finally:
        rpc.close()
    pids = tuple(sorted({node.pid for node in nodes if _is_server(node.pid)}))
    for pid in pids:
        with contextlib.suppress(PermissionError):
            pin_process(pid, *context.placement.server_cpus)
    return Servers(context.url, key_file, pids)


def _is_here(host: str) -> bool:
    addresses = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    return any(str(address).startswith("127.") or address == "::1" for address in addresses)


def _is_server(pid: int) -> bool:
    try:
        return b"ffs" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
