"""Faults are planted in a cluster of three machines, and `ffs doctor` names each of them at once.

A slow disk under one target, a link whose MTU is smaller than ours, a metadata server whose clock
is an hour ahead, and a node that flaps; a client on BBR is in tests/cli/test_observe.py, and needs
no network. Before them it has nothing to say of any.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from ffs.cli.app import main
from ffs.client.filesystem import FFSFileSystem
from ffs.client.verify import verify
from tests.cluster.faults.disk import FaultyDisk
from tests.cluster.faults.network import Network, run
from tests.cluster.faults.rig import FaultCluster, until
from tests.harness import stopped_at_exit

pytestmark = pytest.mark.timeout(300)

VICTIM: Final = 1
CHUNK: Final = 65_536
CHUNKS: Final = 60
HOUR_S: Final = 3_600
PLANTED: Final = frozenset({"clocks", "nodes", "targets", "disks"})


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FaultyDisk]:
    """The victim's disk."""
    made = FaultyDisk(tmp_path / "disk", 96)
    try:
        yield made
    finally:
        made.close()


class Ward:
    """A cluster to plant faults in, and what the doctor says of it."""

    def __init__(self, tmp_path: Path, network: Network, disk: FaultyDisk) -> None:
        self.offset = tmp_path / "offset"
        self.offset.write_text("+0")
        (library,) = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
        moved = {
            "LD_PRELOAD": library,
            "FAKETIME_TIMESTAMP_FILE": self.offset,
            "FAKETIME_CACHE_DURATION": 1,
            "FAKETIME_DONT_FAKE_MONOTONIC": 1,
        }
        wrap = ("env", *(f"{name}={value}" for name, value in moved.items()))
        lease: dict[str, object] = {"meta.heartbeat_ms": 200, "meta.node_lease_ms": 10_000}
        lease |= {"storage.io": "direct", "storage.hung_disk_ms": 30_000}
        lease |= {"storage.scrub_bytes_per_s": 0}
        self.cluster = FaultCluster(tmp_path / "cluster", network, lease, wrap)
        place = self.cluster.target_dir(VICTIM).parent
        place.parent.mkdir(parents=True)
        (disk.mount / "targets").mkdir()
        place.symlink_to(disk.mount / "targets")

    def problems(self, *options: str) -> list[dict[str, str]]:
        """What `ffs doctor` calls a problem of what is planted here."""
        where = ("--url", self.cluster.url, "--key-file", str(self.cluster.key_file))
        before, sys.stdout = sys.stdout, io.TextIOWrapper(io.BytesIO(), write_through=True)
        try:
            main(["doctor", "--json", *where, *options])
            written = sys.stdout.buffer.getvalue()  # type: ignore[attr-defined]
        finally:
            sys.stdout = before
        found = json.loads(written)["findings"]
        return [
            one
            for one in found
            if one["verdict"] == "problem" and (one["check"] in PLANTED or "MTU" in one["check"])
        ]

    def named(self, check: str, *words: str) -> None:
        """Wait until a problem of a check is named, in so many words: one heartbeat or two."""
        last: list[dict[str, str]] = []

        def told() -> bool:
            last[:] = self.problems()
            return any(
                one["check"] == check and all(word in one["message"] for word in words)
                for one in last
            )

        until(told, f"{check} {words} is not named: {last}")

    def read_all_replicas(self) -> None:
        """Read every chunk from every target."""
        fs = FFSFileSystem(skip_instance_cache=True, **self.cluster.storage_options)
        assert not list(verify(fs, ["/file"]))
        fs.close()


def test_planted_faults_are_named(tmp_path: Path, network: Network, disk: FaultyDisk) -> None:
    ward = Ward(tmp_path, network, disk)
    with stopped_at_exit(ward.cluster):
        until(ward.cluster.redundant, "the chains never came into service")
        fs = FFSFileSystem(skip_instance_cache=True, **ward.cluster.storage_options)
        fs.pipe_file("/file", os.urandom(CHUNK * CHUNKS), chunk_size_bytes=CHUNK)
        fs.close()
        assert ward.problems() == []
        plant_mtu(ward, network)
        plant_slow_disk(ward, disk)
        plant_flapping(ward)
        plant_skew(ward)


def plant_mtu(ward: Ward, network: Network) -> None:
    """All links take 9000 bytes but the victim's."""
    for index in range(3):
        run("ip", "-n", network.hub, "link", "set", f"cable{index}", "mtu", "9000")
        if index != VICTIM:
            run("ip", "-n", network.machine(index), "link", "set", "net", "mtu", "9000")
    run("ip", "-n", network.hub, "link", "set", "bridge", "mtu", "9000")
    where = network.address(VICTIM)
    ward.named(f"MTU to {where}", "packets of 9000 bytes", "1500 bytes get through")
    run("ip", "-n", network.machine(VICTIM), "link", "set", "net", "mtu", "9000")
    assert ward.problems() == []


def plant_slow_disk(ward: Ward, disk: FaultyDisk) -> None:
    """Reads of one target wait for a disk that crawls."""
    disk.slow_down(700_000)
    ward.read_all_replicas()
    ward.named("disks", f"of node {VICTIM + 1} ", "is slow")
    disk.recover()


def plant_flapping(ward: Ward) -> None:
    """A node is killed and comes back, again and again."""
    flapping = ward.cluster.process("storage", 2)
    for _ in range(3):
        flapping.kill()
        flapping.start()
    ward.named("nodes", "node 3 at ", "flaps: it came back 3 times")


def plant_skew(ward: Ward) -> None:
    """The metadata server's clock is an hour ahead."""
    ward.offset.write_text(f"+{HOUR_S}")
    host, port = ward.cluster.address
    ward.named(
        "clocks", f"the metadata server at {host}:{port} is 36", "ahead of that of this host"
    )
    ward.named("clocks", "node 1 is 36", "behind")
