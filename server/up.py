"""`ffs up`: a whole cluster on one machine, in the foreground, from nothing but a directory.

DIR holds cluster.key (0600), meta/, storage-1/target-1 ..., log/, ports.json (which ports were used
last), targets.json (which targets there were) and two lock files. A daemon has as many targets as a
chunk has replicas, so that each disk takes part in as many chains. Starts the metadata server, then
the storage daemons (server/child.py), prints `ready ffs://HOST:PORT key=FILE` once all serve,
restarts what dies, keeps logs bounded, stops all on SIGINT or SIGTERM, daemons first. A storage
daemon that keeps failing is given up and the others go on; without the metadata server, or without
any daemon, the cluster ends with status 1.

Locks: `lock` is ours: a second supervisor on DIR is refused with our process id. `children.lock`
is passed on to every child: after a supervisor was killed, its successor waits until the last old
child has noticed and ended, so two processes never share a store.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ffs.config import LogConfig, load
from ffs.errors import (
    BusyError,
    ConfigError,
    FFSError,
    FormatError,
    LockedError,
    StorageIOError,
    UnavailableError,
)
from ffs.key import ClusterKey
from ffs.log import configure
from ffs.server.chains_ready import until_chains_serve
from ffs.server.child import Child, port_is_free
from ffs.server.known_targets import KnownTargets
from ffs.server.process import call_on_stop, stop_no_more

log = logging.getLogger("ffs.up")

CHILDREN_GONE_S_MAX: Final = 15.0
LOGS_S: Final = 5.0
"""Between two looks at the logs' sizes."""
STORAGE_MAX: Final = 64
_WILDCARDS: Final = ("0.0.0.0", "::", "")


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What `ffs up` was asked to do; `storage` and `replicas` 0: as DIR has, or as few as work."""

    data: Path
    host: str = "127.0.0.1"
    port: int = 0
    storage: int = 0
    replicas: int = 0
    advertise: str = ""
    config: str = ""
    settings: tuple[str, ...] = ()
    exit_with_parent: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `ffs up`; `options_from` reads them back."""
    parser.add_argument("--data", required=True, metavar="DIR", help="where everything is kept")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument(
        "--port", type=int, default=0, help="of the metadata server; 0: the last one, or any free"
    )
    parser.add_argument("--storage", type=int, default=0, metavar="N", help="storage daemons")
    parser.add_argument("--replicas", type=int, default=0, metavar="R", help="copies of each chunk")
    parser.add_argument(
        "--advertise", default="", metavar="HOST", help="name under which clients reach this host"
    )
    parser.add_argument("--config", default="", metavar="FILE", help="configuration of all servers")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="one configuration key"
    )
    parser.add_argument(
        "--exit-with-parent", action="store_true", help="stop when standard input ends"
    )


def options_from(parsed: argparse.Namespace) -> UpOptions:
    """Turn parsed arguments into options, checked as far as they can be without touching DIR."""
    options = UpOptions(
        data=Path(parsed.data).absolute(),
        host=parsed.host,
        port=parsed.port,
        storage=parsed.storage,
        replicas=parsed.replicas,
        advertise=parsed.advertise,
        config=parsed.config,
        settings=tuple(parsed.set),
        exit_with_parent=parsed.exit_with_parent,
    )
    _check(options)
    return options


def _check(options: UpOptions) -> None:
    if not 0 <= options.port <= 65_535:
        raise ConfigError(f"port {options.port} is not in 0..65535", hint="choose another --port")
    if not 0 <= options.storage <= STORAGE_MAX:
        raise ConfigError(
            f"{options.storage} storage daemons are not in 1..{STORAGE_MAX}",
            hint="one per disk is plenty",
        )
    if options.replicas < 0 or 0 < options.storage < options.replicas:
        raise ConfigError(
            f"{options.replicas} replicas do not go with {options.storage} storage daemons",
            hint="a chunk has at least one replica, each on another daemon",
        )
    load(options.config or None, overrides=dict(map(_setting, options.settings)))


def _setting(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text} has no =", hint="for example log.level=debug")
    return key, value


def run(options: UpOptions) -> int:
    """Run the cluster until a signal; returns the exit status.

    Raises: LockedError (DIR is in use), ConfigError, BusyError (port), UnavailableError (a
            process did not start): nothing runs any more then.
    """
    _check(options)
    configure(LogConfig(level="warning"))
    return asyncio.run(_Supervisor(options).run())


class _Directory:
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
        from ffs.server.storage.targets import target_id_at

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


