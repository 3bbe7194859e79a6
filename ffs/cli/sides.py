"""The two kinds of places that `ffs cp` copies from and to: the local disk and a cluster.

A side walks what is there and makes what a copy needs besides files: directories, symbolic links,
modes and times. Files themselves are moved by ffs/cli/transfer.py.
"""

from __future__ import annotations

import os
import posixpath
import stat as stat_bits
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from ffs.client.paths import encode
from ffs.errors import DirectoryExpectedError, NotFoundError, SymlinkLoopError
from ffs.types import Attr, FileType
from ffs.wire import messages as wire

Complain = Callable[[str], None]


class Links(Enum):
    """What a symbolic link below a source stands for."""

    FOLLOW = "follow"
    KEEP = "keep"


class Kind(Enum):
    """What is copied in one step."""

    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"


_KINDS: Final = {
    FileType.FILE: Kind.FILE,
    FileType.DIRECTORY: Kind.DIRECTORY,
    FileType.SYMLINK: Kind.LINK,
}


@dataclass(frozen=True, slots=True)
class Found:
    """A name below a source. `relative` is "" for the source itself; `leads_to` a link's text."""

    relative: str
    kind: Kind
    size: int
    mode: int
    mtime_ns: int
    leads_to: str = ""


class LocalSide:
    """A path on the local disk."""

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """The last component."""
        return os.path.basename(os.path.abspath(self.path))

    def child(self, name: str) -> LocalSide:
        """A name in this directory."""
        return LocalSide(os.path.join(self.path, name))

    def join(self, relative: str) -> str:
        """The full path of a relative one."""
        return os.path.join(self.path, relative) if relative else self.path

    def isdir(self) -> bool:
        """Whether it is a directory."""
        return os.path.isdir(self.path)

    def walk(self, links: Links, complain: Complain) -> Iterator[Found]:
        """What is here, parents first and in name order; what cannot be copied is told."""
        todo = [("", _status(self.path, links), frozenset[tuple[int, int]]())]
        while todo:
            relative, status, above = todo.pop()
            path, identity = self.join(relative), (status.st_dev, status.st_ino)
            if stat_bits.S_ISLNK(status.st_mode):
                yield _found(relative, Kind.LINK, status, os.readlink(path))
            elif stat_bits.S_ISREG(status.st_mode):
                yield _found(relative, Kind.FILE, status)
            elif not stat_bits.S_ISDIR(status.st_mode):
                complain(f"left out, not a regular file: {path}")
            elif identity in above:
                complain(f"left out, a link to a directory that it is in: {path}")
            else:
                yield _found(relative, Kind.DIRECTORY, status)
                for name in sorted(os.listdir(path), reverse=True):
                    inner = os.path.join(relative, name)
                    try:
                        child = _status(self.join(inner), links)
                    except FileNotFoundError:
                        complain(f"left out, a link that leads nowhere: {self.join(inner)}")
                        continue
                    todo.append((inner, child, above | {identity}))

    def existing(self, paths: Sequence[str]) -> set[str]:
        """Those of some paths that exist."""
        return {path for path in paths if os.path.lexists(path)}

    def makedirs(self, paths: Iterable[str]) -> None:
        """Make directories that may exist already."""
        for path in paths:
            os.makedirs(path, exist_ok=True)

    def symlink(self, target: str, path: str) -> None:
        """Make a symbolic link, in the place of a file or link if need be."""
        if os.path.lexists(path):
            os.unlink(path)
        os.symlink(target, path)

    def preserve(self, copies: Sequence[tuple[str, Found]]) -> None:
        """Give copies the modes and times of their sources."""
        for path, found in copies:
            os.chmod(path, found.mode)
            os.utime(path, ns=(found.mtime_ns, found.mtime_ns))


def _status(path: str, links: Links) -> os.stat_result:
    return os.lstat(path) if links is Links.KEEP else os.stat(path)


