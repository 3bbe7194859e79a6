"""The shared engine: snapshots, another attempt, lost connections, the schema, what is told."""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import pytest

from ffs.config import ClientConfig
from ffs.errors import (
    ClosedError,
    ConfigError,
    FormatError,
    NotFoundError,
    UnavailableError,
)
from ffs.server.meta import postgres
from ffs.server.meta.ops import close, directories, sessions, storage
from ffs.server.meta.postgres import PostgresStore
from ffs.server.meta.postgres_connection import without_password
from ffs.server.meta.schema import SCHEMA_VERSION
from ffs.server.meta.store import ConflictError, Transaction
from tests.databases import PostgresDatabase, server
from tests.postgres import Postgres

T = TypeVar("T")

_names = (f"engine{i}" for i in itertools.count())


@pytest.fixture
def url() -> str:
    """A database of the test's own, empty."""
    return server().create_database(next(_names))


@pytest.fixture
def own_server() -> Iterator[Postgres]:
    """A server that the test may kill."""
    with Postgres() as running:
        yield running


def put(name: str, value: bytes = b"v") -> Callable[[Transaction], int]:
    """An operation that writes one row."""
    return lambda tx: tx.insert("settings", ("name", "value"), [(name, value)])


def names(tx: Transaction) -> list[str]:
    """The rows that `put` wrote."""
    return [name for (name,) in tx.rows("SELECT name FROM settings ORDER BY name")]


def with_store(url: str, scenario: Callable[[PostgresStore], Awaitable[T]], writers: int = 3) -> T:
    """Run a scenario on an open store, and close it."""

    async def run() -> T:
        store = PostgresStore(url, writers=writers, readers=2)
        try:
            return await scenario(store)
        finally:
            await store.close()

    return asyncio.run(run())


def test_writes_are_there_for_everyone_once_answered(url: str) -> None:
    async def scenario(store: PostgresStore) -> None:
        other = PostgresStore(url, writers=1, readers=1)
        await asyncio.gather(*(store.write(put(f"n{i}")) for i in range(20)))
        assert len(await other.read(names)) == 20
        await other.close()
        with pytest.raises(ClosedError):
            await other.read(names)

    with_store(url, scenario)


def test_a_failure_leaves_nothing(url: str) -> None:
    def fail(tx: Transaction) -> None:
        put("half-done")(tx)
        raise NotFoundError("on purpose")

    async def scenario(store: PostgresStore) -> None:
        results = await asyncio.gather(
            store.write(put("a")), store.write(fail), store.write(put("b")), return_exceptions=True
        )
        assert isinstance(results[1], NotFoundError)
        assert await store.read(names) == ["a", "b"]
        with pytest.raises(Exception, match="syntax error"):
            await store.write(lambda tx: tx.run("NO SUCH STATEMENT"))
        with pytest.raises(Exception, match="read-only"):
            await store.read(put("by a reader"))
        assert await store.read(names) == ["a", "b"]

    with_store(url, scenario)


def test_readers_see_one_committed_moment(url: str) -> None:
    async def scenario(store: PostgresStore) -> None:
        began, committed = threading.Event(), threading.Event()

        def twice(tx: Transaction) -> tuple[list[str], list[str]]:
            before = names(tx)
            began.set()
            committed.wait()
            return before, names(tx)

        await store.write(put("a"))
        reading = asyncio.ensure_future(store.read(twice))
        await asyncio.to_thread(began.wait)
        await store.write(put("b"))
        committed.set()
        assert await reading == (["a"], ["a"])

    with_store(url, scenario)


def test_who_comes_second_is_run_again(url: str) -> None:
    async def scenario(store: PostgresStore) -> None:
        inserted, looked, go_on = (threading.Event() for _ in range(3))

        def first(tx: Transaction) -> None:
            put("name", b"first")(tx)
            inserted.set()
            go_on.wait()

        def second(tx: Transaction) -> bytes:
            row = tx.row("SELECT value FROM settings WHERE name = 'name'")
            looked.set()
            if row is not None:
                return bytes(row[0])
            put("name", b"second")(tx)
            return b"second"

        writing = asyncio.ensure_future(store.write(first))
        await asyncio.to_thread(inserted.wait)
        losing = asyncio.ensure_future(store.write(second))
        await asyncio.to_thread(looked.wait)
        go_on.set()
        await writing
        assert await losing == b"first"
        assert sum(worker.beaten for worker in store.workers) == 1

    with_store(url, scenario)


