"""Names and attributes: looking, listing, making, moving, removing.

Role: part of the file system object (client/filesystem.py); every call here is one metadata call,
or a few.
Failure behaviour: typed errors that are also the OSErrors that callers catch; `exists` and its
like answer False only for what is not there, never for a server that could not be asked.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from typing import Any, Final

from fsspec.core import has_magic

from ffs.client.base import FFSBase
from ffs.errors import (
    DirectoryExpectedError,
    FFSError,
    FileExpectedError,
    InvalidError,
    NotFoundError,
)
from ffs.types import Attr, FileType

TYPES: Final = {FileType.FILE: "file", FileType.DIRECTORY: "directory", FileType.SYMLINK: "other"}
_ABSENT: Final = (NotFoundError, DirectoryExpectedError)


def info_of(path: str, attr: Attr) -> dict[str, Any]:
    """Return an attribute record in fsspec's form."""
    kind = TYPES.get(FileType(attr.type), "other")
    return {
        "name": path,
        "size": attr.size if kind == "file" else 0,
        "type": kind,
        "mtime": attr.mtime_ns / 1e9,
        "created": attr.ctime_ns / 1e9,
        "mode": attr.mode,
        "ino": attr.inode,
        "nlink": attr.nlink,
        "uid": attr.uid,
        "gid": attr.gid,
        "version": attr.version,
    }


