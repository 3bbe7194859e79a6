"""MosaicML's MDS: shards of at most 4 GiB, which index.json lists.

A shard, little-endian: u32 count | u32 offset[count + 1] | its columns as JSON | samples. Offsets
are absolute. A sample: u32 length of each column without a fixed size | the columns' bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Final

import numpy as np

from ffs.client.records.pack.places import Entry, Place
from ffs.client.records.pack.units import Plan, Sample, Unit, as_bytes
from ffs.client.records.sinks import Sink
from ffs.errors import FormatError, InvalidError

INDEX: Final = "index.json"
SUFFIX: Final = ".mds"
VERSION: Final = 2
OFFSET_MAX: Final = (1 << 32) - 1
_U32: Final = np.dtype("<u4")
_NUMBERS: Final = {
    "int": "<q",
    "int8": "<b",
    "int16": "<h",
    "int32": "<i",
    "int64": "<q",
    "uint8": "<B",
    "uint16": "<H",
    "uint32": "<I",
    "uint64": "<Q",
    "float32": "<f",
    "float64": "<d",
}
"""Encodings that become numbers; `str` becomes text, and what else there is stays bytes."""


class Columns:
    """The columns of a shard, and how each one is stored."""

    def __init__(self, names: list[str], encodings: list[str], sizes: Sequence[int | None]) -> None:
        self.names, self.encodings, self.sizes = names, encodings, list(sizes)

    def decode(self, data: memoryview) -> dict[str, Any]:
        """Return a sample's fields."""
        sizes = self.sizes
        varying = sum(size is None for size in sizes)
        lengths = iter(np.frombuffer(data[: 4 * varying], dtype=_U32).tolist())
        position, fields = 4 * varying, {}
        for name, encoding, size in zip(self.names, self.encodings, sizes, strict=True):
            length = next(lengths) if size is None else size
            fields[name] = _decode(encoding, bytes(data[position : position + length]))
            position += length
        if position != len(data):
            raise ValueError("a sample is longer or shorter than its columns")
        return fields

    def encode(self, fields: dict[str, Any]) -> bytes:
        """Return a sample's bytes."""
        if set(fields) != set(self.names):
            raise InvalidError(
                f"MDS has the same columns in each sample: {', '.join(self.names)}",
                hint="a sample has others: " + ", ".join(map(str, fields)),
            )
        parts = [
            _encode(encoding, fields[name])
            for name, encoding in zip(self.names, self.encodings, strict=True)
        ]
        for part, size, name in zip(parts, self.sizes, self.names, strict=True):
            if size not in (None, len(part)):
                raise InvalidError(
                    f"the column {name!r} has values of {size} bytes, not {len(part)}"
                )
        lengths = [len(p) for p, size in zip(parts, self.sizes, strict=True) if size is None]
        return np.array(lengths, dtype=_U32).tobytes() + b"".join(parts)

    @classmethod
    def of(cls, fields: dict[str, Any], hints: dict[str, Any]) -> Columns:
        """Return the columns for samples like this one, as they were if they came from MDS."""
        known = hints.get("mds", {})
        names = sorted(fields)
        kinds = [known.get(name) or _encoding_of(fields[name]) for name in names]
        return cls(names, [encoding for encoding, _ in kinds], [size for _, size in kinds])


def _decode(encoding: str, data: bytes) -> Any:
    if encoding in _NUMBERS:
        return struct.unpack(_NUMBERS[encoding], data)[0]
    return data.decode() if encoding == "str" else data


def _encode(encoding: str, value: Any) -> bytes:
    if encoding not in _NUMBERS:
        return as_bytes(value)
    try:
        return struct.pack(_NUMBERS[encoding], value)
    except struct.error as error:
        raise InvalidError(f"a value does not fit into the encoding {encoding}: {error}") from error


def _encoding_of(value: Any) -> tuple[str, int | None]:
    """Return what stores a value, and how many bytes that takes unless it differs."""
    for kind, encoding in ((bool, "uint8"), (int, "int"), (float, "float64")):
        if isinstance(value, kind):
            return encoding, struct.calcsize(_NUMBERS[encoding])
    if isinstance(value, (bytes, memoryview, str)):
        return ("str" if isinstance(value, str) else "bytes"), None
    raise InvalidError(f"MDS has no encoding for a {type(value).__name__}")


