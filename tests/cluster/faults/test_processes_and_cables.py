"""Three replicas under kill -9, SIGSTOP, pulled cables, one-way drops and resets, one at a time.

Under each: no failed read, no wrong byte, nothing acknowledged lost, and full redundancy again
without a command. See `rig.py` for the rounds and for the times.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.cluster.faults.clients import at_work
from tests.cluster.faults.network import Network
from tests.cluster.faults.rig import (
    DEFAULT_LEASE,
    ROUNDS,
    SEED,
    SHORT_LEASE,
    FaultCluster,
    Rounds,
    started,
)

pytestmark = pytest.mark.timeout(110 + 60 * ROUNDS)


class Killed:
    """kill -9; the supervisor starts the daemon again: at once, or when it has been given up."""

    felt = True

    def __init__(self, cluster: FaultCluster, hold_leases: float) -> None:
        self.name = f"kill -9, away for {hold_leases} leases"
        self.hold_leases = hold_leases
        self._cluster = cluster

    def strike(self, victim: int) -> None:
        self._cluster.kill("storage", victim)

    def heal(self, victim: int) -> None:
        self._cluster.process("storage", victim).start()


class Stopped:
    """SIGSTOP for longer than the lease, then SIGCONT: it wakes up with yesterday's opinions."""

    name, felt, hold_leases = "SIGSTOP", True, 2.0

    def __init__(self, cluster: FaultCluster) -> None:
        self._cluster = cluster

    def strike(self, victim: int) -> None:
        self._cluster.process("storage", victim).signal(signal.SIGSTOP)

    def heal(self, victim: int) -> None:
        self._cluster.process("storage", victim).signal(signal.SIGCONT)


class Pulled:
    """The cable is pulled: no reset, no answer, from nobody."""

    name, felt, hold_leases = "cable pulled", True, 2.0

    def __init__(self, network: Network) -> None:
        self._network = network

    def strike(self, victim: int) -> None:
        self._network.pull(victim)

    def heal(self, victim: int) -> None:
        self._network.plug(victim)


class Filtered:
    """A packet filter on the victim: drops in one direction, or resets."""

    def __init__(self, network: Network, name: str, *rule: str, hold_leases: float = 2.0) -> None:
        self.name, self.felt, self.hold_leases = name, True, hold_leases
        self._network, self._rule = network, rule

    def strike(self, victim: int) -> None:
        self._network.filter(victim, *self._rule)

    def heal(self, victim: int) -> None:
        self._network.unfilter(victim)


FILTERS = {
    "one-way drop, nothing comes in": ("INPUT", "-j", "DROP"),
    "one-way drop, nothing goes out": ("OUTPUT", "-j", "DROP"),
    "every connection reset": ("INPUT", "-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset"),
}


def made(tmp_path: Path, network: Network, lease: dict[str, object]) -> FaultCluster:
    return FaultCluster(tmp_path / "cluster", network, lease)


@pytest.mark.parametrize("hold_leases", [0.0, 1.6])
def test_kill_9(tmp_path: Path, network: Network, hold_leases: float) -> None:
    cluster = made(tmp_path, network, DEFAULT_LEASE)
    with started(cluster), at_work(cluster, SEED) as clients:
        Rounds(cluster, clients).play(Killed(cluster, hold_leases))


def test_stopped_for_longer_than_the_lease(tmp_path: Path, network: Network) -> None:
    cluster = made(tmp_path, network, SHORT_LEASE)
    with started(cluster), at_work(cluster, SEED) as clients:
        Rounds(cluster, clients).play(Stopped(cluster))


def test_cable_pulled(tmp_path: Path, network: Network) -> None:
    cluster = made(tmp_path, network, SHORT_LEASE)
    with started(cluster), at_work(cluster, SEED) as clients:
        Rounds(cluster, clients).play(Pulled(network))


@pytest.mark.parametrize("name", FILTERS)
def test_packets_dropped_or_refused(tmp_path: Path, network: Network, name: str) -> None:
    cluster = made(tmp_path, network, SHORT_LEASE)
    with started(cluster), at_work(cluster, SEED) as clients:
        Rounds(cluster, clients).play(Filtered(network, name, *FILTERS[name]))
