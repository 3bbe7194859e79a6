"""WebDataset's tar files: members with one name up to the first dot are the fields of a sample."""

from __future__ import annotations

import io
import posixpath
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final

from ffs.client.records.pack.places import Entry, Place, SinkFile
from ffs.client.records.pack.units import KEY, Plan, Sample, Unit, as_bytes
from ffs.client.records.sinks import Sink
from ffs.errors import FormatError

MEMBER_MODE: Final = 0o644


def plan(place: Place, entries: Sequence[Entry], shard_bytes: int) -> Plan:
    """Each tar file becomes a shard: it can be read from its beginning only."""
    units = [Unit(entry.size, partial(_read, place, entry.name)) for entry in entries]
    return Plan(units, list(entries), fields=True)


def _read(place: Place, name: str) -> Iterator[Sample]:
    try:
        with place.open(name) as file, tarfile.open(fileobj=file, mode="r|*") as tar:
            yield from _group(tar)
    except tarfile.TarError as error:
        raise FormatError(f"not a whole tar file: {error}", path=place.join(name)) from error


def _group(tar: tarfile.TarFile) -> Iterator[Sample]:
    fields: dict[str, Any] = {}
    for member in tar:
        if not member.isfile():
            continue
        directory, base = posixpath.split(member.name)
        stem, _, extension = base.partition(".")
        key = posixpath.join(directory, stem)
        if fields and (fields[KEY] != key or extension in fields):
            yield Sample(fields, fields[KEY])
            fields = {}
        content = tar.extractfile(member)
        assert content is not None  # it is a file
        fields.setdefault(KEY, key)
        fields[extension] = content.read()
    if fields:
        yield Sample(fields, fields[KEY])


class TarShard:
    """Writes one tar file; a sample that is bytes alone becomes one member."""

    def __init__(self, sink: Sink, prefix: str) -> None:
        self._sink = sink
        self._prefix, self._count = prefix, 0
        file: Any = SinkFile(sink)
        self._tar = tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def append(self, sample: Sample) -> None:
        """Add a sample's fields, in their order."""
        key = f"{self._prefix}{self._count:08d}"
        self._count += 1
        if not isinstance(sample.value, dict):
            self._add(sample.key or f"{key}.bin", sample.value)
            return
        key = str(sample.value.get(KEY, sample.key or key))
        for field, value in sample.value.items():
            if field != KEY:
                self._add(f"{key}.{field}" if field else key, value)

    def close(self) -> None:
        """End the file."""
        self._tar.close()
        self._sink.finish()

    def discard(self) -> None:
        """Give it up."""
        self._sink.discard()

    def _add(self, name: str, value: Any) -> None:
        data = as_bytes(value)
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(data), MEMBER_MODE
        self._tar.addfile(member, io.BytesIO(data))
