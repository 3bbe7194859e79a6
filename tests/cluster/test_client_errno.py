"""The same mistakes here and on the local disk have the same error numbers."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ffs.client.filesystem import FFSFileSystem
from tests.harness import Cluster

Act = Callable[[str], Any]
LONG = "n" * 256
DEEP = "/d" * 2_100
NAMES = ["dir", "file", "full", "full/in"]

CASES: dict[str, tuple[Callable[[Any], Act], Act, int]] = {
    "mkdir over a file": (
        lambda fs: lambda r: fs.mkdir(f"{r}/file"),
        lambda r: os.mkdir(f"{r}/file"),
        errno.EEXIST,
    ),
    "mkdir over a directory": (
        lambda fs: lambda r: fs.mkdir(f"{r}/dir"),
        lambda r: os.mkdir(f"{r}/dir"),
        errno.EEXIST,
    ),
    "mkdir without a parent": (
        lambda fs: lambda r: fs.mkdir(f"{r}/no/x", create_parents=False),
        lambda r: os.mkdir(f"{r}/no/x"),
        errno.ENOENT,
    ),
    "mkdir below a file": (
        lambda fs: lambda r: fs.mkdir(f"{r}/file/x"),
        lambda r: os.makedirs(f"{r}/file/x"),
        errno.ENOTDIR,
    ),
    "makedirs over a file": (
        lambda fs: lambda r: fs.makedirs(f"{r}/file", exist_ok=True),
        lambda r: os.makedirs(f"{r}/file", exist_ok=True),
        errno.EEXIST,
    ),
    "a long name": (
        lambda fs: lambda r: fs.mkdir(f"{r}/{LONG}"),
        lambda r: os.mkdir(f"{r}/{LONG}"),
        errno.ENAMETOOLONG,
    ),
    "a long path": (
        lambda fs: lambda r: fs.info(f"{r}{DEEP}"),
        lambda r: os.stat(f"{r}{DEEP}"),
        errno.ENAMETOOLONG,
    ),
    "stat nothing": (
        lambda fs: lambda r: fs.info(f"{r}/no"),
        lambda r: os.stat(f"{r}/no"),
        errno.ENOENT,
    ),
    "stat below a file": (
        lambda fs: lambda r: fs.info(f"{r}/file/x"),
        lambda r: os.stat(f"{r}/file/x"),
        errno.ENOTDIR,
    ),
    "list nothing": (
        lambda fs: lambda r: fs.ls(f"{r}/no"),
        lambda r: os.listdir(f"{r}/no"),
        errno.ENOENT,
    ),
    "scan a file": (
        lambda fs: lambda r: list(fs.scandir(f"{r}/file")),
        lambda r: list(os.scandir(f"{r}/file")),
        errno.ENOTDIR,
    ),
    "rmdir nothing": (
        lambda fs: lambda r: fs.rmdir(f"{r}/no"),
        lambda r: os.rmdir(f"{r}/no"),
        errno.ENOENT,
    ),
    "rmdir a file": (
        lambda fs: lambda r: fs.rmdir(f"{r}/file"),
        lambda r: os.rmdir(f"{r}/file"),
        errno.ENOTDIR,
    ),
    "rmdir what is not empty": (
        lambda fs: lambda r: fs.rmdir(f"{r}/full"),
        lambda r: os.rmdir(f"{r}/full"),
        errno.ENOTEMPTY,
    ),
    "remove nothing": (
        lambda fs: lambda r: fs.rm_file(f"{r}/no"),
        lambda r: os.unlink(f"{r}/no"),
        errno.ENOENT,
    ),
    "remove a directory as a file": (
        lambda fs: lambda r: fs.rm_file(f"{r}/dir"),
        lambda r: os.unlink(f"{r}/dir"),
        errno.EISDIR,
    ),
    "rename nothing": (
        lambda fs: lambda r: fs.replace(f"{r}/no", f"{r}/x"),
        lambda r: os.replace(f"{r}/no", f"{r}/x"),
        errno.ENOENT,
    ),
    "rename a file over a directory": (
        lambda fs: lambda r: fs.replace(f"{r}/file", f"{r}/dir"),
        lambda r: os.replace(f"{r}/file", f"{r}/dir"),
        errno.EISDIR,
    ),
    "rename a directory over a file": (
        lambda fs: lambda r: fs.replace(f"{r}/dir", f"{r}/file"),
        lambda r: os.replace(f"{r}/dir", f"{r}/file"),
        errno.ENOTDIR,
    ),
    "rename a directory over one that is not empty": (
        lambda fs: lambda r: fs.replace(f"{r}/dir", f"{r}/full"),
        lambda r: os.replace(f"{r}/dir", f"{r}/full"),
        errno.ENOTEMPTY,
    ),
    "rename a directory into itself": (
        lambda fs: lambda r: fs.replace(f"{r}/full", f"{r}/full/in/x"),
        lambda r: os.replace(f"{r}/full", f"{r}/full/in/x"),
        errno.EINVAL,
    ),
    "read nothing": (
        lambda fs: lambda r: fs.cat_file(f"{r}/no"),
        lambda r: Path(f"{r}/no").read_bytes(),
        errno.ENOENT,
    ),
    "read a directory": (
        lambda fs: lambda r: fs.cat_file(f"{r}/dir"),
        lambda r: Path(f"{r}/dir").read_bytes(),
        errno.EISDIR,
    ),
    "write over a directory": (
        lambda fs: lambda r: fs.pipe_file(f"{r}/dir", b""),
        lambda r: Path(f"{r}/dir").write_bytes(b""),
        errno.EISDIR,
    ),
    "write below a file": (
        lambda fs: lambda r: fs.pipe_file(f"{r}/file/x", b""),
        lambda r: Path(f"{r}/file/x").write_bytes(b""),
        errno.ENOTDIR,
    ),
    "create what is there": (
        lambda fs: lambda r: fs.open(f"{r}/file", "xb"),
        lambda r: os.open(f"{r}/file", os.O_CREAT | os.O_EXCL),
        errno.EEXIST,
    ),
    "truncate a directory": (
        lambda fs: lambda r: fs.truncate(f"{r}/dir", 0),
        lambda r: os.truncate(f"{r}/dir", 0),
        errno.EISDIR,
    ),
    "truncate to less than nothing": (
        lambda fs: lambda r: fs.truncate(f"{r}/file", -1),
        lambda r: os.truncate(f"{r}/file", -1),
        errno.EINVAL,
    ),
    "chmod nothing": (
        lambda fs: lambda r: fs.chmod(f"{r}/no", 0o600),
        lambda r: os.chmod(f"{r}/no", 0o600),
        errno.ENOENT,
    ),
}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("errno")
    (root / "dir").mkdir()
    (root / "full/in").mkdir(parents=True)
    (root / "file").write_bytes(b"1")
    return str(root)


@pytest.fixture(scope="module")
def here(cluster: Cluster) -> Iterator[tuple[FFSFileSystem, str]]:
    """The same tree in the cluster. No case changes either."""
    fs, root = (
        FFSFileSystem(skip_instance_cache=True, **cluster.storage_options),
        f"/{uuid.uuid4()}",
    )
    fs.mkdir(f"{root}/dir")
    fs.mkdir(f"{root}/full/in")
    fs.pipe_file(f"{root}/file", b"1")
    yield fs, root
    assert fs.find(root, withdirs=True) == [root, *(f"{root}/{n}" for n in NAMES)]
    fs.close()


@pytest.mark.parametrize("case", CASES)
def test_errors_are_those_of_a_local_disk(
    here: tuple[FFSFileSystem, str], local: str, case: str
) -> None:
    fs, root = here
    ours, theirs, number = CASES[case]
    with pytest.raises(OSError) as local_error:
        theirs(local)
    with pytest.raises(OSError) as error:
        ours(fs)(root)
    assert (error.value.errno, local_error.value.errno) == (number, number)
    assert error.value.filename is not None and error.value.strerror
