"""What clients were promised, and whether the disks keep it: the checkers of a simulated cluster.

All of this sees more than any process does: the disks, and the database as it is now.

- No wrong byte: what a client takes for good is what was written there.
- Written once: nobody was told "done" for two contents of one chunk.
- Acknowledged is durable: when a write is answered, every member that serves its chain has it on
  its disk, unless a fault took it from there; and so it stays while the blob lives, whenever the
  routing changes, and at the end. Members of a chain in doubt may lack what the fault took.
- A file that became visible has all its chunks on every member that serves.
- A replica answers only with what is on its disk for good.
- At most one manager: a change of chains is never made by one whose term is over.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ffs.server.meta.cluster.lease import LeaseRow
from ffs.server.meta.ops.routing import load_routing
from ffs.server.meta.schema import BlobState
from ffs.server.meta.store import Transaction
from ffs.types import Routing, TargetState
from tests.sim.chain_of_one import Violation
from tests.sim.cluster.disks import Disk, Key, verifies

_LIVE: Final = f"SELECT blob FROM blobs WHERE state IN ({BlobState.WRITING:d}, {BlobState.LIVE:d})"


class Ledger:
    """Knows what was promised. `disks`: all of the cluster, by target once they have one."""

    def __init__(self, tx: Transaction, disks: list[Disk]) -> None:
        self._tx = tx
        self.disks = disks
        self.written: dict[Key, bytes] = {}
        """What writers meant to store."""
        self.acknowledged: dict[Key, int] = {}
        """Chunk to chain, once its writer was told that it is done."""
        self.ever_acknowledged: set[Key] = set()
        self.taken: set[tuple[int, Key]] = set()
        """(target, chunk) that a fault took from a disk, or damaged there."""
        self.routing = Routing(0, [], [], [], [])
        self._states: dict[int, int] = {}
        self._members: dict[int, list[int]] = {}

    # --- what happens -----------------------------------------------------------------------------

    def on_ack(self, key: Key, data: bytes, chain: int) -> None:
        """The head of a chain tells a client that a chunk is durable."""
        if self.written.setdefault(key, data) != data:
            raise Violation(f"chunk {key} acknowledged with two contents")
        self.acknowledged[key] = chain
        self.ever_acknowledged.add(key)
        self._refresh()
        self._check_served([key])

    def lives(self, blob: int) -> bool:
        """Whether a blob is a file's, or being written; one that was given up may be dropped while
        a late write of it is on its way."""
        return self._tx.row(f"{_LIVE} AND blob = ?", (blob,)) is not None

    def on_read(self, key: Key, data: bytes) -> None:
        """A client takes bytes for those of a chunk."""
        if self.written.get(key) != data:
            raise Violation(f"chunk {key} read as {data!r}, written {self.written.get(key)!r}")

    def on_restored(self, target: int, key: Key, *, dropped: bool) -> None:
        """A target gets back a chunk that it lacked; `dropped`: it has just dropped that blob."""
        row = self._tx.row("SELECT state FROM blobs WHERE blob = ?", (key[0],))
        if row is None:
            raise Violation(f"chunk {key} came back to target {target}: its blob is gone")
        asked = self._tx.row("SELECT 1 FROM drops WHERE target = ? AND blob = ?", (target, key[0]))
        if row[0] == BlobState.DROPPING and (dropped or asked is None):
            raise Violation(f"chunk {key} came back to target {target}, which has dropped its blob")

    def on_published(self, blob: int, count: int) -> None:
        """A file with a blob of so many chunks was made visible."""
        late = [chunk for chunk in range(count) if (blob, chunk) not in self.ever_acknowledged]
        if late:
            raise Violation(f"blob {blob} was published before chunks {late} were acknowledged")

    def on_change(self, manager: str, term: int, row: LeaseRow) -> None:
        """A manager of some term changes chains."""
        if term != row.term or row.holder.partition(":")[0] != manager:
            raise Violation(f"{manager}, manager in term {term}, changes chains under {row}")

    def on_routing(self) -> None:
        """The routing may have changed."""
        if self._refresh():
            self._check_states()
            self.check()

    def check(self) -> None:
        """Everything acknowledged, of blobs that live, is on every member that serves it."""
        live = {int(blob) for (blob,) in self._tx.rows(_LIVE)}
        for key in [key for key in self.acknowledged if key[0] not in live]:
            del self.acknowledged[key]
        self._check_served(self.acknowledged)

    # --- the checks -------------------------------------------------------------------------------

    def _refresh(self) -> bool:
        row = self._tx.row("SELECT value FROM counters WHERE name = 'routing'")
        if row is None or int(row[0]) == self.routing.version:
            return False
        self.routing = load_routing(self._tx)
        self._states = {target.target: target.state for target in self.routing.targets}
        self._members = {chain.chain: chain.targets for chain in self.routing.chains}
        return True

    def _check_served(self, keys: Iterable[Key]) -> None:
        disks = {disk.target: disk for disk in self.disks}
        for key in keys:
            data = self.written[key]
            for target in self._members.get(self.acknowledged[key], ()):
                if self._states[target] != TargetState.SERVING or (target, key) in self.taken:
                    continue
                if self._may_lack(key, target):
                    continue
                disk = disks.get(target)
                lost = disk is None or disk.chunks.get(key) != data
                if lost and self.lives(key[0]):
                    raise Violation(f"chunk {key} is acknowledged and not on target {target}")

    def _may_lack(self, key: Key, target: int) -> bool:
        """Tell whether a member of a chain in doubt copied from one that a fault took a chunk
        from."""
        chain = self.acknowledged[key]
        if not any((member, key) in self.taken for member in self._members.get(chain, ())):
            return False
        row = self._tx.row("SELECT doubtful FROM chains WHERE chain = ?", (chain,))
        return row is not None and bool(row[0])

    def _check_states(self) -> None:
        """No chain has a server and a last server at once."""
        for chain, members in self._members.items():
            states = {self._states[target] for target in members}
            if {TargetState.SERVING, TargetState.LASTSRV} <= states:
                raise Violation(f"chain {chain} has a last server beside one that serves")

    def good_elsewhere(self, key: Key, disk: Disk) -> bool:
        """Tell whether another member of its chain holds a chunk whole."""
        self._refresh()
        members, data = self._members.get(self.acknowledged[key], ()), self.written[key]
        others = (other for other in self.disks if other is not disk and other.target in members)
        return any(other.chunks.get(key) == data for other in others)

    def serves_without(self, target: int) -> bool:
        """Tell whether a target's chain has another member that serves."""
        self._refresh()
        return any(
            self._states[other] == TargetState.SERVING
            for members in self._members.values()
            if target in members
            for other in members
            if other != target
        )

    # --- what is looked at at the end -------------------------------------------------------------

    def newest(self) -> Routing:
        """Return the routing as the database has it."""
        self._refresh()
        return self.routing

    def in_doubt(self) -> int:
        """Return how many chains may have lost chunks that only members have which are gone."""
        row = self._tx.row("SELECT count(*) FROM chains WHERE doubtful <> 0")
        assert row is not None
        return int(row[0])

    def dying(self) -> int:
        """Return how many blobs wait for their end: given up, dead or being dropped."""
        row = self._tx.row(f"SELECT count(*) FROM blobs WHERE state <> {BlobState.LIVE:d}")
        assert row is not None
        return int(row[0])

    def check_equal(self) -> None:
        """All members of a chain hold the same chunks, whole, and none that belongs to nothing."""
        disks = {disk.target: disk for disk in self.disks}
        live = {int(blob) for (blob,) in self._tx.rows(_LIVE)}
        for chain, members in self._members.items():
            keys = [set(disks[target].chunks) for target in members]
            if any(other != keys[0] for other in keys):
                odd = {key for one in keys for key in one ^ keys[0]}
                raise Violation(f"members of chain {chain} differ in {sorted(odd)}")
            for target in members:
                self._check_content(disks[target], live)

    def _check_content(self, disk: Disk, live: set[int]) -> None:
        for key, data in disk.chunks.items():
            if key[0] not in live:
                raise Violation(f"target {disk.target} holds {key} of a blob that is gone")
            if not verifies(key, data):
                raise Violation(f"target {disk.target} holds {key} damaged at the end")