def test_a_deadlock_is_nobodys_error(url: str) -> None:
    async def scenario(store: PostgresStore) -> None:
        await store.write(lambda tx: (put("a")(tx), put("b")(tx)))
        meeting = threading.Barrier(2, timeout=60)
        attempts: list[str] = []

        def cross(first: str, second: str) -> Callable[[Transaction], None]:
            def operation(tx: Transaction) -> None:
                attempts.append(first)
                tx.run("UPDATE settings SET value = 'x' WHERE name = ?", (first,))
                if len(attempts) <= 2:
                    meeting.wait()
                tx.run("UPDATE settings SET value = 'y' WHERE name = ?", (second,))

            return operation

        await asyncio.gather(store.write(cross("a", "b")), store.write(cross("b", "a")))
        # The one that was beaten ran again, perhaps into the same deadlock, and changed both last.
        assert sum(worker.beaten for worker in store.workers) == len(attempts) - 2 >= 1
        last = {"a": b"y", "b": b"y"} | {attempts[-1]: b"x"}
        rows = await store.read(lambda tx: tx.rows("SELECT name, value FROM settings"))
        assert {name: value for name, value in rows if name in last} == last

    with_store(url, scenario)


def test_what_cannot_be_won_is_given_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "RERUN_S_MAX", 0.3)

    def never(tx: Transaction) -> None:
        raise ConflictError("always second")

    async def scenario(store: PostgresStore) -> None:
        with pytest.raises(UnavailableError, match="always second"):
            await store.write(never)
        assert sum(worker.beaten for worker in store.workers) > 3

    with_store(url, scenario)


def test_a_lost_connection_is_made_anew(url: str) -> None:
    async def scenario(store: PostgresStore) -> None:
        def lose_once(tx: Transaction) -> int:
            row = tx.row("SELECT pg_backend_pid()")
            assert row is not None
            seen.append(int(row[0]))
            if len(seen) == 1:
                tx.rows("SELECT pg_terminate_backend(pg_backend_pid())")
            return put("a")(tx)

        seen: list[int] = []
        assert await store.write(lose_once) == 1
        assert len(set(seen)) == 2
        assert await store.read(names) == ["a"]

    with_store(url, scenario, writers=1)


def test_the_database_may_restart_at_any_time(own_server: Postgres) -> None:
    async def scenario(store: PostgresStore) -> None:
        await store.write(put("before"))
        own_server.kill()
        waiting = [asyncio.ensure_future(store.write(put(f"n{i}"))) for i in range(4)]
        reading = asyncio.ensure_future(store.read(names))
        await asyncio.to_thread(own_server.start)
        assert await asyncio.gather(*waiting) == [1] * 4
        assert "before" in await reading

    with_store(own_server.url(), scenario)


def test_a_database_that_stays_away_is_unavailable(
    own_server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "RERUN_S_MAX", 0.3)

    async def scenario(store: PostgresStore) -> None:
        own_server.kill()
        for call in (store.write, store.read):
            with pytest.raises(UnavailableError, match="is PostgreSQL running"):
                await call(names)

    with_store(own_server.url(), scenario)
    with pytest.raises(UnavailableError, match="does not answer"):
        PostgresStore(own_server.url())


def test_a_client_hears_why_before_it_gives_a_server_up() -> None:
    assert ClientConfig().meta_deadline_ms > 3 * postgres.RERUN_S_MAX * 1000


def test_a_database_without_its_tables_says_what_to_do(url: str) -> None:
    async def scenario(store: PostgresStore) -> None:
        with pytest.raises(ConfigError, match=r"lost its tables \(stop all metadata servers"):
            await store.read(lambda tx: tx.rows("SELECT 1 FROM not_there"))

    with_store(url, scenario)


def test_closing_finishes_what_was_accepted(url: str) -> None:
    async def scenario(store: PostgresStore) -> None:
        jobs = [asyncio.ensure_future(store.write(put(f"n{i}"))) for i in range(20)]
        await asyncio.sleep(0)
        await store.close()
        assert await asyncio.gather(*jobs) == [1] * 20

    with_store(url, scenario)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ends_takes_the_process_along(url: str) -> None:
    reasons: list[str] = []
    ended = threading.Event()

    def fatal(reason: str) -> None:
        reasons.append(reason)
        ended.set()

    def end(tx: Transaction) -> None:
        raise SystemExit("not an Exception")

    async def run() -> None:
        store = PostgresStore(url, writers=1, readers=1, fatal=fatal)
        waiting = asyncio.ensure_future(store.write(end))
        await asyncio.to_thread(ended.wait, 20)
        waiting.cancel()
        await store.close()

    asyncio.run(run())
    assert reasons == ["a database thread ended: SystemExit('not an Exception')"]


# --- ids and locks --------------------------------------------------------------------------------


def test_ids_are_never_given_twice(url: str) -> None:
    async def scenario(store: PostgresStore) -> None:
        def take(tx: Transaction) -> list[int]:
            return [*tx.allocate("blob", 100)]

        def undone(tx: Transaction) -> None:
            taken.extend(take(tx))
            raise NotFoundError("undone")

        taken: list[int] = []
        for ids in await asyncio.gather(*(store.write(take) for _ in range(10))):
            assert ids == sorted(ids)
            taken += ids
        with pytest.raises(NotFoundError):
            await store.write(undone)
        taken += await store.write(take)
        assert len(set(taken)) == len(taken) == 1_200
        assert await store.read(lambda tx: tx.highest("blob")) == max(taken)
        assert await store.read(lambda tx: tx.highest("session")) == 0
        await store.write(lambda tx: tx.pass_id("session", 70))
        assert await store.write(lambda tx: [*tx.allocate("session", 1)]) == [71]

    with_store(url, scenario)


