"""Backup and restore: every row comes back, damage is refused, and an end at any moment is safe."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ffs.errors import (
    ConfigError,
    ExistsError,
    FFSError,
    FormatError,
    LockedError,
    NoSpaceError,
    UnavailableError,
)
from ffs.server.meta.backup import IDS_SKIPPED, SMALL_IDS_SKIPPED, TABLES, backup, inspect, restore
from ffs.server.meta.backup_file import FORMAT, MAGIC, BackupReader, BackupWriter, Heading
from ffs.server.meta.schema import SCHEMA_VERSION, SQLITE, upgrade_statements
from ffs.server.meta.sqlite import DATABASE_NAME, DirectoryLock
from ffs.wire.messages import CreateMode
from tests.databases import PostgresDatabase, server
from tests.namespace import CLUSTER_ID, SECOND_NS, Namespace

WIDE = ("inode", "blob", "session", "pin", "routing", "revocation")
FLIP_STRIDE = int(os.environ.get("FFS_FLIP_STRIDE", "7"))


@pytest.fixture
def ns(tmp_path: Path) -> Iterator[Namespace]:
    """A namespace of the embedded engine: its database is a file beside which others may be."""
    namespace = Namespace(tmp_path)
    yield namespace
    namespace.check()
    namespace.close()


@pytest.fixture
def filled(ns: Namespace, tmp_path: Path) -> Namespace:
    """A namespace with something in most tables."""
    ns.mkdir(b"/a")
    ns.mkdir(b"/a/b")
    for number in range(50):
        ns.write(b"/a/b/file-%d" % number, 100 + number)
    ns.copy(b"/a/b/file-1", b"/copy")
    ns.remove(b"/a/b/file-2", b"/a/b/file-3")
    ns.open_session(b"/held", create_mode=CreateMode.EXCLUSIVE)
    ns.write(b"/\xff\xfe name that is no text", 1)
    return ns


@pytest.fixture
def file(filled: Namespace, tmp_path: Path) -> Path:
    """A backup of it."""
    path = tmp_path / "copies" / "one.ffsbackup"
    backup(str(tmp_path), path)
    return path


def rows_of(database: Path) -> dict[str, list[Any]]:
    """Every row of every table."""
    connection = sqlite3.connect(database)
    try:
        return {
            table: sorted(
                connection.execute(f"SELECT {', '.join(columns.names)} FROM {table}"), key=repr
            )
            for table, columns in TABLES.items()
        }
    finally:
        connection.close()


def test_tables_are_those_of_the_schema(ns: Namespace) -> None:
    names = {name for (name,) in ns.tx.rows(SQLITE.tables)}
    assert names == TABLES.keys() | {"schema_version"}
    for table, columns in TABLES.items():
        found = {row[1] for row in ns.tx.rows(f"PRAGMA table_info({table})")}
        assert found == set(columns.names), table


def later(chains: list[Any], versions: int) -> list[Any]:
    """Rows of chains that so many versions have gone by for."""
    return [(chain, version + versions, *rest) for chain, version, *rest in chains]


def test_every_row_comes_back(filled: Namespace, file: Path, tmp_path: Path) -> None:
    restored = tmp_path / "restored"
    info = restore(file, str(restored))
    assert info.heading.cluster_id == CLUSTER_ID
    assert info.size_bytes == file.stat().st_size
    before, after = rows_of(tmp_path / DATABASE_NAME), rows_of(restored / DATABASE_NAME)
    counters, passed = dict(before.pop("counters")), dict(after.pop("counters"))
    gaps = after.pop("blob_gaps")
    assert before.pop("blob_gaps") == []
    assert after == before | {"chains": later(before["chains"], SMALL_IDS_SKIPPED)}
    assert before["chains"]
    assert info.rows == {table: len(rows) for table, rows in before.items()} | {
        "counters": len(counters),
        "blob_gaps": 0,
    }
    assert gaps == [(counters["blob"] + 1, counters["blob"] + IDS_SKIPPED)]
    assert all(passed[name] > counters[name] + 60_000 for name in counters)
    assert not list(restored.glob("*.restoring"))


def test_a_restored_namespace_goes_on(filled: Namespace, file: Path, tmp_path: Path) -> None:
    restore(file, str(tmp_path / "restored"))
    ns = Namespace(tmp_path / "restored", targets=0)
    ns.now_ns = filled.now_ns
    try:
        assert ns.stat(b"/a/b/file-7") == filled.stat(b"/a/b/file-7")
        blob = ns.open_session(b"/new").blob
        assert blob > IDS_SKIPPED
        ns.write(b"/more", 5)
        ns.check()
    finally:
        ns.close()


def test_unfolded_changes_of_directories_are_folded(filled: Namespace, tmp_path: Path) -> None:
    rows = [(1, 5 + i, 1, i % 2) for i in range(40)] + [(2, 7, 1, 0)]
    columns = TABLES["directory_changes"].names
    filled.transact(lambda tx: tx.insert("directory_changes", columns, rows))
    backup(str(tmp_path), tmp_path / "b")
    restore(tmp_path / "b", str(tmp_path / "restored"))
    found = rows_of(tmp_path / "restored" / DATABASE_NAME)["directory_changes"]
    assert found == [(1, 44, 40, 20), (2, 7, 1, 0)]
    filled.transact(lambda tx: tx.run("DELETE FROM directory_changes"))


def old_backup(directory: Path) -> Path:
    """A backup as a program of schema version 1 might have written it."""
    path = directory / "old.ffsbackup"
    tables: dict[str, tuple[tuple[str, ...], list[tuple[Any, ...]]]] = {
        "settings": (("name", "value"), [("cluster_id", CLUSTER_ID)]),
        "counters": (("name", "value"), [("inode", 9), ("blob", 4), ("session", 3)]),
        "dentries": (("parent", "name", "inode", "type"), [(0, b"", 1, 2)]),
        "reservations": (("parent", "name", "session"), [(1, b"held", 3)]),
    }
    with BackupWriter(path, Heading(1, CLUSTER_ID, 1)) as writer:
        for name, (columns, rows) in tables.items():
            writer.table(name, columns)
            writer.add(rows)
        writer.finish()
    return path


def test_an_older_schema_is_upgraded(tmp_path: Path) -> None:
    restore(old_backup(tmp_path), str(tmp_path / "new"))
    found = rows_of(tmp_path / "new" / DATABASE_NAME)
    assert found["dentries"] == [(0, b"", 1, 2), (1, b"held", -3, 0)]
    assert dict(found["counters"])["blob"] == 4 + IDS_SKIPPED
    assert "pin" in dict(found["counters"])
    with sqlite3.connect(tmp_path / "new" / DATABASE_NAME) as connection:
        assert connection.execute("SELECT version FROM schema_version").fetchall() == [
            (SCHEMA_VERSION,)
        ]


def test_a_database_of_an_older_schema_is_not_backed_up(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / DATABASE_NAME)
    for statement in upgrade_statements(SQLITE, 0, 1):
        connection.execute(statement)
    connection.commit()
    connection.close()
    with pytest.raises(FormatError, match="schema has version 1"):
        backup(str(tmp_path), tmp_path / "b")
    assert not (tmp_path / "b").exists()


# --- between engines ------------------------------------------------------------------------------


def test_a_backup_goes_into_the_other_engine_and_back(file: Path, tmp_path: Path) -> None:
    url = server().create_database("restored")
    info = restore(file, url)
    assert info.rows["dentries"] > 40
    backup(url, tmp_path / "again")
    restore(tmp_path / "again", str(tmp_path / "back"))
    before, after = rows_of(tmp_path / DATABASE_NAME), rows_of(tmp_path / "back" / DATABASE_NAME)
    counters = dict(before.pop("counters"))
    assert dict(after.pop("counters")) == {
        name: value + 2 * (IDS_SKIPPED if name in WIDE else SMALL_IDS_SKIPPED)
        for name, value in counters.items()
    }
    first = counters["blob"] + 1
    assert sorted(after.pop("blob_gaps")) == [
        (first, first + IDS_SKIPPED - 1),
        (first + IDS_SKIPPED, first + 2 * IDS_SKIPPED - 1),
    ]
    del before["blob_gaps"]
    assert after == before | {"chains": later(before["chains"], 2 * SMALL_IDS_SKIPPED)}
    database = PostgresDatabase(url)
    ns = Namespace(database, targets=0)
    assert ns.write(b"/new").inode > IDS_SKIPPED
    ns.check()
    with pytest.raises(ExistsError, match="holds a cluster already"):
        restore(file, url)
    ns.check()
    database.disconnect()


def test_an_older_backup_goes_into_the_shared_engine(tmp_path: Path) -> None:
    url = server().create_database("upgraded")
    restore(old_backup(tmp_path), url)
    database = PostgresDatabase(url)
    assert database.tx.rows("SELECT parent, inode, type FROM dentries ORDER BY parent") == [
        (0, 1, 2),
        (1, -3, 0),
    ]
    database.disconnect()


def test_a_restore_that_fails_leaves_the_shared_engine_empty(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "odd.ffsbackup"
    with BackupWriter(path, Heading(SCHEMA_VERSION, CLUSTER_ID, 1)) as writer:
        writer.table("settings", ("name", "value"))
        writer.add([("cluster_id", CLUSTER_ID)])
        writer.finish()
    url = server().create_database("halfway")
    with pytest.raises(FormatError, match="no counters"):
        restore(path, url)
    with pytest.raises(FormatError, match="holds no cluster"):
        backup(url, tmp_path / "of-nothing")
    restore(file, url)


def test_addresses_that_lead_nowhere_are_told(file: Path, tmp_path: Path) -> None:
    absent = server().url("absent")
    for address, error in (
        (absent, ConfigError),
        ("postgres://127.0.0.1:1/none", UnavailableError),
        ("postgres:///", ConfigError),
    ):
        with pytest.raises(error):
            restore(file, address)
        with pytest.raises(error):
            backup(address, tmp_path / "b")
    empty = server().create_database("empty")
    with pytest.raises(FormatError, match="does not hold metadata"):
        backup(empty, tmp_path / "b")
    assert not list(tmp_path.glob("b*"))


# --- what is refused ------------------------------------------------------------------------------


def test_every_flipped_byte_is_noticed(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    damaged = tmp_path / "damaged"
    for place in range(0, len(whole), FLIP_STRIDE):
        octets = bytearray(whole)
        octets[place] ^= 0xFF
        damaged.write_bytes(octets)
        with pytest.raises(FormatError) as caught:
            restore(damaged, str(tmp_path / "restored"))
        assert 0 <= caught.value.where["offset"] <= place
        assert caught.value.where["path"] == str(damaged)
        assert caught.value.hint
    assert not (tmp_path / "restored").exists()


def test_every_truncation_is_noticed(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    short = tmp_path / "short"
    for length in [*range(0, len(whole), 11), len(whole) - 1]:
        short.write_bytes(whole[:length])
        with pytest.raises(FormatError, match="offset"):
            inspect(short)
    short.write_bytes(whole + b"x")
    with pytest.raises(FormatError, match="goes on behind its end"):
        inspect(short)


def test_foreign_and_newer_files_are_told_apart(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"SQLite format 3\0" * 8)
    with pytest.raises(FormatError, match="is no backup"):
        inspect(other)
    other.write_bytes(MAGIC + (FORMAT + 1).to_bytes(4, "little") + file.read_bytes()[12:])
    with pytest.raises(FormatError, match=r"format 2.*newer one"):
        inspect(other)
    other.unlink()
    with BackupWriter(other, Heading(SCHEMA_VERSION + 1, CLUSTER_ID, 1)) as writer:
        writer.finish()
    with pytest.raises(FormatError, match=rf"schema version {SCHEMA_VERSION + 1}.*newer one"):
        restore(other, str(tmp_path / "restored"))
    with pytest.raises(FormatError, match="cannot be read"):
        inspect(tmp_path / "absent")


@pytest.mark.parametrize("rows", [[(1, 2, 3)], [(1,)], [("no", "numbers")]])
def test_rows_that_do_not_fit_leave_nothing(tmp_path: Path, rows: list[tuple[Any, ...]]) -> None:
    path = tmp_path / "odd.ffsbackup"
    with BackupWriter(path, Heading(SCHEMA_VERSION, CLUSTER_ID, 1)) as writer:
        writer.table("inodes", ("inode", "type"))
        writer.add(rows)
        writer.finish()
    with pytest.raises(FormatError):
        restore(path, str(tmp_path / "restored"))
    assert [name for name in os.listdir(tmp_path / "restored") if name != "meta.lock"] == []


def test_only_an_empty_directory_is_restored_into(file: Path, tmp_path: Path) -> None:
    before = rows_of(tmp_path / DATABASE_NAME)
    with pytest.raises(ExistsError, match="holds a database already"):
        restore(file, str(tmp_path))
    assert rows_of(tmp_path / DATABASE_NAME) == before
    busy = tmp_path / "busy"
    busy.mkdir()
    lock = DirectoryLock(busy)
    with pytest.raises(LockedError):
        restore(file, str(busy))
    lock.release()
    (busy / f"{DATABASE_NAME}-wal").write_bytes(b"left over")
    with pytest.raises(ExistsError):
        restore(file, str(busy))


def test_a_full_disk_leaves_nothing(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine's own bound on a file's pages fails as a full disk does."""
    real = sqlite3.connect

    def small(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = real(*args, **kwargs)
        connection.execute("PRAGMA max_page_count=20")
        return connection

    monkeypatch.setattr(sqlite3, "connect", small)
    with pytest.raises(NoSpaceError, match="no room"):
        restore(file, str(tmp_path / "restored"))
    assert os.listdir(tmp_path / "restored") == ["meta.lock"]


def test_a_source_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no metadata database"):
        backup(str(tmp_path), tmp_path / "b")
    (tmp_path / DATABASE_NAME).write_bytes(b"something else entirely")
    with pytest.raises(FormatError):
        backup(str(tmp_path), tmp_path / "b")
    assert not list(tmp_path.glob("b*"))


def test_a_destination_that_cannot_be_written_is_told(filled: Namespace, tmp_path: Path) -> None:
    with pytest.raises(FFSError, match="backup cannot be written"):
        backup(str(tmp_path), tmp_path / DATABASE_NAME / "below-a-file")


def test_a_backup_replaces_nothing(filled: Namespace, file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    (tmp_path / "link").symlink_to("nowhere")
    for taken in (file, tmp_path / DATABASE_NAME, tmp_path, tmp_path / "link"):
        with pytest.raises(ExistsError, match="replaces nothing"):
            backup(str(tmp_path), taken)
    assert file.read_bytes() == whole
    assert filled.stat(b"/a/b/file-7").size == 107
    assert not list(tmp_path.rglob("*.partial"))


def test_two_backups_do_not_write_one_file(file: Path, tmp_path: Path) -> None:
    heading, path = Heading(SCHEMA_VERSION, CLUSTER_ID, 1), tmp_path / "copies" / "two"
    with BackupWriter(path, heading) as writer:
        with pytest.raises(LockedError, match="another backup"):
            BackupWriter(path, heading)
        writer.finish()
    assert inspect(path).heading == heading


def test_a_full_disk_is_told_and_left_clean(file: Path) -> None:
    with BackupWriter(file.with_name("full"), Heading(SCHEMA_VERSION, CLUSTER_ID, 1)) as writer:
        with open("/dev/full", "wb") as full:
            os.dup2(full.fileno(), writer._file.fileno())
        with pytest.raises(NoSpaceError, match="no room for the backup"):
            writer.finish()
    assert os.listdir(file.parent) == [file.name]


# --- an end at any moment -------------------------------------------------------------------------

_KILLED = """
import os, signal, sys
from pathlib import Path
from ffs.server.meta import backup, sqlite

calls, limit = 0, int(sys.argv[3])

def counting(event, arguments):
    global calls
    if event in ("open", "os.rename", "os.remove", "sqlite3.connect") or event == "statement":
        calls += 1
        if calls == limit:
            os.kill(os.getpid(), signal.SIGKILL)

class Counted(sqlite.SqliteTransaction):
    __slots__ = ()

    def insert(self, *arguments, **named):
        counting("statement", ())
        return super().insert(*arguments, **named)

    def row(self, *arguments):
        counting("statement", ())
        return super().row(*arguments)

backup.SqliteTransaction = Counted
sys.addaudithook(counting)
backup.restore(Path(sys.argv[1]), sys.argv[2])
"""


def test_a_restore_killed_at_any_moment_leaves_all_or_nothing(file: Path, tmp_path: Path) -> None:
    """Moments: each file opened, removed or renamed, each statement that enters rows or counts."""
    whole = rows_of(tmp_path / DATABASE_NAME)["dentries"]
    target = tmp_path / "restored"
    outcomes: set[str] = set()
    moments = iter(range(1, 10_000, 5))
    while "survived" not in outcomes:
        command = [sys.executable, "-c", _KILLED, str(file), str(target), str(next(moments))]
        status = subprocess.run(command, check=False, timeout=60).returncode
        assert status in (0, -signal.SIGKILL)
        database = target / DATABASE_NAME
        if database.exists():
            assert rows_of(database)["dentries"] == whole
            database.unlink()
            outcomes.add("whole")
        else:
            assert status != 0
            outcomes.add("nothing")
        if status == 0:
            outcomes.add("survived")
    assert "nothing" in outcomes
    restore(file, str(target))
    check_restored(target)


def check_restored(directory: Path) -> int:
    """Hold a restored database against every invariant; return how many files it has."""
    restored = Namespace(directory, targets=0)
    try:
        restored.check()
        (found,) = restored.tx.rows("SELECT count(*) FROM segments")
        return int(found[0])
    finally:
        restored.close()


# --- beside a writer ------------------------------------------------------------------------------


@pytest.fixture
def writing(ns: Namespace, tmp_path: Path) -> Iterator[list[int]]:
    """A thread that makes files all the time; the list is how many there are."""
    made: list[int] = [0]
    stop = threading.Event()

    def write() -> None:
        other = Namespace(tmp_path, targets=0)
        other.now_ns = ns.now_ns + SECOND_NS
        while not stop.is_set():
            other.write(b"/file-%d" % made[0], 10)
            made[0] += 1
        other.close()

    thread = threading.Thread(target=write)
    thread.start()
    while made[0] < 20:
        stop.wait(0.001)
    yield made
    stop.set()
    thread.join()


def test_a_backup_beside_a_writer_is_of_one_moment(writing: list[int], tmp_path: Path) -> None:
    for number in range(5):
        before = writing[0]
        backup(str(tmp_path), tmp_path / f"b-{number}")
        after = writing[0]
        restored = tmp_path / f"restored-{number}"
        restore(tmp_path / f"b-{number}", str(restored))
        assert before <= check_restored(restored) <= after + 1


def test_memory_does_not_grow_with_the_database(ns: Namespace, tmp_path: Path) -> None:
    """The longest frame is one row longer than its bound, whatever the table has."""
    columns = TABLES["mutations"].names
    rows = [(b"me", b"%d" % i, b"hash", 1, bytes(100_000)) for i in range(60)]
    ns.transact(lambda tx: tx.insert("mutations", columns, rows))
    backup(str(tmp_path), tmp_path / "b")
    with BackupReader(tmp_path / "b") as reader:
        lists = [item for item in reader.items() if isinstance(item, list)]
    assert (
        max(
            sum(len(row[-1] or b"") for row in item if row[-1:] and type(row[-1]) is bytes)
            for item in lists
        )
        <= (1 << 20) + 100_100
    )
    assert len(lists) > 5
