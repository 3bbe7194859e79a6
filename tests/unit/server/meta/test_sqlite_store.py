"""The engine: shared commits, snapshots, the lock, the schema version, and how it fails."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from ffs.errors import (
    ClosedError,
    ConfigError,
    FormatError,
    LockedError,
    NoSpaceError,
    NotFoundError,
)
from ffs.server.meta import commit, readings, schema, sqlite
from ffs.server.meta.commit import EXIT_STORE_FAILED, exit_process, why_fatal
from ffs.server.meta.ops import close, directories, sessions
from ffs.server.meta.schema import RESERVED, SCHEMA_VERSION, SQLITE, upgrade_statements
from ffs.server.meta.sqlite import (
    DATABASE_NAME,
    LOG_FILE_NAME,
    SqliteStore,
    open_database,
)
from ffs.server.meta.store import Transaction
from ffs.types import TargetState

T = TypeVar("T")


def put(name: str, value: bytes = b"v") -> Callable[[Transaction], int]:
    """An operation that writes one row."""
    return lambda tx: tx.run("INSERT INTO settings (name, value) VALUES (?, ?)", (name, value))


def names(tx: Transaction) -> list[str]:
    """The rows that `put` wrote."""
    return [name for (name,) in tx.rows("SELECT name FROM settings ORDER BY name")]


def with_store(path: Path, scenario: Callable[[SqliteStore], Awaitable[T]], **options: object) -> T:
    """Run a scenario on an open store, and close it."""

    async def run() -> T:
        store = SqliteStore(path, **options)  # type: ignore[arg-type]
        try:
            return await scenario(store)
        finally:
            await store.close()

    return asyncio.run(run())


def test_mutations_that_arrive_together_share_a_commit(tmp_path: Path) -> None:
    async def scenario(store: SqliteStore) -> None:
        gate = threading.Event()
        first = asyncio.ensure_future(store.write(lambda tx: gate.wait() and put("first")(tx)))
        others = [asyncio.ensure_future(store.write(put(f"n{i:02}"))) for i in range(50)]
        await asyncio.sleep(0.05)
        assert store.writer.commits == 0 and not any(o.done() for o in others)
        gate.set()
        await asyncio.gather(first, *others)
        assert store.writer.commits == 1
        assert store.writer.operations == 51

    with_store(tmp_path, scenario, commit_window_ms=1_000)


def test_a_commit_holds_so_many_operations_and_lasts_so_long(tmp_path: Path) -> None:
    async def many(store: SqliteStore) -> None:
        await asyncio.gather(*(store.write(put(f"n{i}")) for i in range(25)))
        assert store.writer.commits >= 3

    with_store(tmp_path / "a", many, commit_window_ms=1_000, commit_operations_max=10)

    async def slow(store: SqliteStore) -> None:
        gate = threading.Event()
        jobs = [
            asyncio.ensure_future(store.write(lambda tx, i=i: gate.wait() and put(f"n{i}")(tx)))
            for i in range(5)
        ]
        await asyncio.sleep(0.05)
        gate.set()
        await asyncio.gather(*jobs)
        assert store.writer.commits == 5, "the window was over after each of them"

    with_store(tmp_path / "b", slow, commit_window_ms=0)


def test_one_failure_spoils_nothing_of_the_others(tmp_path: Path) -> None:
    def fail(tx: Transaction) -> None:
        put("half-done")(tx)
        raise NotFoundError("on purpose")

    async def scenario(store: SqliteStore) -> None:
        results = await asyncio.gather(
            store.write(put("a")), store.write(fail), store.write(put("b")), return_exceptions=True
        )
        assert isinstance(results[1], NotFoundError)
        assert await store.read(names) == ["a", "b"]

    with_store(tmp_path, scenario)


def test_a_broken_statement_is_the_callers_error(tmp_path: Path) -> None:
    async def scenario(store: SqliteStore) -> None:
        with pytest.raises(sqlite3.OperationalError):
            await store.write(lambda tx: tx.run("NO SUCH STATEMENT"))
        with pytest.raises(sqlite3.IntegrityError):
            await store.write(lambda tx: (put("a")(tx), put("a")(tx)))
        with pytest.raises(sqlite3.OperationalError):
            await store.read(put("not by a reader"))
        assert await store.read(names) == []

    with_store(tmp_path, scenario)


def test_readers_see_one_committed_moment(tmp_path: Path) -> None:
    async def scenario(store: SqliteStore) -> None:
        written, looked = threading.Event(), threading.Event()

        def uncommitted(tx: Transaction) -> None:
            put("a")(tx)
            written.set()
            looked.wait()

        writing = asyncio.ensure_future(store.write(uncommitted))
        await asyncio.to_thread(written.wait)
        assert await store.read(names) == []
        looked.set()
        await writing
        assert await store.read(names) == ["a"]

        began, committed = threading.Event(), threading.Event()

        def twice(tx: Transaction) -> tuple[list[str], list[str]]:
            before = names(tx)
            began.set()
            committed.wait()
            return before, names(tx)

        reading = asyncio.ensure_future(store.read(twice))
        await asyncio.to_thread(began.wait)
        await store.write(put("b"))
        committed.set()
        assert await reading == (["a"], ["a"])

    with_store(tmp_path, scenario)


def test_an_answer_means_durable(tmp_path: Path) -> None:
    async def scenario(store: SqliteStore) -> None:
        await store.write(put("a"))
        other = sqlite3.connect(store.path)
        assert other.execute("SELECT name FROM settings").fetchall() == [("a",)]
        other.close()
        assert store.writer.commits == 1

    with_store(tmp_path, scenario)


def test_a_caller_that_gives_up_does_not_undo(tmp_path: Path) -> None:
    async def scenario(store: SqliteStore) -> None:
        gate = threading.Event()
        job = asyncio.ensure_future(store.write(lambda tx: gate.wait() and put("a")(tx)))
        await asyncio.sleep(0.02)
        job.cancel()
        gate.set()
        await store.write(put("b"))
        assert await store.read(names) == ["a", "b"]

    with_store(tmp_path, scenario)


def test_closing_finishes_what_was_accepted(tmp_path: Path) -> None:
    async def scenario(store: SqliteStore) -> None:
        jobs = [asyncio.ensure_future(store.write(put(f"n{i}"))) for i in range(20)]
        await asyncio.sleep(0)
        await store.close()
        assert await asyncio.gather(*jobs) == [1] * 20
        with pytest.raises(ClosedError):
            await store.write(put("late"))

    with_store(tmp_path, scenario)
    assert not list(tmp_path.glob("*-wal")), "the log is folded into the database"


def test_settings_of_the_database(tmp_path: Path) -> None:
    def setting(name: str) -> Callable[[Transaction], object]:
        return lambda tx: (tx.row(f"PRAGMA {name}") or [None])[0]

    async def scenario(store: SqliteStore) -> None:
        assert await store.write(setting("journal_mode")) == "wal"
        assert await store.write(setting("synchronous")) == 2
        assert await store.write(setting("mmap_size")) == 0
        assert await store.read(setting("query_only")) == 1

    with_store(tmp_path, scenario)


# --- one server, one schema -----------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 15, 16, 17, 255, 300, 600])
def test_rows_are_entered_whole_and_in_order(tmp_path: Path, count: int) -> None:
    connection = open_database(tmp_path / DATABASE_NAME)
    tx = sqlite.SqliteTransaction(connection)
    connection.execute("CREATE TABLE t (k INTEGER PRIMARY KEY AUTOINCREMENT, a, b, c)")
    rows = [(7, b"%d" % i, None if i % 3 else i) for i in range(count)]
    assert tx.insert("t", ("a", "b", "c"), rows) == count
    assert tx.rows("SELECT a, b, c FROM t ORDER BY k") == rows
    same = [(1, 1, 1)] * count
    assert tx.insert("t", ("a", "b", "c"), same) == count
    assert tx.row("SELECT count(*) FROM t WHERE c = 1 AND b = 1") == (count,)
    keyed = [(key, 0) for key in range(3 * count)]  # 1 to twice the count are there
    assert tx.insert("t", ("k", "a"), keyed, conflict="DO NOTHING") == count
    with pytest.raises(sqlite3.IntegrityError):
        tx.insert("t", ("k", "a"), keyed)
    connection.close()


def test_the_second_server_of_a_directory_is_refused(tmp_path: Path) -> None:
    async def scenario(store: SqliteStore) -> None:
        with pytest.raises(LockedError, match="in use by another server") as caught:
            SqliteStore(tmp_path)
        assert caught.value.where["pid"] == str(os.getpid())

    with_store(tmp_path, scenario)
    with_store(tmp_path, scenario)


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    connection = open_database(tmp_path / DATABASE_NAME)
    connection.execute("UPDATE schema_version SET version = ?", (SCHEMA_VERSION + 1,))
    connection.close()
    for _ in range(2):
        with pytest.raises(FormatError, match=f"version {SCHEMA_VERSION + 1}"):
            SqliteStore(tmp_path)


def test_an_older_schema_is_brought_up_to_ours(tmp_path: Path) -> None:
    old = sqlite3.connect(tmp_path / DATABASE_NAME, isolation_level=None)
    for statement in upgrade_statements(SQLITE, 0, 1):
        old.execute(statement)
    old.execute("INSERT INTO counters VALUES ('inode', 2)")
    old.executemany("INSERT INTO dentries VALUES (?, ?, ?, ?)", [(0, b"", 1, 2), (1, b"f", 2, 1)])
    old.execute("INSERT INTO reservations VALUES (1, x'67', 5)")
    old.execute("INSERT INTO nodes VALUES (1, 'h', 7, 8)")
    old.close()
    fresh = open_database(tmp_path / "fresh")
    for _ in range(2):  # the second time there is nothing to do
        upgraded = open_database(tmp_path / DATABASE_NAME)
        assert _schema_of(upgraded) == _schema_of(fresh)
        everything = upgraded.execute("SELECT * FROM dentries").fetchall()
        assert everything == [(0, b"", 1, 2), (1, b"f", 2, 1), (1, b"g", -5, RESERVED)]
        assert upgraded.execute("SELECT * FROM nodes").fetchone()[:4] == (1, "h", 7, 8)
        counters = upgraded.execute("SELECT name FROM counters").fetchall()
        assert counters == [("inode",), ("pin",), ("revocation",)]
        upgraded.close()


def test_an_upgrade_knows_what_stopped_targets_of_old_were(tmp_path: Path) -> None:
    """They were alone in their chains, so that nobody has more than they have."""
    connection = sqlite3.connect(tmp_path / DATABASE_NAME, isolation_level=None)
    for statement in upgrade_statements(SQLITE, 0, 3):
        connection.execute(statement)
    connection.execute("INSERT INTO targets (target, node, state, label) VALUES (1, 1, 5, 'a')")
    connection.execute("INSERT INTO targets (target, node, state, label) VALUES (2, 1, 1, 'b')")
    connection.close()
    upgraded = open_database(tmp_path / DATABASE_NAME)
    found = upgraded.execute("SELECT target, state, stopped, since FROM targets").fetchall()
    assert found == [(1, int(TargetState.LASTSRV), 1, 1), (2, int(TargetState.SERVING), 0, 1)]
    upgraded.close()


def test_an_upgrade_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = sqlite3.connect(tmp_path / DATABASE_NAME, isolation_level=None)
    for statement in upgrade_statements(SQLITE, 0, 1):
        old.execute(statement)
    before = _schema_of(old)
    steps = (*schema._STEPS[:-1], schema._STEPS[-1] + "INSERT INTO nowhere VALUES (1);")
    monkeypatch.setattr(schema, "_STEPS", steps)
    with pytest.raises(ConfigError, match="nowhere"):
        open_database(tmp_path / DATABASE_NAME)
    assert _schema_of(old) == before


def _schema_of(connection: sqlite3.Connection) -> dict[str, list[tuple[object, ...]]]:
    """Columns by table, and indexes."""
    query = "SELECT name FROM sqlite_master WHERE type = 'table'"
    tables = [name for (name,) in connection.execute(query)]
    found = {t: sorted(connection.execute(f"PRAGMA table_info({t})").fetchall()) for t in tables}
    query = "SELECT name, tbl_name, sql FROM sqlite_master WHERE type = 'index' ORDER BY name"
    found["indexes"] = connection.execute(query).fetchall()
    found["version"] = connection.execute("SELECT * FROM schema_version").fetchall()
    return found


def test_files_that_are_no_metadata_database_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / DATABASE_NAME).write_text("not a database at all\n" * 100)
    with pytest.raises(FormatError, match="cannot be used"):
        SqliteStore(tmp_path / "text")
    (tmp_path / "foreign").mkdir()
    other = sqlite3.connect(tmp_path / "foreign" / DATABASE_NAME)
    other.execute("CREATE TABLE recipes (name TEXT)")
    other.close()
    with pytest.raises(FormatError, match="not a metadata schema"):
        SqliteStore(tmp_path / "foreign")


# --- how it fails ---------------------------------------------------------------------------------


def test_a_full_disk_fails_the_mutations_and_nothing_else(tmp_path: Path) -> None:
    async def scenario(store: SqliteStore) -> None:
        await store.write(put("a"))
        pages = await store.write(lambda tx: (tx.row("PRAGMA page_count") or [0])[0])
        await store.write(lambda tx: tx.rows(f"PRAGMA max_page_count={pages + 2}"))
        outcomes = await asyncio.gather(
            *(store.write(put(f"big{i}", b"x" * 100_000)) for i in range(3)),
            return_exceptions=True,
        )
        assert all(isinstance(outcome, NoSpaceError) for outcome in outcomes)
        assert await store.read(names) == ["a"]
        await store.write(lambda tx: tx.rows("PRAGMA max_page_count=1000000"))
        await store.write(put("b", b"x" * 100_000))
        assert await store.read(names) == ["a", "b"]

    with_store(tmp_path, scenario, fatal=pytest.fail)


def test_a_refusal_judged_by_what_a_full_disk_undid_is_no_answer(tmp_path: Path) -> None:
    async def scenario(store: SqliteStore) -> None:
        gate = threading.Event()
        pages = await store.write(lambda tx: (tx.row("PRAGMA page_count") or [0])[0])
        await store.write(lambda tx: tx.rows(f"PRAGMA max_page_count={pages + 2}"))

        def refuse(tx: Transaction) -> None:
            raise NotFoundError("since `a` is there") if "a" in names(tx) else AssertionError

        jobs = [lambda tx: gate.wait() and put("a")(tx), refuse, put("big", b"x" * 100_000)]
        waiting = [asyncio.ensure_future(store.write(job)) for job in jobs]
        gate.set()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert await store.read(names) == []
        assert [type(outcome) for outcome in outcomes] == [NoSpaceError] * 3

    with_store(tmp_path, scenario, fatal=pytest.fail, commit_window_ms=1_000)


def test_readers_that_overlap_do_not_let_the_log_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "LOG_BYTES_MAX", 1 << 20)

    def look(tx: Transaction) -> None:
        names(tx)
        time.sleep(0.02)

    async def scenario(store: SqliteStore) -> None:
        log = store.path.with_name(LOG_FILE_NAME)
        done = asyncio.Event()

        async def keep_looking(delay_s: float) -> None:
            await asyncio.sleep(delay_s)
            while not done.is_set():
                await store.read(look)

        readers = [asyncio.create_task(keep_looking(i / 200)) for i in range(4)]
        for i in range(60):
            await store.write(put(f"n{i}", b"x" * 100_000))
            assert log.stat().st_size < 2 << 20
        done.set()
        await asyncio.gather(*readers)

    with_store(tmp_path, scenario, fatal=pytest.fail)


def test_a_reader_of_another_process_holds_no_mutation_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutations that waited for it would wait for ten minutes here, and the test would fail."""
    monkeypatch.setattr(commit, "LOG_BYTES_MAX", 1 << 20)

    async def scenario(store: SqliteStore) -> None:
        store.writer._connection.execute("PRAGMA busy_timeout=600000")
        await store.write(put("first"))
        outside = sqlite3.connect(store.path, isolation_level=None)
        outside.execute("BEGIN")
        assert outside.execute("SELECT count(*) FROM settings").fetchone() == (1,)
        for i in range(40):
            await store.write(put(f"n{i}", b"x" * 100_000))
        log = store.path.with_name(LOG_FILE_NAME)
        assert log.stat().st_size > 4 << 20
        assert outside.execute("SELECT count(*) FROM settings").fetchone() == (1,)
        outside.close()
        for i in range(40):
            await store.write(put(f"m{i}", b"x" * 100_000))
        assert log.stat().st_size < 2 << 20

    with_store(tmp_path, scenario, fatal=pytest.fail)


