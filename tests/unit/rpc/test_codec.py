"""RPC frames: golden bytes, cutting a stream, and everything a hostile peer may try."""

from __future__ import annotations

import struct
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffs.errors import FFSError, InvalidError, NotFoundError, ProtocolError
from ffs.limits import RPC_ELEMENTS_MAX, RPC_FRAME_BYTES_MAX, RPC_LIST_MAX
from ffs.rpc.codec import (
    METHODS,
    FrameDecoder,
    decode_reply,
    decode_request,
    encode_error,
    encode_reply,
    encode_request,
    parse_reply,
    parse_request,
)
from ffs.types import Attr
from ffs.wire.messages import STAT_MANY, ListRequest, StatManyReply, StatManyRequest
from ffs.wire.method import Fault

ATTR = Attr(7, 1, 0o644, 0, 0, 1, 4096, 1, 10, 20, 30)


def framed(value: Any) -> bytes:
    """Any msgpack value as a frame."""
    packed: bytes = msgpack.packb(value)
    return struct.pack("<I", len(packed)) + packed


def one_frame(data: bytes) -> bytes:
    """Decode a single frame."""
    decoder = FrameDecoder()
    decoder.feed(data)
    frame = decoder.next_frame()
    assert frame is not None
    assert decoder.next_frame() is None
    return frame


# --- golden bytes -----------------------------------------------------------------------------


GOLDEN_REQUEST = b"".join(
    [
        b"\x1c\x00\x00\x00",  # 28 bytes follow
        b"\x94",  # an array of four
        b"\x05",  # request id 5
        b"\xa9stat_many",
        b"\x92",  # two fields
        b"\x92\xc4\x02/a\xc4\x04/b/c",  # the paths
        b"\xc3",  # follow
        b"\xcd\x03\xe8",  # deadline 1,000 ms
    ]
)
GOLDEN_REPLY = b"".join(
    [
        b"\x20\x00\x00\x00",  # 32 bytes follow
        b"\x93",  # an array of three
        b"\x05",  # request id 5
        b"\x00",  # done
        b"\x91",  # one field
        b"\x92",  # of two entries
        b"\x9c\x00\x07\x01\xcd\x01\xa4\x00\x00\x01\xcd\x10\x00\x01\x0a\x14\x1e",  # tag 0, an Attr
        b"\x93\x01\x64\xa6absent",  # tag 1, a Fault
    ]
)
GOLDEN_ERROR = b"".join(
    [
        b"\x1c\x00\x00\x00",  # 28 bytes follow
        b"\x93",  # an array of three
        b"\x05",  # request id 5
        b"\x64",  # code 100
        b"\x93\xa4gone\xa5retry",  # message, hint
        b"\x82\xa4path\xc4\x02/a\xa1n\x07",  # two facts
    ]
)


def test_golden_request() -> None:
    request = StatManyRequest([b"/a", b"/b/c"])
    assert encode_request(5, STAT_MANY, request, 1000) == GOLDEN_REQUEST
    frame = decode_request(one_frame(GOLDEN_REQUEST))
    assert (frame.request_id, frame.method, frame.deadline_ms) == (5, "stat_many", 1000)
    assert parse_request(STAT_MANY, frame) == request


def test_golden_reply() -> None:
    reply = StatManyReply([ATTR, Fault(100, "absent")])
    assert encode_reply(5, STAT_MANY, reply) == GOLDEN_REPLY
    assert parse_reply(STAT_MANY, decode_reply(one_frame(GOLDEN_REPLY))) == reply


def test_golden_error() -> None:
    error = NotFoundError("gone", hint="retry", path=b"/a", n=7)
    assert encode_error(5, error) == GOLDEN_ERROR
    with pytest.raises(NotFoundError) as caught:
        parse_reply(STAT_MANY, decode_reply(one_frame(GOLDEN_ERROR)))
    assert caught.value.where == {"path": b"/a", "n": 7}
    assert caught.value.hint == "retry"


def test_methods_are_found_by_name() -> None:
    assert METHODS["stat_many"] is STAT_MANY
    assert all(name == method.name for name, method in METHODS.items())


