"""Where a conversion reads and writes: a directory or file in FFS, or on this machine.

Role: every source and target of this package goes through THIS; next hops are fsspec's file systems
for reading, and client/records/sinks.py for writing, so that a file is there whole or not at all.
"""

from __future__ import annotations

import io
import posixpath
from collections.abc import Sequence
from typing import Any, NamedTuple

import fsspec

from ffs.client.filesystem import FFSFileSystem
from ffs.client.records.files import local_path
from ffs.client.records.sinks import FFSSink, LocalSink, Sink
from ffs.errors import NotFoundError

BUFFER_BYTES = 4 << 20


class Entry(NamedTuple):
    """A file below a place: its path relative to it, and what tells whether it was changed."""

    name: str
    size: int
    mtime: str


class Place:
    """A path with the file system that it is in; `fs` None is this machine."""

    def __init__(self, fs: FFSFileSystem | None, path: str) -> None:
        self.ours = fs
        self.fs: Any = fs if fs is not None else fsspec.filesystem("file")
        self.path = path if fs is not None else self.fs._strip_protocol(local_path(path))

    def join(self, name: str) -> str:
        """Return the path of a name below."""
        return posixpath.join(self.path, name) if name else self.path

    def isdir(self) -> bool:
        """Return whether it is a directory."""
        return bool(self.fs.isdir(self.path))

    def files(self) -> list[Entry]:
        """Return the files below, or the file itself under the name "", in the order of names."""
        if not self.fs.exists(self.path):
            raise NotFoundError("no such file or directory", path=self.path)
        found = self.fs.find(self.path, detail=True)
        return sorted(
            Entry(
                posixpath.relpath(path, self.path) if path != self.path else "",
                info["size"],
                str(info.get("mtime", info.get("created", ""))),
            )
            for path, info in found.items()
            if info["type"] == "file"
        )

    def names(self) -> set[str]:
        """Return the names of what lies directly in the directory; none if it is not there."""
        if not self.isdir():
            return set()
        return {posixpath.basename(path) for path in self.fs.ls(self.path, detail=False)}

    def read(self, name: str = "") -> bytes:
        """Return a small file."""
        data: bytes = self.fs.cat_file(self.join(name))
        return data

    def open(self, name: str = "", buffer_bytes: int = BUFFER_BYTES) -> Any:
        """Open a file for reading front to back, or here and there."""
        if self.ours is None:
            return open(self.join(name), "rb", buffer_bytes)
        return io.BufferedReader(self.ours.open(self.join(name), "rb"), buffer_bytes)

    def sink(self, name: str) -> Sink:
        """Return what writes a file, which is there whole once it is finished."""
        path = self.join(name)
        return LocalSink(path, "w") if self.ours is None else FFSSink(self.ours, path, "w")

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, whole or not at all."""
        sink = self.sink(name)
        sink.write(data)
        sink.finish()

    def write_many(self, files: Sequence[tuple[str, bytes]]) -> None:
        """Write small files, each whole or not at all."""
        if self.ours is not None:
            self.ours.pipe({self.join(name): data for name, data in files})
            return
        for name, data in files:
            self.write(name, data)

    def remove(self, name: str) -> None:
        """Remove a file."""
        self.fs.rm_file(self.join(name))


class SinkFile(io.RawIOBase):
    """A sink as the file object that other libraries write to; `finish` makes it visible."""

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self.sink = sink

    def writable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return how much was written."""
        return self.sink.position

    def write(self, data: Any, /) -> int:
        """Write all of `data`."""
        self.sink.write(data)
        return memoryview(data).nbytes
