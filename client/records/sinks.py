"""Where a file of records is written to: FFS, or this machine. Nothing is visible before `finish`.

Role: writer.py -> THIS -> client/writer.py, or a file beside the one that is to appear.

Failure behaviour: a sink that is not finished leaves the path as it was.
Threads: one at a time; Fork: a file in FFS belongs to the process that opened it.
"""

from __future__ import annotations

import os
import shutil
from typing import Any, BinaryIO, Literal, Protocol

from ffs.client.buffers import flat_view
from ffs.client.filesystem import FFSFileSystem
from ffs.errors import ExistsError, InvalidError, NotFoundError
from ffs.seams import SystemRandomness
from ffs.types import Attr
from ffs.wire.messages import CreateMode

Mode = Literal["w", "x", "a"]
"""Replace the file, refuse to if there is one, or append to it."""


class Sink(Protocol):
    """A file that is being written, from front to back but for its head."""

    position: int
    """Where the next byte will lie in the file."""

    def reserve(self, length: int) -> None:
        """Leave room for a head that `finish` brings; before anything is written."""

    def write(self, data: Any) -> None:
        """Take bytes."""

    def finish(self, head: bytes = b"") -> None:
        """Put the head into its room and make the file visible."""

    def discard(self) -> None:
        """Give the file up."""


class FFSSink:
    """A file in FFS. Copies: as client/writer.py has them, and one for what is near the head.

    `expected` is the file to append to, as it was read; any change since is a VersionError.
    """

    def __init__(
        self,
        fs: FFSFileSystem,
        path: str,
        mode: Mode,
        *,
        expected: Attr | None = None,
        chunk_size_bytes: int = 0,
        stripe: int = -1,
    ) -> None:
        create = {"w": CreateMode.REPLACE, "x": CreateMode.EXCLUSIVE, "a": CreateMode.APPEND}[mode]
        self._writer = fs._writer(path, create, chunk_size_bytes=chunk_size_bytes, stripe=stripe)
        if expected is not None:
            self._writer.expect(expected)
        self.position = self._writer.start
        self._front: bytearray | None = None
        self._front_bytes = 0

    def reserve(self, length: int) -> None:
        """Keep back the chunks that the head lies in; they are sent at the end."""
        chunk = self._writer.chunk_bytes
        self._front = bytearray(length)
        self._front_bytes = -(-length // chunk) * chunk
        self._writer.leave(self._front_bytes)
        self.position = length

    def write(self, data: Any) -> None:
        """Send bytes, or keep those that share a chunk with the head."""
        view, taken = flat_view(data), 0
        if self._front is not None and len(self._front) < self._front_bytes:
            taken = min(len(view), self._front_bytes - len(self._front))
            self._front += view[:taken]
        if taken < len(view):
            self._writer.write(view[taken:])
        self.position += len(view)

    def finish(self, head: bytes = b"") -> None:
        """Send the rest and publish the file."""
        if self._front is not None:
            self._front[: len(head)] = head
            self._writer.fill(self._front)
        self._writer.seal()
        self._writer.publish()

    def discard(self) -> None:
        """Give the file up; the path keeps its old content."""
        self._writer.discard()

    def __del__(self) -> None:
        writer = getattr(self, "_writer", None)
        if writer is not None:
            writer.forget()


class LocalSink:
    """A file of this machine: written beside its place, and moved there at the end."""

    def __init__(self, path: str, mode: Mode) -> None:
        self._path, self._mode = path, mode
        if mode == "x" and os.path.lexists(path):
            raise ExistsError("name exists", path=path)
        self._partial = f"{path}.{SystemRandomness().token(6).hex()}.partial"
        if parent := os.path.dirname(path):
            os.makedirs(parent, exist_ok=True)
        if mode == "a":
            _copy(path, self._partial)
        self._file: BinaryIO = open(self._partial, "ab" if mode == "a" else "wb")  # noqa: SIM115
        self.position = self._file.tell()

    def reserve(self, length: int) -> None:
        """Begin behind the head."""
        self._file.seek(length)
        self.position = length

    def write(self, data: Any) -> None:
        """Write bytes."""
        view = flat_view(data)
        self._file.write(view)
        self.position += len(view)

    def finish(self, head: bytes = b"") -> None:
        """Write the head, make all durable, and give the file its name."""
        with self._file:
            self._file.flush()
            if head:
                self._file.seek(0)
                self._file.write(head)
            self._file.flush()
            os.fsync(self._file.fileno())
        if self._mode != "x":
            os.replace(self._partial, self._path)
            return
        try:
            os.link(self._partial, self._path)
        except FileExistsError as error:
            raise ExistsError("name exists", path=self._path) from error
        finally:
            os.unlink(self._partial)

    def discard(self) -> None:
        """Remove what was written."""
        if not self._file.closed:
            self._file.close()
            os.unlink(self._partial)

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            self.discard()


def _copy(path: str, target: str) -> None:
    try:
        shutil.copyfile(path, target)
    except FileNotFoundError as error:
        raise NotFoundError("no such file to append to", path=path) from error


def check_mode(mode: str) -> None:
    """Refuse what is no mode."""
    if mode not in ("w", "x", "a"):
        raise InvalidError(
            f"mode {mode!r} is not supported", hint='"w" replaces, "x" creates, "a" appends'
        )
