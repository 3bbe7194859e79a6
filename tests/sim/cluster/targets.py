"""The targets of one life of a simulated storage daemon: what `Targets` is to the real parts.

Used by storage.py, which hands it to `Membership`, `Revival`, the scan and the orders. What lies on
the disks outlives it; what was synced, compared or found damaged is this life's knowledge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ffs.errors import FormatError
from ffs.server.storage.restoring import Restores
from ffs.server.storage.targets import drop_from
from ffs.wire.membership import EMPTIED, TargetReport
from tests.sim.chain_of_one import Violation
from tests.sim.cluster.disks import CAPACITY_BYTES, Disk, Store


class SimTargets:
    """What `Targets` is to membership and scan: the targets of one life of a daemon."""

    def __init__(
        self,
        disks: Iterable[Disk],
        keep: Callable[[Disk], None],
        on_stop: Callable[[int], None] = lambda target: None,
        late: Iterable[Disk] = (),
    ) -> None:
        self.disks = list(disks)
        self.restores = Restores()
        self._late = list(late)
        """Those that have not answered yet."""
        self._keep = keep
        """Called with each directory that is made, to outlive this life."""
        self._on_stop = on_stop
        self.stores = {disk.target: self._open(disk) for disk in self.disks if disk.target}
        self.synced: dict[int, int] = {}
        self.compared: dict[int, int] = {}
        self.damaged: set[int] = {disk.target for disk in self.disks if disk.shows_damage}

    @property
    def cluster_id(self) -> bytes:
        """See `Targets`."""
        return next((disk.cluster_id for disk in self.disks if disk.cluster_id), b"")

    @property
    def unanswered(self) -> list[str]:
        """See `Targets`."""
        return [disk.name for disk in self._late]

    @property
    def working(self) -> dict[int, Store]:
        """See `Targets`."""
        return {target: store for target, store in self.stores.items() if not store.stopped}

    @property
    def stopped(self) -> list[int]:
        """See `Targets`."""
        return [target for target, store in self.stores.items() if store.stopped]

    def _open(self, disk: Disk) -> Store:
        return Store(disk, lambda: self._on_stop(disk.target))

    def open_again(self, target: int) -> Store:
        """See `Targets`; nobody comes here before the disk answers."""
        return self._open(self.stores[target].disk)

    def take_late(self, disk: Disk) -> Store:
        """See `Targets`."""
        self._late.remove(disk)
        self.disks.append(disk)
        self.stores[disk.target] = self._open(disk)
        if disk.shows_damage:
            self.damaged.add(disk.target)
        return self.stores[disk.target]

    def take_back(self, target: int, store: Store) -> None:
        """See `Targets`."""
        self.stores[target] = store
        self.synced.pop(target, None)
        if store.disk.shows_damage:
            self.damaged.add(target)

    def probe(self, target: int) -> None:
        """See `Targets`; nobody comes here before the disk answers."""

    def create_new(self, cluster_id: bytes, ids: list[int]) -> None:
        """See `Targets`."""
        for disk, target in zip(self.disks, ids, strict=True):
            if disk.target and disk.target != target:
                raise Violation(f"target {disk.target} was given the id {target}")
            if not disk.target:
                disk.target, disk.cluster_id = target, cluster_id
                self.stores[target] = self._open(disk)

    def create_ordered(self, target: int, beside: int) -> Store:
        """See `Targets`."""
        near = next(disk for disk in self.disks if disk.target == beside)
        disk = Disk(near.world, f"{near.place}+{target}")
        disk.target, disk.cluster_id = target, self.cluster_id
        self.disks.append(disk)
        self.stores[target] = self._open(disk)
        self._keep(disk)
        return self.stores[target]

    def check_ids(self, ids: list[int]) -> list[Any]:
        """See `Targets`."""
        if len(ids) != len(self.disks):
            raise FormatError("some joined meanwhile")
        if [disk.target for disk in self.disks] != ids:
            raise Violation(f"targets {[d.target for d in self.disks]} were registered as {ids}")
        return []

    def reports(self) -> list[TargetReport]:
        """See `Targets`."""
        return [self._report(disk) for disk in self.disks]

    def remember_emptied(self, target: int) -> None:
        """See `Targets`."""
        self.stores[target].disk.holds = EMPTIED

    def remember_synced(self, target: int, chain: int) -> None:
        """See `Targets`."""
        disk = self.stores[target].disk
        disk.holds = chain if disk.holds else 0

    def drop(self, blobs: Iterable[int]) -> None:
        """See `Targets`."""
        wanted = list(blobs)
        self.restores.drop(wanted)
        for store in self.working.values():
            drop_from(store, wanted)  # type: ignore[arg-type]

    def _report(self, disk: Disk) -> TargetReport:
        store = self.stores.get(disk.target)
        return TargetReport(
            label=disk.claim,
            target=disk.target,
            capacity_bytes=CAPACITY_BYTES,
            used_bytes=0 if store is None else store.stats()["stored_bytes"],
            chunks=len(disk.chunks),
            stopped=store is not None and store.stopped,
            disk=disk.place,
            synced=self.synced.get(disk.target, 0),
            damaged=disk.target in self.damaged,
            stored_bytes=0 if store is None else store.stats()["stored_bytes"],
            compared=self.compared.get(disk.target, 0),
            holds=disk.holds,
        )
