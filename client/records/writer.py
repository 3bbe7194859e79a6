"""Writes files of records, sample by sample: our own container, or FFRecord.

First hop: THIS -> sinks.py -> client/writer.py. The formats are container.py and ffrecord.py.

Invariants: a file appears at `close`, whole; one that is given up, by an exception in the `with`
block or by the process's end, leaves the path as it was, also when it was appended to.
Failure behaviour: InvalidError for FFRecord samples beyond `count`, or for fewer at the end;
VersionError when somebody changed a file while it was appended to.
Threads: one at a time; Fork: a writer belongs to the process that opened it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Literal, Self

import numpy as np

from ffs import _reader
from ffs.client.buffers import flat_view
from ffs.client.filesystem import FFSFileSystem
from ffs.client.records import container, ffrecord
from ffs.client.records.files import FFSFiles, Files, LocalFiles, file_system, local_path
from ffs.client.records.opening import parse_files, read_pieces
from ffs.client.records.parts import VARIES, Checksum, Part
from ffs.client.records.sinks import FFSSink, LocalSink, Mode, Sink, check_mode
from ffs.errors import ClosedError, FormatError, InvalidError
from ffs.types import BLOCK_BYTES

Format = Literal["ffs", "ffrecord"]
INDEX_PIECE_BYTES: Final = 16 << 20


class Writer(ABC):
    """A file of records being written; a context manager that closes it."""

    def __init__(self, sink: Sink, path: str, before: int = 0) -> None:
        self.path = path
        self._sink = sink
        self._before = before
        self._crcs = array("I")
        self._open = True

    def __len__(self) -> int:
        """Return how many samples the file will have, those included that it had before."""
        return self._before + len(self._crcs)

    def append(self, sample: Any) -> int:
        """Add a sample, any bytes-like object; return its number in the file.

        Copies:  see client/writer.py
        """
        if not self._open:
            raise ClosedError("the file of records has been closed", path=self.path)
        view = flat_view(sample)
        self._add(view)
        return len(self) - 1

    def close(self) -> None:
        """End the file: it becomes durable and visible, whole."""
        if not self._open:
            return
        self._open = False
        try:
            self._end()
        except BaseException:
            self._sink.discard()
            raise

    def discard(self) -> None:
        """Give the file up; the path keeps what it had."""
        if self._open:
            self._open = False
            self._sink.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    @abstractmethod
    def _add(self, view: memoryview) -> None:
        """Write a sample."""

    @abstractmethod
    def _end(self) -> None:
        """Write what comes behind the samples, and make the file visible."""


class ContainerWriter(Writer):
    """Writes our own container; keeps four bytes a sample, and eight more once lengths differ."""

    def __init__(self, sink: Sink, path: str, alignment: int, parts: Sequence[Part]) -> None:
        super().__init__(sink, path, sum(part.count for part in parts))
        self._alignment = alignment
        self._parts = list(parts)
        if not sink.position:
            sink.write(container.pack_header(alignment))
        self._data_offset = 0
        self._sample_bytes = 0
        self._bounds: array[int] | None = None

    def _add(self, view: memoryview) -> None:
        sink, length = self._sink, len(view)
        if not self._crcs:
            self._begin(length)
        padding = -sink.position % self._alignment
        if padding:
            sink.write(bytes(padding))
        if not self._crcs:
            self._sample_bytes = length
        elif self._bounds is None and length != self._sample_bytes:
            self._bounds = self._equal_bounds()
        sink.write(view)
        self._crcs.append(_reader.crc32c(view))
        if self._bounds is not None:
            self._bounds.append(sink.position)

    def _begin(self, length: int) -> None:
        """Place the first sample: whole blocks at a block, so that reading one reads no other.

        A read is checked by blocks; behind the header, every sample would begin inside of one.
        """
        whole = length > 0 and length % BLOCK_BYTES == 0
        alignment = max(self._alignment, BLOCK_BYTES) if whole else self._alignment
        self._data_offset = container.samples_begin(self._sink.position, alignment)
        if gap := self._data_offset - self._sink.position:
            self._sink.write(bytes(gap))

    def _equal_bounds(self) -> array[int]:
        """Return the bounds of the samples so far, which have one length."""
        stride = -(-self._sample_bytes // self._alignment) * self._alignment
        first, count = self._data_offset, len(self._crcs)
        bounds = first + np.arange(-1, count, dtype=np.int64) * stride + self._sample_bytes
        bounds[0] = first
        return array("q", bounds.tobytes())

    def _end(self) -> None:
        if self._crcs:
            self._parts.append(self._section())
        if len(self._parts) > container.SECTIONS_MAX:
            raise InvalidError(
                f"a file of records may be appended to {container.SECTIONS_MAX - 1} times",
                hint="`ffs pack` rewrites it as one section",
                path=self.path,
            )
        self._sink.write(container.pack_footer(self._parts, self._sink.position))
        self._sink.finish()

    def _section(self) -> Part:
        """Write the index of the new samples and return what leads to it."""
        sink, bounds = self._sink, self._bounds
        data_end = sink.position
        bounds_at = data_end if bounds is not None else 0
        if bounds is not None:
            _write_array(sink, bounds)
        crcs_at = sink.position
        _write_array(sink, self._crcs)
        return Part(
            file=0,
            count=len(self._crcs),
            checksum=Checksum.CRC32C,
            data_offset=self._data_offset,
            data_end=data_end,
            bounds_source=bounds_at,
            crcs_source=crcs_at,
            sample_bytes=VARIES if bounds is not None else self._sample_bytes,
            bounds_crc=_reader.crc32c(bounds) if bounds is not None else 0,
            crcs_crc=_reader.crc32c(self._crcs),
        )


class FFRecordWriter(Writer):
    """Writes FFRecord; keeps twelve bytes a sample, and the header's room, until the end."""

    def __init__(self, sink: Sink, path: str, count: int) -> None:
        super().__init__(sink, path)
        self._count = count
        self._lengths = array("q")
        sink.reserve(ffrecord.header_bytes(count))

    def _add(self, view: memoryview) -> None:
        if len(self._crcs) == self._count:
            raise InvalidError(
                f"the file was created for {self._count} samples, and has them",
                hint='FFRecord needs their count first; format="ffs" does not',
                path=self.path,
            )
        self._sink.write(view)
        self._crcs.append(_reader.crc32(view))
        self._lengths.append(len(view))

    def _end(self) -> None:
        if len(self._crcs) != self._count:
            raise InvalidError(
                f"the file was created for {self._count} samples, and got {len(self._crcs)}",
                hint='FFRecord needs their count first; format="ffs" does not',
                path=self.path,
            )
        crcs = np.frombuffer(self._crcs, dtype=np.uint32)
        lengths = np.frombuffer(self._lengths, dtype=np.int64)
        self._sink.finish(ffrecord.pack_header(crcs, lengths))


