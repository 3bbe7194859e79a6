"""The metadata server as the client sees it: looking at paths, and writing files.

Role: the file system object (client/filesystem.py), client/file.py and client/writer.py ask THIS;
client/changes.py has the calls that change the namespace, client/calls.py makes all of them and
client/memory.py remembers answers for a short while.

Threads: any; Fork: see client/calls.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final

from ffs.client.changes import Changes
from ffs.client.layouts import Content
from ffs.client.paths import batches, decode, encode, fault_error, join, with_errors
from ffs.errors import DirectoryExpectedError, FFSError, NotFoundError, StaleLayoutError
from ffs.limits import LIST_PAGE_MAX
from ffs.types import Attr, FileType
from ffs.wire import messages as wire
from ffs.wire.method import Fault

LIST_PIPELINE: Final = 64
"""Directories listed at once by a walk."""
Entries = list[tuple[str, Attr]]


@dataclass(frozen=True, slots=True)
class Listed:
    """A name of a listed directory: its path, its own attributes, what it holds if it is a link."""

    path: str
    attr: Attr
    link: str


class MetaClient(Changes):
    """All calls of one client. See MetaCalls for the arguments."""

    # --- looking ------------------------------------------------------------------------------

    def stat(self, path: str) -> Attr:
        """Return the attributes of what a path leads to, at most attr_ttl_ms old."""
        attr = self.memory.attr(path) or self.lstat(path)
        return attr if attr.type != FileType.SYMLINK else self._one(path, follow=True)

    def lstat(self, path: str) -> Attr:
        """Return a path's own attributes, a symbolic link's too, at most attr_ttl_ms old."""
        return self.memory.attr(path, own=True) or self._one(path, follow=False)

    def _one(self, path: str, *, follow: bool) -> Attr:
        attr = self.stat_many((path,), follow=follow)[0]
        if isinstance(attr, FFSError):
            raise attr
        return attr

    def stat_many(self, paths: Sequence[str], *, follow: bool = True) -> list[Attr | FFSError]:
        """Ask for many paths' attributes; a path's error stands in its place."""
        question = self.memory.question()
        parts = batches(paths)
        requests = (wire.StatManyRequest([encode(p) for p in part], follow) for part in parts)
        found: list[Attr | FFSError] = []
        for part, reply in zip(parts, self.call_each(wire.STAT_MANY, requests), strict=True):
            answers: list[Attr | FFSError] = with_errors(part, reply.attrs, str)
            found += answers
        if self.memory.keeps:
            for path, answer in zip(paths, found, strict=True):
                if isinstance(answer, Attr) and answer.type != FileType.SYMLINK:
                    self.memory.keep_attr(path, answer, question, own=not follow)
        return found

    def content(self, path: str) -> Content:
        """Return a file's content, at most attr_ttl_ms old."""
        return self.memory.content(path) or self.open(path)

    def contents(self, paths: Sequence[str]) -> list[Content]:
        """Return many files' contents; the first path's error is raised."""
        fresh = [content for content in self.memory.contents(paths) if content is not None]
        if len(fresh) == len(paths):
            return fresh
        found: list[Content] = []
        for content in self.contents_or_errors(paths):
            if isinstance(content, FFSError):
                raise content
            found.append(content)
        return found

    def contents_or_errors(self, paths: Sequence[str]) -> list[Content | FFSError]:
        """Return many files' contents, resolving what is not remembered in one batch."""
        found: dict[str, Content | FFSError] = {}
        missing: list[str] = []
        for path in dict.fromkeys(paths):
            known = self.memory.content(path)
            if known is not None:
                found[path] = known
            else:
                missing.append(path)
        found.update(zip(missing, self.open_many(missing), strict=True))
        return [found[p] for p in paths]

    def open(self, path: str) -> Content:
        """Resolve one file now, whatever is remembered."""
        content = self.open_many((path,))[0]
        if isinstance(content, FFSError):
            raise content
        return content

    def open_many(self, paths: Sequence[str]) -> list[Content | FFSError]:
        """Resolve many files now; a path's error stands in its place."""
        question = self.memory.question()
        parts = batches(paths)
        requests = (wire.OpenManyRequest([encode(p) for p in part]) for part in parts)
        found: list[Content | FFSError] = []
        for part, reply in zip(parts, self.call_each(wire.OPEN_MANY, requests), strict=True):
            for path, answer in zip(part, reply.files, strict=True):
                if isinstance(answer, Fault):
                    found.append(fault_error(answer, path))
                    continue
                content = self._content(path, answer)
                found.append(content)
                self.memory.keep_content(path, content, question)
        return found

    def _content(self, path: str, opened: wire.OpenFile) -> Content:
        try:
            return Content(path, opened, self.route().tables)
        except StaleLayoutError:  # a table younger than our routing: ask once
            return Content(path, opened, self.refresh_route().tables)

    # --- listing ------------------------------------------------------------------------------

    def pages(
        self, path: str, *, after: str = "", limit: int = LIST_PAGE_MAX
    ) -> Iterator[list[Listed]]:
        """List a directory page by page, in name order, after a name.

        A page is asked for when it is wanted. Each goes on after the last name of the one before,
        so a name that stays all the while is seen exactly once, whatever comes and goes beside it.
        """
        request = wire.ListRequest(encode(path), encode(after), limit)
        while True:
            question = self.memory.question()
            reply = self.call_on(path, wire.LIST, request)
            yield self._listed(path, reply, question)
            if not reply.more or not reply.entries:
                return
            request = replace(request, after=reply.entries[-1].name)

    def list_dir(self, path: str) -> Entries:
        """Return all of a directory's entries in name order, as (path, attributes)."""
        return [(entry.path, entry.attr) for page in self.pages(path) for entry in page]

    def list_many(self, paths: Sequence[str]) -> list[Listed]:
        """Return the entries of many directories; one that has gone meanwhile is skipped."""
        entries: list[Listed] = []
        for start in range(0, len(paths), LIST_PIPELINE):
            part = paths[start : start + LIST_PIPELINE]
            requests = [wire.ListRequest(encode(p), b"", LIST_PAGE_MAX) for p in part]
            question = self.memory.question()
            try:
                replies = self.call_many(wire.LIST, requests)
            except (NotFoundError, DirectoryExpectedError):
                for path in part:
                    entries += self._list_or_nothing(path)
                continue
            for path, reply in zip(part, replies, strict=True):
                entries += self._listed(path, reply, question)
                if reply.more and reply.entries:
                    entries += self._list_or_nothing(path, after=decode(reply.entries[-1].name))
        return entries

    def _list_or_nothing(self, path: str, *, after: str = "") -> list[Listed]:
        try:
            return [entry for page in self.pages(path, after=after) for entry in page]
        except (NotFoundError, DirectoryExpectedError):
            return []

    def _listed(
        self, path: str, reply: wire.ListReply, question: tuple[object, int]
    ) -> list[Listed]:
        entries = [
            Listed(join(path, decode(e.name)), e.attr, decode(e.link)) for e in reply.entries
        ]
        for entry in entries:
            if entry.attr.type != FileType.SYMLINK:
                self.memory.keep_attr(entry.path, entry.attr, question, own=True)
        return entries

    # --- writing files ------------------------------------------------------------------------

    def create_many(
        self, entries: Sequence[wire.CreateEntry]
    ) -> list[wire.WriteSession | FFSError]:
        """Open write sessions; an entry's error stands in its place."""
        return list(chain.from_iterable(self.create_each(batches(entries))))

    def create_each(
        self, parts: Iterable[Sequence[wire.CreateEntry]]
    ) -> Generator[list[wire.WriteSession | FFSError], None, None]:
        """Open write sessions batch by batch, some ahead; see `call_each`."""
        under_way: deque[Sequence[wire.CreateEntry]] = deque()

        def requests() -> Iterator[wire.CreateManyRequest]:
            for part in parts:
                under_way.append(part)
                yield wire.CreateManyRequest(self.mutation(), self.client_id, list(part))

        for reply in self.call_each(wire.CREATE_MANY, requests()):
            yield with_errors(under_way.popleft(), reply.sessions, lambda e: decode(e.path))

    def close_many(
        self, paths: Sequence[str], entries: Sequence[wire.CloseEntry]
    ) -> list[Attr | FFSError]:
        """Publish written files under their paths; an entry's error stands in its place."""
        parts = zip(batches(paths), batches(entries), strict=True)
        return list(chain.from_iterable(self.close_each(parts)))

    def close_each(
        self, parts: Iterable[tuple[Sequence[str], Sequence[wire.CloseEntry]]]
    ) -> Iterator[list[Attr | FFSError]]:
        """Publish written files batch by batch, some ahead; see `call_each`.

        Args:    parts: paths and entries; may wait for `create_each`, and so close the files of
                 one batch while those of the next are made
        """
        under_way: deque[Sequence[str]] = deque()

        def requests() -> Iterator[wire.CloseManyRequest]:
            for paths, entries in parts:
                under_way.append(paths)
                yield wire.CloseManyRequest(self.mutation(), self.client_id, list(entries))

        try:
            for reply in self.call_each(wire.CLOSE_MANY, requests()):
                paths = under_way.popleft()
                self.memory.invalidate(*paths)
                if self.memory.keeps:
                    self.memory.changed(*(a.inode for a in reply.attrs if isinstance(a, Attr)))
                yield with_errors(paths, reply.attrs, str)
        finally:
            self.memory.invalidate(*(path for paths in under_way for path in paths))

    def abort_many(self, sessions: Sequence[int]) -> None:
        """Give up write sessions."""
        for part in batches(sessions):
            request = wire.AbortManyRequest(self.mutation(), self.client_id, list(part))
            self.call(wire.ABORT_MANY, request)

    def renew(self) -> int:
        """Keep our write sessions alive; return how many there are."""
        return self.call(wire.RENEW, wire.RenewRequest(self.client_id)).sessions
