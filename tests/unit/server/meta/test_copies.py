"""The server's own backups: one server makes each, old ones go, failures are kept and told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ffs.config import MetaConfig
from ffs.seams import SystemClock
from ffs.server.meta import copies
from ffs.server.meta.backup import inspect
from ffs.server.meta.copies import CopyState, copies_of, load_state
from ffs.server.meta.ops import status
from ffs.server.meta.sqlite import SqliteStore
from ffs.server.meta.store import Transaction
from tests.namespace import CLUSTER_ID, SECOND_NS, Namespace

HOUR_NS = 3_600 * SECOND_NS


def take(ns: Namespace, now_ns: int) -> bool:
    """What a server does when it looks whether a copy is due."""
    next_ns = now_ns + HOUR_NS

    def look(tx: Transaction) -> bool:
        return copies._is_due(tx, now_ns, next_ns) and copies._take(tx, now_ns, next_ns)

    return ns.transact(look)


def test_one_server_takes_what_is_due(ns: Namespace) -> None:
    start = ns.now_ns
    assert not take(ns, start), "the first look only begins an interval"
    assert not take(ns, start + HOUR_NS - 1)
    assert take(ns, start + HOUR_NS)
    assert not take(ns, start + HOUR_NS)
    assert not take(ns, start + 2 * HOUR_NS - 1)
    assert take(ns, start + 5 * HOUR_NS)


def test_a_clock_that_was_set_back_does_not_end_the_copies(ns: Namespace) -> None:
    take(ns, ns.now_ns + 1_000 * HOUR_NS)
    assert take(ns, ns.now_ns)
    assert not take(ns, ns.now_ns + 1)


@pytest.mark.parametrize(
    ("wanted", "data", "database", "place", "source"),
    [
        ("backups", "/data", "", "/data/backups", "/data"),
        ("/disk", "/data", "", "/disk", "/data"),
        ("/disk", "", "postgres://h/d", "/disk", "postgres://h/d"),
        ("", "/data", "", None, ""),
        ("backups", "", "postgres://h/d", None, ""),
    ],
)
def test_where_copies_go(
    ns: Namespace, wanted: str, data: str, database: str, place: str | None, source: str
) -> None:
    config = MetaConfig(backup_dir=wanted, data_dir=data, database=database)
    store: SqliteStore = None  # type: ignore[assignment]  # not used before `run`
    made = copies_of(store, SystemClock(), config)
    assert (made is None) == (place is None)
    if made is not None:
        assert (str(made._directory), made._source) == (place, source)


def test_copies_are_made_kept_and_told(tmp_path: Path) -> None:
    config = MetaConfig(data_dir=str(tmp_path), backup_interval_s=1, backup_keep=2)
    directory = tmp_path / "backups"

    async def scenario() -> None:
        store = SqliteStore(tmp_path)
        await store.write(lambda tx: status.initialise(tx, CLUSTER_ID, 1))
        made = copies_of(store, SystemClock(), config)
        assert made is not None
        assert await store.read(load_state) == CopyState()
        directory.write_text("a file where the directory should be")
        await made._copy()
        failed = await store.read(load_state)
        assert failed.made_ns == 0
        assert "cannot be written" in failed.error
        directory.unlink()
        directory.mkdir()
        for name in ("meta-20200101T000000Z.ffsbackup", "meta-20210101T000000Z.ffsbackup"):
            (directory / name).write_bytes(b"old")
        (directory / "meta-20220101T000000Z.ffsbackup.partial").write_bytes(b"unfinished")
        (directory / "mine.txt").write_bytes(b"not ours")
        await made._copy()
        whole = await store.read(load_state)
        assert whole.made_ns > 0
        assert whole.error == ""
        await store.close()

    asyncio.run(scenario())
    names = sorted(path.name for path in directory.iterdir() if path.suffix != ".partial")
    assert "mine.txt" in names
    found = [name for name in names if name != "mine.txt"]
    assert len(found) == 2
    assert found[0] >= "meta-20210101T000000Z.ffsbackup"
    assert not (directory / "meta-20220101T000000Z.ffsbackup.partial").exists()
    assert inspect(directory / found[-1]).heading.cluster_id == CLUSTER_ID
