"""Networks of a benchmark's own: a link of a known rate, a loopback of a known congestion control.

A link (bench/cases/shaped.py) is two network namespaces, a veth pair and a token bucket on both
ends. Servers run at one end and clients at the other, so that every byte passes the bucket. The
loopback (bench/cases/compare.py) is one namespace. Nothing of this machine's own network is
touched. Needs root, iproute2 and a kernel with veth and tbf.

The bucket holds 8 MB and lets as much wait. With a small one every delay of the shaper's timer
loses part of the rate for good (a raw flow at 5 Gbit/s had 0.90 of it with 256 kB on a busy
machine, 0.95 with 8 MB); a full one adds its 8 MB once, therefore runs are warmed up first.

Failure: a step that the system refuses is a ConfigError with what it said.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ffs.errors import ConfigError

_SERVER_HOST, _CLIENT_HOST = "10.213.77.1", "10.213.77.2"
_BUCKET = ("burst", "8mb", "limit", "8mb")
_NAMESPACES = Path("/run/netns")
_DEFAULT_CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")
_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Link:
    """The two ends. A thread is at one of them while it is inside `at_server` or `at_client`."""

    server: Path
    client: Path
    server_host: str = _SERVER_HOST

    @contextmanager
    def at_server(self) -> Iterator[None]:
        """Put the calling thread, and what it starts or opens, at the servers' end."""
        with _inside(self.server):
            yield

    @contextmanager
    def at_client(self) -> Iterator[None]:
        """Put the calling thread, and what it starts or opens, at the clients' end."""
        with _inside(self.client):
            yield

    def raw_options(self) -> dict[str, str | int | float | Path]:
        """Return what puts a plain C program's server and client at the two ends."""
        return {
            "host": self.server_host,
            "server_netns": self.server,
            "client_netns": self.client,
        }

    def shape(self, *, mbit: int, mtu: int) -> None:
        """Have both directions carry so much from now on; new connections see the MTU."""
        for end in (self.server, self.client):
            _ip("-n", end.name, "link", "set", "veth", "mtu", str(mtu))
            rate = ["root", "tbf", "rate", f"{mbit}mbit", *_BUCKET]
            _call("tc", "-n", end.name, "qdisc", "replace", "dev", "veth", *rate)


@contextmanager
def link() -> Iterator[Link]:
    """Make a link without limits; it is gone with the block."""
    server, client = f"ffs-bench-{os.getpid()}-s", f"ffs-bench-{os.getpid()}-c"
    with ExitStack() as stack:
        for name in (server, client):
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "delete", name)
        ends = ["veth", "netns", server], ["veth", "netns", client]
        _ip("link", "add", "name", *ends[0], "type", "veth", "peer", "name", *ends[1])
        for name, host in ((server, _SERVER_HOST), (client, _CLIENT_HOST)):
            _ip("-n", name, "address", "add", f"{host}/24", "dev", "veth")
            for device in ("lo", "veth"):
                _ip("-n", name, "link", "set", device, "up")
        yield Link(_NAMESPACES / server, _NAMESPACES / client)


@contextmanager
def own_loopback(congestion: str) -> Iterator[None]:
    """Put the calling thread, and what it starts, where every connection has this control.

    Programs of others have no setting for it; the routes of their network do. Nothing is done on a
    kernel whose default it is. Threads that run already stay outside, and reach nobody inside.
    """
    if _DEFAULT_CONGESTION.read_text().strip() == congestion:
        yield
        return
    name = f"ffs-bench-{os.getpid()}-l"
    _ip("netns", "add", name)
    try:
        _ip("-n", name, "link", "set", "lo", "up")
        for goal in ("127.0.0.0/8", "127.0.0.1"):
            route = ("local", goal, "dev", "lo", "table", "local", "src", "127.0.0.1")
            _ip("-n", name, "route", "replace", *route, "congctl", congestion)
        with _inside(_NAMESPACES / name):
            yield
    finally:
        _ip("netns", "delete", name)


def _ip(*arguments: str) -> None:
    _call("ip", *arguments)


def _call(*command: str) -> None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{command[0]} is not installed", hint="as root: apt-get install iproute2"
        ) from error
    if result.returncode:
        raise ConfigError(
            f"`{' '.join(command)}` failed: {result.stderr.strip()}",
            hint="a network of its own needs root, and a kernel with veth and tbf",
        )


@contextmanager
def _inside(namespace: Path) -> Iterator[None]:
    """Have the calling thread in another network namespace, and back again."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _enter(before)
    finally:
        os.close(before)


def _enter(namespace_fd: int) -> None:
    if _LIBC.setns(namespace_fd, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise ConfigError(f"entering a network namespace failed: {os.strerror(number)}")
