"""Two trees that the namespace machine drives alike: a directory of this machine, and one in FFS.

Every method does one operation and returns what it returned, or raises OSError. Paths are relative
to the tree, without a leading slash; "" is the tree itself. Where FFS makes missing parents (as its
file system interface does for whatever writes a name), the local tree makes them first.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ffs.client.paths import decode, encode, fault_error
from ffs.types import Attr, FileType
from ffs.wire import messages as wire
from ffs.wire.method import Fault

_SET_NS_MAX: Final = 1_000_000_000_000
"""Times that the machine sets are below this; all others were given by a clock."""


@dataclass(frozen=True)
class Entry:
    """What two trees must agree on about a name. `mtime_ns` is None when a clock gave it."""

    type: int
    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    mtime_ns: int | None
    link: str


def join(directory: str, name: str) -> str:
    """Return the path of a name in a directory of a tree."""
    return f"{directory}/{name}" if directory else name


class ParentError(OSError):
    """The local tree could not make the parents of a name; why differs between systems."""


class LocalTree:
    """A directory of the machine's own file system."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def at(self, path: str) -> str:
        """Return the real path; a trailing name that is a link stays one."""
        return os.path.join(self.root, path) if path else str(self.root)

    def target_of(self, target: str) -> str:
        """Return what a symbolic link to `target` holds; an absolute one means the tree's root."""
        return f"{self.root}{target}" if target.startswith("/") else target

    @contextmanager
    def _parents(self, path: str) -> Iterator[None]:
        """Make the parents of a name, and take them away again if what follows fails."""
        missing = []
        parent = os.path.dirname(self.at(path))
        while not os.path.lexists(parent):
            missing.append(parent)
            parent = os.path.dirname(parent)
        before = os.stat(parent, follow_symlinks=False)
        try:
            os.makedirs(os.path.dirname(self.at(path)), exist_ok=True)
        except OSError as error:
            raise ParentError(error.errno, "parents cannot be made", path) from error
        try:
            yield
        except OSError:
            for made in missing:
                os.rmdir(made)
            if missing:
                os.utime(parent, ns=(before.st_atime_ns, before.st_mtime_ns))
            raise

    def write(self, path: str, data: bytes) -> None:
        """Replace a file's content, or make the file."""
        with self._parents(path):
            self._put(path, data, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)

    def create(self, path: str, data: bytes) -> None:
        """Make a file that must not be there."""
        with self._parents(path):
            self._put(path, data, os.O_CREAT | os.O_EXCL | os.O_WRONLY)

    def append(self, path: str, data: bytes) -> None:
        """Add to a file, or make it."""
        with self._parents(path):
            self._put(path, data, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def _put(self, path: str, data: bytes, flags: int) -> None:
        descriptor = os.open(self.at(path), flags, 0o644)
        try:
            os.fchmod(descriptor, os.fstat(descriptor).st_mode & 0o7777)
            os.write(descriptor, data)
        finally:
            os.close(descriptor)

    def read(self, path: str) -> bytes:
        """Return a file's content."""
        return Path(self.at(path)).read_bytes()

    def truncate(self, path: str, size: int) -> None:
        """Cut a file, or grow it by zeros."""
        os.truncate(self.at(path), size)

    def mkdir(self, path: str) -> None:
        """Make a directory with its parents."""
        with self._parents(path):
            os.mkdir(self.at(path), 0o755)

    def makedirs(self, path: str) -> None:
        """Make a directory with its parents; one that is there is fine."""
        with self._parents(path):
            if not os.path.isdir(self.at(path)):
                os.mkdir(self.at(path), 0o755)

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        os.rmdir(self.at(path))

    def remove(self, path: str) -> None:
        """Remove a file or a link."""
        os.unlink(self.at(path))

    def remove_tree(self, path: str) -> None:
        """Remove whatever is there."""
        if stat.S_ISDIR(os.lstat(self.at(path)).st_mode):
            shutil.rmtree(self.at(path))
        else:
            os.unlink(self.at(path))

    def rename(self, source: str, target: str) -> None:
        """Move a name over another."""
        os.lstat(self.at(source))
        with self._parents(target):
            os.rename(self.at(source), self.at(target))

    def copy(self, source: str, target: str) -> None:
        """Copy a file's content, and its mode if the target is new."""
        with open(self.at(source), "rb") as file:
            data, mode = file.read(), os.fstat(file.fileno()).st_mode & 0o7777
        there = os.path.exists(self.at(target))
        if there and os.path.samefile(self.at(source), self.at(target)):
            return
        with self._parents(target):
            self._put(target, data, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        if not there:
            os.chmod(self.at(target), mode)

    def symlink(self, target: str, path: str) -> None:
        """Make a symbolic link."""
        with self._parents(path):
            os.symlink(self.target_of(target), self.at(path))

    def link(self, source: str, target: str) -> None:
        """Give a file one more name."""
        os.lstat(self.at(source))
        with self._parents(target):
            os.link(self.at(source), self.at(target), follow_symlinks=False)

    def readlink(self, path: str) -> str:
        """Return what a symbolic link holds."""
        return os.readlink(self.at(path)).removeprefix(str(self.root))

    def chmod(self, path: str, mode: int) -> None:
        """Set a mode."""
        os.chmod(self.at(path), mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        """Set an owner."""
        os.chown(self.at(path), uid, gid)

    def utime(self, path: str, time_ns: int) -> None:
        """Set both times."""
        os.utime(self.at(path), ns=(time_ns, time_ns))

    def names(self, path: str) -> list[str]:
        """Return a directory's names in order of their bytes."""
        return sorted(os.listdir(self.at(path)), key=os.fsencode)

    def level(self, directories: Sequence[str]) -> dict[str, Entry]:
        """Return what is in directories, by path."""
        paths = [
            join(directory, name) for directory in directories for name in self.names(directory)
        ]
        return {path: self.entry(path, follow=False) for path in paths}

    def contents(self, paths: Sequence[str]) -> list[bytes]:
        """Return the bytes of files."""
        return [self.read(path) for path in paths]

    def entry(self, path: str, *, follow: bool) -> Entry:
        """Return what is known of a name."""
        found = os.stat(self.at(path), follow_symlinks=follow)
        kind = _KINDS[stat.S_IFMT(found.st_mode)]
        return Entry(
            type=kind,
            mode=0 if kind == FileType.SYMLINK else found.st_mode & 0o7777,
            uid=found.st_uid,
            gid=found.st_gid,
            nlink=found.st_nlink,
            size=found.st_size if kind == FileType.FILE else 0,
            mtime_ns=_set_time(found.st_mtime_ns),
            link=self.readlink(path) if kind == FileType.SYMLINK else "",
        )


_KINDS: Final = {
    stat.S_IFREG: FileType.FILE,
    stat.S_IFDIR: FileType.DIRECTORY,
    stat.S_IFLNK: FileType.SYMLINK,
}


def _set_time(time_ns: int) -> int | None:
    return time_ns if time_ns < _SET_NS_MAX else None


class RemoteTree:
    """A directory of an FFS file system, reached by its client."""

    def __init__(self, fs: Any, root: str) -> None:
        self.fs = fs
        self.root = root

    def at(self, path: str) -> str:
        """Return the path in FFS."""
        return f"{self.root}/{path}" if path else self.root

    def target_of(self, target: str) -> str:
        """Return what a symbolic link to `target` holds."""
        return f"{self.root}{target}" if target.startswith("/") else target

    def write(self, path: str, data: bytes) -> None:
        """See `LocalTree.write`."""
        self.fs.pipe_file(self.at(path), data)

    def create(self, path: str, data: bytes) -> None:
        """See `LocalTree.create`."""
        with self.fs.open(self.at(path), "xb") as file:
            file.write(data)

    def append(self, path: str, data: bytes) -> None:
        """See `LocalTree.append`."""
        with self.fs.open(self.at(path), "ab") as file:
            file.write(data)

    def read(self, path: str) -> bytes:
        """See `LocalTree.read`."""
        content: bytes = self.fs.cat_file(self.at(path))
        return content

    def truncate(self, path: str, size: int) -> None:
        """See `LocalTree.truncate`."""
        self.fs.truncate(self.at(path), size)

    def mkdir(self, path: str) -> None:
        """See `LocalTree.mkdir`."""
        self.fs.mkdir(self.at(path))

    def makedirs(self, path: str) -> None:
        """See `LocalTree.makedirs`."""
        self.fs.makedirs(self.at(path), exist_ok=True)

    def rmdir(self, path: str) -> None:
        """See `LocalTree.rmdir`."""
        self.fs.rmdir(self.at(path))

    def remove(self, path: str) -> None:
        """See `LocalTree.remove`."""
        self.fs.rm_file(self.at(path))

    def remove_tree(self, path: str) -> None:
        """See `LocalTree.remove_tree`."""
        self.fs.rm(self.at(path), recursive=True)

    def rename(self, source: str, target: str) -> None:
        """See `LocalTree.rename`; `fs.mv` would move into a directory, as the shell's mv does."""
        self.fs.core.meta.rename(self.at(source), self.at(target))

    def copy(self, source: str, target: str) -> None:
        """See `LocalTree.copy`; `fs.cp_file` would make a directory of a directory."""
        self.fs.core.meta.copy(self.at(source), self.at(target))

    def symlink(self, target: str, path: str) -> None:
        """See `LocalTree.symlink`."""
        self.fs.symlink(self.target_of(target), self.at(path))

    def link(self, source: str, target: str) -> None:
        """See `LocalTree.link`."""
        self.fs.link(self.at(source), self.at(target))

    def readlink(self, path: str) -> str:
        """See `LocalTree.readlink`."""
        target: str = self.fs.readlink(self.at(path))
        return target.removeprefix(self.root)

    def chmod(self, path: str, mode: int) -> None:
        """See `LocalTree.chmod`."""
        self.fs.chmod(self.at(path), mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        """See `LocalTree.chown`."""
        self.fs.chown(self.at(path), uid, gid)

    def utime(self, path: str, time_ns: int) -> None:
        """See `LocalTree.utime`."""
        self.fs.utime(self.at(path), ns=(time_ns, time_ns))

    def names(self, path: str) -> list[str]:
        """See `LocalTree.names`."""
        return [decode(entry.name) for entry in self._list([path])[0]]

    def _list(self, directories: Sequence[str]) -> list[list[wire.DirEntry]]:
        requests = [wire.ListRequest(encode(self.at(directory))) for directory in directories]
        return [reply.entries for reply in self.fs.core.meta.call_many(wire.LIST, requests)]

    def level(self, directories: Sequence[str]) -> dict[str, Entry]:
        """See `LocalTree.level`: from the listings alone."""
        return {
            join(directory, decode(entry.name)): self._entry(entry.attr, decode(entry.link))
            for directory, entries in zip(directories, self._list(directories), strict=True)
            for entry in entries
        }

    def contents(self, paths: Sequence[str]) -> list[bytes]:
        """See `LocalTree.contents`."""
        found = self.fs.cat([self.at(path) for path in paths]) if paths else {}
        return [found[self.at(path)] for path in paths]

    def entry(self, path: str, *, follow: bool) -> Entry:
        """See `LocalTree.entry`; asked of the server, not of the client's memory."""
        meta = self.fs.core.meta
        request = wire.StatManyRequest([encode(self.at(path))], follow=follow)
        found = meta.call(wire.STAT_MANY, request).attrs[0]
        if isinstance(found, Fault):
            raise fault_error(found, path)
        link = self.readlink(path) if found.type == FileType.SYMLINK else ""
        return self._entry(found, link)

    def _entry(self, attr: Attr, link: str) -> Entry:
        return Entry(
            type=attr.type,
            mode=0 if attr.type == FileType.SYMLINK else attr.mode,
            uid=attr.uid,
            gid=attr.gid,
            nlink=attr.nlink,
            size=attr.size if attr.type == FileType.FILE else 0,
            mtime_ns=_set_time(attr.mtime_ns),
            link=link.removeprefix(self.root),
        )
