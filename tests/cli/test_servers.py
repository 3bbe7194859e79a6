"""`ffs meta` and `ffs storage` as processes, and backups of what they know."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ffs.key import ClusterKey
from tests.cli.support import Cli, one_line
from tests.harness import Cluster, Process

REPORT = {"file", "size_bytes", "cluster", "schema_version", "made", "inodes", "blobs"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start `ffs WORDS...` as a server and wait until it is ready."""
    made: list[Process] = []
    (tmp_path / "log").mkdir()

    def start(*words: str) -> Process:
        argv = [sys.executable, "-m", "ffs.cli", *words, "--exit-with-parent", "--port", "0"]
        made.append(Process(words[0], argv, tmp_path / "log"))
        made[-1].start()
        return made[-1]

    yield start
    for one in made:
        one.kill()


def test_a_cluster_of_single_servers(
    bare: Cli, server: Callable[..., Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = str(tmp_path / "cluster.key")
    ClusterKey.create(Path(key))
    meta = server("meta", "--data", str(tmp_path / "meta"), "--key-file", key)
    address = meta.ready
    storage = server(
        "storage", "--meta", address, "--key-file", key, "--target", str(tmp_path / "target")
    )
    monkeypatch.setenv("FFS_URL", f"ffs://{address}")
    monkeypatch.setenv("FFS_KEY_FILE", key)
    bare("cp", "-", "ffs:///file", stdin=b"stored")
    assert bare("cat", "/file").raw == b"stored"
    assert storage.terminate() == 0 and meta.terminate() == 0

    # Its names move to a new directory, and the same daemon serves them there.
    report = bare("meta", "backup", "--json", "meta", "names.ffsbackup").json()
    assert set(report) == REPORT and (report["inodes"], report["blobs"]) == (2, 1)
    assert bare("meta", "inspect", "--json", "names.ffsbackup").json() == report
    assert bare("meta", "restore", "--json", "names.ffsbackup", "new").json() == report
    again = server("meta", "--data", str(tmp_path / "new"), "--key-file", key)
    monkeypatch.setenv("FFS_URL", f"ffs://{again.ready}")
    assert bare("ls", "/").out == "file\n"


def test_backup_beside_a_running_server(bare: Cli, cluster: Cluster) -> None:
    text = bare("meta", "backup", str(cluster.meta_dir), "names.ffsbackup").out
    assert text.startswith("file            names.ffsbackup\nsize            ")
    assert bare("meta", "inspect", "names.ffsbackup").out == text


def test_backups_that_cannot_be_are_one_line(bare: Cli, cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "no").write_bytes(b"no backup")
    for code, argv in (
        (2, ("backup", "missing", "x")),
        (1, ("inspect", "missing")),
        (1, ("inspect", "no")),
        (1, ("restore", "no", "new")),
    ):
        assert argv[1] in one_line(bare("meta", *argv, check=False), f"meta {argv[0]}", code), argv
    assert {path.name for path in tmp_path.iterdir()} == {"no"}
    bare("meta", "backup", str(cluster.meta_dir), "names.ffsbackup")
    taken = bare("meta", "restore", "names.ffsbackup", str(cluster.meta_dir), check=False)
    one_line(taken, "meta restore", 1)


def test_servers_that_cannot_serve_are_one_line(bare: Cli, tmp_path: Path) -> None:
    ClusterKey.create(tmp_path / "key")
    key = ("--key-file", "key")
    one_line(bare("meta", *key, check=False), "meta", 2)
    one_line(bare("meta", "--data", "meta", "--key-file", "none", check=False), "meta", 2)
    one_line(bare("storage", *key, "--meta", "127.0.0.1:1", check=False), "storage", 2)
    one_line(bare("storage", *key, "--meta", "no", "--target", "t", check=False), "storage", 2)
    one_line(bare("up", "--data", "d", "--set", "meta.nothing=1", check=False), "up", 2)
    assert not (tmp_path / "d").exists()