def test_a_long_reading_holds_no_mutation_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "LOG_BYTES_MAX", 1 << 20)
    monkeypatch.setattr(readings, "WAIT_S_MAX", 0.01)
    over = threading.Event()

    def look(tx: Transaction) -> list[str]:
        before = names(tx)
        over.wait()
        assert names(tx) == before
        return before

    async def scenario(store: SqliteStore) -> None:
        await store.write(put("first"))
        looking = asyncio.create_task(store.read(look))
        for i in range(40):
            await store.write(put(f"n{i}", b"x" * 100_000))
        over.set()
        assert "first" in await looking
        for i in range(40):
            await store.write(put(f"m{i}", b"x" * 100_000))
        assert store.path.with_name(LOG_FILE_NAME).stat().st_size < 4 << 20

    with_store(tmp_path, scenario, fatal=pytest.fail)


def test_a_full_disk_while_the_log_is_folded_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(commit, "LOG_BYTES_MAX", 0)

    class Full:
        """A connection that cannot fold its log."""

        def __init__(self, real: sqlite3.Connection) -> None:
            self._real = real

        def execute(self, sql: str, *params: Any) -> sqlite3.Cursor:
            if "wal_checkpoint" in sql:
                raise _io_error(sqlite3.SQLITE_FULL, "SQLITE_FULL")
            return self._real.execute(sql, *params)

        def __getattr__(self, name: str) -> object:
            return getattr(self._real, name)

    async def scenario(store: SqliteStore) -> None:
        monkeypatch.setattr(store.writer, "_connection", Full(store.writer._connection))
        await store.write(put("a"))
        await store.write(put("b"))
        assert await store.read(names) == ["a", "b"]

    with caplog.at_level(logging.ERROR, "ffs.meta.store"):
        with_store(tmp_path, scenario, fatal=pytest.fail)
    assert "store_full" in caplog.messages


