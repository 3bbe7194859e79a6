"""What goes from a source to a target: samples, and the pieces of a source that become shards.

A sample is bytes, or fields: a dict of what a row or a group of files has. In records, fields are
one MessagePack map; `pack.json` beside the records says so, and what is needed on the way back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias

import msgpack

from ffs.errors import FormatError, InvalidError

KEY: Final = "__key__"
"""The field that names a sample, as WebDataset has it."""
Value: TypeAlias = "bytes | memoryview | dict[str, Any]"


class Sample(NamedTuple):
    """One sample; `key` is its name where the source has names."""

    value: Value
    key: str = ""


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of a source, which becomes one shard of the target; it can be read more than once."""

    size: int
    samples: Callable[[], Iterator[Sample]]


@dataclass(slots=True)
class Plan:
    """What a source has.

    `fields`: its samples are dicts; `named`: they have keys; `hints`: what a target may want to
    know of it (an MDS's encodings, a table's schema), as JSON.
    """

    units: list[Unit]
    identity: list[Any]
    fields: bool = False
    named: bool = False
    hints: dict[str, Any] = field(default_factory=dict)


def pack_value(value: Value) -> bytes | memoryview:
    """Return a sample as the bytes that a record holds."""
    if not isinstance(value, dict):
        return value
    try:
        packed: bytes = msgpack.packb(value, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidError(
            f"a field has a value that records do not hold: {error}",
            hint="numbers, text, bytes, lists and dicts are held; cast the column, or name another",
        ) from error
    return packed


def unpack_fields(data: bytes | memoryview, path: str) -> dict[str, Any]:
    """Return the fields that a record holds."""
    try:
        fields = msgpack.unpackb(data, raw=False, strict_map_key=True)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise FormatError("a record is no MessagePack map of fields", path=path) from error
    if not isinstance(fields, dict):
        raise FormatError("a record is no MessagePack map of fields", path=path)
    return fields


def as_bytes(value: Any) -> bytes:
    """Return a field as the content of a file: bytes as they are, all else as text."""
    if isinstance(value, (bytes, memoryview, bytearray)):
        return bytes(value)
    return str(value).encode()
