"""Several writers on one PostgreSQL: nobody is told of the others but by what they did.

Threads stand for servers: each worker of a store has a connection of its own, as a second server's
would be. After every storm the whole database is held against the invariants, and the engine's own
count of deadlocks says that the order of locks holds: only what is named here may wait in a circle.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest

from ffs.errors import (
    DirectoryExpectedError,
    ExistsError,
    FFSError,
    FileExpectedError,
    LeaseExpiredError,
    LoopError,
    NotEmptyError,
    NotFoundError,
    NotPermittedError,
    SymlinkLoopError,
)
from ffs.seams import SystemRandomness
from ffs.server.meta.ops import (
    close,
    copy,
    create,
    directories,
    link,
    mkdir,
    pin,
    remove,
    rename,
    rmdir,
    sessions,
    storage,
    symlink,
)
from ffs.server.meta.ops import setattr as attributes
from ffs.server.meta.ops.access import ROOT
from ffs.server.meta.ops.context import Context, Defaults
from ffs.server.meta.postgres import PostgresStore
from ffs.server.meta.store import Transaction
from ffs.types import Attr
from ffs.wire import messages as wire
from ffs.wire.messages import CreateMode
from ffs.wire.method import Fault
from tests.databases import new_database, server
from tests.namespace import SESSION_TTL_NS, Namespace, good

T = TypeVar("T")

ROUNDS = int(os.environ.get("FFS_ROUNDS", "1"))
EXPECTED = (
    *(NotFoundError, ExistsError, NotEmptyError, LoopError, LeaseExpiredError),
    *(FileExpectedError, DirectoryExpectedError, SymlinkLoopError, NotPermittedError),
)
"""What callers may be told when somebody else was there first."""


@pytest.fixture
def ns(tmp_path: Any) -> Iterator[Namespace]:
    """The database before and after; in between the storm's own connections are at work."""
    namespace = Namespace(new_database("postgres", tmp_path))
    before = deadlocks(namespace)
    yield namespace
    namespace.check()
    namespace.transact(directories.fold_changes)
    assert namespace.tx.rows("SELECT * FROM directory_changes") == []
    namespace.check()
    assert deadlocks(namespace) == before, server().log_tail(60_000)


def deadlocks(ns: Namespace) -> int:
    """How many deadlocks PostgreSQL has resolved so far."""
    ns.tx.run("SELECT pg_stat_clear_snapshot()")
    return int(ns.tx.rows("SELECT deadlocks FROM pg_stat_database WHERE datname = 'ffs'")[0][0])


