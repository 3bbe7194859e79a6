"""The metadata server as the client sees it: calls with retries, and a short memory of answers.

Role: client/filesystem.py asks THIS for attributes, contents and changes; next hop is
ffs.rpc.blocking, one attempt at a time. What to do after a failed attempt is client/retry.py's
decision.

Invariants: a mutation keeps its 16 bytes over all attempts, so the server applies it once; an
answer is remembered for `attr_ttl_ms` at most, and not at all when one of our own mutations
overtook the request; "not found" is never remembered.

Threads: caches are dictionaries with atomic operations, no lock is held over a call;
Fork:    the child drops the parent's connections and is another client; answers stay as they age.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from ffs.client import _fork
from ffs.client.layouts import Content, Route
from ffs.client.retry import Action, RetryPolicy
from ffs.errors import (
    BadNameError,
    DirectoryExpectedError,
    FFSError,
    NotFoundError,
    StaleLayoutError,
    error_class,
)
from ffs.limits import LIST_PAGE_MAX
from ffs.rpc.blocking import RpcClient
from ffs.seams import Clock, Randomness
from ffs.types import Attr, Layout
from ffs.wire import messages as wire
from ffs.wire.messages import Fault, Method

Req = TypeVar("Req")
Rep = TypeVar("Rep")
T = TypeVar("T")

Entries = list[tuple[str, Attr]]

LIST_PIPELINE: Final = 64
"""Directories listed at once by a walk."""
BATCH_ENTRIES: Final = 2_048
"""Entries of one batch request; with the longest paths this stays under the RPC frame's limit."""
CACHE_ENTRIES_MAX: Final = 65_536
_MS: Final = 1_000_000


def encode(path: str) -> bytes:
    """Return a path as it travels; undecodable bytes of a name survive the round trip."""
    try:
        return path.encode(errors="surrogateescape")
    except UnicodeEncodeError as error:
        raise BadNameError("the path is no text", path=path) from error


def decode(name: bytes) -> str:
    """Return a name that came: UTF-8, whatever this process has its local files in."""
    return name.decode(errors="surrogateescape")


def parent_of(path: str) -> str:
    """Return the directory that `path` is in; the root is its own."""
    return path.rpartition("/")[0] or "/"


def fault_error(fault: Fault, path: str) -> FFSError:
    """Return the error that a batch entry stands for."""
    return error_class(fault.code)(fault.message, path=path)


