"""The targets of one daemon: directories on disks, opened by their superblocks.

Used by server/storage/daemon.py. A target that exists already says by its superblock which cluster
and which id it is; a new one gets both from the metadata server, whose answer is written down here.
What one directory holds, and how it is opened, is directory.py's matter.

What is refused, and how: a directory in use by another process and targets of different clusters
end the start (LockedError, FormatError), since somebody mixed up directories. A target that is
damaged, foreign, newer than this program, or whose disk fails is left out: the daemon logs why,
reports it as stopped if its id is known, and starts with the others; without others it does not.
One whose disk has not answered yet is not there until it does (`take_late`).
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ffs._storage import ChunkStore
from ffs.errors import FFSError, FormatError, LockedError, StorageIOError
from ffs.server.storage import directory
from ffs.server.storage.directory import ORDERED, Target, open_directory, open_store, remember
from ffs.server.storage.mark import Mark
from ffs.server.storage.restoring import Restores
from ffs.wire.membership import EMPTIED, TargetReport

log = logging.getLogger("ffs.storage.targets")

DROP_BATCH = 1024


class Targets:
    """All targets of this daemon, in the order they were given.

    Threads: `drop` may run in a worker thread meanwhile; the rest belongs to one thread
    """

    def __init__(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        self.cluster_id = b""
        self.given = list(dict.fromkeys(Path(path).absolute() for path in paths))
        self.restores = Restores()
        self._answered: set[Path] = set()
        self._all: list[Target] = []

    @property
    def stores(self) -> dict[int, ChunkStore]:
        """The open chunk stores by target id."""
        return {t.target: t.store for t in self._all if t.store is not None}

    @property
    def working(self) -> dict[int, ChunkStore]:
        """Those of `stores` whose disk has not failed: a stopped target keeps what it has.

        Why: it can drop nothing; it is emptied or scanned when it is repaired.
        """
        stopped = {t.target for t in self._all if t.stopped}
        return {target: store for target, store in self.stores.items() if target not in stopped}

    @property
    def stopped_stores(self) -> list[ChunkStore]:
        """The stores of stopped targets; what they have under way may never end."""
        return [t.store for t in self._all if t.store is not None and t.stopped]

    @property
    def stopped(self) -> list[int]:
        """The ids of targets that work no more, those that were left out too."""
        working = self.working
        return [t.target for t in self._all if t.target and t.target not in working]

    def path_of(self, target_id: int) -> Path:
        """Return the directory of one of our targets."""
        return self._named(target_id).path

    @property
    def unanswered(self) -> list[str]:
        """The directories whose disks have not said yet what they hold."""
        return [str(path) for path in self.given if path not in self._answered]

    def open_existing(self) -> None:
        """Open every target that has a superblock, for as long as any disk takes; new ones wait for
        `create_new`. Raises: as `take`"""
        self.take({path: open_directory(path) for path in self.given})

    def take(self, found: Mapping[Path, list[Target]]) -> None:
        """Use what `open_directory` found in those directories whose disks have answered.

        Raises: LockedError, FormatError: somebody mixed up directories; FFSError: no target works
        """
        self._answered.update(found)
        self._all = [target for path in self.given for target in found.get(path, ())]
        try:
            for target in self._all:
                self._admit(target)
            self._check_some_left()
        except FFSError:
            self.close()
            raise

    def take_late(self, path: Path, found: Sequence[Target]) -> list[tuple[int, ChunkStore]]:
        """Use what is in a directory whose disk has answered after `take`; return what works.

        What does not is left out, whatever it is: the others go on.
        """
        self._answered.add(path)
        for target in found:
            try:
                self._admit_late(target)
            except FFSError as error:
                self._leave_out(target, error)
        ours = (b"", self.cluster_id)  # the id of another cluster's target says nothing here
        self._all += [
            one
            for one in found
            if one.target and one.cluster_id in ours and not self._knows(one.target)
        ]
        return [(one.target, one.store) for one in found if one.store is not None]

    def create_new(self, cluster_id: bytes, ids: Sequence[int]) -> None:
        """Make the new targets with the ids that the metadata server chose, in report order."""
        new = self.check_ids(ids)
        self.cluster_id = cluster_id
        for target, target_id in new:
            target.target = target_id
            try:
                target.store = open_store(target, cluster_id, create=True)
                directory.drop_claim(target)
            except (FormatError, StorageIOError) as error:
                self._leave_out(target, error)
        self._check_some_left()

    def create_ordered(self, target_id: int, beside: int) -> ChunkStore:
        """Make a target on the disk of another one. Idempotent; blocks on the disk.

        Raises: StorageIOError, FormatError: it is not there, and nothing is reported
        """
        near = next((t for t in self._all if t.target == beside), None)
        if near is None:
            raise StorageIOError(f"no target {beside} here to create target {target_id} beside")
        # Beside one that was ordered itself: it is found again in the directory that was given.
        given = next((t.path for t in self._all if near.path.parent == t.path / ORDERED), near.path)
        target = Target(given / ORDERED / str(target_id), target_id)
        try:
            target.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise directory.disk_failed(target.path, error) from error
        target.store = open_store(target, self.cluster_id, create=True)
        self._all.append(target)
        return target.store

    def without_direct_reads(self) -> list[str]:
        """The open targets whose file system has no reads past the page cache."""
        paths = [target.path for target in self._all if target.store is not None]
        return [str(path) for path in paths if not directory.reads_directly(path)]

    def check_ids(self, ids: Sequence[int]) -> list[tuple[Target, int]]:
        """Hold the ids of a registration's answer against ours; return those that are new.

        Raises: FormatError if the metadata server knows one of our targets by another id.
        """
        reported = self._reported()
        if len(ids) != len(reported):
            raise FormatError(
                f"the metadata server named {len(ids)} targets, {len(reported)} were reported"
            )
        new = []
        for target, target_id in zip(reported, ids, strict=True):
            if not target.target:
                new.append((target, target_id))
            elif target.target != target_id:
                raise FormatError(
                    f"the metadata server knows target {target.target} as {target_id}",
                    hint="this directory may be a copy of another target's",
                    path=str(target.path),
                )
        return new

    def reports(self) -> list[TargetReport]:
        """Say what each target holds; the order is the one that `create_new` wants ids in."""
        return [directory.report(target) for target in self._reported()]

    def disk_reads(self) -> dict[int, tuple[int, ...]]:
        """Return how long reads from each open target's disk took, as `ffs.latency` counts."""
        return {target: store.latency()["disk_read"][1:] for target, store in self.stores.items()}

    def remember_emptied(self, target_id: int) -> None:
        """Note, before it is so, that a target holds nothing of its chain any more.

        Raises: StorageIOError
        """
        target = self._named(target_id)
        remember(target, Mark(EMPTIED, target.mark.healed))

    def remember_synced(self, target_id: int, chain: int, damage: int) -> None:
        """Note that a target has all that its chain has, and what damage that made up for.

        Raises: StorageIOError
        """
        target = self._named(target_id)
        remember(target, Mark(chain if target.mark.holds else 0, damage))

    def _named(self, target_id: int) -> Target:
        return next(target for target in self._all if target.target == target_id)

    def stop(self, target_id: int) -> None:
        """Remember that a target met a disk error; its reports say so from now on."""
        self._named(target_id).stopped = True

    def open_again(self, target_id: int) -> ChunkStore:
        """Open a stopped target anew, as after a restart; blocks on the disk, for ever if it hangs.
        It goes on being reported as stopped until `take_back`.

        Raises: StorageIOError, FormatError, LockedError: it does not work yet
        """
        target = self._named(target_id)
        if target.store is not None:
            target.store.release()
        with contextlib.suppress(OSError):  # what it says is heard when the target is opened
            directory.probe(target.path)
        return open_store(target, self.cluster_id, create=False)

    def probe(self, target_id: int) -> None:
        """Read something of a target from its disk; blocks for as long as the disk does.

        Raises: OSError: what the disk says
        """
        directory.probe(self._named(target_id).path)

    def take_back(self, target_id: int, store: ChunkStore) -> None:
        """Use a target that was opened again."""
        target = self._named(target_id)
        target.store, target.stopped = store, False

    def drop(self, blobs: Iterable[int]) -> None:
        """Forget blobs on every target that works. Idempotent; blocks on the disk."""
        wanted = list(blobs)
        self.restores.drop(wanted)
        for store in self.working.values():
            drop_from(store, wanted)

    def close(self) -> None:
        """Close all stores cleanly and release their locks."""
        for target in self._all:
            if target.store is not None:
                target.store.release()  # others may look at it while that takes its time
                target.store = None

    def _reported(self) -> list[Target]:
        """Those that the metadata server hears of: all but the left out that never had an id."""
        failed_new = [t for t in self._all if t.store is None and not t.target and t.stopped]
        return [target for target in self._all if target not in failed_new]

    def _admit(self, target: Target) -> None:
        """Take a target in if it works; leave it out if its disk or its directory does not.

        Raises: LockedError; FormatError if it belongs to another cluster than those before it.
        """
        if target.cluster_id:
            if self.cluster_id not in (b"", target.cluster_id):
                raise FormatError(
                    "the targets belong to different clusters",
                    hint="give each daemon the directories of one cluster only",
                    path=str(target.path),
                    cluster=target.cluster_id.hex(),
                    expected=self.cluster_id.hex(),
                )
            self.cluster_id = target.cluster_id
        if isinstance(target.error, LockedError):
            raise target.error
        if target.error is not None:
            self._leave_out(target, target.error)

    def _admit_late(self, target: Target) -> None:
        """As `_admit`. Raises: FFSError: it cannot be used beside those that are there"""
        if target.target and self._knows(target.target):
            raise FormatError(
                f"another directory holds target {target.target}, too",
                hint="this directory may be a copy of another target's",
                path=str(target.path),
            )
        self._admit(target)
        if target.error is None and target.store is None:
            raise StorageIOError(
                "the disk of a new target did not answer in time",
                hint="start the daemon again",
                path=str(target.path),
            )

    def _leave_out(self, target: Target, error: FFSError) -> None:
        target.stopped, target.error = True, error
        if target.store is not None:
            target.store.release()
            target.store = None
        log.error("target_left_out", extra={"path": str(target.path), "reason": str(error)})

    def _knows(self, target_id: int) -> bool:
        return any(target.target == target_id for target in self._all)

    def _check_some_left(self) -> None:
        """Refuse to go on when no target works: the first one's failure tells why."""
        errors = [target.error for target in self._all if target.error is not None]
        if errors and all(target.stopped for target in self._all):
            self.close()
            raise errors[0]


def drop_from(store: ChunkStore, blobs: Sequence[int]) -> None:
    """Forget blobs on one target, a bounded number at a time so that others get their turn.

    Raises: StorageIOError
    """
    try:
        for first in range(0, len(blobs), DROP_BATCH):
            store.drop(list(blobs[first : first + DROP_BATCH]))
    except OSError as error:
        raise StorageIOError(f"cannot drop blobs: {error.strerror or error}") from error