class Caller:
    """One client of the shared database."""

    def __init__(self, ns: Namespace, store: PostgresStore, number: int, seed: int) -> None:
        self.ns = ns
        self.store = store
        self.number = number
        self.client = b"client-%d" % number
        self.chance = random.Random(seed + number)

    async def do(self, operation: Callable[[Transaction, Context, Any], T], request: object) -> T:
        """Run one operation; only typed errors may come out."""
        defaults = Defaults(1 << 20, 0, SESSION_TTL_NS)
        context = Context(self.ns.now_ns, SystemRandomness(), defaults, ROOT)
        return await self.store.write(lambda tx: operation(tx, context, request))

    async def create(self, *paths: bytes, **fields: Any) -> list[wire.WriteSession | Fault]:
        """create_many."""
        entries = [wire.CreateEntry(path, **fields) for path in paths]
        request = wire.CreateManyRequest(b"", self.client, entries)
        return (await self.do(create.create_many, request)).sessions

    async def close(self, opened: list[wire.WriteSession | Fault]) -> list[Attr | Fault]:
        """close_many of what was opened."""
        entries = [wire.CloseEntry(s.session, 7) for s in opened if not isinstance(s, Fault)]
        request = wire.CloseManyRequest(b"", self.client, entries)
        return (await self.do(close.close_many, request)).attrs

    async def write(self, *paths: bytes, **fields: Any) -> list[Attr | Fault]:
        """Both."""
        return await self.close(await self.create(*paths, **fields))

    async def mkdir(self, path: bytes) -> None:
        """mkdir with parents."""
        await self.do(mkdir.mkdir, wire.MkdirRequest(b"", path, 0o755, True, True))

    async def rename(self, source: bytes, target: bytes) -> None:
        """rename, replacing."""
        await self.do(rename.rename, wire.RenameRequest(b"", source, target, True))

    async def remove(self, *paths: bytes) -> list[None | Fault]:
        """remove_many."""
        return (await self.do(remove.remove_many, wire.RemoveManyRequest(b"", list(paths)))).results

    async def rmdir(self, path: bytes, *, recursive: bool) -> None:
        """rmdir."""
        await self.do(rmdir.rmdir, wire.RmdirRequest(b"", path, recursive))

    async def copy(self, source: bytes, target: bytes) -> None:
        """copy, replacing."""
        await self.do(copy.copy, wire.CopyRequest(b"", source, target, True))

    async def append(self, *paths: bytes) -> list[Attr | Fault]:
        """create_many and close_many of appending sessions."""
        return await self.write(*paths, create_mode=CreateMode.APPEND)

    async def symlink(self, path: bytes, target: bytes) -> None:
        """symlink."""
        await self.do(symlink.symlink, wire.SymlinkRequest(b"", path, target))

    async def link(self, source: bytes, target: bytes) -> None:
        """link."""
        await self.do(link.link, wire.LinkRequest(b"", source, target))

    async def resize(self, path: bytes, size: int) -> None:
        """setattr."""
        await self.do(attributes.setattr_path, wire.SetattrRequest(b"", path, size=size))

    async def mode(self, path: bytes, mode: int) -> None:
        """setattr of what may be a directory."""
        await self.do(attributes.setattr_path, wire.SetattrRequest(b"", path, mode=mode))

    async def drop(self) -> None:
        """schedule_drops of all that is dead, and confirm_drops, as storage daemons would."""
        now_ns = self.ns.now_ns
        await self.store.write(lambda tx: storage.schedule_drops(tx, now_ns, 50))
        waiting = await self.store.read(lambda tx: tx.rows("SELECT target, blob FROM drops"))
        targets, blobs = ([row[place] for row in waiting] for place in (0, 1))
        await self.store.write(lambda tx: storage.confirm_drops(tx, targets, blobs))

    async def abandon(self, *paths: bytes) -> None:
        """create_many of reserved names, and abort_many."""
        opened = await self.create(*paths, create_mode=CreateMode.EXCLUSIVE)
        mine = [one.session for one in opened if not isinstance(one, Fault)]
        await self.do(sessions.abort_many, wire.AbortManyRequest(b"", self.client, mine))

    async def reap(self) -> None:
        """End all sessions, whoever is writing."""
        late = self.ns.now_ns + 2 * SESSION_TTL_NS
        await self.store.write(lambda tx: sessions.reap(tx, late))

    async def pin(self, path: bytes, ttl_ms: int = 0) -> int:
        """pin."""
        request = wire.PinRequest(b"", path, "storm", ttl_ms)
        return (await self.do(pin.pin, request)).pin.pin

    async def unpin(self, number: int) -> None:
        """unpin."""
        await self.do(pin.unpin, wire.UnpinRequest(b"", number))


def storm(
    ns: Namespace, callers: int, scenario: Callable[[Caller], Awaitable[None]], *, seed: int = 0
) -> list[PostgresStore]:
    """Let callers go at the database all at once, over two stores."""

    async def run() -> list[PostgresStore]:
        opened = [PostgresStore(server().url(), writers=callers) for _ in range(2)]
        try:
            await asyncio.gather(
                *(scenario(Caller(ns, opened[i % 2], i, seed)) for i in range(callers))
            )
        finally:
            for store in opened:
                await store.close()
        return opened

    return asyncio.run(run())


async def attempt(action: Awaitable[object]) -> bool:
    """Wait for something that others may make impossible; tell whether it worked."""
    try:
        await action
    except EXPECTED:
        return False
    return True


# --- two at a time --------------------------------------------------------------------------------


def test_writers_of_one_directory_all_succeed(ns: Namespace) -> None:
    ns.mkdir(b"/d")

    async def scenario(caller: Caller) -> None:
        for round_ in range(5):
            paths = [b"/d/%d-%d-%d" % (caller.number, round_, i) for i in range(50)]
            caller.chance.shuffle(paths)
            for attr in await caller.write(*paths):
                good(attr)

    stores = storm(ns, 4, scenario)
    assert len(ns.names(b"/d")) == 1_000
    assert ns.stat(b"/d").version >= 20
    assert sum(worker.beaten for store in stores for worker in store.workers) == 0


def test_writers_of_the_same_names_replace_each_other(ns: Namespace) -> None:
    async def scenario(caller: Caller) -> None:
        for _ in range(6):
            paths = [b"/f%d" % i for i in range(40)]
            caller.chance.shuffle(paths)
            for attr in await caller.write(*paths):
                good(attr)

    storm(ns, 4, scenario)
    attrs = [good(attr) for attr in ns.stat_many(*(b"/f%d" % i for i in range(40)))]
    assert [attr.version for attr in attrs] == [24] * 40


