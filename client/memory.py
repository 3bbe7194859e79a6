"""What a client remembers of paths: attributes and contents, for `attr_ttl_ms` at most.

Role: client/meta.py asks HERE before it asks the server, and tells each answer and each change.

Invariants: an answer is remembered from when its question was asked; it is not remembered at all
when one of our own changes overtook the question; "not found" is never remembered. A change of an
inode outdates every path that was found to lead to it (links make several of them), so a client
sees its own changes at once by whatever name it looks.

Threads: dictionaries with atomic operations, no lock; Fork: what is remembered ages alike in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

from ffs.client.layouts import Content
from ffs.client.paths import parent_of
from ffs.seams import Clock
from ffs.types import Attr

T = TypeVar("T")

ENTRIES_MAX: Final = 65_536
"""Paths remembered, of each kind; when one more comes all are forgotten."""
_MS: Final = 1_000_000


class Memory:
    """Answers by path, with the time at which each was asked for."""

    def __init__(self, clock: Clock, ttl_ms: int) -> None:
        self._clock = clock
        self._ttl_ns = ttl_ms * _MS
        self._attrs: dict[str, tuple[int, Attr, bool]] = {}
        self._contents: dict[str, tuple[int, Content]] = {}
        self._changed: dict[int, int] = {}
        self._epoch = object()

    def limit(self, ttl_ms: int) -> None:
        """Remember no longer than the server allows."""
        self._ttl_ns = min(self._ttl_ns, ttl_ms * _MS)

    @property
    def keeps(self) -> bool:
        """Whether anything is remembered at all."""
        return self._ttl_ns > 0

    # --- asking ---------------------------------------------------------------------------------

    def attr(self, path: str, *, own: bool = False) -> Attr | None:
        """Return a path's attributes if they are fresh.

        Args:    own: not if the path may be a symbolic link, to whose target they belong
        """
        known = self._attrs.get(path)
        if known is None or known[0] + self._ttl_ns <= self._clock.monotonic_ns():
            return None
        if self._changed and known[0] <= self._changed.get(known[1].inode, -1):
            return None
        return known[1] if known[2] or not own else None

    def content(self, path: str) -> Content | None:
        """Return a file's content if it is fresh."""
        known = self._contents.get(path)
        if known is None or known[0] + self._ttl_ns <= self._clock.monotonic_ns():
            return None
        if self._changed and known[0] <= self._changed.get(known[1].attr.inode, -1):
            return None
        return known[1]

    def contents(self, paths: Sequence[str]) -> list[Content | None]:
        """Return what is fresh of many files' contents, in order."""
        asked_after = self._clock.monotonic_ns() - self._ttl_ns
        changed = self._changed
        return [
            known[1]
            if known is not None
            and known[0] > asked_after
            and (not changed or known[0] > changed.get(known[1].attr.inode, -1))
            else None
            for known in map(self._contents.get, paths)
        ]

    def last_content(self, path: str) -> Content | None:
        """Return a file's content if it is remembered, however old."""
        known = self._contents.get(path)
        return known[1] if known is not None else None

    # --- being told -----------------------------------------------------------------------------

    def question(self) -> tuple[object, int]:
        """Return what stands for a question that is asked now: to be given back with answers."""
        return self._epoch, self._clock.monotonic_ns()

    def keep_attr(self, path: str, attr: Attr, question: tuple[object, int], *, own: bool) -> None:
        """Remember the answer to a question about attributes; `own`: the path is no link."""
        epoch, asked = question
        if not own:
            known = self._attrs.get(path)
            own = known is not None and known[2] and known[1].inode == attr.inode
        self._keep(self._attrs, path, (asked, attr, own), epoch)

    def keep_content(self, path: str, content: Content, question: tuple[object, int]) -> None:
        """Remember the answer to a question about a file, attributes and all."""
        self._keep(self._contents, path, (question[1], content), question[0])
        self.keep_attr(path, content.attr, question, own=False)

    def _keep(self, cache: dict[str, T], path: str, value: T, epoch: object) -> None:
        if epoch is not self._epoch:
            return  # a change of ours overtook the question
        if len(cache) >= ENTRIES_MAX:
            cache.clear()
        cache[path] = value
        if epoch is not self._epoch:
            cache.pop(path, None)

    def invalidate(self, *paths: str) -> None:
        """Forget what is remembered of some paths and of their directories."""
        self._epoch = object()
        if not (self._contents or self._attrs):
            return
        for path in paths:
            self._contents.pop(path, None)
            self._attrs.pop(path, None)
            self._attrs.pop(parent_of(path), None)

    def changed(self, *inodes: int) -> None:
        """Forget what is remembered of some inodes, by whatever path."""
        self._epoch = object()
        if not self.keeps:
            return
        if len(self._changed) + len(inodes) > ENTRIES_MAX:
            self.forget()
            return
        now = self._clock.monotonic_ns()
        for inode in inodes:
            self._changed[inode] = now

    def forget(self) -> None:
        """Forget everything: a tree moved or went, and any path may have been in it."""
        self._epoch = object()
        self._attrs, self._contents, self._changed = {}, {}, {}
