"""fsck and backups on a real cluster: damage is found with its path, work gives no false alarm.

Damage to metadata is done by SQL while the server is stopped, to chunks in the target of a stopped
daemon; what belongs to nothing is made by forgetting what a target holds.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ffs import _reader
from ffs._storage import ChunkStore
from ffs.cli.app import main
from ffs.client.filesystem import FFSFileSystem
from ffs.client.fsck import Problem, Progress, Report, fsck
from ffs.server.meta.backup import IDS_SKIPPED, backup, restore
from ffs.server.meta.sqlite import DATABASE_NAME
from ffs.wire.status import STATUS, StatusRequest
from tests.harness import Cluster, stopped_at_exit

CHUNK = 64 << 10
CONFIG: dict[str, object] = {
    "meta.chunk_size_bytes": CHUNK,
    "meta.gc_delay_s": 0,
    "meta.heartbeat_ms": 100,
    "meta.node_lease_ms": 2_000,
}
WAIT_S = 60.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster to damage: one daemon with two targets. Each test leaves it whole."""
    one = Cluster(tmp_path_factory.mktemp("fsck"), 1, CONFIG, targets=2)
    with stopped_at_exit(one):
        until_scanned(one, 0)
        yield one


@pytest.fixture(params=["sqlite", "postgres"])
def either(request: pytest.FixtureRequest, new_cluster: Callable[..., Cluster]) -> Cluster:
    """A new one, with one server of the embedded engine, or two over a shared database."""
    shared = request.param == "postgres"
    return new_cluster(config=CONFIG, targets=2, postgres=shared, metas=1 + shared)


@pytest.fixture
def fs(request: pytest.FixtureRequest) -> Iterator[FFSFileSystem]:
    """Its file system."""
    name = "either" if "either" in request.fixturenames else "cluster"
    cluster: Cluster = request.getfixturevalue(name)
    made = FFSFileSystem(skip_instance_cache=True, **cluster.storage_options)
    yield made
    if name == "cluster":
        made.rm(made.ls("/", detail=False), recursive=True)
        settled(made, 0)
    made.close()


def kinds(report: Report) -> dict[str, Problem]:
    """Problems by kind; the report is what JSON can hold."""
    assert json.loads(json.dumps(report.as_dict()))["clean"] == report.clean
    return {problem.kind: problem for problem in report.problems}


def checked(fs: FFSFileSystem, **options: Any) -> dict[str, Problem]:
    """What fsck finds, by kind."""
    return kinds(fsck(fs, **options))


@contextmanager
def stopped_database(cluster: Cluster) -> Iterator[sqlite3.Connection]:
    """The database of a server that is stopped meanwhile."""
    cluster.process("meta").terminate()
    connection = sqlite3.connect(cluster.meta_dir / DATABASE_NAME)
    yield connection
    connection.commit()
    connection.close()
    cluster.process("meta").start()


@contextmanager
def stopped_store(cluster: Cluster, target: int) -> Iterator[ChunkStore]:
    """The chunk store of a daemon that is stopped meanwhile."""
    cluster.process("storage").terminate()
    path = str(cluster.target_dir(0, target))
    superblock = ChunkStore.read_superblock(path)
    assert superblock is not None
    store = ChunkStore(path, cluster_id=superblock["cluster_id"], target_id=superblock["target_id"])
    yield store
    store.close()
    start_storage(cluster)


def start_storage(cluster: Cluster) -> None:
    """Start the daemon again. What it finds by itself at its start is not left for fsck to find."""
    told = len(storage_log(cluster))
    cluster.process("storage").start()
    until_scanned(cluster, told)


def until_scanned(cluster: Cluster, told: int) -> None:
    """Wait until the daemon says, behind so many bytes of its log, that it looked for leavings."""
    until(lambda: b"scan_ended" in storage_log(cluster)[told:], "it has not looked for leavings")


def storage_log(cluster: Cluster) -> bytes:
    return (cluster.directory / "log" / "storage-0.err").read_bytes()


