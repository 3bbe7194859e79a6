"""Writes new files: whole chunks from the caller's memory, made visible at the end.

Role: client/file.py and client/filesystem.py feed THIS; next hop is client/settle.py around
ffs._reader.write_batch, which cuts nothing and checksums everything.

How a file is written, in steps:
1. a session (blob, layout) is opened at the metadata server; `exclusive` reserves the name there;
2. `write` sends each whole chunk straight from the caller's memory, several in flight, and keeps
   what is left over in a buffer of its own; sending a chunk again after a lost connection is safe:
   the same chunk with the same bytes answers "done already";
3. `seal` sends the rest; every chunk is durable on every serving replica now;
4. `publish` closes the session: the path changes from its old content to this one, at once.

Failure behaviour: an error in 2 or 3 makes the writer unusable (its state is BROKEN) and the old
content stays. A writer that is dropped discards what was written.
Fork: a writer belongs to the process that opened it; in a child every use raises ClosedError and
its end says nothing to any server.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ffs import _reader, errors, layout
from ffs.chains import NO_TARGET
from ffs.client import _fork, trace
from ffs.client.buffers import flat_view, spanning_view
from ffs.client.layouts import Route
from ffs.client.meta import MetaClient
from ffs.client.paths import encode
from ffs.client.planner import PENDING
from ffs.client.replicas import Patience
from ffs.client.sessions import SessionKeeper
from ffs.client.settle import Settler
from ffs.errors import BusyError, ClosedError, FFSError, UnavailableError
from ffs.types import Attr, Layout
from ffs.wire.messages import CloseEntry, CreateEntry, CreateMode, WriteSession

WRITE_OP_DTYPE: Final = np.dtype(
    [
        ("blob", "<u8"),
        ("source_offset", "<u8"),
        ("chunk", "<u4"),
        ("target", "<u4"),
        ("chain", "<u4"),
        ("length", "<u4"),
        ("chain_version", "<u4"),
        ("conn", "<u2"),
        ("status", "<u2"),
    ]
)
assert WRITE_OP_DTYPE.itemsize == _reader.WRITE_OP_BYTES

BUFFER_BYTES: Final = 8 << 20
"""Small writes gather up to this much before they are sent, so that several chunks share one
round trip and one group commit; at least one chunk."""
SEND_BYTES_MAX: Final = 64 << 20
"""Sent in one call of the engine, so that a deadline covers a bounded amount of work."""

_MESSAGES: Final = {
    errors.NoSpaceError.code: "the target's disk is full",
    errors.TargetStoppedError.code: "the target has stopped after a disk error",
    errors.ChunkConflictError.code: "the chunk exists with other bytes",
    errors.UnavailableError.code: "not every storage daemon of the chain can be reached",
    errors.StaleChainError.code: "the chain did not come to rest in time",
    errors.TooFewReplicasError.code: "too few replicas of the chain serve",
    errors.ConnectionLostError.code: "the connection to the storage daemon broke",
    errors.DeadlineError.code: "the write did not end in time",
    errors.ChecksumError.code: "the chunk was damaged on its way to the daemon, twice",
    errors.TransportError.code: "no card can read the caller's memory",
}
_HINTS: Final = {
    errors.NoSpaceError.code: "remove files, or add targets; `ffs status` shows what is used",
    errors.UnavailableError.code: "check with `ffs status` that the daemons run",
    errors.TooFewReplicasError.code: "start the daemons that `ffs status` shows as down",
    errors.TargetStoppedError.code: "see the daemon's log for the disk error",
    errors.DeadlineError.code: "check with `ffs status`; write_deadline_ms is the limit",
    errors.TransportError.code: 'write a copy of it, or by transport="auto"',
}
_OF_THE_CHAIN: Final = (
    errors.UnavailableError.code,
    errors.StaleChainError.code,
    errors.TooFewReplicasError.code,
)
"""Errors that say how many replicas the chain has, how many serve and how many must."""


class ChunkJob:
    """Chunks on their way through the engine (see settle.Job)."""

    __slots__ = ("_data", "_paths", "_trace_id", "ops")
    reads = False
    device = False
    writes = True

    def __init__(self, ops: npt.NDArray[Any], data: memoryview, paths: dict[int, str]) -> None:
        self.ops = ops
        self._data = data
        self._paths = paths
        self._trace_id = trace.take()

    def chain(self, index: int) -> int:
        """Return the chain that chunk `index` is written to."""
        return int(self.ops["chain"][index])

    def candidates(self, route: Route, chain: int) -> Sequence[int]:
        """Return the chain's head: writes enter there and nowhere else."""
        head = route.target(chain)
        return (head,) if head != NO_TARGET else ()

    def aim(self, index: int, target: int, route: Route) -> None:
        """Write to `target` next, as a member of the chain as it is now."""
        self.ops["target"][index] = target
        self.ops["chain_version"][index] = route.chains[self.chain(index)].version
        self.ops["status"][index] = PENDING

    def movable(self, route: Route) -> npt.NDArray[np.bool_] | bool:
        """Return which chains have a member that could become their head."""
        elsewhere: npt.NDArray[np.bool_] = route.replica_counts[route.places(self.ops["chain"])] > 1
        return elsewhere

    def submit(
        self, connections: Sequence[_reader.Connection], deadline_ms: int, patience: Patience
    ) -> int:
        """Send what is pending."""
        return _reader.write_batch(
            connections,
            self.ops,
            self._data,
            deadline_ms=deadline_ms,
            stall_ms=patience.stall_ms,
            trace_id=self._trace_id,
        )

    def error(self, index: int, status: int, route: Route) -> FFSError:
        """Return the error for chunk `index`, with all that names the place."""
        op = self.ops[index]
        target, blob = int(op["target"]), int(op["blob"])
        node = route.node_of_target.get(target, 0)
        where: dict[str, Any] = {
            "path": self._paths.get(blob, ""),
            "blob": blob,
            "chunk": int(op["chunk"]),
            "target": target,
            "node": node,
            "trace_id": trace.as_fact(self._trace_id),
        }
        if address := route.address_of_node.get(node):
            where["address"] = f"{address[0]}:{address[1]}"
        cls = errors.error_class(status)
        if cls is FFSError:
            where["status"] = status
        message = _MESSAGES.get(status, "the storage daemon refused the write")
        if status in _OF_THE_CHAIN:
            chain = self.chain(index)
            where["chain"], where["replicas"] = chain, route.members(chain)
            where["serving"] = len(route.serving.get(chain, ()))
            where["needed"] = route.min_replicas
        return cls(message, hint=_HINTS.get(status, ""), **where)


