"""Symbolic and hard links: making, reading and following them.

Role: part of the file system object (client/filesystem.py), under client/namespace.py; every call
is a metadata call or two.

Invariants: paths are resolved by the server; what a symbolic link holds is kept as it was written,
absolute from the root of FFS or relative to the link.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Any, Final

from ffs.client.base import FFSBase
from ffs.client.paths import join, parent_of
from ffs.errors import DirectoryExpectedError, NameTooLongError, NotFoundError, SymlinkLoopError
from ffs.limits import SYMLINKS_MAX
from ffs.types import FileType

ABSENT: Final = (NotFoundError, DirectoryExpectedError, SymlinkLoopError, NameTooLongError)
"""What says that nothing is at a path, as opposed to: nobody could be asked."""


class Links(FFSBase):
    """The links of the file system object."""

    def symlink(self, target: Any, path: Any) -> None:
        """Make a symbolic link at `path` that holds `target`, which need not exist.

        Args:    target: absolute from the root of FFS, or relative to the link's directory; an
                 ffs:// URL means its path
        Raises:  ExistsError if the name is taken
        """
        held = target if isinstance(target, str) else os.fspath(target)
        if held.startswith("ffs:"):
            held = self._strip_protocol(held)
        if not held:
            raise NotFoundError("a symbolic link to nothing", path=path)  # as POSIX has it
        self.core.meta.symlink(held, self._strip_protocol(path))

    def readlink(self, path: Any) -> str:
        """Return what a symbolic link holds; InvalidError for anything else."""
        return self.core.meta.readlink(self._strip_protocol(path))

    def link(self, source: Any, path: Any) -> None:
        """Give the file at `source` (or the symbolic link, not followed) one more name, `path`."""
        self.core.meta.link(self._strip_protocol(source), self._strip_protocol(path))

    def islink(self, path: Any) -> bool:
        """Return whether the path is a symbolic link, broken or not."""
        try:
            return self._is_link(self._strip_protocol(path))
        except ABSENT:
            return False

    def lexists(self, path: Any, **kwargs: Any) -> bool:
        """Return whether the path names anything, a broken link included."""
        try:
            self.core.meta.lstat(self._strip_protocol(path))
        except ABSENT:
            return False
        return True

    def realpath(self, path: Any, *, strict: bool = False) -> str:
        """Return the path without symbolic links and dots in it, as `os.path.realpath` does.

        Args:    strict: raise if something on the way is missing or goes in circles; else the rest,
                 or a path that does so, stays as it is
        """
        left = deque(self._strip_protocol(path).split("/"))
        done, links = "/", 0
        while left:
            name = left.popleft()
            if name in ("", "."):
                continue
            if name == "..":
                done = parent_of(done)
                continue
            here = join(done, name)
            if not (self._is_link(here) if strict else self.islink(here)):
                done = here
                continue
            links += 1
            if links > SYMLINKS_MAX:
                if strict:
                    raise SymlinkLoopError("the path has too many symbolic links", path=path)
                return str(self._strip_protocol(path))
            held = self.core.meta.readlink(here)
            left.extendleft(reversed(held.split("/")))
            done = "/" if held.startswith("/") else done
        return done

    def _is_link(self, path: str) -> bool:
        return self.core.meta.lstat(path).type == FileType.SYMLINK
