"""Targets: what writes one shard of records, lines, or files of their own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final, Protocol

from ffs.client.records.pack.places import Place
from ffs.client.records.pack.sources import NAMES
from ffs.client.records.pack.units import KEY, Sample, as_bytes, pack_value
from ffs.client.records.sinks import Sink
from ffs.client.records.writer import ContainerWriter, FFRecordWriter, Writer
from ffs.errors import BadNameError, InvalidError

FILES_BYTES: Final = 16 << 20
FILES_COUNT: Final = 1_024


class Shard(Protocol):
    """A shard being written; it is there whole after `close`, and not at all before."""

    def append(self, sample: Sample) -> None:
        """Add a sample."""

    def close(self) -> None:
        """End the shard."""

    def discard(self) -> None:
        """Give it up."""


class RecordShard:
    """A file of records; the keys of its samples, if they have some, are put beside it first."""

    def __init__(self, place: Place, name: str, count: int | None, *, named: bool) -> None:
        sink = place.sink(name)
        self._writer: Writer = (
            ContainerWriter(sink, place.join(name), 1, [])
            if count is None
            else FFRecordWriter(sink, place.join(name), count)
        )
        self._place, self._name = place, name.rpartition(".")[0] + NAMES
        self._keys: list[str] | None = [] if named else None

    def append(self, sample: Sample) -> None:
        """Add a record."""
        self._writer.append(pack_value(sample.value))
        if self._keys is not None:
            self._keys.append(sample.key)

    def close(self) -> None:
        """Write the names, then let the file appear: where it is, they are."""
        if self._keys is not None:
            self._place.write(self._name, json.dumps(self._keys).encode())
        self._writer.close()

    def discard(self) -> None:
        """Give it up."""
        self._writer.discard()


class LineShard:
    """A file of lines: bytes as they are, fields as JSON."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def append(self, sample: Sample) -> None:
        """Add a line."""
        if isinstance(sample.value, dict):
            line = _as_json(sample.value)
        else:
            line = bytes(sample.value)
        if b"\n" in line:
            raise InvalidError(
                "a sample has more than one line", hint="JSONL has a line for each; choose another"
            )
        self._sink.write(line + b"\n")

    def close(self) -> None:
        """End the file."""
        self._sink.finish()

    def discard(self) -> None:
        """Give it up."""
        self._sink.discard()


def _as_json(fields: dict[str, Any]) -> bytes:
    def text(value: Any) -> str:
        if isinstance(value, bytes):
            return value.decode()
        raise TypeError(f"{type(value).__name__} has no form in JSON")

    try:
        return json.dumps(fields, default=text, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise InvalidError(
            f"a sample does not fit into a line of JSON: {error}", hint="bytes must be UTF-8 text"
        ) from error


class FileShard:
    """A file for each sample, by its key; fields are a file each, with the field as extension."""

    def __init__(self, place: Place, prefix: str) -> None:
        self._place, self._prefix, self._count = place, prefix, 0
        self._files: list[tuple[str, bytes]] = []
        self._size = 0

    def append(self, sample: Sample) -> None:
        """Add a sample's files."""
        number = f"{self._prefix}{self._count:08d}"
        self._count += 1
        for name, data in _files_of(sample, number):
            _check_name(name)
            self._files.append((name, data))
            self._size += len(data)
        if self._size >= FILES_BYTES or len(self._files) >= FILES_COUNT:
            self._flush()

    def close(self) -> None:
        """Write what is left."""
        self._flush()

    def discard(self) -> None:
        """Leave the files that are there: writing them again does no harm."""
        self._files = []

    def _flush(self) -> None:
        if self._files:
            self._place.write_many(self._files)
        self._files, self._size = [], 0


def _files_of(sample: Sample, number: str) -> Iterable[tuple[str, bytes]]:
    if not isinstance(sample.value, dict):
        return [(sample.key or f"{number}.bin", bytes(sample.value))]
    key = str(sample.value.get(KEY, sample.key or number))
    return [
        (f"{key}.{field}" if field else key, as_bytes(value))
        for field, value in sample.value.items()
        if field != KEY
    ]


def _check_name(name: str) -> None:
    """Refuse a key that leads out of the target: it may come from anybody's tar file."""
    if name.startswith("/") or any(part in ("", ".", "..") for part in name.split("/")):
        raise BadNameError("a sample's key is no relative path", path=name)
