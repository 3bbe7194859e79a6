"""The files that hold a dataset's records, opened for reading: in FFS or on this machine.

Role: records.py finds out with THIS which files a source names, and reads ranges of them; next hop
is client/filesystem.py, or the kernel.

A source is a URL, a sequence of URLs, or a directory, whose *.ffr files are taken in the order of
their names. What has no `ffs:` scheme is a path of this machine, unless a file system is given.

Fork: files stay readable in the child. Pickling: the owner keeps the source and opens it again.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import fsspec
import numpy as np
import numpy.typing as npt

from ffs.client.buffers import writable_view
from ffs.client.filesystem import FFSFileSystem
from ffs.client.options import PROTOCOL, split_url, url_keywords
from ffs.errors import FFSError, InvalidError, NotFoundError

SUFFIX: Final = ".ffr"
Source: TypeAlias = "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]"
Ranges: TypeAlias = npt.NDArray[Any]


class Identity(NamedTuple):
    """What tells that a file still is the one that was opened before."""

    inode: int
    version: int
    size: int


class Files(Protocol):
    """Opened files by number, in the order of the dataset."""

    paths: list[str]
    identities: list[Identity]
    handles: npt.NDArray[np.uint64]
    """What the field `handle` of a range holds for each file."""

    def readv_into(self, ranges: Ranges, out: Any) -> int:
        """Read ranges, none of them empty, back to back into `out`."""

    def close(self) -> None:
        """Let the files go."""


class FFSFiles:
    """Files of a cluster, by handles that keep the content they were opened with."""

    def __init__(self, fs: FFSFileSystem, paths: Sequence[str]) -> None:
        self.paths = list(paths)
        self.handles: npt.NDArray[np.uint64] = fs.open_many(self.paths)
        contents = [fs.core.handles.content(int(h)) for h in self.handles]
        self.identities = [Identity(c.attr.inode, c.attr.version, c.size) for c in contents]
        self.readv_into = fs.readv_into
        self._finalizer = weakref.finalize(self, _close_handles, fs, self.handles.tolist())

    def close(self) -> None:
        """Let the handles go."""
        self._finalizer()


def _close_handles(fs: FFSFileSystem, handles: Sequence[int]) -> None:
    with contextlib.suppress(FFSError):  # the file system may have been closed before
        fs.close_handles(handles)


class LocalFiles:
    """Files of this machine."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = list(paths)
        opened: list[int] = []
        self._finalizer = weakref.finalize(self, _close_descriptors, opened)
        self.identities = []
        for path in self.paths:
            opened.append(_open_local(path))
            stat = os.fstat(opened[-1])
            self.identities.append(Identity(stat.st_ino, stat.st_mtime_ns, stat.st_size))
        self._descriptors = opened
        self.handles = np.arange(len(opened), dtype=np.uint64)

    def readv_into(self, ranges: Ranges, out: Any) -> int:
        """Read ranges back to back into `out`; one system call or more for each."""
        view, done = writable_view(out), 0
        for handle, offset, length in ranges.tolist():
            descriptor, end = self._descriptors[handle], done + length
            while done < end:
                moved = os.preadv(descriptor, (view[done:end],), offset)
                if moved == 0:
                    raise InvalidError(
                        "a file has become shorter while it was read", path=self.paths[handle]
                    )
                done, offset = done + moved, offset + moved
        return done

    def close(self) -> None:
        """Close the descriptors."""
        self._finalizer()


def _open_local(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFoundError("no such file", path=path) from error


def _close_descriptors(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


def open_files(
    source: Source, fs: FFSFileSystem | None, storage_options: Mapping[str, Any] | None
) -> Files:
    """Open what a source names.

    Raises:  NotFoundError; InvalidError for files of different clusters, or a source without any
    """
    given = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    if not given:
        raise InvalidError("the source names no file", hint="pass a URL, several, or a directory")
    urls: list[str] = [os.fspath(url) for url in given]
    found = fs or file_system(urls, storage_options)
    if found is None:
        return LocalFiles(_local_paths(urls))
    paths = [found._strip_protocol(url) for url in urls]
    if len(paths) == 1 and found.isdir(paths[0]):
        paths = _records_in(paths[0], found.ls(paths[0], detail=False))
    return FFSFiles(found, paths)


def file_system(
    urls: Sequence[str], storage_options: Mapping[str, Any] | None
) -> FFSFileSystem | None:
    """Return the file system that URLs are of; None: they are paths of this machine."""
    ours = {url.startswith(f"{PROTOCOL}:") for url in urls}
    clusters = {split_url(url)[0] for url in urls} if True in ours else set()
    if len(ours) > 1 or len(clusters) > 1:
        raise InvalidError(
            "the files of one dataset are in different places",
            hint="they are all of one cluster, or all of this machine",
            source=urls[0],
        )
    if False in ours:
        return None
    options = dict(storage_options or {})
    if split_url(urls[0])[0] or "url" not in options:
        options.update(url_keywords(urls[0]))
    made: FFSFileSystem = fsspec.filesystem(PROTOCOL, **options)
    return made


def local_path(url: str) -> str:
    """Return the path that a URL of this machine stands for."""
    for scheme in ("file://", "local://"):
        if url.startswith(scheme):
            return url[len(scheme) :]
    if "://" in url:
        raise InvalidError(
            f"records are not read from {url.split('://', 1)[0]!r} URLs",
            hint="use ffs:// or a path; `ffs cp` brings files into FFS",
            source=url,
        )
    return url


def _local_paths(urls: Sequence[str]) -> list[str]:
    paths = [local_path(url) for url in urls]
    if len(paths) == 1 and os.path.isdir(paths[0]):
        return _records_in(paths[0], [entry.path for entry in os.scandir(paths[0])])
    return paths


def _records_in(directory: str, paths: Sequence[str]) -> list[str]:
    found = sorted(path for path in paths if path.endswith(SUFFIX))
    if not found:
        raise NotFoundError(f"the directory holds no {SUFFIX} file", path=directory)
    return found