def until(condition: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up, what
        time.sleep(0.05)


def blob_of(fs: FFSFileSystem, path: str) -> int:
    """The one blob of a file."""
    (segment,) = fs.core.meta.open(path).segments
    return int(segment.blob)


def stored(fs: FFSFileSystem) -> int:
    """How many chunks the targets last said they hold."""
    return sum(r.chunks for r in fs.core.meta.call(STATUS, StatusRequest()).reports)


def settled(fs: FFSFileSystem, chunks: int) -> None:
    """Wait until the targets hold so many chunks."""
    until(lambda: stored(fs) == chunks, f"not {chunks} chunks are stored")


def test_a_healthy_cluster_at_work_gives_no_false_alarm(either: Cluster, fs: FFSFileSystem) -> None:
    cluster = either
    stop, failures = threading.Event(), []

    def work(number: int) -> None:
        mine = FFSFileSystem(skip_instance_cache=True, **cluster.storage_options)
        turn = 0
        try:
            while not stop.is_set():
                turn += 1
                path = f"/work/{number}/{turn % 7}"
                mine.pipe({f"{path}/{i}": bytes(70_000 * i + 1) for i in range(3)})
                mine.mv(f"{path}/0", f"{path}/moved")
                mine.cp_file(f"{path}/1", f"{path}/copy")
                if turn % 3 == 0:
                    mine.rm(path, recursive=True)
        except BaseException as error:  # told by the main thread
            failures.append(error)
            raise
        finally:
            mine.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    steps: list[Progress] = []
    reports = [fsck(fs, on_progress=steps.append, repair=turn == 2) for turn in range(5)]
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert [report.problems for report in reports] == [[]] * 5
    assert all(report.clean and report.targets == 2 for report in reports)
    assert reports[-1].chunks > 0
    assert {step.part for step in steps} == {"metadata", "chunks", "targets"}


def test_damaged_metadata_is_found_and_mended(cluster: Cluster, fs: FFSFileSystem) -> None:
    fs.pipe({"/a/one": b"1" * 100, "/a/b/two": b"2" * 200, "/three": b"3" * 300})
    with stopped_database(cluster) as database:
        for statement in (
            "UPDATE blobs SET refs = 7 WHERE length = 100",
            "UPDATE inodes SET size = 5 WHERE size = 200",
            "DELETE FROM dentries WHERE name = CAST('three' AS BLOB)",
        ):
            assert database.execute(statement).rowcount == 1
    found = checked(fs)
    assert found.keys() == {"blob_references", "file_size", "inode_without_name"}
    assert [place.path for place in found["blob_references"].places] == ["/a/one"]
    assert [place.path for place in found["file_size"].places] == ["/a/b/two"]
    assert all(problem.hint and not problem.repaired for problem in found.values())
    mended = fsck(fs, repair=True)
    assert mended.clean
    assert kinds(mended).keys() == found.keys()
    assert all(problem.action for problem in mended.problems)
    assert fsck(fs).problems == []
    fs.invalidate_cache()
    assert fs.cat_file("/a/b/two") == b"2" * 200
    (name,) = fs.ls("/lost+found", detail=False)
    assert fs.cat_file(name) == b"3" * 300


def test_lost_and_wrong_chunks_name_their_files(cluster: Cluster, fs: FFSFileSystem) -> None:
    fs.pipe({f"/files/{i}": bytes([i]) * (2 * CHUNK + i) for i in range(1, 5)})
    fs.cp_file("/files/1", "/copy")
    lost, long, short = (blob_of(fs, f"/files/{i}") for i in (1, 2, 3))
    with stopped_store(cluster, 0) as store:
        before = {blob: dict(store.chunks(blob)) for blob in (lost, long, short)}
        assert all(before.values())
        store.drop([lost, long, short])
        for blob, change in ((long, 10), (short, -1)):
            for chunk, length in before[blob].items():
                data = b"x" * (length + change if length < CHUNK else length // 2)
                data = data or b"xx"
                assert store.put(blob, chunk, data, _reader.block_crcs(data, blob, chunk)) == 0
    found = checked(fs)
    assert {"chunk_missing", "chunk_misfit"} <= found.keys()
    missing = found["chunk_missing"]
    assert missing.count == len(before[lost])
    assert {place.path for place in missing.places} == {"/files/1", "/copy"}
    assert all(f"blob {lost} " in place.detail for place in missing.places)
    wrong = {place.path for place in found["chunk_misfit"].places}
    assert wrong <= {"/files/2", "/files/3"}
    assert wrong
    mended = fsck(fs, repair=True)
    assert not mended.clean
    assert kinds(mended)["chunk_missing"].repaired == 0
    assert fs.cat_file("/files/4") == b"\x04" * (2 * CHUNK + 4)
    fs.rm(["/files/1", "/files/2", "/files/3", "/copy"])
    settled(fs, 3)
    assert fsck(fs).problems == []


def test_what_belongs_to_nothing_is_dropped_when_told(cluster: Cluster, fs: FFSFileSystem) -> None:
    fs.pipe({f"/{name}": b"x" * (CHUNK + 9) for name in ("kept", "forgotten")})
    forgotten = blob_of(fs, "/forgotten")
    with stopped_database(cluster) as database:
        for table in ("segments", "blobs"):
            database.execute(f"DELETE FROM {table} WHERE blob = ?", (forgotten,))
        database.execute("DELETE FROM dentries WHERE name = CAST('forgotten' AS BLOB)")
        database.execute(
            "DELETE FROM inodes WHERE type = 1 AND inode NOT IN (SELECT inode FROM dentries)"
        )
    settled(fs, 4)
    found = checked(fs)
    assert found.keys() == {"orphan"}
    assert str(forgotten) in found["orphan"].places[0].detail
    settled(fs, 4)
    mended = fsck(fs, repair=True)
    assert mended.clean
    assert kinds(mended)["orphan"].repaired == found["orphan"].count
    settled(fs, 2)
    assert fsck(fs).problems == []


def test_a_daemon_that_does_not_answer_is_told(cluster: Cluster, fs: FFSFileSystem) -> None:
    fs.pipe_file("/file", b"x" * CHUNK)
    cluster.kill("storage")
    fs.core.reader._deadline_ms = 500
    report = fsck(fs)
    assert not report.clean
    found = kinds(report)
    assert found.keys() == {"target_unreachable", "target_not_scanned"}
    assert found["target_unreachable"].places[0].path == "/file"
    assert found["target_not_scanned"].count == 2
    start_storage(cluster)


def lose_and_restore(cluster: Cluster, copy: Path) -> None:
    """Destroy the database while its servers are dead, restore a copy of it, start them again."""
    metas = [process for (role, _), process in cluster.processes.items() if role == "meta"]
    for process in metas:
        process.kill()
    if cluster.postgres is None:
        shutil.rmtree(cluster.meta_dir)
        restore(copy, str(cluster.meta_dir))
    else:
        lost, found = cluster.postgres.url(), cluster.postgres.create_database("restored")
        restore(copy, found)
        for process in metas:
            process.argv = [found if word == lost else word for word in process.argv]
    for process in metas:
        process.start()


def test_a_lost_database_is_restored(either: Cluster, fs: FFSFileSystem) -> None:
    """Old files come back; what was written after the backup is kept until it is given up."""
    cluster = either
    content = {f"/before/{i}": bytes([i]) * (CHUNK + i) for i in range(1, 7)}
    fs.pipe(content)
    copy = cluster.directory / "copy.ffsbackup"
    backup(cluster.postgres.url() if cluster.postgres else str(cluster.meta_dir), copy)
    fs.pipe({f"/after/{i}": b"a" * (CHUNK + i) for i in range(1, 4)})
    fs.rm("/before/6")
    settled(fs, 2 * 5 + 2 * 3)
    lose_and_restore(cluster, copy)
    fs.invalidate_cache()
    assert set(fs.find("/")) == set(content)
    cluster.kill("storage")
    start_storage(cluster)  # it scans, and keeps what it cannot judge
    for path in list(content)[:5]:
        assert fs.cat_file(path) == content[path]
    fs.pipe_file("/new", b"n" * CHUNK)
    assert blob_of(fs, "/new") > IDS_SKIPPED
    assert fs.cat_file("/new") == b"n" * CHUNK
    found = checked(fs)
    assert found.keys() == {"lost_blob", "chunk_missing"}
    assert {place.path for place in found["chunk_missing"].places} == {"/before/6"}
    assert checked(fs, repair=True).keys() == found.keys()
    settled(fs, 2 * 5 + 2 * 3 + 1)
    fs.rm("/before/6")
    mended = fsck(fs, repair=True, give_up_lost=True)
    assert mended.clean
    assert kinds(mended).keys() == {"orphan"}
    settled(fs, 2 * 5 + 1)
    assert fsck(fs).problems == []


def test_the_server_makes_copies_by_itself(new_cluster: Callable[..., Cluster]) -> None:
    cluster = new_cluster(config={"meta.backup_interval_s": 1, "meta.backup_keep": 2})
    fs = FFSFileSystem(skip_instance_cache=True, **cluster.storage_options)
    fs.pipe_file("/file", b"content")
    directory = cluster.meta_dir / "backups"
    seen: set[str] = set()

    def three_seen() -> bool:
        seen.update(path.name for path in directory.glob("*.ffsbackup"))
        return len(seen) >= 3

    until(three_seen, "no three copies were made")
    status = fs.core.meta.call(STATUS, StatusRequest())
    assert status.backup_ns > 0
    assert status.backup_error == ""
    assert len(list(directory.glob("*.ffsbackup"))) <= 3
    cluster.pause("meta")  # it may be making one
    shutil.rmtree(directory)
    directory.write_text("a file in the way")
    cluster.resume("meta")
    until(lambda: "cannot be written" in status_text(cluster), "nothing is said of the failure")
    assert "backup failed" in status_text(cluster)
    assert fs.cat_file("/file") == b"content"
    fs.close()


def status_text(cluster: Cluster) -> str:
    """What `ffs status` prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["status", cluster.url, "--key-file", str(cluster.key_file)]) == 0
    return out.getvalue()
