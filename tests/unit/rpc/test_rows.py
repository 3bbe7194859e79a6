"""Lists done as columns: they give what the same rows give one by one, whatever is among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffs.errors import ProtocolError
from ffs.rpc.schema import codec_of
from ffs.types import Attr, Layout
from ffs.wire.messages import (
    CloseEntry,
    CloseManyRequest,
    CreateEntry,
    CreateManyReply,
    CreateManyRequest,
    RemoveManyReply,
    StatManyReply,
    WriteSession,
)
from ffs.wire.method import Fault

SOME = Attr(*range(100, 111))
SESSION = WriteSession(1, 2, Layout(4096, 3, 4, 5))
ROW = [0, *SOME]


def wire(message: Any) -> Any:
    """What the peer gets to see."""
    return msgpack.unpackb(msgpack.packb(codec_of(type(message)).encode(message)))


def outcome(decode: Callable[[Any], Any], value: Any) -> Any:
    """Return what decoding comes to: a value, or the words of the refusal."""
    try:
        return decode(value)
    except ProtocolError as error:
        return str(error)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_rows_alone_and_between_faults(count: int) -> None:
    fault = Fault(100, "no")
    rows: list[Attr | Fault] = [SOME] * count
    faults: list[Attr | Fault] = [fault] * count
    for attrs in (rows, [*rows, fault], [fault, *rows], faults):
        decoded = codec_of(StatManyReply).decode(wire(StatManyReply(attrs)))
        assert decoded.attrs == attrs
        assert [type(a) for a in decoded.attrs] == [type(a) for a in attrs]


def test_rows_within_rows() -> None:
    reply = codec_of(CreateManyReply).decode(wire(CreateManyReply([SESSION, SESSION])))
    assert reply.sessions == [SESSION, SESSION]
    assert all(type(s) is WriteSession and type(s.layout) is Layout for s in reply.sessions)


def test_rows_of_other_versions() -> None:
    entries = [[b"/a"], [b"/b", 2], [b"/c", 1, 0o600, True, 1 << 20, 3, "from the future"]]
    request = codec_of(CreateManyRequest).decode([b"m", b"c", entries])
    assert request.entries == [
        CreateEntry(b"/a"),
        CreateEntry(b"/b", 2),
        CreateEntry(b"/c", 1, 0o600, True, 1 << 20, 3),
    ]
    short = codec_of(CloseManyRequest).decode([b"m", b"c", [[1, 2], [3, 4]]])
    assert short.entries == [CloseEntry(1, 2), CloseEntry(3, 4)]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ([0, *SOME[:10], True], "Attr.ctime_ns: expected int, got bool"),
        ([0, *SOME[:10]], "Attr.ctime_ns: the field is missing"),
        ([False, *SOME], "StatManyReply.attrs: .* no such tag"),
        ([0.0, *SOME], "StatManyReply.attrs: .* no such tag"),
        ([2, *SOME], "StatManyReply.attrs: .* no such tag"),
        ([[], *SOME], "StatManyReply.attrs: .* no such tag"),
        ([], "StatManyReply.attrs: expected Attr or Fault"),
        (None, "StatManyReply.attrs: expected Attr or Fault"),
        ("a" * 12, "StatManyReply.attrs: expected Attr or Fault"),
    ],
)
@pytest.mark.parametrize("before", [0, 2])
def test_one_wrong_row(row: Any, told: str, before: int) -> None:
    for rows in ([ROW] * before + [row], [row] + [ROW] * before):
        with pytest.raises(ProtocolError, match=told):
            codec_of(StatManyReply).decode([rows])


def test_a_wrong_row_within_a_row() -> None:
    good, bad = [0, 1, 2, [3, 4, 5, 6]], [0, 1, 2, [3, 4, b"5", 6]]
    with pytest.raises(ProtocolError, match=r"Layout\.table: expected int, got bytes"):
        codec_of(CreateManyReply).decode([[good, bad]])


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats(allow_nan=False) | st.binary(),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=8,
)
ROWS = st.sampled_from([ROW, ROW[:11], [*ROW, 1], [1, 100, "no"], [0, 1, 2, [3, 4, 5, 6]]])


@given(
    rows=st.lists(ROWS | st.tuples(ROWS, st.integers(0, 11), JUNK).map(lambda x: changed(*x))),
    message=st.sampled_from([StatManyReply, CreateManyReply, RemoveManyReply]),
)
def test_a_list_is_what_its_rows_are(rows: list[Any], message: type[Any]) -> None:
    decode = codec_of(message).decode
    alone = [outcome(decode, [[row]]) for row in rows]
    refused = [words for words in alone if isinstance(words, str)]
    whole = outcome(decode, [rows])
    if refused:
        assert whole in refused
    else:
        field = next(iter(message.__dataclass_fields__))
        assert getattr(whole, field) == [getattr(one, field)[0] for one in alone]


def changed(row: list[Any], place: int, value: Any) -> list[Any]:
    """Return a row with another value at a place."""
    copy = list(row)
    copy[place % len(copy)] = value
    return copy


@pytest.mark.parametrize("stranger", [(b"/a",), CloseEntry(1, 2), b"/a", None])
def test_nothing_else_is_sent_for_a_row(stranger: Any) -> None:
    request = CreateManyRequest(b"m", b"c", [CreateEntry(b"/a"), stranger])
    with pytest.raises(TypeError):
        codec_of(CreateManyRequest).encode(request)
