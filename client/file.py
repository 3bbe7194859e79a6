"""Files as Python programs use them: `FFSFile` reads a fixed content or writes a new one.

Role: client/filesystem.py opens these; reads go to client/reader.py, writes to client/writer.py.

Invariants: a file opened for reading shows the bytes that it had at open, whatever happens to the
path; nothing is read ahead but for lines; a file opened for writing appears at close, and not at
all when the `with` block is left by an exception.

Threads: one user at a time (like Python's own files); different files are independent;
Fork: reading goes on in parent and child, each with its own position; writing stays with its
opener.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from operator import index
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from ffs.client.buffers import aligned_view, writable_view
from ffs.client.layouts import Content
from ffs.client.writer import FileWriter, State
from ffs.errors import ChunkMissingError, ClosedError, InvalidError

if TYPE_CHECKING:
    from ffs.client.filesystem import FFSFileSystem

LINE_BYTES: Final = 128 << 10
"""What `readline` reads at once and keeps: a line at a time over the network would be absurd."""

SEQUENTIAL_BYTES: Final = 1 << 20
"""The buffer under text and decompression, which read front to back in small pieces."""


class FFSFile(io.RawIOBase):
    """A file of an FFSFileSystem, opened for reading or for writing."""

    def __init__(self, fs: FFSFileSystem, path: str, mode: str, *, autocommit: bool = True) -> None:
        super().__init__()
        self.fs = fs
        self.path = path
        self.mode = mode
        self.autocommit = autocommit
        self.blocksize = fs.blocksize
        self._position = 0
        self._content: Content | None = None
        self._writer: FileWriter | None = None
        self._window: tuple[int, bytes] = (0, b"")
        self._placing = False

    # --- what it is -----------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The path, as tools that print file names expect."""
        return self.path

    @property
    def size(self) -> int:
        """Bytes in the file; for a file being written, so far."""
        if self._content is not None:
            return self._content.size
        return self._writer.start + self._writer.length if self._writer is not None else 0

    @property
    def details(self) -> dict[str, Any]:
        """What `fs.info` says of the path now."""
        info: dict[str, Any] = self.fs.info(self.path)
        return info

    def info(self) -> dict[str, Any]:
        """Return what `fs.info` says of the path now."""
        return self.details

    @property
    def full_name(self) -> str:
        """The URL."""
        return self.fs.unstrip_protocol(self.path)

    def readable(self) -> bool:
        """Return whether it was opened for reading."""
        return self._content is not None and not self.closed

    def writable(self) -> bool:
        """Return whether it was opened for writing."""
        return self._writer is not None and not self.closed

    def seekable(self) -> bool:
        """Return whether it was opened for reading."""
        return self.readable() or self._placing

    @contextlib.contextmanager
    def placing(self) -> Iterator[None]:
        """Count as seekable while a text wrapper is made.

        Why: it asks for the position only of what is seekable, and has to know it: a byte order
        mark goes to the start of a file, and not to where something is appended.
        """
        self._placing = True
        try:
            yield
        finally:
            self._placing = False

    def __repr__(self) -> str:
        return f"<FFSFile {self.path!r} mode={self.mode!r}{' closed' if self.closed else ''}>"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._content is None or self.closed:
            raise TypeError("only files open for reading can be pickled")
        return reopen, (self.fs, self.path, self.mode, self._position)

    # --- reading --------------------------------------------------------------------------------

    def tell(self) -> int:
        """Return the position; for a file being written, its size so far.

        A file being appended to starts at its size at open; others may append meanwhile.
        """
        self._check_open()
        return self._position if self._writer is None else self.size

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move the position of a file being read; past the end is allowed, reads there are
        empty."""
        content = self._reading()
        offset = index(offset)  # a NumPy integer would wrap when it is added to
        if whence == os.SEEK_CUR:
            offset += self._position
        elif whence == os.SEEK_END:
            offset += content.size
        elif whence != os.SEEK_SET:
            raise InvalidError(f"whence is {whence}, expected 0, 1 or 2", path=self.path)
        if offset < 0:
            raise InvalidError("seek before the start of the file", path=self.path, offset=offset)
        self._position = offset
        return offset

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to `size` bytes, all of what is left if negative.

        Copies:  1 in user space, since bytes cannot be received into; `readinto` has none
        """
        return bytes(self.read_buffer(size))

    def read_buffer(self, size: int | None = -1, /) -> memoryview:
        """Read like `read`, into fresh memory that is handed over without a copy.

        Why: pyarrow calls this, and keeps the memory, which is aligned, as its buffer.
        Copies:  0 in user space; Threads: the engine releases the GIL; Fork: safe
        """
        content = self._reading()
        left = max(content.size - self._position, 0)
        count = left if size is None or size < 0 else min(size, left)
        out = aligned_view(count)
        self._read(content, out)
        return out

    def read_scattered(
        self, offsets: Sequence[int], lengths: Sequence[int], places: Sequence[int], out: memoryview
    ) -> None:
        """Read ranges of the file, each to its own place of `out`; the position stays.

        Copies:  0 in user space; Threads: any, the engine releases the GIL; Fork: safe
        """
        content = self._reading()
        try:
            contents = (content,) * len(offsets)
            self.fs.core.reader.read_scattered(contents, offsets, lengths, places, out)
        except ChunkMissingError as error:
            self.fs.explain_missing(content, error)
            raise

    def map_whole(self) -> memoryview | None:
        """Return the file as memory (see FFSFileSystem.read_buffer); None if it cannot be mapped.

        Copies:  0 in user space; Threads: any; Fork: the child must not touch it
        """
        content = self._reading()
        return self.fs.core.reader.map_range(content, 0, content.size) if content.size else None

    def readinto(self, buffer: Any, /) -> int:
        """Read into the caller's memory; return how many bytes, 0 at the end.

        Copies:  0 in user space; Threads: the engine releases the GIL; Fork: safe
        """
        content = self._reading()
        view = writable_view(buffer)
        left = content.size - self._position
        if left < len(view):
            view = view[: max(left, 0)]
        self._read(content, view)
        return len(view)

    def readinto1(self, buffer: Any, /) -> int:
        """Read into the caller's memory: the same as `readinto`."""
        return self.readinto(buffer)

    def readall(self) -> bytes:
        """Read what is left."""
        return self.read(-1)

    def read1(self, size: int = -1, /) -> bytes:
        """Read up to `size` bytes: the same as `read`."""
        return self.read(size)

    def readline(self, size: int | None = -1, /) -> bytes:
        """Read to the next newline, or `size` bytes.

        Why: reads LINE_BYTES at once and remembers them; the content is fixed, so they stay right.
        """
        content = self._reading()
        limit = content.size if size is None or size < 0 else size
        parts: list[bytes] = []
        while limit > 0 and self._position < content.size:
            piece = self._line_bytes(content)[:limit]
            newline = piece.find(b"\n")
            if newline >= 0:
                piece = piece[: newline + 1]
            parts.append(piece)
            self._position += len(piece)
            limit -= len(piece)
            if newline >= 0:
                break
        return b"".join(parts)

    def _line_bytes(self, content: Content) -> bytes:
        """Return what the window holds from the position on, filling it if that is nothing."""
        start, held = self._window
        if not start <= self._position < start + len(held):
            start = self._position
            count = min(LINE_BYTES, content.size - start)
            view = memoryview(bytearray(count))
            self._fetch(content, start, view)
            held = bytes(view)
            self._window = (start, held)
        newline = held.find(b"\n", self._position - start)
        end = newline + 1 if newline >= 0 else len(held)
        return held[self._position - start : end]

    def _read(self, content: Content, out: memoryview) -> None:
        if len(out):
            self._fetch(content, self._position, out)
            self._position += len(out)

    def _fetch(self, content: Content, offset: int, out: memoryview) -> None:
        core = self.fs.core
        try:
            core.reader.read_range(content, offset, len(out), out)
        except ChunkMissingError as error:
            self.fs.explain_missing(content, error)
            raise

    def _reading(self) -> Content:
        self._check_open()
        if self._content is None:
            raise io.UnsupportedOperation(f"{self.path!r} is open for writing")
        return self._content

    # --- writing --------------------------------------------------------------------------------

    def write(self, data: Any, /) -> int:
        """Append bytes to the file being written.

        Copies:  see client/writer.py; Threads: the engine releases the GIL
        """
        return self._writing().write(data)

    def flush(self) -> None:
        """Send what makes whole chunks; bytes become durable at close."""
        if self._writer is not None and self._writer.state is State.OPEN:
            self._writer.flush()

    def close(self) -> None:
        """End the file: one being written becomes durable and, with autocommit, visible."""
        if self.closed:
            return
        try:
            writer = self._writer
            if writer is not None and writer.state is State.OPEN:
                writer.seal()
                if self.autocommit:
                    self.commit()
        finally:
            super().close()

    def commit(self) -> None:
        """Make a written file visible; transactions call this after the files were closed."""
        if self._writer is None:
            return
        if self._writer.state is State.OPEN:
            self._writer.seal()
        try:
            self._writer.publish()
        except BaseException:
            self._writer.discard()
            raise

    def discard(self) -> None:
        """Give a written file up; the path keeps its old content."""
        if self._writer is not None:
            self._writer.discard()
        if not self.closed:
            super().close()

    def truncate(self, size: int | None = None, /) -> int:
        """Refuse: a file is written from front to back."""
        raise io.UnsupportedOperation("truncate: files are written from front to back")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None and self._writer is not None:
            self.discard()
        else:
            self.close()

    def __del__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """End a file that its owner dropped: what was written is discarded, without a word."""
        writer = getattr(self, "_writer", None)
        if writer is not None and not self.closed:
            writer.forget()
        try:
            super().close()
        except Exception:  # noqa: BLE001 - an object's end has nobody to tell
            pass

    def _writing(self) -> FileWriter:
        self._check_open()
        if self._writer is None:
            raise io.UnsupportedOperation(f"{self.path!r} is open for reading")
        return self._writer

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedError("the file has been closed", path=self.path)


