"""Tables: Parquet and Arrow IPC files, by pyarrow. A row is a sample.

A column that is named, or the only one if it has bytes or text, makes samples of bytes; otherwise a
row's columns are its fields.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from ffs.client.records.pack.places import Entry, Place, SinkFile
from ffs.client.records.pack.units import Plan, Sample, Unit, as_bytes
from ffs.client.records.sinks import Sink
from ffs.errors import FormatError, InvalidError

BATCH_ROWS: Final = 1_024
ARROW_MAGIC: Final = b"ARROW1"


class Tables:
    """The tables of a source: how many pieces each one has, and the rows of a piece."""

    def __init__(self, place: Place, column: str) -> None:
        self.place, self.column = place, column
        self.schema: Any = None
        self.plain = False

    def plan(self, entries: Sequence[Entry], shard_bytes: int) -> Plan:
        """Row groups, or record batches, go together until they fill a shard."""
        units: list[Unit] = []
        for entry in entries:
            with self._opened(entry.name) as (schema, count):
                self._choose(schema, entry.name)
            step = max(1, count * shard_bytes // max(entry.size, 1))
            for first in range(0, count, step):
                last = min(first + step, count)
                rows = partial(self._read, entry.name, first, last)
                units.append(Unit(entry.size * (last - first) // count, rows))
        identity = [self.column, *entries]
        hints = {} if self.schema is None else {"schema": pack_schema(self.schema)}
        return Plan(units, identity, fields=not self.plain, hints=hints)

    def _choose(self, schema: Any, name: str) -> None:
        """Find out what samples are; all tables of a source have one schema."""
        if self.schema is not None:
            if not schema.equals(self.schema):
                raise InvalidError(
                    "the tables have different columns",
                    hint="pack them one by one",
                    path=self.place.join(name),
                )
            return
        if self.column and self.column not in schema.names:
            raise InvalidError(
                f"there is no column {self.column!r}: there are {', '.join(schema.names)}",
                path=self.place.join(name),
            )
        if not self.column and len(schema) == 1 and _is_bytes(schema.types[0]):
            self.column = schema.names[0]
        self.plain = bool(self.column)
        if self.plain and not _is_bytes(schema.field(self.column).type):
            raise InvalidError(
                f"the column {self.column!r} has {schema.field(self.column).type}",
                hint="samples of bytes are made of a column of bytes or text",
                path=self.place.join(name),
            )
        self.schema = pa.schema([schema.field(self.column)]) if self.plain else schema

    def _opened(self, name: str) -> _Opened:
        return _Opened(self.place, name)

    def _read(self, name: str, first: int, last: int) -> Iterator[Sample]:
        columns = [self.column] if self.plain else None
        opened = self._opened(name)
        with opened:
            for batch in opened.batches(first, last, columns):
                if self.plain:
                    for value in batch.column(self.column).to_pylist():
                        yield Sample(as_bytes(value if value is not None else b""))
                else:
                    for row in batch.to_pylist():
                        yield Sample(row)


class _Opened:
    """A Parquet or Arrow file, by its first bytes."""

    def __init__(self, place: Place, name: str) -> None:
        self._path = place.join(name)
        self._file = place.open(name)
        self._parquet: Any = None
        self._batches: Any = None

    def __enter__(self) -> tuple[Any, int]:
        try:
            magic = self._file.peek(8)[:8]
            if magic.startswith(b"PAR1"):
                self._parquet = pq.ParquetFile(self._file)
                return self._parquet.schema_arrow, self._parquet.num_row_groups
            if magic.startswith(ARROW_MAGIC):
                self._batches = pyarrow.ipc.open_file(self._file)
                return self._batches.schema, self._batches.num_record_batches
            self._batches = pyarrow.ipc.open_stream(self._file)
            return self._batches.schema, 1
        except (pa.ArrowException, OSError) as error:
            self._file.close()
            raise FormatError(
                f"neither a Parquet nor an Arrow file: {error}", path=self._path
            ) from error

    def batches(self, first: int, last: int, columns: list[str] | None) -> Iterator[Any]:
        """Return pieces `first` .. `last` - 1 as record batches of moderate length."""
        try:
            if self._parquet is not None:
                groups = range(first, last)
                yield from self._parquet.iter_batches(BATCH_ROWS, groups, columns)
                return
            if hasattr(self._batches, "get_batch"):
                pieces = (self._batches.get_batch(number) for number in range(first, last))
            else:
                pieces = iter(self._batches)
            for batch in pieces:
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    yield batch.slice(start, BATCH_ROWS)
        except pa.ArrowException as error:
            raise FormatError(f"the table is damaged: {error}", path=self._path) from error

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _is_bytes(kind: Any) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_string)
    return any(test(kind) for test in tests) or bool(pa.types.is_large_string(kind))


def pack_schema(schema: Any) -> str:
    """Return a schema as text."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


class TableShard:
    """Writes one Parquet or Arrow file, its columns as the source's schema or first rows say."""

    def __init__(self, sink: Sink, kind: str, hints: dict[str, Any]) -> None:
        self._sink, self._kind = sink, kind
        self._file = SinkFile(sink)
        self._schema: Any = None
        if "schema" in hints:
            packed = pa.py_buffer(base64.b64decode(hints["schema"]))
            self._schema = pyarrow.ipc.read_schema(packed)
        self._rows: list[dict[str, Any]] = []
        self._writer: Any = None

    def append(self, sample: Sample) -> None:
        """Add a row; bytes alone become the only column, `data` unless the source named it."""
        row = sample.value
        if not isinstance(row, dict):
            name = self._schema.names[0] if self._schema is not None else "data"
            text = self._schema is not None and not pa.types.is_binary(self._schema.types[0])
            data = bytes(row)
            row = {name: data.decode() if text and _is_text(self._schema.types[0]) else data}
        self._rows.append(row)
        if len(self._rows) == BATCH_ROWS:
            self._flush()

    def close(self) -> None:
        """End the file."""
        self._flush()
        self._writer.close()
        self._sink.finish()

    def discard(self) -> None:
        """Give it up."""
        self._sink.discard()

    def _flush(self) -> None:
        try:
            table = pa.Table.from_pylist(self._rows, schema=self._schema)
        except (pa.ArrowException, TypeError) as error:
            raise InvalidError(f"the samples do not make columns: {error}") from error
        self._rows = []
        if self._writer is None:
            self._schema = table.schema
            make = pq.ParquetWriter if self._kind == "parquet" else _arrow_writer
            self._writer = make(self._file, table.schema)
        if table.num_rows:
            self._writer.write_table(table)


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _arrow_writer(file: Any, schema: Any) -> Any:
    return pyarrow.ipc.new_file(file, schema)
