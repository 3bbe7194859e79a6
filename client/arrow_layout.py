"""Where the parts of an Arrow IPC file lie: as much of its metadata as reading only what is needed
takes.

Used by client/arrow.py, which has pyarrow check and interpret everything; what is found here only
decides which bytes are fetched. Metadata is in flatbuffers: a table's position is followed by
offsets to its fields, through a list of where each field is, 0 for one that is absent.

Failure: struct.error and LayoutError for bytes that are no such metadata; the caller then fetches
everything and lets pyarrow say what is wrong.
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

TRAILER: Final = struct.Struct("<i6s")
"""At the end of a file: the footer's length, and "ARROW1"."""
_CONTINUATION: Final = -1
_INT32, _INT64 = struct.Struct("<i"), struct.Struct("<q")
_UINT16, _UINT32 = struct.Struct("<H"), struct.Struct("<I")
_BLOCK: Final = struct.Struct("<qi4xq")
_BUFFER: Final = struct.Struct("<qq")
_FOOTER_DICTIONARIES, _FOOTER_BATCHES = 2, 3
_MESSAGE_HEADER = 2
_BATCH_BUFFERS, _BATCH_COMPRESSION = 2, 3


class LayoutError(Exception):
    """These bytes are not what they should be."""


class Block(NamedTuple):
    """A message of a file: its metadata, and its body right behind."""

    offset: int
    metadata_length: int
    body_length: int

    @property
    def length(self) -> int:
        """Of both parts."""
        return self.metadata_length + self.body_length


class BatchLayout(NamedTuple):
    """The buffers of a record batch, (offset, length) in its body each, in the schema's order."""

    buffers: list[tuple[int, int]]
    compressed: bool


class _Table:
    """A flatbuffer table at a position of some bytes."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data = data
        self._position = position
        self._fields = position - _INT32.unpack_from(data, position)[0]
        if not 0 <= self._fields < len(data):
            raise LayoutError("a table outside its bytes")
        self._fields_end = self._fields + _UINT16.unpack_from(data, self._fields)[0]

    @classmethod
    def root(cls, data: bytes, start: int = 0) -> _Table:
        """Return the outermost table."""
        return cls(data, start + _UINT32.unpack_from(data, start)[0])

    def place(self, field: int) -> int:
        """Return where a field's value is; 0 if it is absent."""
        at = self._fields + 4 + 2 * field
        offset = _UINT16.unpack_from(self._data, at)[0] if at < self._fields_end else 0
        return self._position + offset if offset else 0

    def table(self, field: int) -> _Table:
        """Return the table that a field refers to."""
        place = self.place(field)
        if not place:
            raise LayoutError("a table is missing")
        return _Table(self._data, place + _UINT32.unpack_from(self._data, place)[0])

    def structs(self, field: int, shape: struct.Struct) -> list[tuple[Any, ...]]:
        """Return a field's list of structures."""
        place = self.place(field)
        if not place:
            return []
        start = place + _UINT32.unpack_from(self._data, place)[0]
        end = start + 4 + _UINT32.unpack_from(self._data, start)[0] * shape.size
        if end > len(self._data):
            raise LayoutError("a list that is longer than its bytes")
        return list(shape.iter_unpack(memoryview(self._data)[start + 4 : end]))


def footer_blocks(footer: bytes) -> tuple[list[Block], list[Block]]:
    """Return the blocks of dictionaries and of record batches that a file's footer names."""
    table = _Table.root(footer)
    dictionaries, batches = (
        [Block(*row) for row in table.structs(field, _BLOCK)]
        for field in (_FOOTER_DICTIONARIES, _FOOTER_BATCHES)
    )
    return dictionaries, batches


def batch_layout(metadata: bytes, body_length: int) -> BatchLayout:
    """Return where the buffers of a record batch are, from its message's metadata."""
    (mark,) = _INT32.unpack_from(metadata, 0)
    batch = _Table.root(metadata, 8 if mark == _CONTINUATION else 4).table(_MESSAGE_HEADER)
    buffers = [(int(o), int(n)) for o, n in batch.structs(_BATCH_BUFFERS, _BUFFER)]
    if any(o < 0 or n < 0 or o + n > body_length for o, n in buffers):
        raise LayoutError("a buffer outside its body")
    return BatchLayout(buffers, batch.place(_BATCH_COMPRESSION) != 0)


def buffer_count(kind: Any, types: Any) -> int:
    """Return how many buffers a column of an Arrow type has in a record batch, with all below it.

    Args:    types: pyarrow.types
    Raises:  LayoutError for a type whose columns may have more or fewer
    """
    if isinstance(kind, types_extension(types)):
        return buffer_count(kind.storage_type, types)
    if types.is_null(kind):
        return 0
    if types.is_dictionary(kind):
        return buffer_count(kind.index_type, types)
    if types.is_map(kind):
        return 3 + buffer_count(kind.key_type, types) + buffer_count(kind.item_type, types)
    if types.is_list(kind) or types.is_large_list(kind):
        return 2 + buffer_count(kind.value_type, types)
    if types.is_fixed_size_list(kind):
        return 1 + buffer_count(kind.value_type, types)
    if types.is_struct(kind):
        fields = (kind.field(i).type for i in range(kind.num_fields))
        return 1 + sum(buffer_count(field, types) for field in fields)
    for is_one in (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary):
        if is_one(kind):
            return 3
    if types.is_primitive(kind) or types.is_fixed_size_binary(kind) or types.is_decimal(kind):
        return 2
    raise LayoutError(f"columns of {kind} have buffers of any number")


def types_extension(types: Any) -> Any:
    """Return pyarrow's base class of extension types."""
    return types.lib.BaseExtensionType