def _write_array(sink: Sink, values: array[int]) -> None:
    with memoryview(values) as view, view.cast("B") as flat:
        for start in range(0, len(flat), INDEX_PIECE_BYTES):
            sink.write(flat[start : start + INDEX_PIECE_BYTES])


def create(
    url: str,
    *,
    count: int | None = None,
    format: Format = "ffs",  # noqa: A002 - what it is
    mode: Mode = "w",
    alignment: int | None = None,
    fs: FFSFileSystem | None = None,
    storage_options: Mapping[str, Any] | None = None,
    **layout: int,
) -> Writer:
    """Create a file of records; it appears, whole, when the writer is closed.

    Args:    count: how many samples there will be: FFRecord must know, our container need not;
             format: "ffs" is our own container, "ffrecord" is for readers of that format;
             mode: "w" replaces what is there, "x" refuses to, "a" appends to a file of our own;
             alignment: begin each sample at a multiple of it, a power of two ("ffs" only);
             chunk_size_bytes, stripe: as for the file system's `open`
    Raises:  InvalidError, ExistsError, NotFoundError, FormatError
    """
    check_mode(mode)
    if format not in ("ffs", "ffrecord"):
        raise InvalidError(f"format {format!r} is not known", hint='"ffs" and "ffrecord" are')
    found = fs or file_system([url], storage_options)
    path = found._strip_protocol(url) if found is not None else local_path(url)
    if format == "ffrecord":
        if count is None or count < 0 or mode == "a" or alignment is not None:
            raise InvalidError(
                "FFRecord takes a count of samples, no alignment, and is not appended to",
                hint='format="ffs" streams and appends',
                path=path,
            )
        return FFRecordWriter(_sink(found, path, mode, None, layout), path, count)
    if mode == "a":
        return _append(found, path, alignment, layout)
    alignment = 1 if alignment is None else alignment
    if not 0 < alignment <= container.ALIGNMENT_MAX or alignment & (alignment - 1):
        raise InvalidError(
            f"alignment {alignment} is no power of two up to {container.ALIGNMENT_MAX}", path=path
        )
    return ContainerWriter(_sink(found, path, mode, None, layout), path, alignment, [])


def _sink(
    fs: FFSFileSystem | None, path: str, mode: Mode, files: Files | None, layout: dict[str, int]
) -> Sink:
    if fs is None:
        if layout:
            raise TypeError(f"a file of this machine takes no {', '.join(layout)}")
        return LocalSink(path, mode)
    expected = None
    if files is not None:
        expected = fs.core.handles.content(int(files.handles[0])).attr
    return FFSSink(fs, path, mode, expected=expected, **layout)


def _append(
    fs: FFSFileSystem | None, path: str, alignment: int | None, layout: dict[str, int]
) -> ContainerWriter:
    """Return a writer behind what a file has."""
    files: Files = LocalFiles([path]) if fs is None else FFSFiles(fs, [path])
    try:
        (head,) = read_pieces(files, [(0, 0, min(files.identities[0].size, 64))])
        if not container.is_ours(head):
            raise FormatError(
                "only files of our own container are appended to",
                hint='`ffs pack` rewrites others; create them with format="ffs"',
                path=path,
            )
        own = container.parse_header(head, path)
        if alignment not in (None, own):
            raise InvalidError(f"the file's samples are aligned to {own}", path=path)
        parts = parse_files(files)
        sink = _sink(fs, path, "a", files, layout)
        if sink.position != files.identities[0].size:
            sink.discard()
            raise InvalidError("the file has changed meanwhile", hint="try again", path=path)
        return ContainerWriter(sink, path, own, parts)
    finally:
        files.close()