class Writing:
    """What writers of one file system object share.

    Threads: any; Fork: each member re-makes itself
    """

    def __init__(
        self, settler: Settler, meta: MetaClient, keeper: SessionKeeper, *, deadline_ms: int
    ) -> None:
        self.meta = meta
        self.keeper = keeper
        self._settler = settler
        self._deadline_ms = deadline_ms

    def send(self, ops: npt.NDArray[Any], data: memoryview, paths: dict[int, str]) -> None:
        """Write chunks and return when all are durable.

        Args:    ops: of WRITE_OP_DTYPE; blob, source_offset, chunk, chain and length are filled in
        Copies:  0 in user space; Threads: the engine releases the GIL
        """
        route = self._settler.route()
        job = ChunkJob(ops, data, paths)
        for index, chain in enumerate(ops["chain"].tolist()):
            target = route.target(chain)
            if target == NO_TARGET:
                ops["target"][index] = NO_TARGET
                ops["status"][index] = UnavailableError.code
            else:
                job.aim(index, target, route)
        now = self._settler.clock.monotonic_ns()
        self._settler.settle(job, now + self._deadline_ms * 1_000_000)

    def chains(self, how: Layout) -> list[int]:
        """Return the chains that a new blob's chunks go to, in chunk order, repeating."""
        table = self._settler.route().tables.get(how.table)
        if not table:
            table = self.meta.refresh_route().tables[how.table]
        return [table[p] for p in layout.stripe_places(len(table), how.stripe, how.seed)]


class State(Enum):
    """Where a writer stands; only OPEN takes bytes, only SEALED is published."""

    OPEN = "open"
    SEALED = "sealed"
    PUBLISHED = "published"
    DISCARDED = "discarded"
    BROKEN = "broken"


