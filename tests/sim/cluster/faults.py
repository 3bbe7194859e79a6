"""The nemesis of a simulated cluster: five faults a seed, and the end of them.

One good copy always lives: of all nodes only one, the victim of the seed, ever loses or damages
what its disks hold, and only chunks that another disk holds whole. Everything else may happen to
every process, link and disk, several at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from ffs.server.meta.ops import chains
from tests.sim.cluster.database import NAME as DATABASE
from tests.sim.cluster.disks import Disk, Key
from tests.sim.cluster.fabric import Host
from tests.sim.world import MS, SECOND

if TYPE_CHECKING:
    from tests.sim.cluster.run import Cluster

FAULTS: Final = 5
WORK_NS: Final = 6 * SECOND
USURP_NS: Final = 1_400 * MS
"""Longer than the manager's lease."""
REMNANT_NS: Final = 2 * SECOND
"""By then those who are gone have been given up."""
STALE_NS: Final = 3 * SECOND
Undo = Callable[[], None]


class Nemesis:
    """Chooses faults, makes them happen, and ends them.

    Args:    only: kinds to choose from; empty: all
    """

    def __init__(self, cluster: Cluster, only: Sequence[str]) -> None:
        self._cluster = cluster
        self._chance = cluster.world.random
        self._victim = cluster.nodes[self._chance.randrange(len(cluster.nodes))]
        self._only = only
        self.end_ns = 0
        self.hanging: Disk | None = None
        """What peace does not end: a disk that hangs on, in a chain that can do without it."""
        self.kinds: Final[dict[str, Callable[[int], None]]] = {
            "crash_node": self._crash_node,
            "crash_server": self._crash_server,
            "crash_all_nodes": self._crash_all_nodes,
            "freeze": self._freeze,
            "usurp": self._usurp,
            "isolate": self._isolate,
            "one_way": self._one_way,
            "partition": self._partition,
            "clog": self._clog,
            "choke": self._choke,
            "stale_news": self._stale_news,
            "database_away": self._database_away,
            "database_cut": self._database_cut,
            "sync_fails": self._sync_fails,
            "reads_fail": self._reads_fail,
            "full": self._full,
            "slow": self._slow,
            "hang": self._hang,
            "rot": self._rot,
            "misdirect": self._misdirect,
            "lose": self._lose,
            "remnant": self._remnant,
            "clock_jump": self._clock_jump,
        }

    def plan(self) -> None:
        """Schedule the faults of this seed."""
        world = self._cluster.world
        self.end_ns = world.now_ns + WORK_NS
        for _ in range(FAULTS):
            kind = self._chance.choice(self._only or list(self.kinds))
            # Shorter and longer than a lease, in equal parts.
            lasts_ns = self._chance.choice([400, 900, 1_600, 3_000]) * MS
            begins_ns = self._chance.randint(0, WORK_NS - SECOND)
            world.after(begins_ns, self._begin, kind, lasts_ns)

    def make_peace(self) -> None:
        """End all faults that are still there, but for disks that hang."""
        cluster = self._cluster
        cluster.world.log("peace")
        cluster.fabric.heal()
        cluster.database.away = False
        for host in cluster.hosts:
            host.clock.jumped_ns = 0
            if host.frozen:
                host._thaw(host.incarnation)
            if not host.alive:
                host.start()
        for disk in cluster.ledger.disks:
            if not disk.hangs:
                disk.mend()

    def let_one_hang(self) -> None:
        """Have disks answer, but for one without which all goes on.

        Not before the manager has heard of everybody and judged them: what it believed while it
        stood still says nothing. A member that is said to serve may have lost chunks, or have been
        silent for so long that it is the disk which hangs that its chain has to wait for.
        """
        disks = self._cluster.ledger.disks
        self.hanging = next(
            (disk for disk in disks if disk.hangs and self._may_hang_on(disk)), None
        )
        for disk in disks:
            if disk is not self.hanging:
                disk.mend()

    def _may_hang_on(self, disk: Disk) -> bool:
        """Tell whether the chain that a disk keeps a member from has another one that serves."""
        return self._cluster.ledger.serves_without(disk.target)

    def end_hanging(self) -> None:
        """Have the last disk answer."""
        if self.hanging is not None:
            self.hanging.mend()
            self.hanging = None

    def _restart_if_stopped(self, node: Host) -> None:
        """A target that has stopped works again in the next life of its daemon, if not before."""
        stores = self._cluster.stores_of(node)
        if any(store.stopped for store in stores) and not any(store.disk.hangs for store in stores):
            node.crash()
            node.start()

    def _begin(self, kind: str, lasts_ns: int) -> None:
        if self._cluster.world.now_ns < self.end_ns:
            self._cluster.world.log("fault", kind, lasts_ns)
            self.kinds[kind](lasts_ns)

    def _later(self, delay_ns: int, action: Undo) -> None:
        """Do something later, unless peace has been made by then."""

        def guarded() -> None:
            if self._cluster.world.now_ns < self.end_ns:
                action()

        self._cluster.world.after(delay_ns, guarded)

    # --- processes --------------------------------------------------------------------------------

    def _crash(self, host: Host, lasts_ns: int) -> None:
        host.crash()
        self._later(lasts_ns, lambda: None if host.alive else host.start())

    def _crash_node(self, lasts_ns: int) -> None:
        self._crash(self._chance.choice(self._cluster.nodes), lasts_ns)

    def _crash_all_nodes(self, lasts_ns: int) -> None:
        for node in self._cluster.nodes:
            self._crash(node, lasts_ns + self._chance.randint(0, SECOND))

    def _crash_server(self, lasts_ns: int) -> None:
        self._crash(self._chance.choice(self._cluster.servers), lasts_ns)

    def _freeze(self, lasts_ns: int) -> None:
        host = self._chance.choice(self._cluster.hosts)
        host.freeze(self._cluster.world.now_ns + lasts_ns)

    def _usurp(self, lasts_ns: int) -> None:
        """The manager stands still until another one has taken its place; then that one does, and
        a node dies while the first may believe that it is still the manager."""
        lasts_ns = max(lasts_ns, USURP_NS)
        self._freeze_manager(lasts_ns)
        self._later(lasts_ns, lambda: self._freeze_manager(lasts_ns))
        self._later(lasts_ns, lambda: self._crash_node(lasts_ns))

    def _freeze_manager(self, lasts_ns: int) -> None:
        cluster = self._cluster
        holder = chains.lease(cluster.database.tx).holder.partition(":")[0]
        for server in cluster.servers:
            if server.name == holder:
                server.freeze(cluster.world.now_ns + lasts_ns)

    def _clock_jump(self, lasts_ns: int) -> None:
        host = self._chance.choice(self._cluster.hosts)
        host.clock.jumped_ns = self._chance.choice([-1, 1]) * 3_600 * SECOND

    # --- links ------------------------------------------------------------------------------------

    def _cut(self, links: set[tuple[str, str]], lasts_ns: int) -> None:
        cut = self._cluster.fabric.cut
        cut |= links
        self._later(lasts_ns, lambda: cut.difference_update(links))

    def _names(self) -> list[str]:
        return [host.name for host in self._cluster.hosts]

    def _isolate(self, lasts_ns: int) -> None:
        name = self._chance.choice(self._names())
        others = [other for other in self._names() if other != name]
        self._cut({(name, o) for o in others} | {(o, name) for o in others}, lasts_ns)

    def _one_way(self, lasts_ns: int) -> None:
        source, target = self._chance.sample(self._names(), 2)
        self._cut({(source, target)}, lasts_ns)

    def _partition(self, lasts_ns: int) -> None:
        names = self._names()
        here = set(self._chance.sample(names, self._chance.randint(1, len(names) - 1)))
        links = {(a, b) for a in names for b in names if (a in here) != (b in here)}
        self._cut(links, lasts_ns)

    def _clog(self, lasts_ns: int) -> None:
        source, target = self._chance.sample(self._names(), 2)
        until_ns = self._cluster.world.now_ns + lasts_ns
        self._cluster.fabric.clogged_until_ns[(source, target)] = until_ns

    def _choke(self, lasts_ns: int) -> None:
        """Whatever a process says comes late."""
        self._say_late(self._chance.choice(self._names()), lasts_ns)

    def _stale_news(self, lasts_ns: int) -> None:
        """What a metadata server says comes late, while chains change and change again."""
        self._say_late(self._chance.choice(self._cluster.servers).name, STALE_NS)
        self._crash(self._chance.choice(self._cluster.nodes), lasts_ns)

    def _say_late(self, name: str, lasts_ns: int) -> None:
        until_ns = self._cluster.world.now_ns + lasts_ns
        late = {(name, other): until_ns for other in self._names() if other != name}
        self._cluster.fabric.clogged_until_ns.update(late)

    def _database_away(self, lasts_ns: int) -> None:
        database = self._cluster.database
        database.away = True
        self._later(lasts_ns, lambda: setattr(database, "away", False))

    def _database_cut(self, lasts_ns: int) -> None:
        self._cut({(self._chance.choice(self._cluster.servers).name, DATABASE)}, lasts_ns)

    # --- disks ------------------------------------------------------------------------------------

    def _disk(self) -> Disk:
        return self._chance.choice(self._cluster.disks)

    def _sync_fails(self, lasts_ns: int) -> None:
        disk = self._disk()
        disk.fails_next_sync = True
        (node,) = [node for node in self._cluster.nodes if disk in node.disks]
        self._later(lasts_ns, lambda: self._restart_if_stopped(node))

    def _reads_fail(self, lasts_ns: int) -> None:
        self._disk_fault("fails_reads", lasts_ns)

    def _full(self, lasts_ns: int) -> None:
        self._disk_fault("full", lasts_ns)

    def _slow(self, lasts_ns: int) -> None:
        self._disk_fault("slow", lasts_ns)

    def _hang(self, lasts_ns: int) -> None:
        disk = self._disk()
        disk.hangs = True
        self._later(lasts_ns, disk.answer)

    def _disk_fault(self, name: str, lasts_ns: int) -> None:
        disk = self._disk()
        setattr(disk, name, True)
        self._later(lasts_ns, lambda: setattr(disk, name, False))

    def _rot(self, lasts_ns: int) -> None:
        for disk, key in self._spare(3):
            disk.rot(key)

    def _misdirect(self, lasts_ns: int) -> None:
        spare = self._spare(2)
        if len(spare) == 2 and spare[0][0] is spare[1][0]:
            (disk, source), (_, target) = spare
            disk.misdirect(source, target)

    def _lose(self, lasts_ns: int) -> None:
        """Entries of an index are gone, which is noticed when the target is opened."""
        self._victim.crash()
        for disk, key in self._spare(4):
            disk.forget(key)
            disk.shows_damage = True
        self._later(lasts_ns, lambda: None if self._victim.alive else self._victim.start())

    def _remnant(self, lasts_ns: int) -> None:
        """All die but the victim, who then loses chunks that only they have, and dies for a moment;
        they stay away for longer than a lease."""
        for node in self._cluster.nodes:
            if node is not self._victim:
                self._crash(node, lasts_ns + REMNANT_NS)
        self._later(REMNANT_NS, lambda: self._lose(100 * MS))

    def _spare(self, count: int) -> list[tuple[Disk, Key]]:
        """Return chunks of the victim's disks that other disks hold too, to be damaged."""
        ledger = self._cluster.ledger
        found = [
            (disk, key)
            for disk in self._victim.disks
            for key in sorted(disk.chunks)
            if key in ledger.acknowledged and ledger.good_elsewhere(key, disk)
        ]
        chosen = self._chance.sample(found, min(count, len(found)))
        ledger.taken.update((disk.target, key) for disk, key in chosen)
        for disk, key in chosen:
            self._cluster.world.log("damage", disk.target, key)
        return chosen
