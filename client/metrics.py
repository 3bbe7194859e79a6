"""A client process's metrics: what its engine and its file systems count.

Previous hop: client/core.py, at the first I/O of a file system with `metrics_address`
(`FFS_METRICS_ADDRESS`); the first address that is named counts, for the whole process. Next hop:
`ffs.metrics`. A program with a registry of its own registers `Collector()` there instead.

Processes of one machine, such as the workers of a DataLoader, may share one address: each takes the
next free port behind it, and tells its log which.

Fork: the child closes the parent's socket, and serves at its own port from its first connection to
a daemon on.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import ffs
from ffs import _reader
from ffs.client import _fork
from ffs.client.replicas import Replicas
from ffs.errors import ConfigError
from ffs.metrics import Endpoint, counter, gauge, histogram

log = logging.getLogger("ffs.client.metrics")

_ENGINE: Final = {
    "payload_bytes": ("read_bytes", "Bytes that were asked for and have landed."),
    "wire_bytes_received": ("received_bytes", "Bytes received from daemons."),
    "wire_bytes_sent": ("sent_bytes", "Bytes sent to daemons."),
    "local_bytes": ("local_bytes", "Bytes read from files of this host."),
    "rdma_bytes": ("rdma_bytes", "Bytes that daemons have written here by RDMA."),
    "edge_bytes": ("edge_bytes", "Bytes received around unaligned ranges."),
    "copied_bytes": ("copied_bytes", "Payload bytes that were copied in user space."),
    "ranges": ("ranges", "Ranges read."),
    "frames": ("frames", "Frames received."),
    "syscalls_recv": ("receive_calls", "System calls that receive."),
    "syscalls_send": ("send_calls", "System calls that send."),
    "crc_failures": ("crc_failures", "Blocks that did not match their CRC."),
    "connections_closed": ("closed_connections", "Connections that the engine has closed."),
}
_RANGES: Final = ("failed_over", "hedged", "stalled", "lost", "unreachable", "damaged", "missing")

_counted: weakref.WeakSet[Replicas] = weakref.WeakSet()


class Collector:
    """This process's metrics for a registry of prometheus_client."""

    def describe(self) -> list[Any]:
        """Name nothing beforehand."""
        return []

    def collect(self) -> Iterator[Any]:
        """Make the metric families of one scrape."""
        counted = _reader.counters()
        yield gauge("ffs_client_info", "The client.", {(ffs.__version__,): 1.0}, "version")
        for name, (shown, text) in _ENGINE.items():
            yield counter(f"ffs_client_{shown}", text, counted[name])
        happened: Counter[str] = Counter()
        for replicas in tuple(_counted):
            happened.update(replicas.counters.as_dict())
        text = "Ranges that something happened to on their way, by what; see docs/client.md."
        values = {(name,): happened[name] for name in _RANGES}
        yield counter("ffs_client_troubled_ranges", text, values, "how")
        for name, text in (("doubts", "Times a node was doubted."), ("probes", "Probes of those.")):
            yield counter(f"ffs_client_{name}", text, happened[name])
        text = "Calls of the read engine, several of which a read with a retry may take."
        yield histogram("ffs_client_read_duration_seconds", text, {(): _reader.latency()})


class _Process:
    """The endpoint of this process, if one is wanted."""

    def __init__(self) -> None:
        self._wanted = ""
        self._endpoint: Endpoint | None = None
        self._lock = threading.Lock()
        _fork.register(self)

    def after_fork_in_child(self) -> None:
        """Leave the socket to the parent; `serve_again` opens another one."""
        self._lock = threading.Lock()
        if self._endpoint is not None:
            self._endpoint.forget()
            self._endpoint = None

    def serve(self, address: str) -> None:
        with self._lock:
            if self._wanted:
                return
            self._endpoint = Endpoint(address, Collector().collect)
            self._wanted = address

    def serve_again(self) -> None:
        if not self._wanted or self._endpoint is not None:
            return
        with self._lock:
            if self._endpoint is None:
                try:
                    self._endpoint = Endpoint(self._wanted, Collector().collect)
                except ConfigError as error:  # the parent's worked: no reason to end the child
                    self._wanted = ""
                    log.warning("metrics_not_served", extra={"reason": str(error)})

    @property
    def address(self) -> str:
        return "" if self._endpoint is None else self._endpoint.address


_process: Final = _Process()


def count(replicas: Replicas) -> None:
    """Let scrapes see what a file system counts while it lives."""
    _counted.add(replicas)


def serve(address: str) -> None:
    """Answer scrapes at `address`, unless this process does already.

    Raises:  ConfigError if it cannot be had
    """
    _process.serve(address)


def serve_again() -> None:
    """Answer scrapes in a forked child as its parent does; costs two loads where none are."""
    _process.serve_again()


def address() -> str:
    """Return where this process answers scrapes; empty: nowhere."""
    return _process.address