class FileWriter:
    """One file being written, front to back.

    `start` is where its first byte will lie: behind what is there when it is appended to.
    Threads: one at a time; Fork: unusable in the child (see the module)
    """

    start = 0

    def __init__(self, writing: Writing, path: str, entry: CreateEntry) -> None:
        self.path = path
        self.length = 0
        self.state = State.DISCARDED
        self._writing = writing
        self._generation = _fork.generation()
        opened = writing.meta.create_many((entry,))[0]
        if isinstance(opened, FFSError):
            raise opened
        self._session: WriteSession = opened
        self._chunk_bytes = opened.layout.chunk_size_bytes
        self._sent = 0
        self._left = 0
        self._expected = (0, 0)
        self._buffer = bytearray()
        self._buffer_bytes = max(1, BUFFER_BYTES // self._chunk_bytes) * self._chunk_bytes
        writing.keeper.opened()
        try:
            self._chains = writing.chains(opened.layout)
        except BaseException as error:
            self._abandon(State.BROKEN, error)
            raise
        self.state = State.OPEN

    def write(self, data: Any) -> int:
        """Take bytes; whole chunks of a large piece are sent before this returns.

        Copies:  0 for whole chunks of a piece of at least one chunk when nothing is buffered; 1
                 otherwise
        """
        self._check(State.OPEN)
        view = flat_view(data)
        with self._whole_or_broken():
            taken = 0
            if self._buffer or len(view) < self._chunk_bytes:
                taken = self._fill_buffer(view)
            whole = (len(view) - taken) // self._chunk_bytes * self._chunk_bytes
            if whole:
                self._send(view[taken : taken + whole])
                taken += whole
            if taken < len(view):
                self._buffer += view[taken:]
            self.length += len(view)
        return len(view)

    @property
    def chunk_bytes(self) -> int:
        """The length of every chunk but the last."""
        return self._chunk_bytes

    def leave(self, length: int) -> None:
        """Leave the first `length` bytes, whole chunks, to `fill`: what is written comes behind.

        Why: some formats have a header that is known only when all the rest is
        """
        self._check(State.OPEN)
        assert self.length == 0 and length % self._chunk_bytes == 0
        self._sent = self.length = self._left = length

    def fill(self, data: Any) -> None:
        """Send what was left out; it may be shorter if nothing was written behind it."""
        self._check(State.OPEN)
        view = flat_view(data)
        assert len(view) == self._left or (len(view) < self._left == self.length)
        with self._whole_or_broken():
            if self.length == self._left:
                self.length = len(view)
            sent, self._sent = self._sent, 0
            self._send(view)
            self._sent, self._left = sent, 0

    def expect(self, attr: Attr) -> None:
        """Publish only if the file still is what `attr` says, and raise VersionError else."""
        self._expected = (attr.version, attr.inode)

    def writev(self, pieces: Iterable[Any]) -> int:
        """Take many pieces, one behind the other, and send their whole chunks together.

        Copies:  0 for the chunks inside a piece; 1 for those where one ends and the next begins
        """
        self._check(State.OPEN)
        views = [flat_view(piece) for piece in pieces]
        count = sum(map(len, views))
        with self._whole_or_broken():
            together = max(1, SEND_BYTES_MAX // self._chunk_bytes)
            chunks = self._cut([memoryview(self._buffer), *views])
            while group := list(itertools.islice(chunks, together)):
                data, places = spanning_view(group)
                self._send_chunks(data, places, [self._chunk_bytes] * len(group))
            self.length += count
        return count

    def _cut(self, views: Iterable[memoryview]) -> Iterator[memoryview]:
        """Yield the whole chunks of all views together; the rest becomes what is buffered."""
        rest = bytearray()
        for view in views:
            taken = 0
            if rest:
                taken = min(self._chunk_bytes - len(rest), len(view))
                rest += view[:taken]
                if len(rest) < self._chunk_bytes:
                    continue
                yield memoryview(rest)
                rest = bytearray()
            while len(view) - taken >= self._chunk_bytes:
                yield view[taken : taken + self._chunk_bytes]
                taken += self._chunk_bytes
            rest += view[taken:]
        self._buffer = rest

    def flush(self) -> None:
        """Send every whole chunk; the unfinished one waits for more bytes or for `seal`."""
        self._check(State.OPEN)
        whole = len(self._buffer) // self._chunk_bytes * self._chunk_bytes
        if whole:
            with self._whole_or_broken():
                self._send_buffer(whole)

    def seal(self) -> None:
        """Send the rest: all bytes are durable afterwards, and none can be added."""
        self._check(State.OPEN)
        with self._whole_or_broken():
            if self._buffer:
                self._send_buffer(len(self._buffer))
            self.state = State.SEALED

    def publish(self) -> Attr:
        """Make the file visible under its path, in one step.

        Raises:  BusyError: nothing was done, and it may be tried again; after others it may not
        """
        version, inode = self._expected
        return self._close(
            CloseEntry(
                self._session.session, self.length, version_expected=version, inode_expected=inode
            )
        )

    def publish_in_place(self, segments: int, was: Attr) -> Attr:
        """Put the bytes where so many last segments lie, which hold the same ones.

        Raises:  VersionError if the file is no longer at the version of `was`
        """
        return self._close(
            CloseEntry(
                self._session.session,
                self.length,
                mtime_ns=was.mtime_ns,
                segments_replaced=segments,
                version_expected=was.version,
                inode_expected=was.inode,
            )
        )

    def _close(self, entry: CloseEntry) -> Attr:
        self._check(State.SEALED)
        try:
            attr = self._writing.meta.close_many((self.path,), (entry,))[0]
            if isinstance(attr, FFSError):
                raise attr
        except BusyError:
            raise
        except BaseException as error:
            self._abandon(State.BROKEN, error)
            raise
        self.state = State.PUBLISHED
        self._writing.keeper.ended()
        return attr

    def discard(self) -> None:
        """Give the file up: the path keeps its old content. Does nothing after the end."""
        if self.state in (State.OPEN, State.SEALED):
            self._abandon(State.DISCARDED)

    def forget(self) -> None:
        """End a writer that its owner dropped: no network here, the session is aborted later."""
        if self.state in (State.OPEN, State.SEALED) and self._ours():
            self._writing.keeper.drop((self._session.session,))
            warnings.warn(
                f"{self.path!r} was not closed: what was written is discarded",
                ResourceWarning,
                stacklevel=3,
            )
        self.state = State.DISCARDED

    def _fill_buffer(self, view: memoryview) -> int:
        """Top the buffer up; send it when it is full. Return how much of `view` was taken."""
        if len(view) >= self._chunk_bytes:
            # Only up to the next chunk boundary: the rest can go straight from the caller.
            room = -len(self._buffer) % self._chunk_bytes
        else:
            room = self._buffer_bytes - len(self._buffer)
        taken = min(room, len(view))
        self._buffer += view[:taken]
        full = len(self._buffer) == self._buffer_bytes
        if full or (len(view) > taken and len(self._buffer) % self._chunk_bytes == 0):
            self._send_buffer(len(self._buffer))
        return taken

    def _send_buffer(self, count: int) -> None:
        with memoryview(self._buffer) as view:
            self._send(view[:count])
        # A new buffer, not a cut one: the traceback of an attempt that failed and was repeated may
        # keep a view of this one alive until the next garbage collection.
        self._buffer = self._buffer[count:]

    def _send(self, view: memoryview) -> None:
        """Send `view` as the next chunks; only the last of the file may be short."""
        step = max(1, SEND_BYTES_MAX // self._chunk_bytes) * self._chunk_bytes
        for start in range(0, len(view), step):
            self._send_some(view[start : start + step])

    def _send_some(self, view: memoryview) -> None:
        count = layout.chunk_count(len(view), self._chunk_bytes)
        places = range(0, count * self._chunk_bytes, self._chunk_bytes)
        last = len(view) - (count - 1) * self._chunk_bytes
        self._send_chunks(view, places, [self._chunk_bytes] * (count - 1) + [last])

    def _send_chunks(self, data: memoryview, places: Sequence[int], lengths: Sequence[int]) -> None:
        """Send the file's next chunks, which lie at `places` of `data`."""
        first = self._sent // self._chunk_bytes
        count = len(lengths)
        ops = np.zeros(count, dtype=WRITE_OP_DTYPE)
        ops["blob"] = self._session.blob
        ops["source_offset"] = places
        ops["chunk"] = np.arange(first, first + count)
        ops["length"] = lengths
        ops["chain"] = [self._chains[(first + i) % len(self._chains)] for i in range(count)]
        self._writing.send(ops, data, {self._session.blob: self.path})
        self._sent += sum(lengths)

    @contextlib.contextmanager
    def _whole_or_broken(self) -> Iterator[None]:
        """Break the writer if what runs inside does not come to its end.

        Why: a signal may end it between any two steps, with bytes that were sent still in the
        buffer, or not counted.
        """
        try:
            yield
        except BaseException as error:
            self._abandon(State.BROKEN, error)
            raise

    def _abandon(self, state: State, cause: BaseException | None = None) -> None:
        self.state = state
        self._buffer = bytearray()
        if self._ours():
            self._writing.keeper.give_up((self._session.session,), cause)

    def _ours(self) -> bool:
        return self._generation == _fork.generation()

    def _check(self, wanted: State) -> None:
        if not self._ours():
            raise ClosedError(
                "the file was opened for writing before the fork",
                hint="open it in the process that writes it",
                path=self.path,
            )
        if self.state is not wanted:
            raise ClosedError(f"the file is {self.state.value} for writing", path=self.path)


def create_entry(
    path: str,
    create_mode: CreateMode = CreateMode.REPLACE,
    *,
    chunk_size_bytes: int = 0,
    stripe: int = -1,
) -> CreateEntry:
    """Return the request to create `path`, with missing parents as object stores have it."""
    return CreateEntry(
        encode(path),
        create_mode=create_mode,
        parents=True,
        chunk_size_bytes=chunk_size_bytes,
        stripe=stripe,
    )
