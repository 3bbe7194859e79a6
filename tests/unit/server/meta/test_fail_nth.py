"""Every mutation with every statement failing in turn, in every way an engine fails, on both.

Promised: the mutation failed as a whole, with an error; or the engine ran it again and it happened
once; or, where an engine can no longer tell what is on its disk, the process was told to end, and
what is on the disk is as if it had never been asked. Sent again, it happens once.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ffs.config import MetaConfig
from ffs.errors import BusyError, FFSError, NoSpaceError
from ffs.rpc.codec import METHODS
from ffs.seams import SystemClock, SystemRandomness
from ffs.server.meta.postgres import PostgresStore
from ffs.server.meta.schema import POSTGRES, SQLITE
from ffs.server.meta.service import MetaService
from ffs.server.meta.sqlite import SqliteStore
from ffs.server.meta.store import Store, Transaction
from ffs.wire import messages as wire
from ffs.wire.membership import HEARTBEAT, REGISTER
from ffs.wire.method import Method
from tests.databases import ENGINES, PostgresDatabase, new_database
from tests.namespace import call, check_database
from tests.unit.server.meta.fail_nth import (
    ENTRIES,
    Entry,
    FailingStore,
    Fault,
    new_id,
    registration,
    sqlite_error,
)

ROUNDS = int(os.environ.get("FFS_ROUNDS", "1"))
RETRY_BUDGET_NS = 60_000_000_000
CHANGES_UNRECORDED = {"renew", "register", "heartbeat", "scan_done"}
"""Methods that change the database and are no mutations of the ledger."""
FULL = (sqlite3.SQLITE_FULL, "SQLITE_FULL", "database or disk is full")
BROKEN = (sqlite3.SQLITE_IOERR, "SQLITE_IOERR", "disk I/O error")
INTERRUPTED = (sqlite3.SQLITE_INTERRUPT, "SQLITE_INTERRUPT", "interrupted")

SQLITE_FAULTS: tuple[Callable[[], Exception], ...] = (
    lambda: sqlite_error(*FULL),
    lambda: sqlite_error(*INTERRUPTED),
    lambda: sqlite_error(*BROKEN),
    lambda: BusyError("as an operation says it"),
)
POSTGRES_FAULTS: tuple[Callable[[], Exception], ...] = (
    lambda: asyncpg.DiskFullError("could not extend file: No space left on device"),
    lambda: asyncpg.DeadlockDetectedError("deadlock detected"),
    lambda: asyncpg.ConnectionDoesNotExistError("connection was closed in the middle"),
    lambda: BusyError("as an operation says it"),
)


class AheadClock(SystemClock):
    """The machine's clocks, and so much later."""

    ahead_ns = 0

    def monotonic_ns(self) -> int:
        return super().monotonic_ns() + self.ahead_ns

    def wall_ns(self) -> int:
        return super().wall_ns() + self.ahead_ns


class Served:
    """A service over a real engine. Made outside of a loop, and then used in one."""

    def __init__(self, engine: str, directory: Path) -> None:
        self.clock = AheadClock()
        self.engine = engine
        self.directory = directory
        self.ended: list[str] = []
        if engine == "postgres":
            database = new_database(engine, directory)
            assert isinstance(database, PostgresDatabase)
            self.url = database.url
        self.counter = itertools.count(1)

    def _open(self) -> Store:
        if self.engine == "sqlite":
            return SqliteStore(self.directory, commit_window_ms=0, fatal=self.ended.append)
        return PostgresStore(self.url, writers=1, readers=1)

    async def start(self) -> None:
        """Serve, without chores."""
        self.store = FailingStore(self._open())
        self.service = MetaService(
            self.store,
            MetaConfig(),
            clock=self.clock,
            randomness=SystemRandomness(),
            retry_budget_ns=RETRY_BUDGET_NS,
        )
        await self.service.start()
        await self.service.stop()

    async def restart(self) -> None:
        """What happens after the process was told to end: the database is read anew."""
        await self.store.close()
        self.ended.clear()
        await self.start()

    def fall_silent(self) -> None:
        """Let time pass in which nobody is heard."""
        self.clock.ahead_ns += 2 * MetaConfig().node_lease_ms * 1_000_000

    async def call(self, method: Method[Any, Any], request: object) -> Any:
        """Send a request to the service."""
        return await call(self.service, method, request)

    async def dump(self) -> dict[str, list[str]]:
        """Everything that the database holds."""
        tables = (SQLITE if self.engine == "sqlite" else POSTGRES).tables

        def read(tx: Transaction) -> dict[str, list[str]]:
            names = sorted(name for (name,) in tx.rows(tables) if not name.startswith("sqlite_"))
            return {name: sorted(map(repr, tx.rows(f"SELECT * FROM {name}"))) for name in names}

        return await self.store.read(read)

    async def check(self) -> None:
        """The invariants of the namespace."""
        await self.store.write(check_database)