def test_one_of_many_exclusive_creators_wins(ns: Namespace) -> None:
    won: list[bytes] = []

    async def scenario(caller: Caller) -> None:
        for i in range(20):
            paths = [b"/x%d" % i, b"/y%d" % i]
            opened = await caller.create(*paths, create_mode=CreateMode.EXCLUSIVE)
            for path, session in zip(paths, opened, strict=True):
                if not isinstance(session, Fault):
                    won.append(path)
            for attr in await caller.close(opened):
                good(attr)

    storm(ns, 4, scenario)
    assert sorted(won) == sorted(b"/" + name for name in ns.names(b"/"))
    assert len(won) == 40


def test_directories_are_never_moved_into_each_other(ns: Namespace) -> None:
    for name in (b"/a/b/c", b"/x/y/z"):
        ns.mkdir(name, parents=True)

    async def scenario(caller: Caller) -> None:
        moves = [(b"/a", b"/x/y/z/a"), (b"/x", b"/a/b/c/x"), (b"/x/y/z/a", b"/a")]
        moves += [(b"/a/b/c/x", b"/x"), (b"/a/b", b"/x/b"), (b"/x/b", b"/a/b")]
        for _ in range(25):
            await attempt(caller.rename(*caller.chance.choice(moves)))

    storm(ns, 4, scenario)
    assert len(list(walk(ns))) == 6, "a part of the tree was cut off"


def walk(ns: Namespace, path: bytes = b"") -> Iterator[bytes]:
    """Every path that can be reached from the root."""
    for entry in ns.list(path or b"/", limit=4_096).entries:
        below = path + b"/" + entry.name
        yield below
        if entry.attr.type == 2:
            yield from walk(ns, below)


def test_nothing_is_created_in_a_directory_that_goes(ns: Namespace) -> None:
    async def scenario(caller: Caller) -> None:
        for i in range(30):
            if caller.number % 2:
                await attempt(caller.mkdir(b"/d"))
                await attempt(caller.rmdir(b"/d", recursive=i % 3 == 0))
            else:
                await attempt(caller.write(b"/d/f%d" % caller.number, parents=i % 2 == 0))
                await attempt(caller.remove(b"/d/f%d" % caller.number))

    storm(ns, 4, scenario)


def test_a_tree_goes_whole_while_others_work_in_it(ns: Namespace) -> None:
    async def scenario(caller: Caller) -> None:
        for i in range(12):
            if caller.number == 0:
                await attempt(caller.rmdir(b"/t", recursive=True))
            else:
                deep = b"/t/%d/%d" % (i % 3, caller.chance.randrange(3))
                await attempt(caller.write(deep + b"/f", deep + b"/g", parents=True))
                await attempt(caller.rename(deep, b"/t/moved%d" % caller.number))
                await attempt(caller.copy(deep + b"/f", b"/t/0/copy"))

    storm(ns, 4, scenario)


def test_shared_content_dies_with_its_last_name(ns: Namespace) -> None:
    ns.write(b"/origin")

    async def scenario(caller: Caller) -> None:
        mine = b"/c%d" % caller.number
        for _ in range(20):
            await attempt(caller.copy(b"/origin", mine))
            await attempt(caller.copy(mine, b"/other"))
            await attempt(caller.remove(mine, b"/other"))

    storm(ns, 4, scenario)
    ns.remove(b"/origin", b"/other")
    assert ns.tx.rows("SELECT count(*) FROM blobs WHERE state = 2") == [(0,)]


def test_reaping_meets_clients_that_come_back(ns: Namespace) -> None:
    async def scenario(caller: Caller) -> None:
        for i in range(15):
            path = b"/r%d-%d" % (caller.number, i)
            opened = await caller.create(path, create_mode=CreateMode.EXCLUSIVE)
            if caller.number == 0:
                late = ns.now_ns + 2 * SESSION_TTL_NS
                await caller.store.write(lambda tx, late=late: sessions.reap(tx, late))
            else:
                await caller.close(opened)

    storm(ns, 4, scenario)


