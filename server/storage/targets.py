"""The targets of one daemon: directories on disks, opened by their superblocks.

Used by server/storage/daemon.py. A target that exists already says by its superblock which cluster
and which id it is; a new one gets both from the metadata server, whose answer is written down here.

A new target's directory first gets a `claim`, a random word that is part of its label: a daemon
that dies between the answer and its superblock asks with the same label and gets the same id, so no
chain is left without a target.

What is refused, and how: a directory in use by another process and targets of different clusters
end the start (LockedError, FormatError), since somebody mixed up directories. A target that is
damaged, foreign, newer than this program, or whose disk fails is left out: the daemon logs why,
reports it as stopped if its id is known, and starts with the others; without others it does not.

Targets that the metadata server orders lie on the disk of one that was given: `targets/<id>` in its
directory. They are found again at each start; one that a crash left half made is ordered anew.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ffs._storage import ChunkStore
from ffs.errors import FFSError, FormatError, LockedError, StorageIOError
from ffs.seams import SystemRandomness
from ffs.server.storage import mark
from ffs.server.storage.mark import Mark
from ffs.wire.membership import EMPTIED, TargetReport

log = logging.getLogger("ffs.storage.targets")

DROP_BATCH = 1024
_CLAIM = "claim"
_ORDERED = "targets"
"""Where targets that were ordered lie, in the directory of the one beside which they were."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(slots=True)
class Target:
    """One target directory. `target` 0: it has no id yet; `store` None: it is left out."""

    path: Path
    target: int = 0
    store: ChunkStore | None = None
    stopped: bool = False
    claim: str = ""
    disk: tuple[int, int, str] = (0, 0, "")
    """Capacity, use and name of its disk, as they were last seen."""
    mark: Mark = field(default_factory=Mark)

    @property
    def label(self) -> str:
        """What the metadata server calls it besides its id."""
        return f"{self.path}#{self.claim}" if self.claim else str(self.path)