async def attempt(served: Served, entry: Entry, request: object, fault: Fault) -> object:
    """One try under the fault: the reply, or what was raised."""
    served.store.fault = fault
    try:
        return await served.call(entry.method, request)
    except (FFSError, sqlite3.OperationalError) as error:
        return error
    finally:
        served.store.fault = Fault()


def judge(served: Served, fault: Fault, outcome: object) -> None:
    """An error is told as what it is; what engines mend by running again is not told at all."""
    if isinstance(fault.error, sqlite3.OperationalError):
        code = fault.error.sqlite_errorcode
        assert bool(served.ended) == (code == sqlite3.SQLITE_IOERR)
        expected: type = NoSpaceError if code == sqlite3.SQLITE_FULL else sqlite3.OperationalError
        assert isinstance(outcome, expected)
    elif isinstance(fault.error, asyncpg.DiskFullError):
        assert isinstance(outcome, NoSpaceError)
    elif isinstance(fault.error, BusyError):
        # One entry of a batch may have taken it as its own.
        assert outcome is fault.error or not isinstance(outcome, Exception)
    else:
        assert not isinstance(outcome, Exception), outcome


async def prepared(served: Served, entry: Entry) -> object:
    """A request, and what it needs in a new directory."""
    path = b"/t%d" % next(served.counter)
    await served.call(wire.MKDIR, wire.MkdirRequest(new_id(), path))
    facts = await entry.prepare(served.call, path)
    if entry.silent:
        served.fall_silent()
    return entry.request(path, new_id(), facts)


async def strike(served: Served, entry: Entry, fault: Fault) -> bool:
    """Fail one use, and do it again without; False once there is no such use any more."""
    request = await prepared(served, entry)
    before = await served.dump()
    outcome = await attempt(served, entry, request, fault)
    if not fault.struck:
        return False
    judge(served, fault, outcome)
    if served.ended:
        await served.restart()
        if entry.silent:
            served.fall_silent()
    if isinstance(outcome, Exception):
        assert await served.dump() == before, (entry.method.name, fault.nth, fault.error)
    reply = await served.call(entry.method, request)
    done = await served.dump()
    assert isinstance(outcome, Exception) or not entry.recorded or reply == outcome
    # A renewal only moves a lease that is far off; the blob of the heartbeat waits for no drop.
    assert done != before or entry.method in (wire.RENEW, HEARTBEAT)
    if entry.recorded:
        assert await served.call(entry.method, request) == reply
        assert await served.dump() == done
    return True


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ENTRIES)
def test_a_mutation_survives_the_nth_failure(engine: str, name: str, quick_path: Path) -> None:
    ways = SQLITE_FAULTS if engine == "sqlite" else POSTGRES_FAULTS
    entry = ENTRIES[name]
    served = Served(engine, quick_path)

    async def run() -> None:
        await served.start()
        await served.call(REGISTER, registration(b"/first"))
        try:
            if name not in served.service.handlers():
                return
            for nth in itertools.count(1):
                turn = (nth + list(ENTRIES).index(name)) % len(ways)
                mine = ways if ROUNDS > 1 else ways[turn : turn + 1]
                if not all([await strike(served, entry, Fault(nth, way())) for way in mine]):
                    break
            assert nth > 1
            await served.check()
        finally:
            await served.store.close()

    asyncio.run(run())


def test_every_method_that_changes_has_an_entry(tmp_path: Path) -> None:
    async def served_methods() -> set[str]:
        served = Served("sqlite", tmp_path)
        await served.start()
        await served.store.close()
        return set(served.service.handlers())

    served = asyncio.run(served_methods())
    changing = {name for name in served if METHODS[name].mutation} | CHANGES_UNRECORDED
    assert changing <= set(ENTRIES), "give it a line in tests/unit/server/meta/fail_nth.py"
