"""The fsspec file system `ffs://`: where a user's program meets FFS.

First hop of the read path: THIS -> client/reader.py -> client/planner.py, ffs._reader -> (wire) ->
ffs._storage. The synchronous methods are written by hand and run in the calling thread; the
asynchronous twins (client/aio.py) run them in a small pool.

Invariants: nothing (thread, socket, event loop) exists before the first I/O; every method may be
called from any thread, and after fork in parent and child.
Failure behaviour: errors of ffs.errors, which are the OSErrors that file code expects as well.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from operator import index
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from fsspec.compression import compr
from fsspec.core import get_compression

from ffs.client import telemetry, traced
from ffs.client.aio import AsyncTwins
from ffs.client.buffers import aligned_view, writable_view
from ffs.client.file import (
    CompressedFile,
    FFSFile,
    TextFile,
    open_reading,
    open_writing,
)
from ffs.client.layouts import Content
from ffs.client.planner import RANGE_DTYPE, check_range, parse_ranges
from ffs.client.rdma import DeviceMemory
from ffs.client.reader import Out
from ffs.client.traced import SlowCall, TracedRead
from ffs.client.transfer import span_of
from ffs.errors import ChunkMissingError, FFSError, InvalidError
from ffs.wire.messages import CreateMode

__all__ = ["RANGE_DTYPE", "FFSFile", "FFSFileSystem"]

_CREATE_MODES: Final = {
    "wb": CreateMode.REPLACE,
    "xb": CreateMode.EXCLUSIVE,
    "ab": CreateMode.APPEND,
}


class FFSFileSystem(AsyncTwins):
    """A cluster as a file system.

    Args:    url: ffs://host:port of the metadata server; key_file: the cluster key; and every other
             option of the `[client]` table (docs/config.md) by its name
    Raises:  TypeError for an unknown keyword, naming the nearest; ConfigError for a bad value
    Copies:  0 in user space for `readv_into` and `readinto`; Threads: any; Fork: safe
    """

    # --- reading ranges -------------------------------------------------------------------------

    def cat_file(self, path: Any, start: int | None = None, end: int | None = None) -> bytes:
        """Return a file's bytes from `start` to `end`, as Python's slices mean them.

        Copies:  1 in user space: bytes cannot be received into; `readv_into` has none
        """
        path = self._strip_protocol(path)
        core = self.core
        content = core.meta.content(path)
        try:
            return self._cat(content, start, end)
        except ChunkMissingError:
            fresh = core.meta.open(path)
            if fresh.same_bytes(content):
                raise
            return self._cat(fresh, start, end)

    def read_buffer(
        self,
        path: Any,
        offset: int = 0,
        length: int | None = None,
        *,
        map: bool = False,  # noqa: A002 - what it is
    ) -> memoryview:
        """Return a range of a file, to its end without `length`, in memory of its own.

        With `map`, if the file's daemons are on this host: read-only memory that shows the daemons'
        files, checked once, and keeps their space until the last view over it is gone. Not for a
        forked child. Where that cannot be, the range is read as without.

        The memory starts at a multiple of 64 bytes; `pyarrow.py_buffer`, `np.frombuffer` and
        `torch.frombuffer` take it as it is.
        Raises:  InvalidError for a range that is not inside the file
        Copies:  0 in user space; Threads: the engine releases the GIL; Fork: safe
        """
        path = self._strip_protocol(path)
        content = self.core.meta.content(path)
        try:
            return self._buffer(content, offset, length, map)
        except ChunkMissingError:
            fresh = self.core.meta.open(path)
            if fresh.same_bytes(content):
                raise
            return self._buffer(fresh, offset, length, map)

    def _buffer(
        self, content: Content, offset: int, length: int | None, mapped: bool
    ) -> memoryview:
        offset = index(offset)
        length = content.size - offset if length is None else index(length)
        check_range(content, offset, length)
        if mapped and length:
            memory = self.core.reader.map_range(content, offset, length)
            if memory is not None:
                return memory
        out = aligned_view(length)
        if length:
            self.core.reader.read_range(content, offset, length, out)
        return out

    def _cat(self, content: Content, start: int | None, end: int | None) -> bytes:
        first, last = span_of(content.size, start, end)
        if last == first:
            return b""
        out = np.empty(last - first, dtype=np.uint8).data
        self.core.reader.read_range(content, first, last - first, out)
        return bytes(out)

    def readv_into(self, ranges: Any, out: Any) -> int:
        """Read many ranges, packed back to back, straight into `out`; return the bytes read.

        Args:    ranges: a sequence of (path or handle, offset, length), or one array of RANGE_DTYPE
                 whose handles come from `open_many`; out: any writable, C-contiguous buffer, or
                 the memory of a device (ffs.client.rdma.DeviceMemory) where `verify` is off
        Raises:  InvalidError for a range past end-of-file or an `out` that is too small, before
                 anything is read; ChecksumError, UnavailableError, DeadlineError; StaleFileError
                 for a handle whose content was dropped. After an error the bytes of `out` are
                 unspecified, and it is never touched again.
        Copies:  0 in user space; Threads: the engine releases the GIL; Fork: safe
        """
        view = out if isinstance(out, DeviceMemory) else writable_view(out)
        if isinstance(ranges, np.ndarray):
            return self._readv_table(ranges, view)
        parsed = parse_ranges(ranges)
        if parsed is None:
            return self._readv_general(ranges, view)
        files, rows = parsed
        contents, reader = self._contents(files), self.core.reader
        try:
            return reader.read_parsed(rows, contents, view)
        except ChunkMissingError as error:
            return reader.read_parsed(rows, self._resolve_again(files, contents, error), view)

    def _readv_general(self, ranges: Any, view: Out) -> int:
        """Read one range, or ranges of an unusual form; refuse wrong ones."""
        files, offsets, lengths = _columns(ranges)
        if not files:
            return 0
        contents, reader = self._contents(files), self.core.reader
        try:
            return reader.read_ranges(contents, offsets, lengths, view)
        except ChunkMissingError as error:
            fresh = self._resolve_again(files, contents, error)
            return reader.read_ranges(fresh, offsets, lengths, view)

    def _readv_table(self, ranges: npt.NDArray[Any], view: Out) -> int:
        dtype = ranges.dtype
        if (dtype is not RANGE_DTYPE and dtype != RANGE_DTYPE) or ranges.ndim != 1:
            raise InvalidError(
                f"ranges is an array of {dtype} in {ranges.ndim} dimensions",
                hint="use one dimension of ffs.client.filesystem.RANGE_DTYPE",
            )
        core = self.core
        try:
            return core.reader.read_table(ranges, core.handles, view)
        except ChunkMissingError as error:
            for handle in np.unique(ranges["handle"]).tolist():
                content = core.handles.content(handle)
                if content.path == error.where.get("path"):
                    self.explain_missing(content, error)
            raise

    def _contents(self, files: Sequence[Any]) -> list[Content]:
        """Return the content of each path or handle; unknown paths are resolved in one call."""
        core = self.core
        if len(files) == 1 and isinstance(files[0], str):
            return [core.meta.content(self._strip_protocol(files[0]))]
        if len(files) == 1 and type(files[0]) is int:
            return [core.handles.content(files[0])]
        strip = self._strip_protocol
        paths = [
            # A call for each would cost as much as all else together: see _strip_protocol.
            f if type(f) is str and f[:1] == "/" != f[-1] and "//" not in f else strip(f)
            for f in files
            if isinstance(f, (str, os.PathLike))
        ]
        found = core.meta.contents(paths) if paths else []
        if len(paths) == len(files):
            return found
        following = iter(found)
        return [
            next(following)
            if isinstance(f, (str, os.PathLike))
            else core.handles.content(_handle(f))
            for f in files
        ]

    def _resolve_again(
        self, files: Sequence[Any], contents: list[Content], error: ChunkMissingError
    ) -> list[Content]:
        """Return the contents as they are now, if a path that was read has changed since."""
        named = error.where.get("path")
        for file, content in zip(files, contents, strict=True):
            if content.path == named and not isinstance(file, (str, os.PathLike)):
                self.explain_missing(content, error)
        self.core.meta.memory.invalidate(*{c.path for c in contents})
        fresh = self._contents(files)
        if all(new.same_bytes(old) for new, old in zip(fresh, contents, strict=True)):
            raise error
        return fresh

    def open_many(self, paths: Sequence[Any]) -> npt.NDArray[np.uint64]:
        """Resolve many files once, for any number of reads; return their handles.

        A handle keeps the content it was opened with and costs no metadata traffic any more. It
        belongs to this object; pickled copies open their own. Numbers are never used again;
        memory follows how many handles are open.
        Raises:  the first path's error, if any; no handle is kept then
        """
        opened: list[Content] = []
        for content in self.core.meta.open_many([self._strip_protocol(p) for p in paths]):
            if isinstance(content, FFSError):
                raise content
            opened.append(content)
        return self.core.handles.add(opened)

    def close_handles(self, handles: Sequence[int]) -> None:
        """Let handles of `open_many` go."""
        self.core.handles.forget(handles)

    def read_counters(self) -> dict[str, int]:
        """Return what happened to ranges that this object read: see docs/client.md, "Replicas".

        Fork: the child's go on from the parent's
        """
        return self.core.settler.replicas.counters.as_dict()

    def trace_read(self, path: Any, offset: int = 0, length: int | None = None) -> TracedRead:
        """Read a range of a file, to its end without `length`, and return where the time went.

        The bytes are dropped. Where a tracer of OpenTelemetry is set up it gets the same as spans.
        """
        core = self.core
        content = core.meta.content(self._strip_protocol(path))
        length = content.size - offset if length is None else length
        read = traced.read(core.reader, content, offset, length, core.clock)
        telemetry.export(read)
        return read

    def slow_reads(self) -> list[SlowCall]:
        """Return the reads of this process that took longest in the last minute, a few."""
        return traced.slow_calls()

    def transports(self) -> dict[str, dict[str, str]]:
        """Return how bytes travel to and from each node that this object has used, and why not in a
        better way: {"host:port": {"transport": "same host" | "rdma DEVICE" | "tcp", "why": ...}}.
        """
        return self.core.connections.transports()

    # --- files ----------------------------------------------------------------------------------

    def open(
        self,
        path: Any,
        mode: str = "rb",
        block_size: int | None = None,
        cache_options: Any = None,
        compression: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Open a file: rb, wb, xb or ab, and the text forms of these.

        A written file appears when it is closed, and what was appended behind what the file holds
        then; leaving its `with` block by an exception discards it.
        Args:    chunk_size_bytes, stripe: how a new file is laid out, as for `pipe_file`
        """
        text = {k: kwargs.pop(k) for k in ("encoding", "errors", "newline") if k in kwargs}
        binary = mode if "b" in mode else mode.replace("t", "") + "b"
        file: Any = super().open(path, binary, block_size, cache_options, None, **kwargs)
        codec = get_compression(self._strip_protocol(path), compression)
        if codec is not None:
            file = CompressedFile(file, compr[codec])
        return file if "b" in mode else TextFile(file, **text)

    def _open(
        self,
        path: Any,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: Any = None,
        *,
        cache_type: str | None = None,
        size: int | None = None,
        **layout: int,
    ) -> FFSFile:
        path = self._strip_protocol(path)
        if mode == "rb":
            if layout:
                raise TypeError(f"a file opened for reading takes no {', '.join(layout)}")
            return open_reading(self, path, mode, self.core.meta.content(path))
        create_mode = _CREATE_MODES.get(mode)
        if create_mode is None:
            raise InvalidError(
                f"mode {mode!r} is not supported",
                hint=f"rb and {', '.join(_CREATE_MODES)} are, and their text forms",
                path=path,
            )
        return open_writing(
            self,
            path,
            mode,
            lambda: self._writer(path, create_mode, **layout),
            autocommit=autocommit,
        )


def _columns(ranges: Any) -> tuple[tuple[Any, ...], tuple[int, ...], tuple[int, ...]]:
    """Return the files, offsets and lengths of a sequence of ranges."""
    try:
        if not ranges:
            return (), (), ()
        files, offsets, lengths = zip(*ranges, strict=True)
        # index: NumPy's integers would wrap in the sums to come.
        return files, tuple(map(index, offsets)), tuple(map(index, lengths))
    except (TypeError, ValueError) as error:
        raise _no_ranges(ranges) from error


def _handle(file: Any) -> int:
    try:
        return index(file)
    except TypeError as error:
        raise _no_ranges(file) from error


def _no_ranges(given: Any) -> InvalidError:
    return InvalidError(
        "ranges is no sequence of (path or handle, offset, length)",
        hint="pass a list of such tuples, or an array of RANGE_DTYPE",
        given=type(given).__name__,
    )
