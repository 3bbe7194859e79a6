"""Arrow IPC files and streams as record batches over memory that the read path has filled.

Role: public through ffs/arrow.py. A file is opened with two small reads at most (its end, which
names the place of every batch); a batch is one read, or two where only some columns are wanted:
client/file.py -> client/reader.py -> ffs._reader, which receives each part at its final place.
pyarrow makes the arrays over that memory.

Copies: none in user space for what is not compressed (none at all where it is mapped); pyarrow
        decompresses what is, which is a copy into memory of its own. Of some columns only their
        bytes are read; the places of the others are never touched, and take no memory.
Alignment: a batch's body starts at a multiple of 64 bytes in memory; where its buffers start within
        it is the writer's choice (pyarrow's: multiples of 8 by default).
Threads: any number may read batches of one file; Fork: as FFSFile.
Failure: errors of ffs.errors from reading; pyarrow.ArrowInvalid for what is no Arrow file.
"""

from __future__ import annotations

import mmap
import struct
import threading
from collections.abc import Iterator, Sequence
from operator import index
from types import ModuleType, TracebackType
from typing import Any, Final, NamedTuple, Self

import fsspec.core

from ffs.client import _fork
from ffs.client.arrow_layout import (
    TRAILER,
    BatchLayout,
    Block,
    LayoutError,
    batch_layout,
    buffer_count,
    footer_blocks,
)
from ffs.client.buffers import ALIGNMENT, aligned_view
from ffs.client.file import FFSFile
from ffs.client.filesystem import FFSFileSystem
from ffs.errors import ConfigError, InvalidError

TAIL_BYTES: Final = 64 << 10
"""Read from a file's end at once: its footer has 24 bytes a batch, and the schema."""
WINDOW_BYTES: Final = 16 << 10
"""Read at once of a stream where its next message's metadata is."""
GAP_BYTES: Final = 4 << 10
"""Wanted buffers that are no further apart are read together: the block between them travels
anyway, for its checksum."""


class _Range(NamedTuple):
    """Bytes of the file, and where they go in the memory of the call."""

    offset: int
    length: int
    place: int


def _pyarrow() -> ModuleType:
    try:
        import pyarrow.ipc
    except ImportError as error:
        raise ConfigError(
            f"this installation cannot read Arrow files: {error}", hint="pip install 'ffs[arrow]'"
        ) from error
    return pyarrow  # type: ignore[no-any-return]  # pyarrow has no types


class _Source:
    """A file as pyarrow's readers see it: buffers of what is at hand, the rest fetched on demand.

    What pyarrow asks for by `read_buffer` it keeps as it is, without a copy.
    """

    closed = False

    def __init__(self, file: FFSFile, window_bytes: int = 0) -> None:
        self._file = file
        self._window_bytes = window_bytes
        self._position = 0
        self._held: dict[object, tuple[int, memoryview]] = {}

    def hold(self, start: int, data: memoryview) -> object:
        """Answer from `data`, which is at `start` of the file, until `release` of the result."""
        token = object()
        self._held[token] = (start, data)
        return token

    def release(self, token: object) -> None:
        """Let held memory go; who got a buffer of it still has that."""
        del self._held[token]

    def read_buffer(self, count: int = -1) -> memoryview:
        """Return the next bytes."""
        left = max(self._file.size - self._position, 0)
        count = left if count < 0 else min(count, left)
        start, self._position = self._position, self._position + count
        for held, data in reversed(tuple(self._held.values())):
            if held <= start and start + count <= held + len(data):
                return data[start - held : start - held + count]
        if count > self._window_bytes // 2:
            return self._fetch(start, count)
        window = self._fetch(start, min(self._window_bytes, left))
        self._held = {self: (start, window)}
        return window[:count]

    def _fetch(self, offset: int, length: int) -> memoryview:
        out = aligned_view(length)
        self._file.read_scattered((offset,), (length,), (0,), out)
        return out

    def read(self, count: int = -1) -> bytes:
        """Return the next bytes, copied."""
        return bytes(self.read_buffer(count))

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move; pyarrow asks for positions from the start, and for the end."""
        self._position = offset if whence == 0 else self._file.size + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Close nothing: the file is its opener's."""