class MetaClient:
    """One client of the metadata server.

    Args:    rpc: makes single attempts; deadline_ms: for an operation with all its retries;
             attr_ttl_ms: how long answers may be used (the server may say less)
    """

    def __init__(
        self,
        rpc: RpcClient,
        policy: RetryPolicy,
        clock: Clock,
        randomness: Randomness,
        *,
        deadline_ms: int,
        attr_ttl_ms: int,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rpc = rpc
        self._policy = policy
        self._clock = clock
        self._randomness = randomness
        self._deadline_ms = deadline_ms
        self._ttl_ns = attr_ttl_ms * _MS
        self._sleep = sleep
        self._cluster: wire.ClusterReply | None = None
        self._route: Route | None = None
        self._attrs: dict[str, tuple[int, Attr]] = {}
        self._contents: dict[str, tuple[int, Content]] = {}
        self._epoch = object()
        self.client_id = randomness.token(16)
        _fork.register(self)

    def after_fork_in_child(self) -> None:
        """Become another client. What is remembered stays true for as long as it would have."""
        self._rpc.abandon()
        self.client_id = self._randomness.token(16)

    def close(self) -> None:
        """Close the connections."""
        self._rpc.close()

    # --- calling ------------------------------------------------------------------------------

    def call(self, method: Method[Req, Rep], request: Req) -> Rep:
        """Call with retries until the deadline.

        Raises:  the server's typed error; UnavailableError when it stayed out of reach;
                 DeadlineError
        """
        return self._retrying(lambda left_ms: self._rpc.call(method, request, deadline_ms=left_ms))

    def call_many(self, method: Method[Req, Rep], requests: Sequence[Req]) -> list[Rep]:
        """Call several times without waiting for each answer; all attempts are repeated
        together."""
        if len(requests) == 1:
            return [self.call(method, requests[0])]
        return self._retrying(
            lambda left_ms: self._rpc.call_pipelined(method, requests, deadline_ms=left_ms)
        )

    def _retrying(self, attempt: Callable[[int], T]) -> T:
        deadline_ns = self._clock.monotonic_ns() + self._deadline_ms * _MS
        rounds = 0
        left_ms = self._deadline_ms
        while True:
            try:
                return attempt(left_ms)
            except FFSError as error:
                remaining_ns = deadline_ns - self._clock.monotonic_ns()
                decision = self._policy.decide_call(error.code, rounds, remaining_ns)
                if decision.action is Action.FAIL:
                    raise
            rounds += 1
            self._sleep(decision.delay_ns / 1e9)
            left_ms = max(1, (deadline_ns - self._clock.monotonic_ns()) // _MS)

    def mutation(self) -> bytes:
        """Return the identity of one logical operation."""
        return self._randomness.token(16)

    # --- routing ------------------------------------------------------------------------------

    def route(self) -> Route:
        """Return the routing as last heard; asks for it the first time."""
        return self._route or self.refresh_route()

    def refresh_route(self) -> Route:
        """Ask for the routing and return it; an older answer never replaces a newer one."""
        cluster = self.call(wire.ROUTING, wire.RoutingRequest())
        route, known = Route(cluster.routing), self._route
        if known is not None and known.version >= route.version:
            return known
        self._cluster, self._route = cluster, route
        self._ttl_ns = min(self._ttl_ns, cluster.attr_ttl_ms * _MS)
        return route

    def cluster(self) -> wire.ClusterReply:
        """Return what the server said of itself: identity, session lifetime, default layout."""
        if self._cluster is None:
            self.refresh_route()
        assert self._cluster is not None
        return self._cluster

    @property
    def default_layout(self) -> Layout:
        """How files are laid out when the writer does not say."""
        return self.cluster().default_layout

    # --- looking ------------------------------------------------------------------------------

    def stat(self, path: str) -> Attr:
        """Return a path's attributes, at most attr_ttl_ms old."""
        now = self._clock.monotonic_ns()
        known = self._attrs.get(path)
        if known is not None and known[0] > now:
            return known[1]
        attr = self.stat_many((path,))[0]
        if isinstance(attr, FFSError):
            raise attr
        return attr

    def stat_many(self, paths: Sequence[str]) -> list[Attr | FFSError]:
        """Ask for many paths' attributes; a path's error stands in its place."""
        epoch, expires = self._epoch, self._clock.monotonic_ns() + self._ttl_ns
        requests = [wire.StatManyRequest([encode(p) for p in part]) for part in _parts(paths)]
        replies = self.call_many(wire.STAT_MANY, requests)
        answers = [a for reply in replies for a in reply.attrs]
        found: list[Attr | FFSError] = []
        for path, answer in zip(paths, answers, strict=True):
            if isinstance(answer, Fault):
                found.append(fault_error(answer, path))
            else:
                found.append(answer)
                self._remember(self._attrs, path, answer, epoch, expires)
        return found

    def content(self, path: str) -> Content:
        """Return a file's content, at most attr_ttl_ms old."""
        known = self._contents.get(path)
        if known is not None and known[0] > self._clock.monotonic_ns():
            return known[1]
        return self.open(path)

    def contents(self, paths: Sequence[str]) -> list[Content]:
        """Return many files' contents; the first path's error is raised."""
        found: list[Content] = []
        for content in self.contents_or_errors(paths):
            if isinstance(content, FFSError):
                raise content
            found.append(content)
        return found

    def contents_or_errors(self, paths: Sequence[str]) -> list[Content | FFSError]:
        """Return many files' contents, resolving what is not remembered in one batch."""
        now = self._clock.monotonic_ns()
        found: dict[str, Content | FFSError] = {}
        missing: list[str] = []
        for path in dict.fromkeys(paths):
            known = self._contents.get(path)
            if known is not None and known[0] > now:
                found[path] = known[1]
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
        if not paths:
            return []
        epoch, expires = self._epoch, self._clock.monotonic_ns() + self._ttl_ns
        requests = [wire.OpenManyRequest([encode(p) for p in part]) for part in _parts(paths)]
        replies = self.call_many(wire.OPEN_MANY, requests)
        answers = [f for reply in replies for f in reply.files]
        found: list[Content | FFSError] = []
        for path, answer in zip(paths, answers, strict=True):
            if isinstance(answer, Fault):
                found.append(fault_error(answer, path))
                continue
            content = self._content(path, answer)
            found.append(content)
            self._remember(self._contents, path, content, epoch, expires)
            self._remember(self._attrs, path, answer.attr, epoch, expires)
        return found

    def remembered(self, path: str) -> Content | None:
        """Return a file's content if it is remembered, however old; asks nobody."""
        known = self._contents.get(path)
        return known[1] if known is not None else None

    def list_dir(self, path: str) -> Entries:
        """Return a directory's entries in name order, as (path, attributes)."""
        entries: Entries = []
        request = wire.ListRequest(encode(path), b"", LIST_PAGE_MAX)
        while True:
            epoch, expires = self._epoch, self._clock.monotonic_ns() + self._ttl_ns
            reply = self.call(wire.LIST, request)
            entries += self._entries(path, reply, epoch, expires)
            if not reply.more or not reply.entries:
                return entries
            request = replace(request, after=reply.entries[-1].name)

    def list_many(self, paths: Sequence[str]) -> Entries:
        """Return the entries of many directories; one that has gone meanwhile is skipped."""
        entries: Entries = []
        for start in range(0, len(paths), LIST_PIPELINE):
            part = paths[start : start + LIST_PIPELINE]
            requests = [wire.ListRequest(encode(p), b"", LIST_PAGE_MAX) for p in part]
            epoch, expires = self._epoch, self._clock.monotonic_ns() + self._ttl_ns
            try:
                replies = self.call_many(wire.LIST, requests)
            except (NotFoundError, DirectoryExpectedError):
                for path in part:
                    entries += self._list_or_nothing(path)
                continue
            for path, reply in zip(part, replies, strict=True):
                if reply.more:
                    entries += self._list_or_nothing(path)
                else:
                    entries += self._entries(path, reply, epoch, expires)
        return entries

    def _list_or_nothing(self, path: str) -> Entries:
        try:
            return self.list_dir(path)
        except (NotFoundError, DirectoryExpectedError):
            return []

    def _entries(self, path: str, reply: wire.ListReply, epoch: object, expires: int) -> Entries:
        prefix = "/" if path == "/" else f"{path}/"
        entries = [(prefix + decode(e.name), e.attr) for e in reply.entries]
        for name, attr in entries:
            self._remember(self._attrs, name, attr, epoch, expires)
        return entries

    def _content(self, path: str, opened: wire.OpenFile) -> Content:
        try:
            return Content(path, opened, self.route().tables)
        except StaleLayoutError:  # a table younger than our routing: ask once
            return Content(path, opened, self.refresh_route().tables)

    # --- changing the namespace ---------------------------------------------------------------

    def mkdir(self, path: str, *, mode: int, parents: bool, exist_ok: bool) -> None:
        """Make a directory."""
        request = wire.MkdirRequest(self.mutation(), encode(path), mode, parents, exist_ok)
        try:
            self.call(wire.MKDIR, request)
        finally:
            self.invalidate(path)

    def rename(self, source: str, target: str) -> None:
        """Atomically move a name, over an existing one too; missing parents are made."""
        request = wire.RenameRequest(
            self.mutation(), encode(source), encode(target), replace=True, parents=True
        )
        try:
            self.call(wire.RENAME, request)
        finally:
            self.forget()

    def copy(self, source: str, target: str) -> None:
        """Copy a file by reference; missing parents are made."""
        request = wire.CopyRequest(
            self.mutation(), encode(source), encode(target), replace=True, parents=True
        )
        try:
            self.call(wire.COPY, request)
        finally:
            self.invalidate(target)

    def remove_many(self, paths: Sequence[str]) -> list[FFSError | None]:
        """Remove files; a path's error stands in its place."""
        requests = [
            wire.RemoveManyRequest(self.mutation(), [encode(p) for p in part])
            for part in _parts(paths)
        ]
        try:
            replies = self.call_many(wire.REMOVE_MANY, requests)
        finally:
            self.invalidate(*paths)
        answers = [r for reply in replies for r in reply.results]
        return [
            None if answer is None else fault_error(answer, path)
            for path, answer in zip(paths, answers, strict=True)
        ]

    def rmdir(self, path: str, *, recursive: bool) -> int:
        """Remove an empty directory or a whole tree; return how many names went."""
        request = wire.RmdirRequest(self.mutation(), encode(path), recursive)
        try:
            return self.call(wire.RMDIR, request).removed
        finally:
            self.forget()

    def setattr(self, path: str, **changes: int) -> Attr:
        """Change attributes by name (mode, uid, gid, size, atime_ns, mtime_ns)."""
        request = wire.SetattrRequest(self.mutation(), encode(path), **changes)
        try:
            return self.call(wire.SETATTR, request).attr
        finally:
            self.invalidate(path)

    # --- writing files ------------------------------------------------------------------------

    def create_many(
        self, entries: Sequence[wire.CreateEntry]
    ) -> list[wire.WriteSession | FFSError]:
        """Open write sessions; an entry's error stands in its place."""
        requests = [
            wire.CreateManyRequest(self.mutation(), self.client_id, list(part))
            for part in _parts(entries)
        ]
        replies = self.call_many(wire.CREATE_MANY, requests)
        answers = [s for reply in replies for s in reply.sessions]
        return [
            fault_error(answer, decode(entry.path)) if isinstance(answer, Fault) else answer
            for entry, answer in zip(entries, answers, strict=True)
        ]

    def close_many(
        self, paths: Sequence[str], entries: Sequence[wire.CloseEntry]
    ) -> list[Attr | FFSError]:
        """Publish written files under their paths; an entry's error stands in its place."""
        requests = [
            wire.CloseManyRequest(self.mutation(), self.client_id, list(part))
            for part in _parts(entries)
        ]
        try:
            replies = self.call_many(wire.CLOSE_MANY, requests)
        finally:
            self.invalidate(*paths)
        answers = [a for reply in replies for a in reply.attrs]
        return [
            fault_error(answer, path) if isinstance(answer, Fault) else answer
            for path, answer in zip(paths, answers, strict=True)
        ]

    def abort_many(self, sessions: Sequence[int]) -> None:
        """Give up write sessions."""
        for part in _parts(sessions):
            request = wire.AbortManyRequest(self.mutation(), self.client_id, list(part))
            self.call(wire.ABORT_MANY, request)

    def renew(self) -> int:
        """Keep our write sessions alive; return how many there are."""
        return self.call(wire.RENEW, wire.RenewRequest(self.client_id)).sessions

    # --- memory -------------------------------------------------------------------------------

    def invalidate(self, *paths: str) -> None:
        """Forget what is remembered of some paths and of their directories."""
        self._epoch = object()
        for path in paths:
            self._contents.pop(path, None)
            self._attrs.pop(path, None)
            self._attrs.pop(parent_of(path), None)

    def forget(self) -> None:
        """Forget everything: a tree moved or went, and any path may have been in it."""
        self._epoch = object()
        self._attrs, self._contents = {}, {}

    def _remember(
        self, cache: dict[str, tuple[int, T]], path: str, value: T, epoch: object, expires: int
    ) -> None:
        if epoch is not self._epoch:
            return  # a mutation of ours overtook the question
        if len(cache) >= CACHE_ENTRIES_MAX:
            cache.clear()
        cache[path] = (expires, value)
        if epoch is not self._epoch:
            cache.pop(path, None)


def _parts(items: Sequence[T]) -> list[Sequence[T]]:
    return [items[i : i + BATCH_ENTRIES] for i in range(0, len(items), BATCH_ENTRIES)]