# --- cutting a stream ---------------------------------------------------------------------------


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=8), st.data())
def test_frames_come_out_however_they_are_cut(bodies: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(struct.pack("<I", len(b)) + b for b in bodies)
    decoder, found, place = FrameDecoder(), [], 0
    while place < len(stream):
        step = data.draw(st.integers(1, 30))
        decoder.feed(stream[place : place + step])
        place += step
        while (frame := decoder.next_frame()) is not None:
            found.append(frame)
    assert found == bodies
    assert decoder.buffered_bytes == 0


@pytest.mark.parametrize("length", [0, RPC_FRAME_BYTES_MAX + 1, 2**32 - 1])
def test_a_lying_length_is_refused_before_anything_is_kept(length: int) -> None:
    decoder = FrameDecoder()
    with pytest.raises(ProtocolError, match=str(length)):
        decoder.feed(struct.pack("<I", length))
    good = framed([1])
    second = FrameDecoder()
    second.feed(good + struct.pack("<I", length))
    assert second.next_frame() == good[4:]
    with pytest.raises(ProtocolError):
        second.next_frame()


def test_largest_frame_is_taken() -> None:
    body = b"x" * RPC_FRAME_BYTES_MAX
    assert one_frame(struct.pack("<I", len(body)) + body) == body


# --- hostile msgpack ----------------------------------------------------------------------------


def test_an_array_header_costs_no_memory() -> None:
    """Nested arrays of claimed 2^32 - 1 elements: refused without allocating for them."""
    lies = b"\xdd\xff\xff\xff\xff" * 1000
    tracemalloc.start()
    with pytest.raises(ProtocolError):
        decode_request(lies)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_arrays_of_half_lies_cost_little_memory() -> None:
    """Headers that stay within the bound, nested: at most the frame's length for each level."""
    lies = b"\xdc\xff\xff" * 1000
    tracemalloc.start()
    with pytest.raises(ProtocolError):
        decode_request(lies)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1k", b"\xdc\x00\x01"])
def test_deep_nesting(opening: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_request(opening * 100_000 + b"\xc0")


def test_too_many_elements_in_all() -> None:
    row = [None] * (RPC_LIST_MAX - 1)
    rows = RPC_ELEMENTS_MAX // len(row) + 1
    with pytest.raises(ProtocolError, match="elements"):
        decode_request(msgpack.packb([1, "stat_many", [row] * rows]))


def test_too_long_a_list() -> None:
    with pytest.raises(ProtocolError):
        decode_request(msgpack.packb([1, "stat_many", [[None] * (RPC_LIST_MAX + 1)]]))


@pytest.mark.parametrize(
    "frame",
    [
        b"\xc1",  # never used by msgpack
        b"\x93\x01",  # cut off
        msgpack.packb([1, "m", []]) + b"\x00",  # something after the end
        msgpack.packb([1, "m", msgpack.ExtType(5, b"xx")]),
        msgpack.packb([1, "m", msgpack.Timestamp(1)]),
        b"\x93\x01\xa1\xff\x90",  # text that is no UTF-8
        msgpack.packb([1, "m", dict.fromkeys(range(3), 0)]),  # keys that are no names
        msgpack.packb([1, "m", {str(i): 0 for i in range(100)}]),
        msgpack.packb(None),
        msgpack.packb({}),
        msgpack.packb([]),
        msgpack.packb([1, "m"]),
        msgpack.packb([True, "m", []]),
        msgpack.packb([-1, "m", []]),
        msgpack.packb([2**63, "m", []]),
        msgpack.packb([1.0, "m", []]),
        msgpack.packb([1, b"m", []]),
        msgpack.packb([1, "m", [], -1]),
        msgpack.packb([1, "m", [], "soon"]),
    ],
)
def test_broken_requests(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_request(frame)


@given(st.binary(max_size=200))
def test_garbage_is_a_protocol_error_or_a_request(data: bytes) -> None:
    for decode in (decode_request, decode_reply):
        try:
            decode(data)
        except ProtocolError:
            continue


@given(st.data(), st.integers(0, 255))
def test_flipped_bytes_never_crash(data: st.DataObject, byte: int) -> None:
    golden = data.draw(st.sampled_from([GOLDEN_REQUEST, GOLDEN_REPLY, GOLDEN_ERROR]))
    place = data.draw(st.integers(0, len(golden) - 1))
    broken = golden[:place] + bytes([byte]) + golden[place + 1 :]
    decoder = FrameDecoder()
    try:
        decoder.feed(broken)
        frame = decoder.next_frame()
        if frame is None:
            return
        if golden is GOLDEN_REQUEST:
            parse_request(STAT_MANY, decode_request(frame))
        else:
            parse_reply(STAT_MANY, decode_reply(frame))
    except FFSError:
        pass


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        ["message", "hint"],
        [1, "hint", {}],
        ["message", None, {}],
        ["message", "hint", []],
        ["message", "hint", {"self": 1}],
        ["message", "hint", {"message": "x"}],
        ["message", "hint", {"hint": "x"}],
        ["message", "hint", {"k": [1]}],
        ["message", "hint", {"k": True}],
        ["message", "hint", {b"k": 1}],
    ],
)
def test_broken_errors(body: Any) -> None:
    frame = decode_reply(msgpack.packb([1, NotFoundError.code, body]))
    with pytest.raises(ProtocolError):
        parse_reply(STAT_MANY, frame)


@pytest.mark.parametrize("code", [-1, 65_536, True, "100", None])
def test_broken_codes(code: Any) -> None:
    with pytest.raises(ProtocolError):
        decode_reply(msgpack.packb([1, code, []]))


def test_any_code_with_any_path_is_an_error() -> None:
    for code in (1, 100, 9999):
        frame = decode_reply(msgpack.packb([1, code, ["m", "h", {"path": 7, "name": b"\xff"}]]))
        with pytest.raises(FFSError):
            parse_reply(STAT_MANY, frame)


# --- what we refuse to send -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        StatManyRequest([2**64]),  # type: ignore[list-item]
        StatManyRequest([object()]),  # type: ignore[list-item]
        ListRequest(b"/"),
        StatManyRequest([b"x" * RPC_FRAME_BYTES_MAX]),
        StatManyRequest([b"x"] * (RPC_LIST_MAX + 1)),
    ],
)
def test_requests_that_cannot_be_sent(request_: Any) -> None:
    with pytest.raises(InvalidError):
        encode_request(1, STAT_MANY, request_)


def test_replies_that_cannot_be_sent() -> None:
    with pytest.raises(InvalidError):
        encode_reply(1, STAT_MANY, StatManyReply(["neither"]))  # type: ignore[list-item]
    with pytest.raises(InvalidError):
        encode_reply(1, STAT_MANY, StatManyReply(7))  # type: ignore[arg-type]


def test_every_error_can_be_sent() -> None:
    error = NotFoundError(
        "no \udcff here", hint="\udc80", path=b"\xff", text="\udc80", big=2**70, flag=True, x=1.5
    )
    frame = decode_reply(one_frame(encode_error(1, error)))
    with pytest.raises(NotFoundError) as caught:
        parse_reply(STAT_MANY, frame)
    where = caught.value.where
    assert where["path"] == b"\xff"
    assert where["big"] == str(2**70)
    assert where["flag"] == "True"