class Namespace(FFSBase):
    """The namespace half of the file system object."""

    # --- looking --------------------------------------------------------------------------------

    def info(self, path: Any, **kwargs: Any) -> dict[str, Any]:
        """Return what is known of a path; NotFoundError if nothing is there.

        `chunk_size` is there for a file whose content this client has resolved lately.
        """
        path = self._strip_protocol(path)
        meta = self.core.meta
        info = info_of(path, meta.stat(path))
        content = meta.memory.last_content(path)
        if content is not None and content.segments:
            info["chunk_size"] = content.segments[0].layout.chunk_size_bytes
        return info

    def exists(self, path: Any, **kwargs: Any) -> bool:
        """Return whether the path names anything."""
        return self._kind(path) is not None

    def lexists(self, path: Any, **kwargs: Any) -> bool:
        """Return whether the path names anything, a broken link included."""
        return self.exists(path)

    def isdir(self, path: Any) -> bool:
        """Return whether the path is a directory."""
        return self._kind(path) == FileType.DIRECTORY

    def isfile(self, path: Any) -> bool:
        """Return whether the path is a file."""
        return self._kind(path) == FileType.FILE

    def _kind(self, path: Any) -> int | None:
        try:
            return self.core.meta.stat(self._strip_protocol(path)).type
        except _ABSENT:
            return None

    def ls(self, path: Any, detail: bool = True, **kwargs: Any) -> list[Any]:
        """List a directory in name order; a file lists itself."""
        path = self._strip_protocol(path)
        try:
            entries = self.core.meta.list_dir(path)
        except DirectoryExpectedError:
            entries = [(path, self.core.meta.stat(path))]
        if detail:
            return [info_of(name, attr) for name, attr in entries]
        return [name for name, _ in entries]

    def find(
        self,
        path: Any,
        maxdepth: int | None = None,
        withdirs: bool = False,
        detail: bool = False,
        **kwargs: Any,
    ) -> Any:
        """List all files below a path, a level of the tree at a time."""
        if maxdepth is not None and maxdepth < 1:
            raise ValueError("maxdepth must be at least 1")
        path = self._strip_protocol(path)
        found: dict[str, Attr] = {}
        try:
            attr = self.core.meta.stat(path)
        except _ABSENT:
            return {} if detail else []
        if attr.type != FileType.DIRECTORY or withdirs:
            found[path] = attr
        level = [path] if attr.type == FileType.DIRECTORY else []
        depth = 0
        while level and (maxdepth is None or depth < maxdepth):
            depth += 1
            deeper: list[str] = []
            for entry in self.core.meta.list_many(level):
                if entry.attr.type == FileType.DIRECTORY:
                    deeper.append(entry.path)
                if withdirs or entry.attr.type != FileType.DIRECTORY:
                    found[entry.path] = entry.attr
            level = deeper
        names = sorted(found)
        return {name: info_of(name, found[name]) for name in names} if detail else names

    def created(self, path: Any) -> datetime.datetime:
        """Return when the inode last changed, which is as near as the namespace keeps it."""
        return _utc(self.core.meta.stat(self._strip_protocol(path)).ctime_ns)

    def modified(self, path: Any) -> datetime.datetime:
        """Return when the content last changed."""
        return _utc(self.core.meta.stat(self._strip_protocol(path)).mtime_ns)

    def ukey(self, path: Any) -> str:
        """Return what changes whenever the content does."""
        attr = self.core.meta.stat(self._strip_protocol(path))
        return f"{attr.inode:x}-{attr.version:x}"

    def invalidate_cache(self, path: Any = None) -> None:
        """Forget what is remembered of a path, or of all."""
        core = self.__dict__.get("_core")
        if core is not None and path is None:
            core.meta.memory.forget()
        elif core is not None:
            core.meta.memory.invalidate(self._strip_protocol(path))
        super().invalidate_cache(path)

    # --- directories ----------------------------------------------------------------------------

    def mkdir(self, path: Any, create_parents: bool = True, **kwargs: Any) -> None:
        """Make a directory; ExistsError if the name is taken."""
        path = self._strip_protocol(path)
        self.core.meta.mkdir(path, mode=0o755, parents=create_parents, exist_ok=False)

    def makedirs(self, path: Any, exist_ok: bool = False) -> None:
        """Make a directory and its parents."""
        path = self._strip_protocol(path)
        self.core.meta.mkdir(path, mode=0o755, parents=True, exist_ok=exist_ok)

    def rmdir(self, path: Any) -> None:
        """Remove an empty directory."""
        self.core.meta.rmdir(self._strip_protocol(path), recursive=False)

    # --- removing, moving, copying --------------------------------------------------------------

    def rm_file(self, path: Any) -> None:
        """Remove one file."""
        error = self.core.meta.remove_many((self._strip_protocol(path),))[0]
        if error is not None:
            raise error

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove files, and with `recursive` whole trees, each in one transaction."""
        if maxdepth is not None:
            expanded = self.expand_path(path, recursive=recursive, maxdepth=maxdepth)
            self._rm_each(list(reversed(expanded)))
            return
        paths: list[str] = []
        for one in [path] if not isinstance(path, (list, tuple, set)) else path:
            one = self._strip_protocol(one)
            paths.extend(self.expand_path(one) if has_magic(one) else [one])
        self._rm_paths(paths, recursive=recursive)

    def _rm_paths(self, paths: Sequence[str], *, recursive: bool) -> None:
        gone: list[str] = []
        missing: list[tuple[str, FFSError]] = []
        for one, error in zip(paths, self.core.meta.remove_many(paths), strict=True):
            if isinstance(error, FileExpectedError) and recursive:
                try:
                    self.core.meta.rmdir(one, recursive=True)
                    gone.append(f"{one}/")
                except NotFoundError as absent:
                    missing.append((one, absent))
            elif isinstance(error, NotFoundError):
                missing.append((one, error))
            elif error is not None:
                raise error
        for one, error in missing:
            if not any(one.startswith(tree) or f"{one}/" == tree for tree in gone):
                raise error

    def _rm_each(self, paths: Iterable[str]) -> None:
        """Remove from the leaves up; a directory that keeps what lies too deep stays."""
        for one in paths:
            if not self.isdir(one):
                self.rm_file(one)
            elif not self.core.meta.list_dir(one):
                self.rmdir(one)

    def mv(
        self,
        path1: Any,
        path2: Any,
        recursive: bool = False,
        maxdepth: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Move names atomically; into `path2` if that is a directory or ends with a slash.

        A file at the target is replaced. Several sources (a list or a pattern) go into a directory.
        """
        if isinstance(path1, (list, tuple)) or has_magic(self._strip_protocol(path1)):
            sources = self.expand_path(path1)
            targets = path2 if isinstance(path2, (list, tuple)) else [f"{path2}/"] * len(sources)
            for source, target in zip(sources, targets, strict=True):
                self.mv(source, target)
            return
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        if source == target:
            return
        if str(path2).endswith("/") or self.isdir(target):
            target = f"{target.rstrip('/')}/{source.rpartition('/')[2]}"
        self.core.meta.rename(source, target)

    def cp_file(self, path1: Any, path2: Any, **kwargs: Any) -> None:
        """Copy a file by reference: no byte moves. A directory's copy is a new, empty one."""
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        try:
            self.core.meta.copy(source, target)
        except FileExpectedError:
            if not self.isdir(source):
                raise
            self.makedirs(target, exist_ok=True)

    def touch(self, path: Any, truncate: bool = True, **kwargs: Any) -> None:
        """Make an empty file, or with `truncate=False` give an existing one the current time."""
        path = self._strip_protocol(path)
        if not truncate:
            try:
                self.core.meta.setattr(path, mtime_ns=self.core.clock.wall_ns())
                return
            except NotFoundError:
                pass
        self.pipe_file(path, b"")

    def _check_new(self, path: str, mode: str) -> bool:
        """Return whether fsspec's mode means an exclusive create."""
        if mode not in ("create", "overwrite"):
            raise InvalidError(f"mode is {mode!r}, expected 'create' or 'overwrite'", path=path)
        return mode == "create"


def _utc(time_ns: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(time_ns / 1e9, tz=datetime.UTC)
