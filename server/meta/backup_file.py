"""The file that a backup of the metadata is: framed, every byte checked, the same for all engines.

Previous hop: `backup` gives and takes rows. Next hop: the file. Layout, little-endian:

    magic "FFSBACK\\n", u32 format
    frame*: u32 length, u32 CRC-32 of length and payload, payload

A payload is a run of msgpack values, at least one. The first frame is [schema version, cluster id,
time]. Then for each table one frame [name, [columns]] and frames of rows. The last frame is
{table: rows} and the BLAKE2b of every byte of the file before it; nothing follows it.

Invariants: a file under its final name is whole, since it is written under another, synced and then
renamed; nothing that is there already is replaced, for it may be the last good backup, or the very
database; neither side holds more than a frame in memory. Failure: whatever is not exactly as it was
written is a FormatError that says at which offset.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import msgpack

from ffs.errors import (
    ExistsError,
    FFSError,
    FormatError,
    LockedError,
    NativeError,
    NoSpaceError,
)
from ffs.server.meta.store import Row

MAGIC: Final = b"FFSBACK\n"
FORMAT: Final = 1
PARTIAL_SUFFIX: Final = ".partial"

_FORMAT: Final = struct.Struct("<I")
_FRAME: Final = struct.Struct("<II")
HEADING_OFFSET: Final = len(MAGIC) + _FORMAT.size

_FRAME_BYTES: Final = 1 << 20
"""A frame of rows is closed when it has become so long."""
_FRAME_BYTES_MAX: Final = 64 << 20
"""One row holds at most one recorded reply, which an RPC frame had room for."""
_NAME: Final = re.compile(r"[a-z_]{1,64}")
_DAMAGED_HINT: Final = "the file is damaged: use another backup"
_VALUE_TYPES: Final = frozenset({int, bytes, str, type(None)})


@dataclass(frozen=True, slots=True)
class Heading:
    """What a backup is of."""

    schema_version: int
    cluster_id: bytes
    time_ns: int


@dataclass(frozen=True, slots=True)
class Table:
    """The beginning of a table in the file; its rows follow."""

    name: str
    columns: tuple[str, ...]


class BackupWriter:
    """Writes a backup; `finish` makes it appear under its name, leaving without it takes it away.

    Raises:  ExistsError: something has that name; LockedError: another one is being written there;
             NoSpaceError, NativeError
    """

    def __init__(self, path: Path, heading: Heading) -> None:
        self.rows: dict[str, int] = {}
        self._path = path
        self._partial = path.with_name(path.name + PARTIAL_SUFFIX)
        self._digest = hashlib.blake2b(digest_size=32)
        self._packer = msgpack.Packer()
        self._open = bytearray()
        self._table = ""
        self._finished = False
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file: BinaryIO = os.fdopen(self._open_partial(), "wb")
        except FFSError:
            raise
        except OSError as error:
            raise _unwritable(self._partial, error) from error
        self._write(MAGIC + _FORMAT.pack(FORMAT))
        self._frame([heading.schema_version, heading.cluster_id, heading.time_ns])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._finished:
            # What is buffered may find no room either: what failed first is what is told.
            with contextlib.suppress(OSError):
                self._file.close()
            self._partial.unlink(missing_ok=True)

    def _open_partial(self) -> int:
        """Open the unfinished file for this writer alone; a killed one's is begun anew."""
        self._check_free()
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self._partial, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._check_free()  # another writer may have given this file its name meanwhile
            os.ftruncate(descriptor, 0)
        except BlockingIOError as error:
            os.close(descriptor)
            raise LockedError(
                "another backup is being written there",
                hint="wait for it, or name another file",
                path=os.fspath(self._path),
            ) from error
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _check_free(self) -> None:
        if os.path.lexists(self._path):
            raise ExistsError(
                "a backup replaces nothing, and this name is taken",
                hint="name a new file",
                path=os.fspath(self._path),
            )

    def table(self, name: str, columns: Sequence[str]) -> None:
        """Begin a table."""
        self._flush()
        self._frame([name, list(columns)])
        self._table = name
        self.rows[name] = 0

    def add(self, rows: Sequence[Row]) -> int:
        """Write rows of the table that was begun last; return how many bytes they take."""
        size = 0
        for row in rows:
            packed = self._packer.pack(row)
            size += len(packed)
            self._open += packed
            if len(self._open) >= _FRAME_BYTES:
                self._flush()
        self.rows[self._table] += len(rows)
        return size

    def finish(self) -> int:
        """Complete the file, sync it and give it its name; return its length."""
        self._flush()
        self._frame(self.rows, self._digest.digest())
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            size = self._file.tell()
            self._file.close()
            self._partial.rename(self._path)
            self._finished = True
            sync_directory(self._path.parent)
        except OSError as error:
            raise _unwritable(self._path, error) from error
        return size

    def _flush(self) -> None:
        if self._open:
            self._write_frame(bytes(self._open))
            self._open.clear()

    def _frame(self, *values: object) -> None:
        self._write_frame(b"".join(self._packer.pack(value) for value in values))

    def _write_frame(self, payload: bytes) -> None:
        length = struct.pack("<I", len(payload))
        checksum = zlib.crc32(payload, zlib.crc32(length))
        self._write(_FRAME.pack(len(payload), checksum) + payload)

    def _write(self, octets: bytes) -> None:
        try:
            self._file.write(octets)
        except OSError as error:
            raise _unwritable(self._partial, error) from error
        self._digest.update(octets)