class RecordBatchFile:
    """An Arrow IPC file. Record batches by index, each read when it is asked for.

    Args:    columns: names of top-level columns to read, in this order; None: all;
             memory: the file mapped, if it is: batches are made over it then
    """

    def __init__(
        self,
        file: FFSFile,
        columns: Sequence[str] | None = None,
        memory: memoryview | None = None,
    ) -> None:
        pa = _pyarrow()
        self._arrow = pa
        self._file = file
        self._memory = memory
        self._source = _Source(file)
        tail_start, tail = self._tail()
        self._source.hold(tail_start, tail)
        self._reader = pa.ipc.open_file(pa.PythonFile(self._source, mode="r"))
        footer_length, _ = TRAILER.unpack(tail[-TRAILER.size :])
        footer = bytes(tail[-TRAILER.size - footer_length : -TRAILER.size])
        dictionaries, self._blocks = footer_blocks(footer)
        self._lock = threading.Lock()
        _fork.register(self)
        self._columns = _column_indices(self._reader.schema, columns)
        self._decompressing = self._reader
        if self._columns is not None:
            options = pa.ipc.IpcReadOptions(included_fields=sorted(set(self._columns)))
            wrapped = pa.PythonFile(self._source, mode="r")
            self._decompressing = pa.ipc.open_file(wrapped, options=options)
        self._loading = {self._reader, self._decompressing} if dictionaries else set()

    @property
    def schema(self) -> Any:
        """The schema of the batches: of the wanted columns."""
        schema = self._reader.schema
        if self._columns is None:
            return schema
        return self._arrow.schema([schema.field(i) for i in self._columns], schema.metadata)

    @property
    def num_record_batches(self) -> int:
        """How many batches the file has."""
        return len(self._blocks)

    def get_batch(self, i: int) -> Any:
        """Read one record batch.

        Copies:  0 in user space, unless it is compressed
        """
        return self.get_batches((i,))[0]

    def get_batches(self, indices: Sequence[int]) -> list[Any]:
        """Read some record batches by one call of the read path.

        They share one piece of memory, which lives as long as any of them.
        Copies:  0 in user space, unless they are compressed
        """
        wanted = [index(i) for i in indices]
        for i in wanted:
            if not 0 <= i < len(self._blocks):
                raise InvalidError(
                    f"no record batch {i}",
                    hint=f"the file has {len(self._blocks)}, counted from 0",
                    path=self._file.path,
                )
        blocks = [self._blocks[i] for i in wanted]
        if self._memory is not None:
            return self._mapped(self._memory, wanted)
        places, total = _places(blocks)
        layouts = self._layouts(blocks)
        ranges = [
            part
            for block, place, layout in zip(blocks, places, layouts, strict=True)
            for part in self._parts(block, place, layout)
        ]
        out = aligned_view(total) if self._columns is None else _sparse(total)
        self._read(ranges, out)
        return [
            self._make(i, block, out[place : place + block.length], layout)
            for i, block, place, layout in zip(wanted, blocks, places, layouts, strict=True)
        ]

    def read_all(self) -> Any:
        """Read the whole file as a table."""
        batches = self.get_batches(range(len(self._blocks)))
        return self._arrow.Table.from_batches(batches, self.schema)

    def close(self) -> None:
        """Close the file; batches that were read stay."""
        self._memory = None
        self._file.close()

    def __len__(self) -> int:
        return len(self._blocks)

    def __iter__(self) -> Iterator[Any]:
        return (self.get_batch(i) for i in range(len(self._blocks)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: object, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _mapped(self, memory: memoryview, wanted: Sequence[int]) -> list[Any]:
        """Make batches over the mapped file."""
        batches = []
        for i in wanted:
            block, layout = self._blocks[i], None
            data = memory[block.offset : block.offset + block.length]
            if self._columns is not None:
                layout = _layout_or_none(bytes(data[: block.metadata_length]), block)
            batches.append(self._make(i, block, data, layout))
        return batches

    # --- which bytes ----------------------------------------------------------------------------

    def _read(self, ranges: Sequence[_Range], out: memoryview) -> None:
        offsets, lengths, places = ([r[i] for r in ranges] for i in range(3))
        self._file.read_scattered(offsets, lengths, places, out)

    def _tail(self) -> tuple[int, memoryview]:
        """Return the file's end with the whole footer in it, and where that is in the file."""
        size = self._file.size
        start = max(0, size - TAIL_BYTES) & -ALIGNMENT  # where the writer aligned, this does
        tail = self._source._fetch(start, size - start)
        if len(tail) < TRAILER.size:
            return start, tail
        footer_length, _ = TRAILER.unpack(tail[-TRAILER.size :])
        first = size - TRAILER.size - footer_length
        if 0 <= first < start:
            first &= -ALIGNMENT
            return first, self._source._fetch(first, size - first)
        return start, tail

    def _layouts(self, blocks: Sequence[Block]) -> list[BatchLayout | None]:
        """Return the buffers of each block; None for one of which everything is to be read."""
        if self._columns is None or not blocks:
            return [None] * len(blocks)
        places = [0]
        for block in blocks:
            places.append(places[-1] + block.metadata_length)
        out = aligned_view(places[-1])
        ranges = zip(blocks, places, strict=False)
        self._read([_Range(b.offset, b.metadata_length, place) for b, place in ranges], out)
        return [
            _layout_or_none(bytes(out[place : place + block.metadata_length]), block)
            for block, place in zip(blocks, places, strict=False)
        ]

    def _parts(self, block: Block, place: int, layout: BatchLayout | None) -> list[_Range]:
        """Return what to read of a block whose memory begins at `place`."""
        chosen = self._chosen(layout) if layout is not None else None
        if chosen is None:
            return [_Range(block.offset, block.length, place)]
        parts = [(0, block.metadata_length)]
        for offset, length in sorted(chosen):
            start, (last, last_length) = block.metadata_length + offset, parts[-1]
            if start <= last + last_length + GAP_BYTES:
                parts[-1] = (last, max(last_length, start + length - last))
            else:
                parts.append((start, length))
        return [_Range(block.offset + start, length, place + start) for start, length in parts]

    def _chosen(self, layout: BatchLayout) -> list[tuple[int, int]] | None:
        """Return the buffers of the wanted columns; None if it is not clear which they are."""
        types, chosen, first = self._arrow.types, list[tuple[int, int]](), 0
        assert self._columns is not None
        try:
            for i, field in enumerate(self._reader.schema):
                count = buffer_count(field.type, types)
                if i in self._columns:
                    chosen += layout.buffers[first : first + count]
                first += count
        except LayoutError:
            return None
        return chosen if first == len(layout.buffers) else None

    def _make(self, i: int, block: Block, data: memoryview, layout: BatchLayout | None) -> Any:
        """Have pyarrow make a batch over its memory."""
        token = self._source.hold(block.offset, data)
        try:
            if self._columns is None:
                return self._get(self._reader, i)
            if layout is None or layout.compressed:
                batch = self._get(self._decompressing, i)
                return batch.select([self._reader.schema.field(c).name for c in self._columns])
            return self._get(self._reader, i).select(self._columns)
        finally:
            self._source.release(token)

    def _get(self, reader: Any, i: int) -> Any:
        """Make a batch. The first that a reader makes loads the file's dictionaries, which pyarrow
        does not expect of two threads at once."""
        if reader not in self._loading:
            return reader.get_batch(i)
        with self._lock:
            batch = reader.get_batch(i)
            self._loading.discard(reader)
        return batch

    def after_fork_in_child(self) -> None:
        """Take a new lock: a thread that is not here may hold the old one. The mapping
        is not here either."""
        self._lock = threading.Lock()
        self._memory = None


def _column_indices(schema: Any, columns: Sequence[str] | None) -> list[int] | None:
    if columns is None:
        return None
    indices = [schema.get_field_index(name) for name in columns]
    for name, i in zip(columns, indices, strict=True):
        if i < 0:
            raise InvalidError(
                f"no one column is named {name!r}", hint=f"there are {', '.join(schema.names)}"
            )
    return indices


def _layout_or_none(metadata: bytes, block: Block) -> BatchLayout | None:
    try:
        return batch_layout(metadata, block.body_length)
    except (struct.error, LayoutError):
        return None  # pyarrow will say what is wrong with it


def _places(blocks: Sequence[Block]) -> tuple[list[int], int]:
    """Lay blocks out one after the other so that each body is aligned; return where each begins,
    and the length of all."""
    places, end = [], 0
    for block in blocks:
        body = end + block.metadata_length
        body += -body % ALIGNMENT
        places.append(body - block.metadata_length)
        end = body + block.body_length
    return places, end


def _sparse(length: int) -> memoryview:
    """Return memory of which only what is touched exists."""
    return memoryview(mmap.mmap(-1, max(length, 1)))[:length]


def _open(path: Any, fs: FFSFileSystem | None) -> FFSFile:
    if fs is None:
        fs, path = fsspec.core.url_to_fs(path)
    if not isinstance(fs, FFSFileSystem):
        raise InvalidError(
            f"fs is a {type(fs).__name__}",
            hint="pass an FFSFileSystem, or a URL that begins ffs://",
        )
    file: FFSFile = fs.open(path, "rb", compression=None)
    return file


def open_file(
    path: Any,
    *,
    fs: FFSFileSystem | None = None,
    columns: Sequence[str] | None = None,
    map: bool = False,  # noqa: A002 - what `read_buffer` calls it
) -> RecordBatchFile:
    """Open an Arrow IPC file (Feather 2); `path` is an ffs:// URL, or a path of `fs`.

    Args:    columns: top-level columns to read, in this order; only their bytes travel;
             map: as of `FFSFileSystem.read_buffer`: batches are views of the daemons' files, which
             were checked as a whole here; where that cannot be, batches are read as without
    Raises:  pyarrow.ArrowInvalid for what is no such file; ConfigError without pyarrow
    Copies:  0 in user space, unless the file is compressed
    """
    _pyarrow()
    file = _open(path, fs)
    return RecordBatchFile(file, columns, file.map_whole() if map else None)


def open_stream(path: Any, *, fs: FFSFileSystem | None = None) -> Any:
    """Open a file that holds an Arrow IPC stream; return pyarrow's RecordBatchStreamReader.

    Copies:  0 in user space, unless the stream is compressed
    """
    pa = _pyarrow()
    return pa.ipc.open_stream(pa.PythonFile(_Source(_open(path, fs), WINDOW_BYTES), mode="r"))
