"""Every namespace operation, in random sequences, on FFS and on a local directory: same outcomes.

After each step both answered alike (the value, or the errno), and both trees look alike: names,
types, modes, owners, link counts, sizes, times that were set, link targets. At the end the contents
too. A failure prints the sequence as a program. FFS_ROUNDS multiplies the examples.
"""

from __future__ import annotations

import errno
import itertools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from ffs.client.filesystem import FFSFileSystem
from ffs.types import FileType
from tests.harness import Cluster
from tests.machine.trees import LocalTree, ParentError, RemoteTree

PARTS = range(5 * int(os.environ.get("FFS_ROUNDS", "1")))
"""Tests of 20 examples each: 100 in all, no test long enough to look like a hang."""
SETTINGS = hypothesis.settings(max_examples=20, stateful_step_count=50)

_NAMES = ("a", "b", "c")
_RARE_NAMES = ("é", "\udcff", "n" * 255)
_TOO_LONG = "n" * 256
_NO_PARENTS = frozenset(
    {errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
)
_INSIDE = "/in" * 4
"""Where in its directory each tree is: a link to `..` leads out of it, to what is alike too."""
_runs = itertools.count()

# Few names and shallow paths, so that operations meet each other. A name that is too long stands
# alone: which of two mistakes is told is nobody's promise.
names = st.sampled_from(_NAMES * 8 + _RARE_NAMES)
_usual = st.lists(names, min_size=1, max_size=3).map("/".join)
paths = st.one_of(*[_usual] * 15, st.just(_TOO_LONG))
targets = st.one_of(
    paths,
    paths.map(lambda p: f"../{p}"),
    paths.map(lambda p: f"/{p}"),
    st.sampled_from([".", ".."]),
)
contents = st.binary(max_size=40)
modes = st.sampled_from([0o600, 0o644, 0o755, 0o1777, 0o4750])
ids = st.sampled_from([0, 1000, 65534])
times = st.integers(0, 999_999_999_999)


class NamespaceMachine(RuleBasedStateMachine):
    """One FFS tree and one local tree, driven alike."""

    fs: ClassVar[Any]
    local_parent: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        self.base = f"/machine-{os.getpid()}-{next(_runs)}"
        self.fs.makedirs(self.base + _INSIDE)
        self.remote = RemoteTree(self.fs, self.base + _INSIDE)
        self.local = LocalTree(Path(tempfile.mkdtemp(dir=self.local_parent) + _INSIDE))
        os.makedirs(self.local.root, mode=0o755)

    def both(self, operation: Callable[[Any], Any]) -> None:
        """Do it to both and compare what came out."""
        local, remote = _outcome(operation, self.local), _outcome(operation, self.remote)
        if local[0] == "no parents":
            assert remote[0] == "error" and remote[1] in _NO_PARENTS, (local, remote)
        else:
            assert local == remote

    @rule(path=paths, data=contents)
    def write(self, path: str, data: bytes) -> None:
        self.both(lambda tree: tree.write(path, data))

    @rule(path=paths, data=contents)
    def create(self, path: str, data: bytes) -> None:
        self.both(lambda tree: tree.create(path, data))

    @rule(path=paths, data=contents)
    def append(self, path: str, data: bytes) -> None:
        self.both(lambda tree: tree.append(path, data))

    @rule(path=paths)
    def read(self, path: str) -> None:
        self.both(lambda tree: tree.read(path))

    @rule(path=paths, size=st.integers(0, 60))
    def truncate(self, path: str, size: int) -> None:
        self.both(lambda tree: tree.truncate(path, size))

    @rule(path=paths)
    def mkdir(self, path: str) -> None:
        self.both(lambda tree: tree.mkdir(path))

    @rule(path=paths)
    def makedirs(self, path: str) -> None:
        self.both(lambda tree: tree.makedirs(path))

    @rule(path=paths)
    def rmdir(self, path: str) -> None:
        self.both(lambda tree: tree.rmdir(path))

    @rule(path=paths)
    def remove(self, path: str) -> None:
        self.both(lambda tree: tree.remove(path))

    @rule(path=paths)
    def remove_tree(self, path: str) -> None:
        self.both(lambda tree: tree.remove_tree(path))

    @rule(path=paths, new=paths)
    def rename(self, path: str, new: str) -> None:
        self.both(lambda tree: tree.rename(path, new))

    @rule(path=paths, new=paths)
    def copy(self, path: str, new: str) -> None:
        self.both(lambda tree: tree.copy(path, new))

    @rule(held=targets, path=paths)
    def symlink(self, held: str, path: str) -> None:
        self.both(lambda tree: tree.symlink(held, path))

    @rule(path=paths, new=paths)
    def link(self, path: str, new: str) -> None:
        self.both(lambda tree: tree.link(path, new))

    @rule(path=paths)
    def readlink(self, path: str) -> None:
        self.both(lambda tree: tree.readlink(path))

    @rule(path=paths, mode=modes)
    def chmod(self, path: str, mode: int) -> None:
        self.both(lambda tree: tree.chmod(path, mode))

    @rule(path=paths, uid=ids, gid=ids)
    def chown(self, path: str, uid: int, gid: int) -> None:
        self.both(lambda tree: tree.chown(path, uid, gid))

    @rule(path=paths, time_ns=times)
    def utime(self, path: str, time_ns: int) -> None:
        self.both(lambda tree: tree.utime(path, time_ns))

    @rule(path=paths, follow=st.booleans())
    def stat(self, path: str, follow: bool) -> None:
        self.both(lambda tree: tree.entry(path, follow=follow))

    @rule(path=paths)
    def list_names(self, path: str) -> None:
        self.both(lambda tree: tree.names(path))

    @invariant()
    def trees_are_alike(self) -> None:
        """Walk both trees level by level without following links."""
        level = [""]
        while level:
            found = self.local.level(level)
            assert self.remote.level(level) == found
            files = [path for path, entry in found.items() if entry.type == FileType.FILE]
            assert self.remote.contents(files) == self.local.contents(files)
            level = [path for path, entry in found.items() if entry.type == FileType.DIRECTORY]

    def teardown(self) -> None:
        """Leave nothing for the next example."""
        self.fs.rm(self.base, recursive=True)


def _outcome(operation: Callable[[Any], Any], tree: Any) -> tuple[str, Any]:
    try:
        return "value", operation(tree)
    except ParentError:
        return "no parents", None
    except OSError as error:
        return "error", error.errno


@pytest.mark.parametrize("part", PARTS)
def test_like_a_local_directory(
    engine_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, part: int
) -> None:
    """Random steps, on each engine."""
    machine: Any = type(f"Machine{part}", (NamespaceMachine,), {})
    machine.fs = FFSFileSystem(
        skip_instance_cache=True, attr_ttl_ms=0, **engine_cluster.storage_options
    )
    machine.local_parent = tmp_path_factory.mktemp("local")
    run_state_machine_as_test(machine, settings=SETTINGS)