@pytest.fixture(scope="module")
def emptied() -> Iterator[PostgresDatabase]:
    """A database whose tables were found empty though they have pages: rows come and go there."""
    database = PostgresDatabase(server().create_database("emptied"))
    ids = [(number,) for number in range(200)]
    rows = {
        "sessions": (sessions.SESSION_COLUMNS, (b"", 0, 0, b"", 0, 0)),
        "drops": (("blob", "target"), (1,)),
        "directory_changes": (directories._CHANGE_COLUMNS, (0, 0, 0)),
    }
    for table, (columns, rest) in rows.items():
        database.tx.insert(table, columns, [(*one, *rest) for one in ids])
        database.tx.run(f"DELETE FROM {table}")
        database.tx.run(f"VACUUM (TRUNCATE off, ANALYZE) {table}")
    yield database
    database.disconnect()


@pytest.mark.parametrize(
    ("sql", "after"),
    [
        (close._SESSIONS, ()),
        (sessions._NAMED, ()),
        (sessions._DELETE_SESSIONS, ()),
        (storage._DELETE_DROPS, (1,)),
        (storage._STILL_DROPPING, ()),
        (directories._PENDING, ()),
        (directories._TAKE, ()),
    ],
)
def test_tables_thought_to_be_empty_are_searched_by_keys(
    emptied: PostgresDatabase, sql: str, after: tuple[int, ...]
) -> None:
    """Else all keys are looked through for each row: a second for what takes a millisecond."""
    rows = emptied.tx.rows_for(f"EXPLAIN {sql}", [(1,), (2,)], after)
    plan = "\n".join(line for (line,) in rows)
    assert re.search(r"Index Cond: \(\w+ = ANY", plan)
    assert "Nested Loop" not in plan


def test_a_lock_is_one_transactions(url: str) -> None:
    async def scenario(store: PostgresStore) -> None:
        held, go_on = threading.Event(), threading.Event()

        def hold(tx: Transaction) -> bool:
            mine = tx.try_lock("chore")
            held.set()
            go_on.wait()
            return mine

        holding = asyncio.ensure_future(store.write(hold))
        await asyncio.to_thread(held.wait)
        assert not await store.write(lambda tx: tx.try_lock("chore"))
        assert await store.write(lambda tx: tx.try_lock("another"))
        go_on.set()
        assert await holding
        assert await store.write(lambda tx: tx.try_lock("chore"))

    with_store(url, scenario)


# --- the schema -----------------------------------------------------------------------------------


def test_a_newer_schema_is_refused_and_left_alone(url: str) -> None:
    database = PostgresDatabase(url)
    database.tx.run("UPDATE schema_version SET version = ?", (SCHEMA_VERSION + 1,))
    database.disconnect()
    for _ in range(2):
        with pytest.raises(FormatError, match=f"version {SCHEMA_VERSION + 1}"):
            PostgresStore(url)


def test_a_foreign_database_is_refused(url: str) -> None:
    database = PostgresDatabase(url)
    database.tx.run("DROP TABLE schema_version")
    database.disconnect()
    with pytest.raises(FormatError, match="not a metadata schema"):
        PostgresStore(url)


def test_servers_that_start_together_make_one_schema(url: str) -> None:
    async def run() -> None:
        stores = await asyncio.gather(
            *(asyncio.to_thread(PostgresStore, url, writers=1, readers=1) for _ in range(4))
        )
        assert await stores[0].read(lambda tx: tx.rows("SELECT version FROM schema_version")) == [
            (SCHEMA_VERSION,)
        ]
        for store in stores:
            await store.close()

    asyncio.run(run())


# --- what it is told and tells --------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["mysql://h/d", "postgres://host", "/a/path", "postgres:///"])
def test_what_names_no_database_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"meta\.database"):
        PostgresStore(wrong)


def test_an_unknown_database_is_told_without_the_password(url: str) -> None:
    wrong = url.replace("ffs@", "ffs:hunter2@").rpartition("/")[0] + "/nowhere"
    with pytest.raises(ConfigError, match="nowhere") as caught:
        PostgresStore(wrong)
    assert "hunter2" not in str(caught.value)


def test_urls_are_shown_without_passwords() -> None:
    assert without_password("postgres://u:p@h:5/d") == "postgres://u@h:5/d"
    assert without_password("postgres://u@/d?host=/run&password=p") == "postgres://u@/d?host=%2Frun"
    assert without_password("postgres://h/d") == "postgres://h/d"