# --- reading --------------------------------------------------------------------------------------


def plan(place: Place, entries: Sequence[Entry], shard_bytes: int) -> Plan:
    """Each shard becomes a shard."""
    try:
        shards = json.loads(place.read(INDEX))["shards"]
        units: list[Unit] = []
        kinds: dict[str, tuple[str, int | None]] = {}
        for shard in shards:
            if shard["compression"] or shard["format"] != "mds":
                raise InvalidError(
                    f"a shard is stored as {shard['compression'] or shard['format']}",
                    hint="write the dataset again as plain MDS, without compression",
                    path=place.path,
                )
            columns = Columns(
                shard["column_names"], shard["column_encodings"], shard["column_sizes"]
            )
            stored = zip(columns.encodings, columns.sizes, strict=True)
            kinds.update(zip(columns.names, stored, strict=True))
            raw = shard["raw_data"]
            read = partial(_read, place, raw["basename"], shard["samples"], columns)
            units.append(Unit(raw["bytes"], read))
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError("index.json is not one of MDS", path=place.join(INDEX)) from error
    return Plan(units, list(entries), fields=True, hints={"mds": kinds})


def _read(place: Place, name: str, count: int, columns: Columns) -> Iterator[Sample]:
    with place.open(name) as file:
        head = file.read(4 + 4 * (count + 1))
        if len(head) != 4 + 4 * (count + 1) or struct.unpack_from("<I", head)[0] != count:
            raise FormatError("the shard has another number of samples", path=place.join(name))
        offsets = np.frombuffer(head, dtype=_U32, offset=4).tolist()
        file.seek(offsets[0])
        try:
            for begin, end in pairwise(offsets):
                yield Sample(columns.decode(memoryview(file.read(end - begin))))
        except (ValueError, StopIteration, struct.error) as error:
            raise FormatError("the shard is damaged or cut", path=place.join(name)) from error


# --- writing --------------------------------------------------------------------------------------


class MdsShard:
    """Writes one shard; it is kept in memory, since its offsets come first."""

    def __init__(self, sink: Sink, hints: dict[str, Any]) -> None:
        self._sink, self._hints = sink, hints
        self._columns: Columns | None = None
        self._samples: list[bytes] = []

    def append(self, sample: Sample) -> None:
        """Add a sample; bytes alone become the column `data`."""
        fields = sample.value if isinstance(sample.value, dict) else {"data": sample.value}
        if self._columns is None:
            self._columns = Columns.of(fields, self._hints)
        self._samples.append(self._columns.encode(fields))

    def close(self) -> None:
        """Write the file."""
        columns = self._columns or Columns([], [], [])
        config = json.dumps(_config(columns), sort_keys=True).encode()
        first = 4 + 4 * (len(self._samples) + 1) + len(config)
        offsets = first + np.cumsum([0, *map(len, self._samples)], dtype=np.int64)
        if offsets[-1] > OFFSET_MAX:
            raise InvalidError("an MDS shard has at most 4 GiB", hint="choose a smaller --shard")
        self._sink.write(struct.pack("<I", len(self._samples)) + offsets.astype(_U32).tobytes())
        self._sink.write(config)
        for sample in self._samples:
            self._sink.write(sample)
        self._sink.finish()

    def discard(self) -> None:
        """Give it up."""
        self._sink.discard()


def _config(columns: Columns) -> dict[str, Any]:
    return {
        "column_encodings": columns.encodings,
        "column_names": columns.names,
        "column_sizes": columns.sizes,
        "compression": None,
        "format": "mds",
        "hashes": [],
        "size_limit": None,
        "version": VERSION,
    }


def write_index(place: Place, names: Sequence[str]) -> None:
    """Write index.json from what the shards themselves say."""
    shards = []
    for name in names:
        size = int(place.fs.info(place.join(name))["size"])
        with place.open(name, 64 << 10) as file:
            (count,) = struct.unpack("<I", file.read(4))
            offsets = file.read(4 * (count + 1))
            config = json.loads(file.read(struct.unpack_from("<I", offsets)[0] - file.tell()))
        raw = {"basename": name, "bytes": size, "hashes": {}}
        shards.append(config | {"raw_data": raw, "zip_data": None, "samples": count})
    place.write(INDEX, json.dumps({"shards": shards, "version": VERSION}).encode())
