"""The directory of `ffs up`: its layout, its locks, and what it remembers.

Used by server/up.py. DIR holds cluster.key (0600), meta/, storage-1/target-1 ..., log/, ports.json
(which ports were used last), targets.json (which targets there were) and two lock files. A daemon
has as many targets as a chunk has replicas, so that each disk takes part in as many chains.

Locks: `lock` is the supervisor's: a second one on DIR is refused with the first one's process id.
`children.lock` is passed on to every child: after a supervisor was killed, its successor waits
until the last old child has noticed and ended, so two processes never share a store.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
from pathlib import Path
from typing import Final

from ffs.errors import ConfigError, FormatError, LockedError, StorageIOError
from ffs.key import ClusterKey
from ffs.server.known_targets import KnownTargets

log = logging.getLogger("ffs.up")

CHILDREN_GONE_S_MAX: Final = 15.0


class UpDirectory:
    """DIR: its layout, its locks, its memory of ports."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.key_file = path / "cluster.key"
        self.log = path / "log"
        self.meta = path / "meta"
        self._ports = path / "ports.json"
        self.known = KnownTargets(path)
        self._lock_fd = -1
        self.children_fd = -1

    def claim(self) -> None:
        """Create DIR as far as it is missing and take its first lock."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock_fd = _open_lock(self.path / "lock")
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock_fd, 32, 0).decode("ascii", "replace").strip()
            os.close(lock_fd)  # its content is the holder's: `release` must not empty it
            raise LockedError(
                f"another `ffs up` (pid {holder or 'unknown'}) runs in this directory",
                hint="stop it first, or choose another --data",
                path=str(self.path),
                pid=holder,
            ) from None
        self._lock_fd = lock_fd
        os.ftruncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, f"{os.getpid()}\n".encode("ascii"), 0)

    async def wait_for_old_children(self) -> None:
        """Take the lock that children of a killed supervisor hold as long as they live."""
        self.children_fd = _open_lock(self.path / "children.lock")
        loop = asyncio.get_running_loop()
        give_up = loop.time() + CHILDREN_GONE_S_MAX
        while True:
            try:
                fcntl.flock(self.children_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if loop.time() >= give_up:
                    raise LockedError(
                        "processes of an earlier `ffs up` still run in this directory",
                        hint=f"`fuser {self.path}/children.lock` shows them; end them",
                        path=str(self.path),
                    ) from None
                await asyncio.sleep(0.05)

    def prepare(self, storage: int, replicas: int) -> tuple[int, int]:
        """Create what is missing; return how many daemons to run, each with how many targets.

        Raises: ConfigError if that does not go with the data there is.
        """
        self.log.mkdir(exist_ok=True)
        self.meta.mkdir(mode=0o700, exist_ok=True)
        if not self.key_file.exists():
            ClusterKey.create(self.key_file)
        daemons, targets = self._present()
        if 0 < storage < daemons:
            raise ConfigError(
                f"the directory has data of {daemons} storage daemons, not {storage}",
                hint="leave out --storage, or give a larger number",
                path=str(self.path),
            )
        if targets and replicas not in (0, targets):
            raise ConfigError(
                f"the directory keeps {targets} replicas of each chunk, not {replicas}",
                hint="leave out --replicas, or begin in another directory",
                path=str(self.path),
            )
        replicas = replicas or targets or 1
        storage = max(storage or daemons, replicas)
        known = self.known.load()
        for index in range(1, storage + 1):
            for number in range(1, replicas + 1):
                if _known_as(index, number) not in known:
                    target = self.target(index, number)
                    target.mkdir(mode=0o700, parents=True, exist_ok=True)
        return storage, replicas

    def _present(self) -> tuple[int, int]:
        """How many daemons there is data of, and how many targets each has; 0: nothing."""
        # One that is gone is missed, not forgotten.
        known = [tuple(name.split("/")) for name in self.known.load()]
        there = [t.relative_to(self.path).parts for t in self.path.glob("storage-*/target-*")]
        names = [(*name, "target-1")[:2] for name in known] + there
        daemons = {daemon for daemon, _ in names}
        return len(daemons), len({target for _, target in names})

    def target(self, index: int, number: int) -> Path:
        """The directory of one target of a storage daemon."""
        return self.path / f"storage-{index}" / f"target-{number}"

    def check_targets(self, index: int, count: int) -> None:
        """Refuse target directories that hold less than they did. Raises: FormatError"""
        for number in range(1, count + 1):
            try:
                target_id = self._target_id(index, number)
            except (FormatError, StorageIOError):
                continue  # damaged: the daemon says best what is wrong
            self.known.check(_known_as(index, number), target_id, self.target(index, number))

    def remember_targets(self, daemons: int, count: int) -> None:
        """Write down which targets there are, now that all serve."""
        found = {
            _known_as(index, number): self._target_id(index, number)
            for index in range(1, daemons + 1)
            for number in range(1, count + 1)
        }
        self.known.remember({name: target for name, target in found.items() if target})

    def _target_id(self, index: int, number: int) -> int | None:
        from ffs.server.storage.directory import target_id_at

        return target_id_at(self.target(index, number))

    def load_ports(self) -> dict[str, int]:
        """Which port each process had last; empty if that is not known."""
        try:
            ports = json.loads(self._ports.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        valid = isinstance(ports, dict) and all(isinstance(p, int) for p in ports.values())
        return ports if valid else {}

    def save_ports(self, ports: dict[str, int]) -> None:
        """Remember ports; losing them costs nothing but new ones."""
        draft = self._ports.with_suffix(".new")
        try:
            draft.write_text(json.dumps(ports))
            draft.replace(self._ports)
        except OSError as error:  # a full disk, say: no reason to leave children unstopped
            log.warning("ports_not_saved", extra={"path": str(draft), "reason": error.strerror})

    def release(self) -> None:
        """Give the locks back; DIR can be used again at once."""
        if self._lock_fd >= 0:
            os.ftruncate(self._lock_fd, 0)
        for fd in (self.children_fd, self._lock_fd):
            if fd >= 0:
                os.close(fd)
        self.children_fd = self._lock_fd = -1


def _known_as(index: int, number: int) -> str:
    """What targets.json calls a target: its daemon's first one by the daemon's name alone."""
    return f"storage-{index}" if number == 1 else f"storage-{index}/target-{number}"


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
