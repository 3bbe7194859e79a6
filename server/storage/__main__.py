"""`python -m ffs.server.storage`: one storage daemon as a process.

Prints `ready HOST:PORT` (its data port) on stdout once it serves, logs to stderr, stops cleanly on
SIGTERM and SIGINT, and with --exit-with-parent when its standard input ends.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from ffs.auth.insecure import server_key
from ffs.config import Config, load
from ffs.errors import ConfigError, FFSError
from ffs.log import configure
from ffs.rpc.addresses import parse_address
from ffs.server.process import (
    add_auth_arguments,
    allow_many_files,
    announce_ready,
    call_on_stop,
    leave_no_core,
    stop_no_more,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of a storage daemon; `serve` takes what was parsed."""
    parser.add_argument(
        "--meta",
        required=True,
        action="append",
        metavar="HOST:PORT",
        help="a metadata server; one tells of the others, so one that lives is enough",
    )
    add_auth_arguments(parser)
    parser.add_argument("--host", help="address of the data port (storage.host)")
    parser.add_argument("--port", type=int, help="data port, 0: any free one (storage.port)")
    parser.add_argument(
        "--target", action="append", default=[], metavar="PATH", help="a storage directory"
    )
    parser.add_argument("--config", metavar="FILE", help="configuration file (TOML)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="one configuration key"
    )
    parser.add_argument(
        "--exit-with-parent", action="store_true", help="stop when standard input ends"
    )
    parser.add_argument("--inject-fault", metavar="CALL:NTH:ERRNO", help=argparse.SUPPRESS)


def _load_config(options: argparse.Namespace) -> Config:
    overrides: dict[str, object] = {}
    for setting in options.set:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting} has no =", hint="for example log.level=debug")
        overrides[key] = value
    if options.host is not None:
        overrides["storage.host"] = options.host
    if options.port is not None:
        overrides["storage.port"] = options.port
    if options.target:
        overrides["storage.targets"] = options.target
    return load(options.config, overrides=overrides)


def _announce(ready: asyncio.Future[tuple[str, int]]) -> None:
    if not ready.cancelled():
        announce_ready(*ready.result())


async def _run(config: Config, options: argparse.Namespace) -> None:
    from ffs.server.storage.daemon import StorageDaemon, parse_fault

    if not config.storage.targets:
        raise ConfigError("no target directory", hint="give one with --target, one for each disk")
    daemon = StorageDaemon(
        config,
        server_key(
            options.key_file,
            config.storage.auth,
            flag=options.insecure,
            host=config.storage.host,
            what="storage daemon",
        ),
        meta=[parse_address(text) for text in options.meta],
        host=config.storage.host,
        port=config.storage.port,
        paths=config.storage.targets,
        fault=parse_fault(options.inject_fault) if options.inject_fault else None,
    )
    stop = asyncio.Event()
    ready: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
    ready.add_done_callback(_announce)
    call_on_stop(stop.set, exit_with_parent=options.exit_with_parent)
    try:
        await daemon.run(ready, stop)
    finally:
        ready.cancel()
        stop_no_more()
        if daemon.left_behind:
            _leave(sys.exception())


def _leave(failure: BaseException | None) -> None:
    """End at once: the interpreter would wait for threads that wait for a disk."""
    if failure is not None:
        sys.stderr.write(f"ffs storage: {failure}\n")
        sys.stderr.flush()
    logging.shutdown()
    os._exit(0 if failure is None else 1)


def _import_daemon() -> None:
    """Explain a client-only installation instead of showing an ImportError."""
    try:
        importlib.import_module("ffs._storage")
        importlib.import_module("uvloop")
    except ImportError as error:
        raise ConfigError(
            f"this installation cannot run servers: {error}",
            hint="pip install 'ffs[server]' on a machine with cmake and a C compiler",
        ) from error


def serve(options: argparse.Namespace) -> int:
    """Run a daemon until it is told to stop; returns the exit status.

    Raises: FFSError if it cannot serve
    """
    config = _load_config(options)
    configure(config.log)
    leave_no_core()
    allow_many_files()
    _import_daemon()
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(config, options))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Parse arguments and serve; errors are one line on stderr and status 1."""
    parser = argparse.ArgumentParser(prog="python -m ffs.server.storage", description=__doc__)
    add_arguments(parser)
    try:
        return serve(parser.parse_args(argv))
    except FFSError as error:
        sys.stderr.write(f"ffs storage: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
