"""Snapshots, clones and the trash: trees as they were, and what was removed.

Role: part of the file system object (client/filesystem.py); every call is one metadata call, or a
few. A snapshot is read at `PATH/.snapshots/NAME/...` like any path; an entry of the trash is a
directory `/.trash/UID/TIME-RANDOM` with what was removed as `content`.

Failure behaviour: restoring and emptying are two steps; one that is interrupted between them leaves
an entry without content, which is listed no more and goes when its time is over.
"""

from __future__ import annotations

from typing import Any, Final

from ffs.client.namespace import TYPES
from ffs.client.paths import decode
from ffs.client.space import Space
from ffs.errors import InvalidError, NotFoundError
from ffs.seams import SystemClock
from ffs.types import FileType
from ffs.wire.snapshots import CloneReply, Trashed

SNAPSHOTS: Final = ".snapshots"
TRASH: Final = "/.trash/"
CONTENT: Final = "content"
ORIGIN: Final = "origin"


class Snapshots(Space):
    """Snapshots, clones and trash of the file system object."""

    # --- snapshots and clones -------------------------------------------------------------------

    def snapshot(self, path: Any, name: str) -> dict[str, Any]:
        """Keep what a directory is now, under a name; return `path` and what it holds.

        No byte moves. What is below the returned path never changes: writing there is a
        ReadOnlyError. Listings and walks of the directory leave its snapshots out.
        """
        path = self._strip_protocol(path)
        made = _made(self.core.meta.snapshot(path, name))
        return {"path": snapshot_path(path, name), **made}

    def snapshots(self, path: Any) -> list[dict[str, Any]]:
        """Return a directory's snapshots in name order: `name`, `path`, `created` in seconds."""
        path = self._strip_protocol(path)
        try:
            entries = self.core.meta.list_dir(snapshot_path(path))
        except NotFoundError:
            self.core.meta.stat(path)  # raises unless the directory is there, without any
            return []
        return [
            {"name": one.rpartition("/")[2], "path": one, "created": attr.ctime_ns / 1e9}
            for one, attr in entries
        ]

    def remove_snapshot(self, path: Any, name: str) -> int:
        """Remove a snapshot of a directory; return how many names went.

        Raises:  StillNeededError while a pin names it
        """
        return self.core.meta.remove_snapshot(self._strip_protocol(path), name)

    def clone(self, source: Any, target: Any) -> dict[str, int]:
        """Make a tree of its own that is what a directory, or a snapshot, is now.

        No byte moves; both may be changed afterwards, each for itself. Missing parents are made.
        Returns: `files`, `directories` and `symlinks` that were made
        """
        source, target = self._strip_protocol(source), self._strip_protocol(target)
        return _made(self.core.meta.clone(source, target))

    # --- trash ----------------------------------------------------------------------------------

    def trash(self, path: Any) -> str:
        """Move a file, link or directory into the trash; return its entry, for `restore`."""
        return self.core.meta.trash(self._strip_protocol(path))

    def trashed(self, *, everyone: bool = False) -> list[dict[str, Any]]:
        """Return what is in your trash, oldest first; as root with `everyone`, in all users'.

        `entry` is its path in the trash, `origin` what its path was, `removed` when, in seconds.
        """
        return [_trashed(one) for one in self.core.meta.trashed(everyone=everyone)]

    def restore(self, entry: str, target: Any = None) -> str:
        """Move what an entry of the trash holds back to where it was, or to `target`; return where.

        Raises:  ExistsError if something has that name now; NotFoundError for no such entry
        """
        entry = self._strip_protocol(entry)
        meta = self.core.meta
        if not entry.startswith(TRASH) or entry.count("/") != 3:
            raise InvalidError(
                "no entry of the trash", hint="`ffs trash list` shows them", path=entry
            )
        if target is None:
            target = meta.readlink(f"{entry}/{ORIGIN}")
        restored = str(self._strip_protocol(target))
        meta.rename(f"{entry}/{CONTENT}", restored, replace=False)
        meta.rmdir(entry, recursive=True)
        return restored

    def empty_trash(self, older_than_s: float = 0.0, *, everyone: bool = False) -> int:
        """Remove for good what has been in the trash for so long; return how many entries."""
        if older_than_s < 0:
            raise InvalidError(f"older than {older_than_s} seconds")
        before_ns = SystemClock().wall_ns() - round(older_than_s * 1e9)
        going = [
            one
            for one in self.core.meta.trashed(everyone=everyone)
            if not older_than_s or one.removed_ns <= before_ns
        ]
        for one in going:
            self.core.meta.rmdir(decode(one.entry), recursive=True)
        return len(going)


def snapshot_path(path: str, name: str = "") -> str:
    """Return the path of a directory's snapshot, or of all of them."""
    above = f"{path.rstrip('/')}/{SNAPSHOTS}"
    return f"{above}/{name}" if name else above


def _made(reply: CloneReply) -> dict[str, int]:
    return {
        "files": reply.files,
        "directories": reply.directories,
        "symlinks": reply.symlinks,
    }


def _trashed(one: Trashed) -> dict[str, Any]:
    return {
        "entry": decode(one.entry),
        "origin": decode(one.origin),
        "removed": one.removed_ns / 1e9,
        "type": TYPES[FileType(one.attr.type)],
        "size": one.attr.size,
    }
