"""`ffs up`: a whole cluster on one machine, in the foreground, from nothing but a directory.

DIR is described in server/up_directory.py. Starts the metadata server, then the storage daemons
(server/child.py), prints `ready ffs://HOST:PORT key=FILE` once they and all chains serve, restarts
what dies, keeps logs bounded, stops all on SIGINT or SIGTERM, daemons first. A storage daemon that
keeps failing is given up and the others go on; without the metadata server, or without any daemon,
the cluster ends with status 1.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ffs.auth import insecure
from ffs.config import Config, LogConfig, load
from ffs.errors import BusyError, ConfigError, FFSError, UnavailableError
from ffs.key import ClusterKey
from ffs.log import configure
from ffs.server.chains_ready import until_chains_serve
from ffs.server.child import Child, port_is_free
from ffs.server.process import call_on_stop, leave_no_core, stop_no_more
from ffs.server.up_directory import UpDirectory
from ffs.tls import Tls

log = logging.getLogger("ffs.up")

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
    insecure: bool = False


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
    parser.add_argument(
        "--insecure", action="store_true", help="ask nobody for a key; on loopback alone"
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
        insecure=parsed.insecure,
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
    _config(options)


def _config(options: UpOptions) -> Config:
    return load(options.config or None, overrides=dict(map(_setting, options.settings)))


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
    leave_no_core()
    return asyncio.run(_Supervisor(options).run())


class _Supervisor:
    """Starts, watches and stops the processes of one cluster."""

    def __init__(self, options: UpOptions) -> None:
        self._options = options
        self._directory = UpDirectory(options.data)
        config = _config(options)
        self._tls = Tls.configured(config.tls)
        self._auth = config.meta.auth
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
            self._refuse_auth()
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

    def _refuse_auth(self) -> None:
        """Say before anything starts what its children would say, each into its own log."""
        options = self._options
        if options.insecure or self._auth == insecure.INSECURE:
            insecure.server_key(
                None, self._auth, flag=options.insecure, host=options.host, what="cluster"
            )

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
        key = insecure.KEY if options.insecure else ClusterKey.load(directory.key_file)
        await until_chains_serve((self._reach, meta_port), key, self._tls)

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
        key_file = str(self._directory.key_file)
        auth = ("--insecure",) if options.insecure else ("--key-file", key_file)
        arguments = ["--exit-with-parent", *auth]
        if options.config:
            arguments += ["--config", options.config]
        for setting in options.settings:
            arguments += ["--set", setting]
        return arguments

    # --- running and stopping -------------------------------------------------------------------

    def _announce(self) -> None:
        url = f"ffs://{self._advertise}:{self._children[0].port}"
        key_file = self._directory.key_file
        shown, export = f"{key_file}", f"FFS_KEY_FILE={key_file}"
        if self._options.insecure:
            shown, export = "none", f"FFS_CLIENT__AUTH={insecure.INSECURE}"
        sys.stdout.write(f"ready {url} key={shown}\nexport FFS_URL={url}\nexport {export}\n")
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