def _found(relative: str, kind: Kind, status: os.stat_result, leads_to: str = "") -> Found:
    size = status.st_size if kind is Kind.FILE else 0
    mode = stat_bits.S_IMODE(status.st_mode)
    return Found(relative, kind, size, mode, status.st_mtime_ns, leads_to)


class RemoteSide:
    """A path in a cluster."""

    def __init__(self, fs: Any, path: str) -> None:
        self.fs = fs
        self.path = path
        self._meta: Any = fs.core.meta

    @property
    def name(self) -> str:
        """The last component."""
        return posixpath.basename(self.path)

    def child(self, name: str) -> RemoteSide:
        """A name in this directory."""
        return RemoteSide(self.fs, posixpath.join(self.path, name))

    def join(self, relative: str) -> str:
        """The full path of a relative one."""
        return posixpath.join(self.path, relative) if relative else self.path

    def isdir(self) -> bool:
        """Whether it is a directory."""
        return bool(self.fs.isdir(self.path))

    def walk(self, links: Links, complain: Complain) -> Iterator[Found]:
        """What is here, parents first and in name order; what cannot be copied is told."""
        meta = self._meta
        first = meta.lstat(self.path) if links is Links.KEEP else meta.stat(self.path)
        todo: list[tuple[str, Attr, frozenset[int]]] = [("", first, frozenset())]
        while todo:
            relative, own, above = todo.pop()
            path = self.join(relative)
            attr = own if links is Links.KEEP else self._behind(path, own)
            if attr is None:
                complain(f"left out, a link that leads nowhere: {path}")
                continue
            if attr.inode in above:
                complain(f"left out, a link to a directory that it is in: {path}")
                continue
            kind = _KINDS[FileType(attr.type)]
            leads_to = meta.readlink(path) if kind is Kind.LINK else ""
            yield Found(relative, kind, attr.size, attr.mode & 0o7777, attr.mtime_ns, leads_to)
            if kind is Kind.DIRECTORY:
                for name, child in reversed(meta.list_dir(path)):
                    inner = posixpath.join(relative, posixpath.basename(name))
                    todo.append((inner, child, above | {attr.inode}))

    def _behind(self, path: str, own: Attr) -> Attr | None:
        """What a name leads to; None for a symbolic link that leads nowhere."""
        if own.type != FileType.SYMLINK:
            return own
        try:
            attr: Attr = self._meta.stat(path)
        except (NotFoundError, DirectoryExpectedError, SymlinkLoopError):
            return None
        return attr

    def existing(self, paths: Sequence[str]) -> set[str]:
        """Those of some paths that exist, asked for in batches."""
        answers = self._meta.stat_many(paths, follow=False)
        return {
            path
            for path, answer in zip(paths, answers, strict=True)
            if not isinstance(answer, (NotFoundError, DirectoryExpectedError))
        }

    def makedirs(self, paths: Iterable[str]) -> None:
        """Make directories that may exist already."""
        for path in paths:
            self.fs.makedirs(path, exist_ok=True)

    def symlink(self, target: str, path: str) -> None:
        """Make a symbolic link, in the place of a file or link if need be."""
        for error in self._meta.remove_many((path,)):
            if error is not None and not isinstance(error, NotFoundError):
                raise error
        self._meta.symlink(target, path)

    def preserve(self, copies: Sequence[tuple[str, Found]]) -> None:
        """Give copies the modes and times of their sources; one wait for all of them."""
        meta = self._meta
        requests = [
            wire.SetattrRequest(
                meta.mutation(), encode(path), mode=found.mode, mtime_ns=found.mtime_ns
            )
            for path, found in copies
        ]
        meta.call_many(wire.SETATTR, requests)

    def refer(self, copies: Sequence[tuple[str, str]]) -> None:
        """Copy (source, target) within the cluster by reference; one wait for all of them."""
        meta = self._meta
        requests = [
            wire.CopyRequest(meta.mutation(), encode(source), encode(target), parents=True)
            for source, target in copies
        ]
        meta.call_many(wire.COPY, requests)


Side = LocalSide | RemoteSide
