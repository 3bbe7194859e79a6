"""Changes of the namespace, and what else is asked of a path beside its attributes.

Role: client/namespace.py, client/links.py and client/snapshots.py call THIS; next hop is
client/calls.py. Every change forgets what it outdates, whether or not an answer came: it may have
been applied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ffs.client.calls import MetaCalls
from ffs.client.paths import batches, decode, encode, fault_error
from ffs.errors import DeadlineError, FFSError
from ffs.types import Attr
from ffs.wire import messages as wire
from ffs.wire import snapshots
from ffs.wire.method import Fault


class Changes(MetaCalls):
    """The calls that change names, links, attributes, layouts, quotas and pins."""

    # --- names --------------------------------------------------------------------------------

    def mkdir(self, path: str, *, mode: int, parents: bool, exist_ok: bool) -> None:
        """Make a directory."""
        request = wire.MkdirRequest(self.mutation(), encode(path), mode, parents, exist_ok)
        try:
            self.call_on(path, wire.MKDIR, request)
        finally:
            self.memory.invalidate(path)

    def rename(self, source: str, target: str, *, replace: bool = True) -> None:
        """Atomically move a name, with `replace` over an existing one; missing parents are made."""
        request = wire.RenameRequest(
            self.mutation(), encode(source), encode(target), replace=replace, parents=True
        )
        try:
            self.call_on(source, wire.RENAME, request)
        finally:
            self.memory.forget()

    def copy(self, source: str, target: str) -> Attr:
        """Copy a file by reference; missing parents are made."""
        request = wire.CopyRequest(
            self.mutation(), encode(source), encode(target), replace=True, parents=True
        )
        try:
            attr = self.call_on(source, wire.COPY, request).attr
        finally:
            self.memory.invalidate(target)
        self.memory.changed(attr.inode)
        return attr

    def copy_many(self, pairs: Sequence[tuple[str, str]]) -> list[Attr | FFSError]:
        """Copy files by reference like `copy`; a pair's error stands in its place."""
        requests = [
            wire.CopyRequest(self.mutation(), encode(source), encode(target), parents=True)
            for source, target in pairs
        ]
        found: list[Attr | FFSError] = []
        try:
            found += [reply.attr for reply in self.call_many(wire.COPY, requests)]
        except FFSError as error:
            if error.retryable or isinstance(error, DeadlineError):
                raise  # it concerns all of them, and the deadline is over
            # Which one it was is not told. What was done is not done again: the ids are the same.
            for (source, _), request in zip(pairs, requests, strict=True):
                try:
                    found.append(self.call_on(source, wire.COPY, request).attr)
                except FFSError as alone:
                    found.append(alone)
        finally:
            self.memory.invalidate(*(target for _, target in pairs))
        self.memory.changed(*(attr.inode for attr in found if isinstance(attr, Attr)))
        return found

    def remove_many(self, paths: Sequence[str]) -> list[FFSError | None]:
        """Remove files and links; a path's error stands in its place."""
        names = [encode(path) for path in paths]  # all of them are good before one is removed
        requests = (wire.RemoveManyRequest(self.mutation(), list(part)) for part in batches(names))
        try:
            replies = list(self.call_each(wire.REMOVE_MANY, requests))
        finally:
            # Everything: what went may have been on the way to other paths, or have other names.
            self.memory.forget()
        answers = [r for reply in replies for r in reply.results]
        return [
            None if answer is None else fault_error(answer, path)
            for path, answer in zip(paths, answers, strict=True)
        ]

    def rmdir(self, path: str, *, recursive: bool) -> int:
        """Remove an empty directory or a whole tree; return how many names went."""
        request = wire.RmdirRequest(self.mutation(), encode(path), recursive)
        try:
            return self.call_on(path, wire.RMDIR, request).removed
        finally:
            self.memory.forget()

    # --- links --------------------------------------------------------------------------------

    def symlink(self, target: str, path: str) -> Attr:
        """Make a symbolic link at `path` that holds `target`; missing parents are made."""
        request = wire.SymlinkRequest(self.mutation(), encode(path), encode(target), parents=True)
        try:
            return self.call_on(path, wire.SYMLINK, request).attr
        finally:
            self.memory.invalidate(path)

    def readlink(self, path: str) -> str:
        """Return what a symbolic link holds."""
        return decode(self.call_on(path, wire.READLINK, wire.ReadlinkRequest(encode(path))).target)

    def link(self, source: str, target: str) -> Attr:
        """Give a file one more name; missing parents are made."""
        request = wire.LinkRequest(self.mutation(), encode(source), encode(target), parents=True)
        try:
            attr = self.call_on(source, wire.LINK, request).attr
        finally:
            self.memory.invalidate(source, target)
        self.memory.changed(attr.inode)
        return attr

    # --- attributes and layouts ---------------------------------------------------------------

    def setattr(self, path: str, *, follow: bool = True, **changes: int) -> Attr:
        """Change attributes by name (mode, uid, gid, size, atime_ns, mtime_ns)."""
        request = wire.SetattrRequest(self.mutation(), encode(path), **changes, follow=follow)
        try:
            attr = self.call_on(path, wire.SETATTR, request).attr
        finally:
            self.memory.invalidate(path)
        self.memory.changed(attr.inode)
        return attr

    def layout(self, path: str) -> wire.LayoutReply:
        """Return how new files below a directory are laid out, or how a file is."""
        return self.call_on(path, wire.LAYOUT, wire.LayoutRequest(encode(path)))

    def set_layout(self, path: str, *, chunk_size_bytes: int, stripe: int) -> wire.LayoutReply:
        """Say how files made below a directory from now on are laid out."""
        request = wire.SetLayoutRequest(self.mutation(), encode(path), chunk_size_bytes, stripe)
        try:
            return self.call_on(path, wire.SET_LAYOUT, request)
        finally:
            self.memory.invalidate(path)

    # --- snapshots, clones, trash -------------------------------------------------------------

    def clone(self, source: str, target: str) -> snapshots.CloneReply:
        """Make a tree of what a directory is now, by reference; missing parents are made."""
        request = snapshots.CloneRequest(
            self.mutation(), encode(source), encode(target), parents=True
        )
        try:
            return self.call_on(source, snapshots.CLONE, request)
        finally:
            self.memory.invalidate(target)

    def snapshot(self, path: str, name: str) -> snapshots.CloneReply:
        """Keep what a directory is now, under a name."""
        request = snapshots.SnapshotRequest(self.mutation(), encode(path), encode(name))
        try:
            return self.call_on(path, snapshots.SNAPSHOT, request)
        finally:
            self.memory.forget()

    def remove_snapshot(self, path: str, name: str) -> int:
        """Remove a snapshot; return how many names went."""
        request = snapshots.RemoveSnapshotRequest(self.mutation(), encode(path), encode(name))
        try:
            return self.call_on(path, snapshots.REMOVE_SNAPSHOT, request).removed
        finally:
            self.memory.forget()

    def trash(self, path: str) -> str:
        """Move what is at a path into the trash; return the entry's path."""
        request = snapshots.TrashRequest(self.mutation(), encode(path))
        try:
            return decode(self.call_on(path, snapshots.TRASH, request).entry)
        finally:
            self.memory.forget()

    def trashed(self, *, everyone: bool) -> Iterator[snapshots.Trashed]:
        """Yield what is in the caller's trash, or for root in everyone's."""
        after, more = b"", True
        while more:
            reply = self.call(snapshots.TRASHED, snapshots.TrashedRequest(after, everyone))
            yield from reply.entries
            after = reply.entries[-1].entry if reply.entries else b""
            more = reply.more and bool(after)

    # --- quotas, pins, usage ------------------------------------------------------------------

    def quotas(self, path: str) -> list[wire.QuotaInfo]:
        """Return the quotas that hold at a path, the nearest first."""
        return self.call_on(path, wire.QUOTA, wire.QuotaRequest(encode(path))).quotas

    def set_quota(self, path: str, *, bytes_max: int, files_max: int) -> list[wire.QuotaInfo]:
        """Bound what may be below a directory; -1: no bound."""
        request = wire.SetQuotaRequest(self.mutation(), encode(path), bytes_max, files_max)
        return self.call_on(path, wire.SET_QUOTA, request).quotas

    def pin(self, path: str, *, owner: str, ttl_ms: int) -> wire.PinInfo:
        """Keep what the files at and below a path hold now."""
        request = wire.PinRequest(self.mutation(), encode(path), owner, ttl_ms)
        return self.call_on(path, wire.PIN, request).pin

    def unpin(self, pin: int) -> None:
        """Take a pin off."""
        self.call(wire.UNPIN, wire.UnpinRequest(self.mutation(), pin))

    def pins(self) -> list[wire.PinInfo]:
        """Return all pins, in order of their ids."""
        return self.call(wire.PINS, wire.PinsRequest()).pins

    def usage_many(self, paths: Sequence[str]) -> list[wire.Usage | FFSError]:
        """Return what lies at and below each path; a path's error stands in its place."""
        requests = (wire.UsageManyRequest([encode(p) for p in part]) for part in batches(paths))
        replies = self.call_each(wire.USAGE_MANY, requests)
        answers = [u for reply in replies for u in reply.usages]
        return [
            fault_error(answer, path) if isinstance(answer, Fault) else answer
            for path, answer in zip(paths, answers, strict=True)
        ]

    def statfs(self) -> wire.StatfsReply:
        """Return how full the cluster is."""
        return self.call(wire.STATFS, wire.StatfsRequest())
