"""Attributes of what is there: mode, owner, times, size.

Role: part of the file system object (client/filesystem.py); every call is one metadata call. The
names and arguments are those of `os`.
"""

from __future__ import annotations

import datetime
from operator import index
from typing import Any

from ffs.client.namespace import Namespace
from ffs.errors import InvalidError, NotFoundError
from ffs.types import Attr

KEPT = -1
"""What `chown` takes for: leave it as it is."""


class Attributes(Namespace):
    """Looking at and changing the attributes of paths."""

    def chmod(self, path: Any, mode: int, *, follow_symlinks: bool = True) -> None:
        """Change permission bits."""
        self._setattr(path, follow=follow_symlinks, mode=mode)

    def chown(
        self, path: Any, uid: int = KEPT, gid: int = KEPT, *, follow_symlinks: bool = True
    ) -> None:
        """Change owner and group by their numbers; -1 leaves one as it is."""
        wanted = {k: v for k, v in (("uid", uid), ("gid", gid)) if v != KEPT}
        self._setattr(path, follow=follow_symlinks, **wanted)

    def utime(
        self,
        path: Any,
        times: tuple[float, float] | None = None,
        *,
        ns: tuple[int, int] | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        """Set the times of access and change: (atime, mtime) in seconds, or `ns`; else now."""
        if times is not None and ns is not None:
            raise InvalidError("utime takes times or ns, not both", path=path)
        if times is not None:
            ns = (round(times[0] * 1e9), round(times[1] * 1e9))
        if ns is None:
            now = self.core.clock.wall_ns()
            ns = (now, now)
        self._setattr(path, follow=follow_symlinks, atime_ns=ns[0], mtime_ns=ns[1])

    def truncate(self, path: Any, size: int) -> None:
        """Cut a file to `size` bytes, or lengthen it by zeros; no byte moves."""
        self._setattr(path, size=size)

    def touch(self, path: Any, truncate: bool = True) -> None:
        """Make an empty file, or with `truncate=False` give an existing one the current time."""
        if truncate:
            self.pipe_file(path, b"")
            return
        try:
            self.utime(path)
        except NotFoundError:
            # Nothing is appended: a file that somebody makes meanwhile keeps what it holds.
            self.pipe_file(path, b"", mode="append")

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

    def _setattr(self, path: Any, *, follow: bool = True, **changes: int) -> Attr:
        # As in `os`: a mode that is text, or a size that is a float, is a TypeError here.
        whole = {name: index(value) for name, value in changes.items()}
        return self.core.meta.setattr(self._strip_protocol(path), follow=follow, **whole)


def _utc(time_ns: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(time_ns / 1e9, tz=datetime.UTC)