def test_appends_of_many_clients_all_land(ns: Namespace) -> None:
    ns.write(b"/log", 7)
    ns.link(b"/log", b"/second")
    ns.symlink(b"/to-log", b"second")

    async def scenario(caller: Caller) -> None:
        for _ in range(15):
            paths = [b"/log", b"/second", b"/to-log", b"/own%d" % caller.number]
            caller.chance.shuffle(paths)
            for attr in await caller.append(*paths):
                good(attr)

    storm(ns, 4, scenario)
    assert ns.stat(b"/log").size == ns.stat(b"/to-log").size == 7 + 7 * 3 * 15 * 4
    assert ns.stat(b"/log").version == 1 + 3 * 15 * 4
    assert [ns.stat(b"/own%d" % i).size for i in range(4)] == [7 * 15] * 4


def test_names_of_one_file_are_counted_while_they_come_and_go(ns: Namespace) -> None:
    ns.write(b"/f")

    async def scenario(caller: Caller) -> None:
        names = [b"/a", b"/b", b"/c", b"/d%d" % caller.number]
        for _ in range(25):
            name, other = caller.chance.sample(names, 2)
            await attempt(caller.link(b"/f", name))
            await attempt(caller.rename(name, other))
            await attempt(caller.remove(other))

    storm(ns, 4, scenario)
    assert ns.stat(b"/f").nlink == len(ns.names(b"/"))


def test_pins_meet_changes_of_what_they_keep(ns: Namespace) -> None:
    ns.mkdir(b"/d")

    async def scenario(caller: Caller) -> None:
        for i in range(20):
            if caller.number < 2:
                number = await caller.pin(b"/d")
                await caller.unpin(number)
                continue
            path, other = b"/d/%d" % (i % 4), b"/d/%d" % ((i + 1) % 4)
            await attempt(caller.write(path))
            await attempt(caller.copy(path, other))
            await attempt(caller.resize(other, i % 9))
            await attempt(caller.remove(path))

    storm(ns, 4, scenario)
    assert ns.pins() == []
    ns.rmdir(b"/d", recursive=True)
    assert ns.tx.rows("SELECT count(*) FROM blobs WHERE refs <> 0") == [(0,)]


def test_every_pin_whose_time_is_over_is_ended_by_one_server(ns: Namespace) -> None:
    for i in range(12):
        ns.write(b"/%d" % i)
        ns.pin(b"/", ttl_ms=1)
    ns.now_ns += SESSION_TTL_NS
    ended: list[int] = []

    async def scenario(caller: Caller) -> None:
        for _ in range(12):
            number = await caller.store.write(lambda tx: pin.reap_pin(tx, ns.now_ns))
            if number:
                ended.append(number)

    storm(ns, 4, scenario)
    assert sorted(ended) == list(range(1, 13))


# --- everything at once ---------------------------------------------------------------------------


def test_everything_at_once(ns: Namespace) -> None:
    names = [b"a", b"b", b"c"]
    refused: list[FFSError] = []

    async def one(caller: Caller) -> None:
        chance = caller.chance
        path = b"".join(b"/" + chance.choice(names) for _ in range(chance.randint(1, 3)))
        other = b"".join(b"/" + chance.choice(names) for _ in range(chance.randint(1, 3)))
        actions: list[Callable[[], Awaitable[object]]] = [
            lambda: caller.write(path, other),
            lambda: caller.write(path, other, create_mode=CreateMode.EXCLUSIVE),
            lambda: caller.mkdir(path),
            lambda: caller.rename(path, other),
            lambda: caller.remove(path, other),
            lambda: caller.rmdir(path, recursive=True),
            lambda: caller.rmdir(path, recursive=False),
            lambda: caller.copy(path, other),
            lambda: caller.append(path, other),
            lambda: caller.symlink(path, other),
            lambda: caller.link(path, other),
            lambda: caller.pin(path, 1),
            lambda: caller.store.write(lambda tx: pin.reap_pin(tx, ns.now_ns + SESSION_TTL_NS)),
            lambda: caller.store.write(directories.fold_changes),
            lambda: caller.mode(path, 0o700),
            lambda: caller.resize(path, chance.randrange(20)),
            lambda: caller.abandon(path, other),
            caller.reap,
            caller.drop,
        ]
        weights = [6, 3, 6, 6, 2, 1, 2, 3, 3, 2, 2, 1, 1, 1, 2, 2, 2, 1, 2]
        try:
            await chance.choices(actions, weights)[0]()
        except EXPECTED as error:
            refused.append(error)

    async def scenario(caller: Caller) -> None:
        for _ in range(120):
            await one(caller)

    for round_ in range(ROUNDS):
        storm(ns, 6, scenario, seed=100 * round_)
        ns.check()
    assert refused, "writers that never meet test nothing"