class BackupReader:
    """Reads a backup and checks it. `heading` is known at once; `items` goes through all of it.

    Raises:  FormatError for anything that is not a whole backup of this format
    """

    def __init__(self, path: Path) -> None:
        self.rows: dict[str, int] = {}
        self.size_bytes = 0
        self._path = path
        self._offset = 0
        self._digest = hashlib.blake2b(digest_size=32)
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise FormatError(
                f"backup cannot be read: {error.strerror}", path=os.fspath(path)
            ) from error
        try:
            self._check_magic()
            self.heading = self._load_heading()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def items(self) -> Iterator[Table | list[Row]]:
        """Give each table and then its rows, a frame of them at a time. Once only."""
        table = ""
        while True:
            start, before = self._offset, self._digest.copy()
            values = self._load_frame()
            if type(values[0]) is dict:
                self._check_end(values, before.digest(), start)
                return
            if _is_table(values):
                table = values[0][0]
                if table in self.rows:
                    raise self._error("backup holds a table twice", start)
                self.rows[table] = 0
                yield Table(table, tuple(values[0][1]))
            elif not table or not all(map(_is_row, values)):
                raise self._error("backup holds something that is no row", start)
            else:
                self.rows[table] += len(values)
                yield values

    def check(self) -> None:
        """Read everything and hold it against its checksums."""
        for _ in self.items():
            pass

    def _check_magic(self) -> None:
        magic = self._load(HEADING_OFFSET, 0)
        if magic[: len(MAGIC)] != MAGIC:
            raise self._error(
                "file is no backup of a metadata database", 0, "name a file of `ffs meta backup`"
            )
        (found,) = _FORMAT.unpack(magic[len(MAGIC) :])
        if found != FORMAT:
            raise self._error(
                f"backup has format {found}, this program knows {FORMAT}",
                len(MAGIC),
                "restore it with the program version that wrote it, or a newer one",
            )

    def _load_heading(self) -> Heading:
        values = self._load_frame()
        match values:
            case [[int() as version, bytes() as cluster_id, int() as time_ns]]:
                return Heading(version, cluster_id, time_ns)
        raise self._error("backup does not say what it is of", HEADING_OFFSET)

    def _check_end(self, values: list[Any], digest: bytes, start: int) -> None:
        if values != [self.rows, digest]:
            raise self._error("backup is not what was written: its digest differs", start)
        self.size_bytes = self._offset
        if self._file.read(1):
            raise self._error("backup goes on behind its end", self._offset)

    def _load_frame(self) -> list[Any]:
        start = self._offset
        head = self._load(_FRAME.size, start)
        length, checksum = _FRAME.unpack(head)
        if not 0 < length <= _FRAME_BYTES_MAX:
            raise self._error("backup holds a frame of an impossible length", start)
        payload = self._load(length, start)
        if zlib.crc32(payload, zlib.crc32(head[:4])) != checksum:
            raise self._error("bytes of the backup do not match their checksum", start)
        unpacker = msgpack.Unpacker(max_buffer_size=_FRAME_BYTES_MAX, use_list=True)
        unpacker.feed(payload)
        try:
            values = list(unpacker)
        except (msgpack.UnpackException, ValueError) as error:
            raise self._error(f"backup cannot be unpacked: {error}", start) from error
        if not values or unpacker.tell() != length:
            raise self._error("backup holds a frame that ends in a value", start)
        return values

    def _load(self, count: int, start: int) -> bytes:
        octets = self._file.read(count)
        if len(octets) != count:
            raise self._error("backup ends too early: its last part is not whole", start)
        self._offset += count
        self._digest.update(octets)
        return octets

    def _error(self, message: str, offset: int, hint: str = _DAMAGED_HINT) -> FormatError:
        return FormatError(message, hint=hint, path=os.fspath(self._path), offset=offset)


def _is_table(values: list[Any]) -> bool:
    match values:
        case [[str() as name, [*columns]]]:
            names = [name, *columns]
            return all(isinstance(n, str) and _NAME.fullmatch(n) for n in names)
    return False


def _is_row(value: Any) -> bool:
    return type(value) is list and all(type(field) in _VALUE_TYPES for field in value)


def sync_directory(path: Path) -> None:
    """Make names that were given in a directory outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(path: Path, error: OSError) -> FFSError:
    where = os.fspath(path)
    if error.errno in (28, 122):  # ENOSPC, EDQUOT
        return NoSpaceError("no room for the backup", hint="free space there", path=where)
    return NativeError(
        f"backup cannot be written: {error.strerror}",
        hint="check the directory and its permissions",
        path=where,
    )