def test_a_database_that_does_not_open_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / DATABASE_NAME).mkdir(parents=True)
    with pytest.raises(ConfigError, match="cannot be opened: unable to open"):
        SqliteStore(tmp_path / "a")

    def full(path: Path) -> sqlite3.Connection:
        raise _io_error(sqlite3.SQLITE_FULL, "SQLITE_FULL")

    monkeypatch.setattr(sqlite, "connect", full)
    with pytest.raises(NoSpaceError, match="disk is full"):
        SqliteStore(tmp_path / "b")


def _io_error(code: int, name: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode, error.sqlite_errorname = code, name
    return error


def test_an_io_error_is_fatal_in_a_write_and_in_a_read(tmp_path: Path) -> None:
    reasons: list[str] = []

    def fail(tx: Transaction) -> None:
        raise _io_error(sqlite3.SQLITE_IOERR | (4 << 8), "SQLITE_IOERR_FSYNC")

    async def scenario(store: SqliteStore) -> None:
        for call in (store.write, store.read):
            with pytest.raises(sqlite3.OperationalError):
                await call(fail)

    with_store(tmp_path, scenario, fatal=reasons.append)
    assert len(reasons) == 2
    assert all("SQLITE_IOERR_FSYNC" in reason for reason in reasons)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ends_takes_the_process_along(tmp_path: Path) -> None:
    reasons: list[str] = []
    ended = threading.Event()

    def fatal(reason: str) -> None:
        reasons.append(reason)
        ended.set()

    def end(tx: Transaction) -> None:
        raise SystemExit("not an Exception")

    async def scenario() -> None:
        store = SqliteStore(tmp_path, fatal=fatal)
        waiting = asyncio.ensure_future(store.write(end))
        await asyncio.to_thread(ended.wait, 5)
        waiting.cancel()
        store.writer.join()
        store.writer._connection.close()
        await store.close()

    asyncio.run(scenario())
    assert reasons == ["the writing thread ended: SystemExit('not an Exception')"]


def test_what_is_fatal() -> None:
    assert why_fatal(_io_error(sqlite3.SQLITE_CORRUPT, "SQLITE_CORRUPT")) is not None
    assert why_fatal(_io_error(sqlite3.SQLITE_NOTADB, "SQLITE_NOTADB")) is not None
    assert why_fatal(_io_error(sqlite3.SQLITE_CONSTRAINT, "SQLITE_CONSTRAINT")) is None
    assert why_fatal(_io_error(sqlite3.SQLITE_FULL, "SQLITE_FULL")) is None
    assert why_fatal(NotFoundError("x")) is None


def test_a_corrupt_page_ends_the_process_with_a_reason(tmp_path: Path) -> None:
    connection = open_database(tmp_path / DATABASE_NAME)
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT INTO settings VALUES (?, ?)", ((f"n{i}", b"x" * 500) for i in range(500))
    )
    connection.execute("COMMIT")
    connection.close()
    path = tmp_path / DATABASE_NAME
    content = bytearray(path.read_bytes())
    for page in range(len(content) // 8192, len(content) // 4096):
        content[page * 4096 : page * 4096 + 200] = b"\xff" * 200
    path.write_bytes(content)
    script = (
        "import asyncio, logging, pathlib, sys\n"
        "from ffs.server.meta.sqlite import SqliteStore\n"
        "logging.basicConfig(stream=sys.stderr, format='%(message)s %(reason)s')\n"
        "async def run():\n"
        "    store = SqliteStore(pathlib.Path(sys.argv[1]))\n"
        "    await store.read(lambda tx: tx.rows('SELECT count(*), max(value) FROM settings'))\n"
        "asyncio.run(run())\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == EXIT_STORE_FAILED, ended.stderr
    assert "store_failed" in ended.stderr and "SQLITE_CORRUPT" in ended.stderr


def test_exit_says_why(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    monkeypatch.setattr(logging, "shutdown", lambda: None)
    exit_process("commit failed: SQLITE_IOERR")
    assert left == [EXIT_STORE_FAILED]
    assert caplog.records[0].__dict__["reason"] == "commit failed: SQLITE_IOERR"


@pytest.mark.parametrize(
    ("sql", "width"),
    [(directories._DELETE_NAMES, 2), (sessions._DELETE_RESERVED, 3), (close._TAKE_BACK, 4)],
)
def test_names_are_deleted_by_their_whole_key(tmp_path: Path, sql: str, width: int) -> None:
    """Else a directory of a million names is read to take one of them away."""
    connection = open_database(tmp_path / DATABASE_NAME)
    tx = sqlite.SqliteTransaction(connection)
    plan = tx.rows_for(f"EXPLAIN QUERY PLAN {sql}", [(None,) * width] * 2)
    connection.close()
    assert "(parent=? AND name=?)" in plan[0][3]