class _Supervisor:
    """Starts, watches and stops the processes of one cluster."""

    def __init__(self, options: UpOptions) -> None:
        self._options = options
        self._directory = _Directory(options.data)
        self._children: list[Child] = []
        self._replicas = 1
        self._signals = 0
        self._given_up = 0
        self._asked_to_stop = asyncio.Event()
        wildcard = options.host in _WILDCARDS
        self._advertise = options.advertise or (socket.gethostname() if wildcard else options.host)
        self._reach = "127.0.0.1" if wildcard else options.host

    async def run(self) -> int:
        try:
            # The lock comes before anything else: without it, DIR is not ours to touch.
            self._directory.claim()
            call_on_stop(self._on_signal, exit_with_parent=self._options.exit_with_parent)
            await self._until_asked_to_stop(self._start())
            if not self._asked_to_stop.is_set():
                self._announce()
                await self._until_asked_to_stop(self._keep_running())
        finally:
            try:
                await self._stop()
            finally:
                stop_no_more()
                self._directory.release()
        return 0

    async def _until_asked_to_stop(self, work: Coroutine[None, None, None]) -> None:
        """Run `work` to its end, but no longer than until a signal comes."""
        task = asyncio.ensure_future(work)
        asked = asyncio.ensure_future(self._asked_to_stop.wait())
        try:
            await asyncio.wait((task, asked), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        finally:
            for one in (task, asked):
                one.cancel()
            await asyncio.gather(task, asked, return_exceptions=True)

    # --- starting -------------------------------------------------------------------------------

    async def _start(self) -> None:
        directory, options = self._directory, self._options
        await directory.wait_for_old_children()
        daemons, self._replicas = directory.prepare(options.storage, options.replicas)
        ports = directory.load_ports()
        meta = self._child("meta", self._meta_command, self._meta_port(ports), pinned=True)
        await meta.start()
        meta_port = meta.port

        def storage_command(index: int) -> Callable[[int], list[str]]:
            return lambda port: self._storage_command(index, port, meta_port)

        storage = [
            self._child(
                f"storage-{i}", storage_command(i), ports.get(f"storage-{i}", 0), pinned=False
            )
            for i in range(1, daemons + 1)
        ]
        await _all_of([child.start() for child in storage])
        directory.remember_targets(daemons, self._replicas)
        self._save_ports()
        await until_chains_serve((self._reach, meta_port), ClusterKey.load(directory.key_file))

    def _child(
        self, name: str, command: Callable[[int], list[str]], port: int, *, pinned: bool
    ) -> Child:
        child = Child(
            name,
            command,
            self._directory.log / f"{name}.log",
            host=self._options.host,
            port=port,
            pinned=pinned,
            held_fd=self._directory.children_fd,
        )
        self._children.append(child)
        return child

    def _meta_port(self, ports: dict[str, int]) -> int:
        host, port = self._options.host, self._options.port
        if port == 0:
            last = ports.get("meta", 0)
            return last if port_is_free(host, last) else 0
        if not port_is_free(host, port):
            raise BusyError(
                f"port {port} of {host} is taken or not ours",
                hint="choose another --port, or 0 for any free one",
            )
        return port

    def _meta_command(self, port: int) -> list[str]:
        directory = self._directory
        return [
            *_module("ffs.server.meta"),
            *("--data", str(directory.meta)),
            *("--host", self._options.host, "--port", str(port)),
            *("--set", f"meta.replicas={self._replicas}"),
            *self._common(),
        ]

    def _storage_command(self, index: int, port: int, meta_port: int) -> list[str]:
        self._directory.check_targets(index, self._replicas)
        targets = [
            ("--target", str(self._directory.target(index, number)))
            for number in range(1, self._replicas + 1)
        ]
        return [
            *_module("ffs.server.storage"),
            *("--meta", f"{self._reach}:{meta_port}"),
            *("--host", self._options.host, "--port", str(port)),
            *(word for target in targets for word in target),
            *("--set", f"storage.advertise_host={self._advertise}"),
            *self._common(),
        ]

    def _common(self) -> list[str]:
        options = self._options
        arguments = ["--exit-with-parent", "--key-file", str(self._directory.key_file)]
        if options.config:
            arguments += ["--config", options.config]
        for setting in options.settings:
            arguments += ["--set", setting]
        return arguments

    # --- running and stopping -------------------------------------------------------------------

    def _announce(self) -> None:
        url = f"ffs://{self._advertise}:{self._children[0].port}"
        key_file = self._directory.key_file
        sys.stdout.write(
            f"ready {url} key={key_file}\nexport FFS_URL={url}\nexport FFS_KEY_FILE={key_file}\n"
        )
        sys.stdout.flush()

    async def _keep_running(self) -> None:
        works = [self._keep_one_running(child) for child in self._children]
        await _all_of([*works, self._rotate_logs()])

    async def _keep_one_running(self, child: Child) -> None:
        try:
            await child.keep_running()
        except UnavailableError as error:
            self._given_up += 1
            if child is self._children[0] or self._given_up == len(self._children) - 1:
                raise
            log.error("process_given_up", extra={"child": child.name, "reason": str(error)})

    async def _rotate_logs(self) -> None:
        while True:
            await asyncio.sleep(LOGS_S)
            for child in self._children:
                child.rotate_log()

    async def _stop(self) -> None:
        """Stop the daemons, then the metadata server; a second signal makes it quick."""
        self._save_ports()
        meta, storage = self._children[:1], self._children[1:]
        for tier in (storage, meta):
            await asyncio.gather(*(child.stop() for child in tier))

    def _save_ports(self) -> None:
        served = {child.name: child.port for child in self._children if child.port}
        if served:
            self._directory.save_ports(served)

    def _on_signal(self) -> None:
        self._signals += 1
        self._asked_to_stop.set()
        if self._signals > 1:
            for child in self._children:
                child.kill_soon()


async def _all_of(works: Sequence[Coroutine[None, None, None]]) -> None:
    """Run all to their ends; the first failure cancels the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


def _module(name: str) -> list[str]:
    return [sys.executable, "-m", name]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse arguments and run; errors are one line on stderr and status 1."""
    parser = argparse.ArgumentParser(prog="python -m ffs.server.up", description=run.__doc__)
    add_arguments(parser)
    try:
        return run(options_from(parser.parse_args(argv)))
    except FFSError as error:
        sys.stderr.write(f"ffs up: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