class Targets:
    """All targets of this daemon, in the order they were given.

    Threads: `drop` may run in a worker thread meanwhile; the rest belongs to one thread
    """

    def __init__(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        self.cluster_id = b""
        self._all = [Target(Path(path).absolute()) for path in paths]
        self._failures: list[FFSError] = []

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

    def open_existing(self) -> None:
        """Open every target that has a superblock; new ones wait for `create_new`."""
        given = self._all
        self._all = given + [one for target in given for one in _ordered_at(target.path)]
        known = [target for target in self._all if self._identify(target)]
        for target in known:
            try:
                target.store = self._open_store(target, create=False)
            except (FormatError, StorageIOError) as error:
                self._leave_out(target, error)
            except LockedError:
                self.close()
                raise
        self._check_some_left()

    def create_new(self, cluster_id: bytes, ids: Sequence[int]) -> None:
        """Make the new targets with the ids that the metadata server chose, in report order."""
        new = self.check_ids(ids)
        self.cluster_id = cluster_id
        for target, target_id in new:
            target.target = target_id
            try:
                target.store = self._open_store(target, create=True)
                _drop_claim(target)
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
        given = next(
            (t.path for t in self._all if near.path.parent == t.path / _ORDERED), near.path
        )
        target = Target(given / _ORDERED / str(target_id), target_id)
        try:
            target.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _disk_failed(target.path, error) from error
        target.store = self._open_store(target, create=True)
        self._all.append(target)
        return target.store

    def without_direct_reads(self) -> list[str]:
        """The open targets whose file system has no reads past the page cache."""
        paths = [target.path for target in self._all if target.store is not None]
        return [str(path) for path in paths if not _reads_directly(path)]

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
        return [_report(target) for target in self._reported()]

    def disk_reads(self) -> dict[int, tuple[int, ...]]:
        """Return how long reads from each open target's disk took, as `ffs.latency` counts."""
        return {target: store.latency()["disk_read"][1:] for target, store in self.stores.items()}

    def remember_emptied(self, target_id: int) -> None:
        """Note, before it is so, that a target holds nothing of its chain any more.

        Raises: StorageIOError
        """
        target = self._named(target_id)
        _remember(target, Mark(EMPTIED, target.mark.healed))

    def remember_synced(self, target_id: int, chain: int, damage: int) -> None:
        """Note that a target has all that its chain has, and what damage that made up for.

        Raises: StorageIOError
        """
        target = self._named(target_id)
        _remember(target, Mark(chain if target.mark.holds else 0, damage))

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
            _read_from_disk(target.path / "superblock")
        return self._open_store(target, create=False)

    def probe(self, target_id: int) -> None:
        """Read something of a target from its disk; blocks for as long as the disk does.

        Raises: OSError: what the disk says
        """
        _read_from_disk(self._named(target_id).path / "superblock")

    def take_back(self, target_id: int, store: ChunkStore) -> None:
        """Use a target that was opened again."""
        target = self._named(target_id)
        target.store, target.stopped = store, False

    def drop(self, blobs: Iterable[int]) -> None:
        """Forget blobs on every target that works. Idempotent; blocks on the disk."""
        wanted = list(blobs)
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

    def _identify(self, target: Target) -> bool:
        """Read a target's superblock; tell whether it has a good one.

        Raises: FormatError if it belongs to another cluster than the targets before it.
        """
        try:
            identity = _load_superblock(target.path)
            if identity is None:
                target.claim = _load_claim(target.path)
            else:
                target.mark = _load_mark(target.path)
        except (FormatError, StorageIOError) as error:
            self._leave_out(target, error)
            return False
        if identity is None:
            return False
        cluster_id, target.target = identity
        if self.cluster_id not in (b"", cluster_id):
            raise FormatError(
                "the targets belong to different clusters",
                hint="give each daemon the directories of one cluster only",
                path=str(target.path),
                cluster=cluster_id.hex(),
                expected=self.cluster_id.hex(),
            )
        self.cluster_id = cluster_id
        return True

    def _open_store(self, target: Target, *, create: bool) -> ChunkStore:
        path = str(target.path)
        try:
            return ChunkStore(
                path, cluster_id=self.cluster_id, target_id=target.target, create=create
            )
        except ValueError as error:
            raise _foreign(target.path, error) from error
        except BlockingIOError as error:
            raise LockedError(
                "another process uses this target",
                hint="end it, or give each daemon directories of its own",
                path=path,
            ) from error
        except OSError as error:
            raise _disk_failed(target.path, error) from error

    def _leave_out(self, target: Target, error: FFSError) -> None:
        target.stopped = True
        self._failures.append(error)
        log.error("target_left_out", extra={"path": str(target.path), "reason": str(error)})

    def _check_some_left(self) -> None:
        """Refuse to go on when no target works: the first one's failure tells why."""
        if all(target.stopped for target in self._all) and self._failures:
            self.close()
            raise self._failures[0]


def _ordered_at(path: Path) -> list[Target]:
    """Return the targets that were ordered beside one, in order of their ids."""
    try:
        there = [one for one in (path / _ORDERED).glob("*/superblock") if one.parent.name.isdigit()]
    except OSError:  # the disk is gone: the target given says so
        return []
    ids = sorted(int(superblock.parent.name) for superblock in there)
    return [Target(path / _ORDERED / str(target), target) for target in ids]


def target_id_at(path: Path) -> int | None:
    """Return the id of the target that a directory holds; None if it holds none.

    Raises: FormatError for a superblock that is damaged or foreign
    """
    try:
        superblock = ChunkStore.read_superblock(str(path))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise _foreign(path, error) from error
    except OSError as error:
        raise _disk_failed(path, error) from error
    return None if superblock is None else int(superblock["target_id"])


def drop_from(store: ChunkStore, blobs: Sequence[int]) -> None:
    """Forget blobs on one target, a bounded number at a time so that others get their turn.

    Raises: StorageIOError
    """
    try:
        for first in range(0, len(blobs), DROP_BATCH):
            store.drop(list(blobs[first : first + DROP_BATCH]))
    except OSError as error:
        raise StorageIOError(f"cannot drop blobs: {error.strerror or error}") from error


def _load_superblock(path: Path) -> tuple[bytes, int] | None:
    """Return (cluster id, target id) of a target; None for a directory that is a new one."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        superblock = ChunkStore.read_superblock(str(path))
        strays = [] if superblock else sorted(path.glob("*.index"))
    except ValueError as error:
        raise _foreign(path, error) from error
    except OSError as error:
        raise _disk_failed(path, error) from error
    if superblock is not None:
        return superblock["cluster_id"], superblock["target_id"]
    if strays:
        # Taking it for a new target would overwrite the chunks of an old one.
        raise FormatError(
            "the target holds chunks but no superblock",
            hint="restore the superblock from a backup, or empty the directory to give it up",
            path=str(path),
        )
    return None


def _load_claim(path: Path) -> str:
    """Return the word of a new target's directory, made and on disk before anyone hears it."""
    file, draft = path / _CLAIM, path / f"{_CLAIM}.new"
    try:
        if not file.exists():
            with draft.open("w") as output:
                output.write(SystemRandomness().token(8).hex())
                output.flush()
                os.fsync(output.fileno())
            draft.rename(file)
            directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        return file.read_text()
    except OSError as error:
        raise _disk_failed(path, error) from error


def _load_mark(path: Path) -> Mark:
    try:
        return mark.load(path)
    except OSError as error:
        raise _disk_failed(path, error) from error


def _remember(target: Target, news: Mark) -> None:
    if news == target.mark:
        return
    try:
        mark.save(target.path, news)
    except OSError as error:
        raise _disk_failed(target.path, error) from error
    target.mark = news


def _drop_claim(target: Target) -> None:
    """Forget the word: the superblock says more."""
    target.claim = ""
    try:
        (target.path / _CLAIM).unlink(missing_ok=True)
    except OSError as error:
        raise _disk_failed(target.path, error) from error


def _foreign(path: Path, error: ValueError) -> FormatError:
    return FormatError(
        f"the target cannot be opened: {error}",
        hint="check that this directory belongs to this cluster and this version",
        path=str(path),
    )


def _disk_failed(path: Path, error: OSError) -> StorageIOError:
    return StorageIOError(
        f"the target cannot be opened: {error.strerror or error}",
        hint="check the disk and the permissions of the directory",
        path=str(path),
    )


def _report(target: Target) -> TargetReport:
    chunks, stored_bytes, damage = 0, 0, 0
    if target.store is not None:
        stats = target.store.stats()
        target.stopped = target.stopped or bool(stats["stopped"])
        chunks, stored_bytes, damage = (stats[n] for n in ("chunks", "stored_bytes", "damage"))
    if not target.stopped:  # a disk that hangs would not answer
        target.disk = (*_disk_bytes(target.path), _disk_of(target.path))
    capacity, used, disk = target.disk
    return TargetReport(
        label=target.label,
        target=target.target,
        capacity_bytes=capacity,
        used_bytes=used,
        chunks=chunks,
        stopped=target.stopped,
        disk=disk,
        damaged=damage not in (0, target.mark.healed),
        holds=target.mark.holds,
        stored_bytes=stored_bytes,
    )


def _reads_directly(path: Path) -> bool:
    try:
        os.close(os.open(path / "superblock", os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def _read_from_disk(path: Path) -> None:
    """Read the first page of a file past the page cache, or, where the file system has no such
    reads, after the page was let go of."""
    flags = os.O_RDONLY | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags | os.O_DIRECT)
    except OSError:
        descriptor = os.open(path, flags)
    try:
        os.posix_fadvise(descriptor, 0, mmap.PAGESIZE, os.POSIX_FADV_DONTNEED)
        with mmap.mmap(-1, mmap.PAGESIZE) as page:
            os.preadv(descriptor, [page], 0)
    finally:
        os.close(descriptor)


def _disk_of(path: Path) -> str:
    """Return what tells the disk under a directory from all others of the cluster.

    Why: each target of a disk reports all of its capacity, which is there only once. A device
    number means something to one running kernel, whose name is the boot id.
    """
    try:
        return f"{_BOOT_ID.read_text().strip()}:{path.stat().st_dev}"
    except OSError:  # no /proc, or the disk is gone: not known to be shared
        return ""


def _disk_bytes(path: Path) -> tuple[int, int]:
    """Return what a disk holds at most and what it holds now, without what only root may use."""
    try:
        disk = os.statvfs(path)
    except OSError:  # a disk that is gone has no room
        return 0, 0
    used = disk.f_blocks - disk.f_bfree
    return (used + disk.f_bavail) * disk.f_frsize, used * disk.f_frsize
