"""A metadata database that is lost and restored from a backup, in a simulated cluster.

The backup knows less than what lies on the disks: since it was taken a node was drained, whose
targets have left their chains, were emptied, and serve other chains perhaps. By the restored
database they are members still. No file was written or removed since, so nothing is lost: whoever
is emptied must copy everything anew before it serves, and all files must read back as they were.

With every other seed all daemons are dead while the backup is taken: then a chain's last server may
be emptied, and an operator has to say that who is left shall serve. Backup and restore are done by
the code of the product.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ffs.server.meta import backup
from ffs.server.meta.backup import BackupInfo
from ffs.types import Routing, TargetState
from ffs.wire.operators import TaskKind
from tests.sim.cluster.disks import Key
from tests.sim.world import SECOND

LIMIT_NS: Final = 40 * SECOND
JUDGED_NS: Final = 5 * SECOND
"""By then every node has registered, and the manager has told what it makes of them."""

if TYPE_CHECKING:
    from tests.sim.cluster.run import Cluster


class Restored:
    """What happens to the database of one cluster, and what its operator does about it."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self._cluster = cluster
        self._dice = random.Random(seed)
        self._while_dead = seed % 2 == 1

    def play(self) -> None:
        """Take the backup, drain a node, restore; on return all chains serve fully again."""
        cluster = self._cluster
        with tempfile.TemporaryDirectory(prefix="ffs-sim-") as directory:
            path = Path(directory) / "backup"
            if self._while_dead:
                for node in cluster.nodes:
                    node.crash()
                cluster.until(self._all_dead, LIMIT_NS, "the manager has not noticed")
            info = self._take(path)
            likely = self._states(TargetState.LASTSRV, TargetState.SERVING)
            for node in cluster.nodes:
                if not node.alive:
                    node.start()
            cluster.until(cluster.serves, LIMIT_NS, "the cluster does not serve again")
            self._drain(likely)
            self._restore(path, info)
        cluster.world.run(cluster.world.now_ns + JUDGED_NS)
        self._accept_loss()
        cluster.until(cluster.serves, LIMIT_NS, "a restored chain does not serve fully")

    def _states(self, *states: TargetState) -> dict[int, int]:
        """Return the members of chains that are in these states, and their nodes."""
        routing = self._cluster.ledger.newest()
        members = {target for chain in routing.chains for target in chain.targets}
        found = (info for info in routing.targets if info.target in members)
        return {info.target: info.node for info in found if info.state in states}

    def _all_dead(self) -> bool:
        return not self._states(TargetState.SERVING, TargetState.SYNCING)

    def _take(self, path: Path) -> BackupInfo:
        world = self._cluster.world
        world.log("backup")
        return self._cluster.database.run(
            lambda tx: backup.dump(tx, path, world.clock.wall_ns()), keep=False
        )

    def _drain(self, likely: dict[int, int]) -> None:
        """Have a node of one of these members left by all."""
        operator = self._cluster.operator
        assert operator is not None
        node = self._dice.choice(sorted(set(likely.values())))
        operator.drain(TaskKind.DRAIN_NODE, node)
        self._cluster.until(operator.satisfied, LIMIT_NS, "a node is not drained")

    def _restore(self, path: Path, info: BackupInfo) -> None:
        cluster = self._cluster
        for server in cluster.servers:
            server.crash()
        cluster.world.log("restored")
        cluster.database.restore(lambda tx: backup.load(tx, path, info))
        cluster.ledger.taken |= self._emptied()
        for server in cluster.servers:
            server.start()

    def _emptied(self) -> set[tuple[int, Key]]:
        """Return what members lack by the restored database: they were emptied since."""
        ledger = self._cluster.ledger
        disks = {disk.target: disk for disk in ledger.disks}
        members = {chain.chain: chain.targets for chain in ledger.newest().chains}
        return {
            (target, key)
            for key, chain in ledger.acknowledged.items()
            for target in members[chain]
            if key not in disks[target].chunks
        }

    def _accept_loss(self) -> None:
        operator = self._cluster.operator
        assert operator is not None
        for chain in _unserved(self._cluster.ledger.newest()):
            operator.accept_loss(chain)


def _unserved(routing: Routing) -> list[int]:
    states = {info.target: info.state for info in routing.targets}
    return [
        chain.chain
        for chain in routing.chains
        if all(states[target] != TargetState.SERVING for target in chain.targets)
    ]
