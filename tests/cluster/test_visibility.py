"""Two clients, each a process: what the second one sees once the first one's call has returned.

The rules: a path shows the old content or the new, whole; the new one at once to who remembers
nothing of it, and to the others after attr_ttl_ms at most. A file that is open keeps its content,
until that is dropped: then it is stale, and never anything else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ffs.client.filesystem import FFSFileSystem
from tests.harness import Cluster

NewCluster = Callable[..., Cluster]
WAIT_S = 60.0
OLD, NEW = b"old" * 50_000, b"the new one" * 60_000


class Viewer:
    """The second client (tests/cluster/viewer.py)."""

    def __init__(self, cluster: Cluster, attr_ttl_ms: int) -> None:
        self.at_once = attr_ttl_ms == 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.viewer", str(attr_ttl_ms)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **cluster.environment},
            text=True,
        )

    def ask(self, *command: Any) -> Any:
        """Have something done; return its value, bytes as bytes, or the name of its error."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps(command) + "\n")
        stdin.flush()
        how, value = json.loads(stdout.readline())
        return value.encode("latin-1") if how == "ok" and isinstance(value, str) else value

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@pytest.fixture(scope="module", params=[0, 1_000], ids=["ttl-0", "ttl-default"])
def viewer(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Viewer]:
    made = Viewer(cluster, request.param)
    yield made
    made.close()


def comes_to_see(viewer: Viewer, old: Any, new: Any, *command: Any) -> None:
    """The command gives `new`: at once where nothing is remembered, else `old` for a while."""
    give_up = time.monotonic() + WAIT_S
    while (seen := viewer.ask(*command)) != new:
        assert not viewer.at_once and seen == old, (command, seen)
        assert time.monotonic() < give_up, f"{command} never changed"
        time.sleep(0.05)


def known(viewer: Viewer, fs: Any, path: str) -> None:
    """Make a file that the viewer has read, remembers, and has open."""
    if not fs.exists(path):
        fs.pipe_file(path, OLD)
    assert viewer.ask("cat_file", path) == OLD
    viewer.ask("open", path)


def test_replace(viewer: Viewer, fs: Any, fs_dir: str) -> None:
    path = f"{fs_dir}/x"
    known(viewer, fs, path)
    file = fs.open(path, "wb")
    file.write(NEW)
    file.flush()
    assert viewer.ask("cat_file", path) == OLD, "not before close"
    file.close()
    comes_to_see(viewer, OLD, NEW, "cat_file", path)
    assert viewer.ask("size", path) == len(NEW)
    assert viewer.ask("held", path) == OLD


def test_rename_over(viewer: Viewer, fs: Any, fs_dir: str) -> None:
    path, other = f"{fs_dir}/x", f"{fs_dir}/y"
    known(viewer, fs, path)
    fs.pipe_file(other, NEW)
    fs.replace(other, path)
    comes_to_see(viewer, OLD, NEW, "cat_file", path)
    assert viewer.ask("exists", other) is False
    assert viewer.ask("ls", fs_dir, False) == [path]
    assert viewer.ask("held", path) == OLD


def test_rename_of_a_directory(viewer: Viewer, fs: Any, fs_dir: str) -> None:
    path = f"{fs_dir}/a/x"
    known(viewer, fs, path)
    fs.mv(f"{fs_dir}/a", f"{fs_dir}/b")
    comes_to_see(viewer, OLD, "NotFoundError", "cat_file", path)
    assert viewer.ask("cat_file", f"{fs_dir}/b/x") == OLD == viewer.ask("held", path)


def test_delete(viewer: Viewer, fs: Any, fs_dir: str) -> None:
    path = f"{fs_dir}/x"
    known(viewer, fs, path)
    fs.rm_file(path)
    comes_to_see(viewer, OLD, "NotFoundError", "cat_file", path)
    comes_to_see(viewer, True, False, "exists", path)
    assert viewer.ask("ls", fs_dir, False) == []
    assert viewer.ask("held", path) == OLD
    fs.pipe_file(path, NEW)
    assert viewer.ask("cat_file", path) == NEW, "that nothing is there is never remembered"


