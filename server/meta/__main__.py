"""`python -m ffs.server.meta`: the metadata server as a process.

Prints `ready HOST:PORT` on stdout once it serves, logs to stderr, stops cleanly on SIGTERM and
SIGINT, and with --exit-with-parent when its standard input ends. A data directory that another
server holds, or a database it cannot use, ends it with one line and exit status 1; a database that
fails under it ends it with status 74.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import sys
from collections.abc import Sequence
from typing import Final

from ffs.auth.insecure import server_key
from ffs.auth.verifier import TokenVerifier
from ffs.config import Config, load
from ffs.errors import ConfigError, FFSError
from ffs.log import configure
from ffs.rpc.aio import RpcServer
from ffs.seams import SystemClock, SystemRandomness
from ffs.server.meta.engine import check_config, open_store
from ffs.server.meta.metrics import MetaMetrics
from ffs.server.meta.service import MetaService
from ffs.server.process import (
    add_auth_arguments,
    allow_many_files,
    announce_ready,
    call_on_stop,
    leave_no_core,
    stop_no_more,
)
from ffs.tls import Tls

log = logging.getLogger("ffs.meta")

_OBJECTS_BETWEEN_COLLECTIONS: Final = 50_000
"""One batch makes some tens of thousands of tuples, gone with it; cycles are rare here."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of a metadata server; `serve` takes what was parsed."""
    parser.add_argument("--data", metavar="DIR", help="where the database is (meta.data_dir)")
    parser.add_argument(
        "--database", metavar="URL", help="a PostgreSQL database instead (meta.database)"
    )
    add_auth_arguments(parser)
    parser.add_argument("--host", help="address to listen at (meta.host)")
    parser.add_argument("--port", type=int, help="RPC port, 0: any free one (meta.port)")
    parser.add_argument("--config", metavar="FILE", help="configuration file (TOML)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="one configuration key"
    )
    parser.add_argument(
        "--exit-with-parent", action="store_true", help="stop when standard input ends"
    )


def _load_config(options: argparse.Namespace) -> Config:
    overrides: dict[str, object] = {}
    for setting in options.set:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting} has no =", hint="for example log.level=debug")
        overrides[key] = value
    named = {"data": "data_dir", "database": "database", "host": "host", "port": "port"}
    for flag, key in named.items():
        value = getattr(options, flag)
        if value is not None:
            overrides[f"meta.{key}"] = value
    config = load(options.config, overrides=overrides)
    check_config(config.meta)
    return config


async def _run(config: Config, options: argparse.Namespace) -> None:
    tls = Tls.configured(config.tls)
    meta = config.meta
    key = server_key(
        options.key_file,
        meta.auth,
        flag=options.insecure,
        host=meta.host,
        what="metadata server",
    )
    tokens = None if options.insecure else TokenVerifier(key, SystemClock())
    store = await asyncio.to_thread(open_store, meta)
    service = MetaService(
        store,
        meta,
        clock=SystemClock(),
        randomness=SystemRandomness(),
        retry_budget_ns=config.client.meta_deadline_ms * 1_000_000,
        tokens=tokens,
    )
    stop = asyncio.Event()
    metrics = MetaMetrics(SystemClock())
    handlers = service.handlers()
    if meta.metrics_address:
        handlers = metrics.timed(handlers)
    server = RpcServer(handlers, key, tls=tls, tokens=tokens)
    call_on_stop(stop.set, exit_with_parent=options.exit_with_parent)
    try:
        await service.start()
        host, port = await server.start(meta.host, meta.port)
        await service.serves_at(host, port)
        if meta.metrics_address:
            metrics.serve(meta.metrics_address, lambda: service.facts(server.connections))
        _collect_rarely()
        announce_ready(host, port)
        log.info("metadata_server_started", extra={"address": f"{host}:{port}"})
        await stop.wait()
    finally:
        stop_no_more()
        await asyncio.to_thread(metrics.close)  # a scrape under way waits for the loop
        await server.close()
        await service.stop()
        await store.close()
    log.info("metadata_server_stopped")


def _collect_rarely() -> None:
    """Do not look for garbage in what stays, nor several times a batch.

    Why: a fifth of the time of a batch went into walking its own tuples again and again.
    """
    gc.freeze()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)


def _new_loop() -> asyncio.AbstractEventLoop:
    """Explain a client-only installation instead of showing an ImportError."""
    try:
        import uvloop
    except ImportError as error:
        raise ConfigError(
            f"this installation cannot run servers: {error}", hint="pip install 'ffs[server]'"
        ) from error
    return uvloop.new_event_loop()


def serve(options: argparse.Namespace) -> int:
    """Run the server until it is told to stop; returns the exit status.

    Raises: FFSError if it cannot serve
    """
    config = _load_config(options)
    configure(config.log)
    leave_no_core()
    allow_many_files()
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(_run(config, options))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Parse arguments and serve; errors are one line on stderr and status 1."""
    parser = argparse.ArgumentParser(prog="python -m ffs.server.meta", description=__doc__)
    add_arguments(parser)
    try:
        return serve(parser.parse_args(argv))
    except FFSError as error:
        sys.stderr.write(f"ffs meta: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