class _Wrapper(io.IOBase):
    """What the wrappers of a file share: one that is not finished is discarded, never published."""

    _file: FFSFile | CompressedFile

    def discard(self) -> None:
        """Give a written file up."""
        self._file.discard()

    def forget(self) -> None:
        """End a file that its owner dropped: what was written is discarded."""
        self._file.forget()

    def __del__(self) -> None:
        # Not the standard end, which closes, and so would publish half a file.
        self.forget()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None and self._file.writable():
            self.discard()
        else:
            self.close()


class CompressedFile(_Wrapper, io.BufferedIOBase):
    """A compressor or decompressor over an FFSFile, which it owns.

    Why: the standard ones leave the file below open; here closing closes both, and an exception
    discards what was written.
    """

    def __init__(self, file: FFSFile, codec: Callable[..., Any]) -> None:
        super().__init__()
        self._file = file
        # A decompressor reads small pieces in order.
        below: Any = io.BufferedReader(file, SEQUENTIAL_BYTES) if file.readable() else file
        self._inner: Any = codec(below, mode=file.mode[0])

    def readable(self) -> bool:
        """Return whether it was opened for reading."""
        return self._file.readable()

    def writable(self) -> bool:
        """Return whether it was opened for writing."""
        return self._file.writable()

    def seekable(self) -> bool:
        """Return whether the decompressor can seek."""
        return bool(self._inner.seekable())

    def tell(self) -> int:
        """Return the position in the uncompressed bytes."""
        return int(self._inner.tell())

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move in the uncompressed bytes, reading what lies between."""
        return int(self._inner.seek(offset, whence))

    def read(self, size: int | None = -1, /) -> bytes:
        """Read uncompressed bytes."""
        return bytes(self._inner.read(-1 if size is None else size))

    def read1(self, size: int = -1, /) -> bytes:
        """Read uncompressed bytes."""
        return self.read(size if size >= 0 else SEQUENTIAL_BYTES)

    def readline(self, size: int | None = -1, /) -> bytes:
        """Read a line of uncompressed bytes."""
        return bytes(self._inner.readline(-1 if size is None else size))

    def write(self, data: Any, /) -> int:
        """Compress and write."""
        return int(self._inner.write(data))

    def discard(self) -> None:
        """Give a written file up."""
        self._file.discard()
        self.close()

    def close(self) -> None:
        """End the compressed stream, then the file."""
        if self.closed:
            return
        try:
            if not self._file.closed:
                self._inner.close()
        finally:
            self._file.close()
            super().close()


class TextFile(_Wrapper, io.TextIOWrapper):
    """A text file that, unlike the standard wrapper, discards what an exception interrupted."""

    def __init__(self, file: FFSFile | CompressedFile, **options: Any) -> None:
        self._file = file
        # Text is read front to back in small pieces: here, and only here, a buffer reads ahead.
        raw: Any = file
        if isinstance(file, FFSFile) and file.readable():
            raw = io.BufferedReader(file, SEQUENTIAL_BYTES)
        with file.placing() if isinstance(file, FFSFile) else contextlib.nullcontext():
            super().__init__(raw, **options)


def open_reading(fs: FFSFileSystem, path: str, mode: str, content: Content) -> FFSFile:
    """Return a file that reads `content`."""
    file = FFSFile(fs, path, mode)
    file._content = content
    return file


def open_writing(
    fs: FFSFileSystem, path: str, mode: str, make: Callable[[], FileWriter], *, autocommit: bool
) -> FFSFile:
    """Return a file that writes through the writer that `make` opens."""
    file = FFSFile(fs, path, mode, autocommit=autocommit)
    file._writer = make()
    return file


def reopen(fs: FFSFileSystem, path: str, mode: str, position: int) -> FFSFile:
    """Return an unpickled file at its position; its content is the path's content now."""
    file: FFSFile = fs.open(path, mode)
    file.seek(min(position, file.size))
    return file