def test_append(viewer: Viewer, fs: Any, fs_dir: str) -> None:
    path = f"{fs_dir}/x"
    known(viewer, fs, path)
    with fs.open(path, "ab") as file:
        file.write(NEW)
        file.flush()
        assert viewer.ask("cat_file", path) == OLD, "not before close"
    comes_to_see(viewer, OLD, OLD + NEW, "cat_file", path)
    assert viewer.ask("held", path) == OLD


def test_exclusive_creation(viewer: Viewer, fs: Any, fs_dir: str) -> None:
    path = f"{fs_dir}/x"
    with fs.open(path, "xb") as file:
        file.write(OLD)
        assert viewer.ask("exists", path) is False and viewer.ask("ls", fs_dir) == []
        assert viewer.ask("create", path) == "ExistsError"
    assert viewer.ask("cat_file", path) == OLD
    assert viewer.ask("create", path) == "ExistsError"
    assert viewer.ask("create", f"{fs_dir}/y") is None
    assert fs.cat_file(f"{fs_dir}/y") == b"theirs"


def test_symlink_retargeted(viewer: Viewer, fs: Any, fs_dir: str) -> None:
    fs.pipe({f"{fs_dir}/v1/x": OLD, f"{fs_dir}/v2/x": NEW})
    link = f"{fs_dir}/current"
    fs.symlink("v1", link)
    assert viewer.ask("cat_file", f"{link}/x") == OLD
    viewer.ask("open", f"{link}/x")
    fs.symlink("v2", f"{link}.new")
    fs.replace(f"{link}.new", link)
    comes_to_see(viewer, OLD, NEW, "cat_file", f"{link}/x")
    assert viewer.ask("readlink", link) == b"v2"
    assert viewer.ask("held", f"{link}/x") == OLD


def test_truncate(viewer: Viewer, fs: Any, fs_dir: str) -> None:
    path = f"{fs_dir}/x"
    known(viewer, fs, path)
    fs.truncate(path, 1_000)
    comes_to_see(viewer, OLD, OLD[:1_000], "cat_file", path)
    fs.truncate(path, 2_000)
    comes_to_see(viewer, OLD[:1_000], OLD[:1_000] + bytes(1_000), "cat_file", path)
    assert viewer.ask("held", path) == OLD


def test_attributes(viewer: Viewer, fs: Any, fs_dir: str) -> None:
    path = f"{fs_dir}/x"
    known(viewer, fs, path)
    before = viewer.ask("ukey", path)
    fs.chmod(path, 0o600)
    assert viewer.ask("cat_file", path) == OLD and viewer.ask("ukey", path) == before
    fs.link(path, f"{fs_dir}/y")
    assert viewer.ask("cat_file", f"{fs_dir}/y") == OLD
    fs.pipe_file(f"{fs_dir}/y", NEW)
    comes_to_see(viewer, OLD, NEW, "cat_file", path)


def test_what_was_dropped_is_stale_by_handle_and_new_by_path(new_cluster: NewCluster) -> None:
    """Also for a client that would remember the old content for long."""
    config = {"meta.gc_delay_s": 0, "meta.heartbeat_ms": 50, "meta.node_lease_ms": 300}
    cluster = new_cluster(config={**config, "meta.attr_ttl_ms": 600_000})
    fs = FFSFileSystem(skip_instance_cache=True, **cluster.storage_options)
    viewers = [Viewer(cluster, 0), Viewer(cluster, 600_000)]
    steps: dict[str, Callable[[str], Any]] = {
        "/replaced": lambda path: fs.pipe_file(path, NEW),
        "/renamed": lambda path: fs.replace("/other", path),
        "/removed": fs.rm_file,
        "/cut": lambda path: fs.truncate(path, 0),
    }
    fs.pipe_file("/other", NEW)
    for path in steps:
        for viewer in viewers:
            known(viewer, fs, path)
    for path, change in steps.items():
        change(path)
    give_up = time.monotonic() + WAIT_S
    for viewer in viewers:
        for path in steps:
            while (seen := viewer.ask("held", path)) == OLD:
                assert time.monotonic() < give_up, "the old content was never dropped"
                time.sleep(0.05)
            assert seen == "StaleFileError"
        assert viewer.ask("cat_file", "/replaced") == viewer.ask("cat_file", "/renamed") == NEW
        assert viewer.ask("cat_file", "/removed") == "NotFoundError"
        assert viewer.ask("cat_file", "/cut") == b""
        viewer.close()
