"""One target's directory: what it says it is, the store in it, and what the disk below it says.

Previous hops: targets.py, which keeps all of a daemon's targets; opening.py, which has each
directory opened in a thread of its own. Next hops: ffs._storage, mark.py, the disk.

A new target's directory first gets a `claim`, a random word that is part of its label: a daemon
that dies between the answer and its superblock asks with the same label and gets the same id, so no
chain is left without a target.

Targets that the metadata server orders lie on the disk of one that was given: `targets/<id>` in its
directory. They are found again at each start; one that a crash left half made is ordered anew.

Failure behaviour: every function blocks for as long as the disk does, and raises LockedError,
FormatError or StorageIOError; `open_directory` puts them down with the target that met them.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ffs._storage import ChunkStore
from ffs.errors import FFSError, FormatError, LockedError, StorageIOError
from ffs.seams import SystemRandomness
from ffs.server.storage import mark, small_file
from ffs.server.storage.mark import Mark
from ffs.wire.membership import TargetReport

ORDERED: Final = "targets"
"""Where targets that were ordered lie, in the directory of the one beside which they were."""
_CLAIM: Final = "claim"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


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
    cluster_id: bytes = b""
    """Of its superblock; empty: it has none."""
    error: FFSError | None = None
    """Why it could not be opened."""

    @property
    def label(self) -> str:
        """What the metadata server calls it besides its id."""
        return f"{self.path}#{self.claim}" if self.claim else str(self.path)


# --- opening ------------------------------------------------------------------------------------


def open_directory(path: Path) -> list[Target]:
    """Return the target of a directory that was given, then those that were ordered beside it.

    Each is open, or new, or has the `error` that it met.
    """
    found = [Target(path), *_ordered_at(path)]
    for target in found:
        try:
            _identify(target)
            if target.cluster_id:
                target.store = open_store(target, target.cluster_id, create=False)
        except (FormatError, LockedError, StorageIOError) as error:
            target.error = error
    return found


def open_store(target: Target, cluster_id: bytes, *, create: bool) -> ChunkStore:
    """Open a target's chunk store. Raises: LockedError, FormatError, StorageIOError"""
    path = str(target.path)
    try:
        return ChunkStore(path, cluster_id=cluster_id, target_id=target.target, create=create)
    except ValueError as error:
        raise _foreign(target.path, error) from error
    except BlockingIOError as error:
        raise LockedError(
            "another process uses this target",
            hint="end it, or give each daemon directories of its own",
            path=path,
        ) from error
    except OSError as error:
        raise disk_failed(target.path, error) from error


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
        raise disk_failed(path, error) from error
    return None if superblock is None else int(superblock["target_id"])


def _ordered_at(path: Path) -> list[Target]:
    """Return the targets that were ordered beside one, in order of their ids."""
    try:
        there = [one for one in (path / ORDERED).glob("*/superblock") if one.parent.name.isdigit()]
    except OSError:  # the disk is gone: the target given says so
        return []
    ids = sorted(int(superblock.parent.name) for superblock in there)
    return [Target(path / ORDERED / str(target), target) for target in ids]


def _identify(target: Target) -> None:
    """Read what a target says it is; a new one gets a claim."""
    identity = _load_superblock(target.path)
    if identity is None:
        target.claim = _load_claim(target.path)
    else:
        target.cluster_id, target.target = identity
        target.mark = _load_mark(target.path)


def _load_superblock(path: Path) -> tuple[bytes, int] | None:
    """Return (cluster id, target id) of a target; None for a directory that is a new one."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        superblock = ChunkStore.read_superblock(str(path))
        strays = [] if superblock else sorted(path.glob("*.index"))
    except ValueError as error:
        raise _foreign(path, error) from error
    except OSError as error:
        raise disk_failed(path, error) from error
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


# --- what lies beside the chunks ----------------------------------------------------------------


def _load_claim(path: Path) -> str:
    """Return the word of a new target's directory, made and on disk before anyone hears it."""
    try:
        if not os.path.lexists(path / _CLAIM):
            small_file.replace(path, _CLAIM, SystemRandomness().token(8).hex())
        return small_file.read(path, _CLAIM)
    except OSError as error:
        raise disk_failed(path, error) from error


def drop_claim(target: Target) -> None:
    """Forget the word: the superblock says more. Raises: StorageIOError"""
    target.claim = ""
    try:
        (target.path / _CLAIM).unlink(missing_ok=True)
    except OSError as error:
        raise disk_failed(target.path, error) from error


def _load_mark(path: Path) -> Mark:
    try:
        return mark.load(path)
    except OSError as error:
        raise disk_failed(path, error) from error


def remember(target: Target, news: Mark) -> None:
    """Have a target remember something, durably. Raises: StorageIOError"""
    if news == target.mark:
        return
    try:
        mark.save(target.path, news)
    except OSError as error:
        raise disk_failed(target.path, error) from error
    target.mark = news


# --- the disk -----------------------------------------------------------------------------------


def report(target: Target) -> TargetReport:
    """Return what the metadata server is told of a target."""
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


def probe(path: Path) -> None:
    """Read the first page of a directory's superblock past the page cache, or, where the file
    system has no such reads, after the page was let go of.

    Raises: OSError: what the disk says
    """
    file, flags = path / "superblock", os.O_RDONLY | os.O_CLOEXEC
    try:
        descriptor = os.open(file, flags | os.O_DIRECT)
    except OSError:
        descriptor = os.open(file, flags)
    try:
        os.posix_fadvise(descriptor, 0, mmap.PAGESIZE, os.POSIX_FADV_DONTNEED)
        with mmap.mmap(-1, mmap.PAGESIZE) as page:
            os.preadv(descriptor, [page], 0)
    finally:
        os.close(descriptor)


def reads_directly(path: Path) -> bool:
    """Tell whether a target's file system has reads past the page cache."""
    try:
        os.close(os.open(path / "superblock", os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def disk_failed(path: Path, error: OSError) -> StorageIOError:
    """Return the error for a target whose disk says no."""
    return StorageIOError(
        f"the target cannot be opened: {error.strerror or error}",
        hint="check the disk and the permissions of the directory",
        path=str(path),
    )


def _foreign(path: Path, error: ValueError) -> FormatError:
    return FormatError(
        f"the target cannot be opened: {error}",
        hint="check that this directory belongs to this cluster and this version",
        path=str(path),
    )


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
