"""`ffs verify`: what it reads, what it finds, and how it says so."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cli.support import Cli
from tests.harness import Cluster

Place = Callable[..., str]


@contextmanager
def damaged(target: Path, content: bytes) -> Iterator[None]:
    """Invert one byte of a file's content where it is stored, for a while."""
    for path in target.glob("*.data"):
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            place = mapped.find(content)
            if place >= 0:
                mapped[place] ^= 0xFF
                yield
                mapped[place] ^= 0xFF
                return
    raise AssertionError("the content is not on the target")


def test_whole_files_are_read_and_well(ffs: Cli, place: Place) -> None:
    path = place(**{"a": b"x" * 5000, "sub/b": os.urandom(3 << 20), "empty": b""})
    assert ffs("verify", path).out == "3 files, 4 chunks, 3.0 MiB read: all is well\n"
    report = ffs("verify", "--json", f"{path}/a", f"{path}/sub").json()
    assert report.pop("seconds") >= 0
    assert report == {"files": 2, "chunks": 4, "bytes_read": (3 << 20) + 5000, "findings": []}
    assert ffs("verify", "--fast", path).out.startswith("3 files, 4 chunks, 4 B read")


def test_damage_is_found_and_status_1(ffs: Cli, place: Place, cluster: Cluster) -> None:
    content = os.urandom(10_000)
    path = place(good=b"fine", rotten=content)
    with damaged(cluster.target_dir(), content):
        done = ffs("verify", path, check=False)
        report = ffs("verify", "--json", path, check=False)
    assert (done.code, done.err) == (1, "")
    first, last = done.out.splitlines()
    assert first.startswith(f"{path}/rotten: bytes do not match their checksum [chunk=0 target=")
    assert last.startswith("2 files, 2 chunks, ") and last.endswith(": 1 finding")
    assert report.code == 1
    (finding,) = report.json()["findings"]
    assert set(finding) == {"path", "error", "message", "blob", "chunk", "target", "node"}
    assert (finding["path"], finding["error"]) == (f"{path}/rotten", "ChecksumError")
    assert ffs("verify", path).out.endswith("all is well\n")
