"""Messages as msgpack values: what goes through, and what is refused with its field's name."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NewType

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffs.errors import ProtocolError
from ffs.limits import RPC_LIST_MAX
from ffs.rpc.codec import METHODS
from ffs.rpc.schema import codec_of
from ffs.types import Attr
from ffs.wire.messages import RemoveManyReply, StatManyReply
from ffs.wire.method import Fault

NodeName = NewType("NodeName", int)


class Colour(IntEnum):
    RED = 1


@dataclass(frozen=True, slots=True)
class Inner:
    number: int
    text: str = "none"


@dataclass(frozen=True, slots=True)
class Other:
    data: bytes


@dataclass(frozen=True, slots=True)
class Everything:
    number: int
    flag: bool
    text: str
    data: bytes
    numbers: list[int]
    inner: Inner
    inners: list[Inner]
    maybe: int | None
    maybe_inner: Inner | None
    either: Inner | Other
    mixed: list[None | Inner | bytes]
    node: NodeName = NodeName(4)
    colour: int = Colour.RED
    names: list[str] = field(default_factory=lambda: ["a"])


FULL = Everything(
    1,
    True,
    "t",
    b"d",
    [1, -(2**63), 2**64 - 1],
    Inner(2, "x"),
    [Inner(3)],
    None,
    None,
    Other(b"o"),
    [None, Inner(5), b"b"],
    NodeName(9),
    1,
    [],
)


def wire(value: Any) -> Any:
    """What the peer gets to see."""
    return msgpack.unpackb(msgpack.packb(codec_of(type(value)).encode(value)))


def test_shape_on_the_wire() -> None:
    assert wire(FULL) == [
        1,
        True,
        "t",
        b"d",
        [1, -(2**63), 2**64 - 1],
        [2, "x"],
        [[3, "none"]],
        None,
        None,
        [1, b"o"],
        [None, [1, 5, "none"], b"b"],
        9,
        1,
        [],
    ]


def test_round_trip() -> None:
    assert codec_of(Everything).decode(wire(FULL)) == FULL


def test_missing_trailing_fields_take_defaults() -> None:
    decoded = codec_of(Everything).decode(wire(FULL)[:11])
    assert (decoded.node, decoded.colour, decoded.names) == (4, 1, ["a"])
    assert type(decoded.colour) is int
    again = codec_of(Everything).decode(wire(FULL)[:11])
    assert again.names is not decoded.names, "a default list must not be shared"


def test_extra_trailing_fields_are_ignored() -> None:
    newer = [*wire(FULL), "from the future", [[[]]]]
    assert codec_of(Everything).decode(newer) == FULL
    assert codec_of(StatManyReply).decode([[[1, 100, "no", 7, 8]]]) == StatManyReply(
        [Fault(100, "no")]
    )


def test_defaults_inside_a_union() -> None:
    decoded = codec_of(Everything).decode([*wire(FULL)[:9], [0, 7], *wire(FULL)[10:]])
    assert decoded.either == Inner(7, "none")


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (0, True, "Everything.number: expected int, got bool"),
        (0, 1.0, "Everything.number: expected int, got float"),
        (0, None, "Everything.number: expected int, got nil"),
        (1, 1, "Everything.flag: expected bool, got int"),
        (2, b"t", "Everything.text: expected str, got bytes"),
        (3, "d", "Everything.data: expected bytes, got str"),
        (4, 7, "Everything.numbers: expected a list"),
        (4, [1, "2"], "Everything.numbers: expected only int in the list, got str"),
        (4, {}, "Everything.numbers: expected a list"),
        (5, 7, "Inner: expected an array of fields, got int"),
        (5, [], r"Inner.number: the field is missing"),
        (5, ["2"], "Inner.number: expected int, got str"),
        (6, [[1], [b""]], "Inner.number: expected int, got bytes"),
        (7, "1", "Everything.maybe: expected int or nil, got str"),
        (8, 1, "Everything.maybe_inner: expected Inner or nil, got int"),
        (8, [1, 2], "Everything.maybe_inner: .* no such tag"),
        (9, None, "Everything.either: expected Inner or Other, got nil"),
        (9, [], "Everything.either: expected Inner or Other, got list"),
        (9, [2, 1], "Everything.either: .* no such tag"),
        (9, [-1, 1], "Everything.either: .* no such tag"),
        (9, [True, b"o"], "Everything.either: .* no such tag"),
        (9, [1], "Other.data: the field is missing"),
        (10, [[0]], "Everything.mixed: .* no such tag"),
        (10, ["x"], "Everything.mixed: expected bytes or Inner or nil, got str"),
        (11, "9", "Everything.node: expected int, got str"),
    ],
)
def test_wrong_values_name_message_and_field(place: int, value: Any, told: str) -> None:
    values = wire(FULL)
    values[place] = value
    with pytest.raises(ProtocolError, match=told):
        codec_of(Everything).decode(values)


@pytest.mark.parametrize("value", [None, 1, "x", b"x", {}, (1,)])
def test_a_message_is_an_array(value: Any) -> None:
    with pytest.raises(ProtocolError, match="Everything: expected an array"):
        codec_of(Everything).decode(value)


def test_too_few_fields() -> None:
    with pytest.raises(ProtocolError, match=r"Everything\.text: the field is missing"):
        codec_of(Everything).decode([1, True])


def test_a_list_has_a_bound() -> None:
    values = wire(FULL)
    values[4] = [0] * (RPC_LIST_MAX + 1)
    with pytest.raises(ProtocolError, match="at most 65536"):
        codec_of(Everything).decode(values)


def test_undeclared_types_are_not_sent() -> None:
    values = {f.name: getattr(FULL, f.name) for f in dataclasses.fields(FULL)}
    with pytest.raises(TypeError, match=r"Everything\.either"):
        codec_of(Everything).encode(Everything(**{**values, "either": "a string"}))


@pytest.mark.parametrize(
    "annotation", [float, dict[str, int], list[int] | None, object, set[int], "Everything | float"]
)
def test_types_without_a_wire_form_are_refused_when_compiled(annotation: Any) -> None:
    cls = dataclasses.make_dataclass("Bad", [("x", annotation)], namespace={"__module__": __name__})
    with pytest.raises(TypeError):
        codec_of(cls)


def test_only_dataclasses_are_messages() -> None:
    with pytest.raises(TypeError):
        codec_of(int)


@dataclass
class Checked:
    """Has a dict and a __post_init__, so its constructor must run."""

    number: int

    def __post_init__(self) -> None:
        self.number += 1


def test_constructors_with_work_to_do_are_called() -> None:
    assert codec_of(Checked).decode([1]).number == 2


def test_union_of_none_and_fault_counts_from_none() -> None:
    assert wire(RemoveManyReply([None, Fault(100, "no")])) == [[None, [1, 100, "no"]]]


# --- every message of the product -----------------------------------------------------------------


def values_of(annotation: Any) -> st.SearchStrategy[Any]:
    """Any value that an annotation allows."""
    simple = {
        int: st.integers(-(2**63), 2**64 - 1),
        bool: st.booleans(),
        str: st.text(max_size=20),
        bytes: st.binary(max_size=20),
        types.NoneType: st.none(),
    }
    if annotation in simple:
        return simple[annotation]
    if isinstance(annotation, type) and annotation not in simple:
        cls: Callable[..., Any] = annotation
        hints = typing.get_type_hints(annotation)
        return st.builds(cls, **{name: values_of(hint) for name, hint in hints.items()})
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is list:
        return st.lists(values_of(arguments[0]), max_size=4)
    return st.one_of([values_of(a) for a in arguments])


MESSAGES = sorted(
    {m.request for m in METHODS.values()} | {m.reply for m in METHODS.values()},
    key=lambda cls: cls.__name__,
)


@pytest.mark.parametrize("cls", MESSAGES, ids=lambda c: c.__name__)
@settings(max_examples=8)
@given(data=st.data())
def test_every_message_survives_the_wire(cls: type[Any], data: st.DataObject) -> None:
    value = data.draw(values_of(cls))
    assert codec_of(cls).decode(wire(value)) == value


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


@settings(max_examples=300)
@given(cls=st.sampled_from(MESSAGES), values=JUNK | st.lists(JUNK, max_size=12))
def test_junk_never_becomes_a_message_of_wrong_types(cls: type[Any], values: Any) -> None:
    """Either a ProtocolError, or a value that is what it declares and survives another trip."""
    try:
        decoded = codec_of(cls).decode(values)
    except ProtocolError:
        return
    assert codec_of(cls).decode(wire(decoded)) == decoded


@given(data=st.data(), place=st.integers(0, 10))
def test_one_wrong_field_of_attr(data: st.DataObject, place: int) -> None:
    values: list[Any] = [7] * 11
    values[place] = data.draw(JUNK.filter(lambda v: type(v) is not int))
    name = Attr._fields[place]
    with pytest.raises(ProtocolError, match=rf"Attr\.{name}: expected int"):
        codec_of(Attr).decode(values)
