"""Names: looking, listing, making, moving, copying, removing.

Role: part of the file system object (client/filesystem.py); every call here is one metadata call,
or a few.

Invariants: a path means what it leads to, but for removing, moving and what client/links.py does;
a listing shows a link as itself and never goes through it, so walks end.
Failure behaviour: typed errors that are also the OSErrors that callers catch; `exists` and its
like answer False only for what is not there, never for a server that could not be asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from fsspec.core import has_magic

from ffs.client.links import ABSENT, Links
from ffs.client.meta import Listed
from ffs.errors import (
    DirectoryExpectedError,
    FFSError,
    FileExpectedError,
    InvalidError,
    NotFoundError,
)
from ffs.limits import LIST_PAGE_MAX
from ffs.types import Attr, FileType

TYPES: Final = {FileType.FILE: "file", FileType.DIRECTORY: "directory", FileType.SYMLINK: "link"}
SCANDIR_PAGE: Final = 1_024
"""Names that `scandir` asks for and holds at once."""


def info_of(path: str, attr: Attr) -> dict[str, Any]:
    """Return an attribute record in fsspec's form."""
    kind = TYPES.get(FileType(attr.type), "other")
    return {
        "name": path,
        "size": attr.size if kind == "file" else 0,
        "type": kind,
        "islink": kind == "link",
        "mtime": attr.mtime_ns / 1e9,
        "created": attr.ctime_ns / 1e9,
        "mode": attr.mode,
        "ino": attr.inode,
        "nlink": attr.nlink,
        "uid": attr.uid,
        "gid": attr.gid,
        "version": attr.version,
    }


