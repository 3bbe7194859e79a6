"""A switch and machines on it: network namespaces joined by virtual cables to a bridge.

The bridge lies in a namespace of its own (the hub), so that several tests may use the same
addresses at once. Names carry the process id: what a killed test process left behind is removed
by the next one. Needs root, iproute2 and iptables.

Fault behaviour: a command that fails raises with its output; `close` removes everything by name.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

HUB_ADDRESS: Final = "10.0.0.1"
_RUN: Final = Path("/run/netns")
_PREFIX: Final = "ffs-test-"
_CLONE_NEWNET: Final = 0x40000000
_numbers = itertools.count()


def run(*command: str) -> str:
    """Run a command that has to succeed; return what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
    return done.stdout


class Network:
    """A hub and so many machines, each with one cable to it."""

    def __init__(self, machines: int) -> None:
        if os.geteuid() != 0:
            pytest.skip("network namespaces need root")
        _remove_left_overs()
        self._name = f"{_PREFIX}{os.getpid()}-{next(_numbers)}"
        self._machines = range(machines)
        self._made: list[str] = []
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def _build(self) -> None:
        hub = self._add(self.hub)
        run(*hub, "link", "add", "bridge", "type", "bridge")
        run(*hub, "addr", "add", f"{HUB_ADDRESS}/24", "dev", "bridge")
        run(*hub, "link", "set", "bridge", "up")
        for index in self._machines:
            name = self.machine(index)
            inside = self._add(name)
            cable = f"cable{index}"
            run(*hub, "link", "add", cable, "type", "veth", "peer", "name", "net", "netns", name)
            run(*hub, "link", "set", cable, "master", "bridge", "up")
            run(*inside, "addr", "add", f"{self.address(index)}/24", "dev", "net")
            run(*inside, "link", "set", "net", "up")

    def _add(self, name: str) -> tuple[str, ...]:
        run("ip", "netns", "add", name)
        self._made.append(name)
        inside = ("ip", "-n", name)
        run(*inside, "link", "set", "lo", "up")
        return inside

    @property
    def hub(self) -> str:
        """The namespace of the bridge, of the metadata server and of clients."""
        return f"{self._name}-hub"

    def machine(self, index: int) -> str:
        """The namespace of a machine."""
        return f"{self._name}-{index}"

    def address(self, index: int) -> str:
        """A machine's address."""
        return f"10.0.0.{10 + index}"

    def enter(self, index: int) -> list[str]:
        """What to put before a command that is to run on a machine (as the same process)."""
        return ["nsenter", f"--net={_RUN / self.machine(index)}"]

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Let the calling thread, and what it starts, be at the hub."""
        with Path("/proc/thread-self/ns/net").open() as before, (_RUN / self.hub).open() as hub:
            _set_namespace(hub.fileno())
            try:
                yield
            finally:
                _set_namespace(before.fileno())

    # --- faults -----------------------------------------------------------------------------------

    def pull(self, index: int) -> None:
        """Pull a machine's cable."""
        run("ip", "-n", self.hub, "link", "set", f"cable{index}", "down")

    def plug(self, index: int) -> None:
        """Plug it in again."""
        run("ip", "-n", self.hub, "link", "set", f"cable{index}", "up")

    def filter(self, index: int, *rule: str) -> None:
        """Add a rule to a machine's packet filter, such as INPUT -j DROP."""
        run(*self.enter(index), "iptables", "--wait", "-A", *rule)

    def unfilter(self, index: int) -> None:
        """Remove all rules of a machine."""
        run(*self.enter(index), "iptables", "--wait", "-F")

    def close(self) -> None:
        """Remove the namespaces, and with them links and rules."""
        while self._made:
            run("ip", "netns", "del", self._made.pop())


def _set_namespace(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _remove_left_overs() -> None:
    """Remove namespaces of test processes that are gone."""
    for path in _RUN.glob(f"{_PREFIX}*"):
        owner = path.name.removeprefix(_PREFIX).split("-")[0]
        if not Path(f"/proc/{owner}").exists():
            # Another process may just be doing the same.
            subprocess.run(["ip", "netns", "del", path.name], check=False, capture_output=True)
