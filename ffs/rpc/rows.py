"""Lists of small messages, as columns: what is done to thousands of rows at once.

Previous hop: ffs.rpc.schema, which knows what the columns of each message may hold; next hop: none.

A row is a message declared as a named tuple. A batch of them is judged by the set of types in each
column, which loops in C: 0.5 us for the eleven fields of an `Attr`, a third of what one call a row
takes. Invariant: nothing passes that would not pass row by row. Failure: a batch in which anything
is unusual (a wrong type, another version's length, a fault between the rows) is done row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Convert = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Columns:
    """What the columns of one message's rows are.

    `plain`: by place, the types that a column may hold; `nested`: what decodes the others whole.
    """

    make: Callable[[Iterable[Any]], Any]
    width: int
    plain: Sequence[tuple[int, frozenset[type]]]
    nested: Sequence[tuple[int, Convert]]

    def rows(self, columns: list[Sequence[Any]]) -> list[Any] | None:
        """Return the messages, or None if a column holds a value of a wrong type."""
        for place, kinds in self.plain:
            if not kinds.issuperset(map(type, columns[place])):
                return None
        for place, decode_all in self.nested:
            columns[place] = decode_all(list(columns[place]))
        return list(map(self.make, zip(*columns, strict=True)))


def _columns_of(values: list[Any], width: int) -> list[Sequence[Any]] | None:
    """Return the columns of arrays that all have `width` elements, else None."""
    if {*map(type, values)} != {list} or {*map(len, values)} != {width}:
        return None
    return list(zip(*values, strict=True))


def one_by_one(convert: Convert) -> Convert:
    """Return what converts each value of a list by itself."""
    return lambda values: [convert(value) for value in values]


def rows_decoder(whole: Columns, decode: Convert) -> Convert:
    """Return what decodes a list of one message; `decode` does one, or says what is wrong."""

    def decode_all(values: list[Any]) -> list[Any]:
        columns = _columns_of(values, whole.width)
        found = None if columns is None else whole.rows(columns)
        return [decode(value) for value in values] if found is None else found

    return decode_all


def rows_encoder(cls: type[Any], encode: Convert | None) -> Convert:
    """Return what refuses a list of anything else; `encode` None: rows go as they are."""

    def encode_all(values: Sequence[Any]) -> Sequence[Any]:
        if not {cls}.issuperset(map(type, values)):
            raise TypeError(f"not all of the list is {cls.__name__}")
        return values if encode is None else [encode(value) for value in values]

    return encode_all


def tagged_decoder(wholes: Mapping[int, Columns], decode: Convert) -> Convert:
    """Return what decodes a list of a union: at once if all are rows of one tag."""

    def rows_of_one_tag(values: list[Any]) -> list[Any] | None:
        first = values[0] if values else None
        tag = first[0] if type(first) is list and first else None
        whole = wholes.get(tag) if type(tag) is int else None
        columns = None if whole is None else _columns_of(values, whole.width + 1)
        if whole is None or columns is None:
            return None
        tags, *fields = columns
        if {*map(type, tags)} != {int} or tags.count(tag) != len(tags):
            return None
        return whole.rows(fields)

    def decode_all(values: list[Any]) -> list[Any]:
        found = rows_of_one_tag(values)
        return [decode(value) for value in values] if found is None else found

    return decode_all


def tagged_encoder(tags: Mapping[type, int], encode: Convert) -> Convert:
    """Return what encodes a list of a union: at once if all are rows of one class in `tags`."""

    def encode_all(values: Sequence[Any]) -> list[Any]:
        kinds = {*map(type, values)}
        tag = tags.get(kinds.pop()) if len(kinds) == 1 else None
        if tag is None:
            return [encode(value) for value in values]
        return list(map((tag,).__add__, values))

    return encode_all