class Namespace(Links):
    """The namespace half of the file system object."""

    # --- looking --------------------------------------------------------------------------------

    def info(self, path: Any) -> dict[str, Any]:
        """Return what is known of a path; NotFoundError if nothing is there.

        A symbolic link's is that of what it leads to, with `islink` and `destination`, as fsspec's
        local file system has it. `chunk_size` is there for a file whose content this client has
        resolved lately.
        """
        path = self._strip_protocol(path)
        meta = self.core.meta
        own = meta.lstat(path)
        linked = own.type == FileType.SYMLINK
        info = info_of(path, meta.stat(path) if linked else own)
        if linked:
            info |= {"islink": True, "destination": meta.readlink(path)}
        content = meta.memory.last_content(path)
        if content is not None and content.segments:
            info["chunk_size"] = content.segments[0].layout.chunk_size_bytes
        return info

    def exists(self, path: Any) -> bool:
        """Return whether the path leads to anything; a broken link does not."""
        return self._kind(path) is not None

    def isdir(self, path: Any) -> bool:
        """Return whether the path leads to a directory."""
        return self._kind(path) == FileType.DIRECTORY

    def isfile(self, path: Any) -> bool:
        """Return whether the path leads to a file."""
        return self._kind(path) == FileType.FILE

    def _kind(self, path: Any) -> int | None:
        try:
            return self.core.meta.stat(self._strip_protocol(path)).type
        except ABSENT:
            return None

    # --- listing --------------------------------------------------------------------------------

    def ls(self, path: Any, detail: bool = True, refresh: bool = False) -> list[Any]:
        """List a directory in name order; a file lists itself.

        With `detail`, a symbolic link has `islink`, `destination`, mode and times of its own, and
        if it leads to a file the type "file" and that one's size, else the type "link".
        Args:    refresh: for fsspec's sake; listings are never remembered
        """
        path = self._strip_protocol(path)
        pages = self.core.meta.pages(path)
        try:
            if detail:
                return [info for page in pages for info in self._infos(page)]
            return [entry.path for page in pages for entry in page]
        except DirectoryExpectedError:
            info = self.info(path)
            return [info if detail else info["name"]]

    def scandir(self, path: Any, page: int = SCANDIR_PAGE) -> Iterator[dict[str, Any]]:
        """Yield a directory's entries as `ls` gives them, asking for `page` names at a time.

        Why: a directory of a million names is never held as a whole. A name that stays while this
        runs is seen exactly once, whatever comes and goes beside it.
        Raises:  DirectoryExpectedError for a file
        """
        if not 1 <= page <= LIST_PAGE_MAX:
            raise InvalidError(f"a page of {page} names, expected 1 to {LIST_PAGE_MAX}", path=path)
        for entries in self.core.meta.pages(self._strip_protocol(path), limit=page):
            yield from self._infos(entries)

    def _infos(self, entries: Sequence[Listed]) -> Iterator[dict[str, Any]]:
        """Return listed entries in fsspec's form; where links lead to is asked for all at once."""
        linked = [e.path for e in entries if e.attr.type == FileType.SYMLINK]
        targets = dict(zip(linked, self.core.meta.stat_many(linked), strict=True))
        for entry in entries:
            info = info_of(entry.path, entry.attr)
            if info["islink"]:
                info["destination"] = entry.link
                target = targets[entry.path]
                if isinstance(target, Attr) and target.type == FileType.FILE:
                    info |= {"type": "file", "size": target.size}
            yield info

    def find(
        self,
        path: Any,
        maxdepth: int | None = None,
        withdirs: bool = False,
        detail: bool = False,
        refresh: bool = False,
    ) -> Any:
        """List all files and links below a path, a level of the tree at a time."""
        if maxdepth is not None and maxdepth < 1:
            raise ValueError("maxdepth must be at least 1")
        path = self._strip_protocol(path)
        try:
            attr = self.core.meta.stat(path)
        except ABSENT:
            return {} if detail else []
        if attr.type != FileType.DIRECTORY:
            return {path: self.info(path)} if detail else [path]
        found = {entry.path: entry for entry in self._below(path, maxdepth, withdirs=withdirs)}
        if withdirs:
            found[path] = Listed(path, attr, "")
        names = sorted(found)
        if not detail:
            return names
        return dict(zip(names, self._infos([found[name] for name in names]), strict=True))

    def _below(self, path: str, maxdepth: int | None, *, withdirs: bool) -> Iterator[Listed]:
        level, depth = [path], 0
        while level and (maxdepth is None or depth < maxdepth):
            depth += 1
            deeper: list[str] = []
            for entry in self.core.meta.list_many(level):
                directory = entry.attr.type == FileType.DIRECTORY
                if directory:
                    deeper.append(entry.path)
                if withdirs or not directory:
                    yield entry
            level = deeper

    # --- directories ----------------------------------------------------------------------------

    def mkdir(self, path: Any, create_parents: bool = True, mode: int = 0o755) -> None:
        """Make a directory; ExistsError if the name is taken."""
        path = self._strip_protocol(path)
        self.core.meta.mkdir(path, mode=mode, parents=create_parents, exist_ok=False)

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
            paths.extend(self._named(self._strip_protocol(one)))
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
            if self.islink(one) or not self.isdir(one):
                self.rm_file(one)
            elif not self.core.meta.list_dir(one):
                self.rmdir(one)

    def mv(
        self,
        path1: Any,
        path2: Any,
        recursive: bool = False,
        maxdepth: int | None = None,
    ) -> None:
        """Move names atomically; into `path2` if that is a directory or ends with a slash.

        A file at the target is replaced. Several sources (a list or a pattern) go into a directory.
        """
        one = not isinstance(path1, (list, tuple))
        stripped = [self._strip_protocol(path) for path in ([path1] if one else path1)]
        sources = [source for path in stripped for source in self._named(path)]
        targets: Sequence[Any]
        if one and sources == stripped:
            targets = [path2]
        else:
            targets = path2 if isinstance(path2, (list, tuple)) else [f"{path2}/"] * len(sources)
        for source, target in zip(sources, targets, strict=True):
            self._mv_one(source, target)

    def _mv_one(self, source: str, path2: Any) -> None:
        target = self._strip_protocol(path2)
        if source == target:
            return
        if str(path2).endswith("/") or self.isdir(target):
            target = f"{target.rstrip('/')}/{source.rpartition('/')[2]}"
        self.core.meta.rename(source, target)

    def _named(self, path: str) -> list[str]:
        """Return what a path means: itself, or what matches it if it is a pattern.

        A name with `*`, `?` or `[` in it that is there means itself, so that nothing else is
        removed or moved in its stead.
        """
        if not has_magic(path) or self.lexists(path):
            return [path]
        matching = sorted(self.glob(path))
        if not matching:
            raise NotFoundError("no such file or directory, and nothing matches", path=path)
        return matching

    def replace(self, source: Any, target: Any) -> None:
        """Give what is at `source` the name `target`, atomically, as `os.replace` does.

        A file, a link or an empty directory at the target is replaced; unlike `mv`, nothing is ever
        moved into a directory.
        """
        self.core.meta.rename(self._strip_protocol(source), self._strip_protocol(target))

    def cp_file(self, path1: Any, path2: Any) -> None:
        """Copy a file by reference: no byte moves. A directory's copy is a new, empty one."""
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        try:
            self.core.meta.copy(source, target)
        except FileExpectedError:
            if not self.isdir(source):
                raise
            self.makedirs(target, exist_ok=True)

    def invalidate_cache(self, path: Any = None) -> None:
        """Forget what is remembered of a path, or of all."""
        core = self.__dict__.get("_core")
        if core is not None and path is None:
            core.meta.memory.forget()
        elif core is not None:
            core.meta.memory.invalidate(self._strip_protocol(path))
        super().invalidate_cache(path)
