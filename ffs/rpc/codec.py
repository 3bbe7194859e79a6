"""RPC frames, sans-IO: bytes in, requests and replies out, and the other way round.

Previous hop: ffs.rpc.blocking and ffs.rpc.aio move the bytes; next hop: ffs.rpc.schema types them.

A frame is a u32 little-endian length and that many bytes of msgpack:

request  [request_id, method, fields, deadline_ms]
reply    [request_id, 0, fields]  or  [request_id, code, [message, hint, {fact: value}]]

A length is checked before anything is kept for it. What msgpack may allocate is bounded by the
frame's length, RPC_LIST_MAX per array and RPC_ELEMENTS_MAX in all. Anything else than a well-formed
frame is a ProtocolError, after which the connection has to be closed.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgpack

from ffs.errors import OK, FFSError, InvalidError, ProtocolError, error_from_wire
from ffs.limits import RPC_ELEMENTS_MAX, RPC_FRAME_BYTES_MAX, RPC_LIST_MAX, RPC_WHERE_MAX
from ffs.rpc.schema import codec_of, mismatch
from ffs.wire import auth, maintenance, membership, messages, operators, snapshots, status
from ffs.wire.method import Method

Req = TypeVar("Req")
Rep = TypeVar("Rep")

LENGTH: Final = struct.Struct("<I")
CONNECTION_ERROR_ID: Final = 0
_ARRAY_OF_THREE: Final = b"\x93"
"""The request id of an error that ends the connection, when its request could not be told."""
METHODS: Final[Mapping[str, Method[Any, Any]]] = {
    m.name: m
    for module in (messages, snapshots, membership, maintenance, operators, status, auth)
    for m in vars(module).values()
    if isinstance(m, Method)
}
"""Every method of this version, by its name on the wire."""

_KEPT_BYTES_MAX: Final = 64 << 10
_RESERVED_FACTS: Final = frozenset({"self", "message", "hint"})


@dataclass(frozen=True, slots=True)
class RequestFrame:
    """A request whose fields have not been checked yet: its method says how."""

    request_id: int
    method: str
    fields: Any
    deadline_ms: int
    """How long the caller waits from sending; 0: not said."""


@dataclass(frozen=True, slots=True)
class ReplyFrame:
    """A reply whose body has not been checked yet: the request's method says how."""

    request_id: int
    code: int
    body: Any


# --- frames ---------------------------------------------------------------------------------------


class FrameDecoder:
    """Cuts a byte stream into frames. Holds at most one frame and what was fed after it."""

    __slots__ = ("_buffer", "_taken")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._taken = 0

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Add received bytes; ProtocolError if the frame they begin is too long."""
        self._compact()
        self._buffer += data
        self._frame_bytes()

    def next_frame(self) -> bytes | None:
        """Return the next whole frame's msgpack, or None until more is fed."""
        length = self._frame_bytes()
        start = self._taken + LENGTH.size
        if length is None or len(self._buffer) < start + length:
            return None
        self._taken = start + length
        with memoryview(self._buffer) as view:
            frame = bytes(view[start : self._taken])
        if self._taken >= _KEPT_BYTES_MAX or self._taken == len(self._buffer):
            self._compact()  # an idle connection must not keep the memory of its longest frame
        return frame

    @property
    def whole_frame_bytes(self) -> int | None:
        """The length of the next frame if all of it is here, else None."""
        length = self._frame_bytes()
        here = len(self._buffer) - self._taken - LENGTH.size
        return length if length is not None and length <= here else None

    def clear(self) -> None:
        """Forget everything that was fed."""
        self._buffer.clear()
        self._taken = 0

    @property
    def buffered_bytes(self) -> int:
        """Bytes that were fed and are not yet part of a returned frame."""
        return len(self._buffer) - self._taken

    def _compact(self) -> None:
        if self._taken:
            del self._buffer[: self._taken]
            self._taken = 0

    def _frame_bytes(self) -> int | None:
        if len(self._buffer) - self._taken < LENGTH.size:
            return None
        length: int = LENGTH.unpack_from(self._buffer, self._taken)[0]
        if not 0 < length <= RPC_FRAME_BYTES_MAX:
            raise ProtocolError(
                f"an RPC frame has 1..{RPC_FRAME_BYTES_MAX} bytes, the peer announced {length}"
            )
        return length


def _pack(values: tuple[Any, ...], what: str) -> bytes:
    try:
        packed: bytes = msgpack.packb(values)
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise InvalidError(f"{what} cannot be sent: {error}") from error
    return packed


def _frame(packed: bytes, what: str) -> bytes:
    if len(packed) > RPC_FRAME_BYTES_MAX:
        raise InvalidError(
            f"{what} takes {len(packed)} bytes, more than the {RPC_FRAME_BYTES_MAX} of a frame",
            hint="ask for fewer entries at once",
        )
    return LENGTH.pack(len(packed)) + packed


def _unpack(frame: bytes) -> Any:
    """Return one msgpack value, bounded.

    Every element takes at least a byte, so only frames above RPC_ELEMENTS_MAX bytes need counting.
    msgpack allocates an array when its header claims it: hence the bound per array as well.
    """
    hook = None if len(frame) <= RPC_ELEMENTS_MAX else _ElementCount()
    try:
        return msgpack.unpackb(
            frame,
            list_hook=hook,
            strict_map_key=True,
            max_array_len=min(RPC_LIST_MAX, len(frame)),
            max_map_len=RPC_WHERE_MAX,
            max_ext_len=0,
        )
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise ProtocolError(f"an RPC frame is not bounded msgpack: {error}") from error


class _ElementCount:
    """Refuses a frame that unfolds to too many elements, while it unfolds."""

    def __init__(self) -> None:
        self._elements = 0

    def __call__(self, values: list[Any]) -> list[Any]:
        self._elements += len(values)
        if self._elements > RPC_ELEMENTS_MAX:
            raise ValueError(f"more than {RPC_ELEMENTS_MAX} elements")
        return values


# --- requests -------------------------------------------------------------------------------------


def encode_request(
    request_id: int, method: Method[Req, Rep], request: Req, deadline_ms: int = 0
) -> bytes:
    """Return a request's frame."""
    fields = _fields(method.request, request, method.name)
    what = f"request {method.name}"
    return _frame(_pack((request_id, method.name, fields, deadline_ms), what), what)


def decode_request(frame: bytes) -> RequestFrame:
    """Check a request's envelope. A missing deadline is 0; what a later version adds is ignored."""
    value = _unpack(frame)
    if type(value) is not list or len(value) < 3:
        raise mismatch("request", "[request_id, method, fields]", value)
    deadline_ms = value[3] if len(value) > 3 else 0
    _check_id(value[0], "request")
    if type(value[1]) is not str:
        raise mismatch("request.method", "str", value[1])
    if type(deadline_ms) is not int or deadline_ms < 0:
        raise mismatch("request.deadline_ms", "int >= 0", deadline_ms)
    return RequestFrame(value[0], value[1], value[2], deadline_ms)


def parse_request(method: Method[Req, Rep], frame: RequestFrame) -> Req:
    """Return the typed request of a frame; ProtocolError names the wrong message and field."""
    return codec_of(method.request).decode(frame.fields)


# --- replies --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PackedReply:
    """A successful reply that was packed before, and so is neither looked at nor packed again."""

    fields: bytes


def pack_reply(method: Method[Any, Rep], reply: Rep) -> PackedReply:
    """Return a reply as it travels, to be kept or sent."""
    fields = _fields(method.reply, reply, method.name)
    return PackedReply(_pack(fields, f"reply to {method.name}"))


def encode_reply(request_id: int, method: Method[Req, Rep], reply: Rep | PackedReply) -> bytes:
    """Return the frame of a successful reply."""
    packed = reply if isinstance(reply, PackedReply) else pack_reply(method, reply)
    id_and_code: bytes = msgpack.packb((request_id, OK))
    # An array of two becomes one of three: its first byte says how many.
    body = _ARRAY_OF_THREE + id_and_code[1:] + packed.fields
    return _frame(body, f"reply to {method.name}")


def encode_error(request_id: int, error: FFSError) -> bytes:
    """Return the frame of a failed request. Facts that are no int, str or bytes go as text."""
    facts = list(error.where.items())[:RPC_WHERE_MAX]
    where = {key: _fact(value) for key, value in facts}
    body = [_text(error.message), _text(error.hint), where]
    what = f"error {type(error).__name__}"
    return _frame(_pack((request_id, error.code, body), what), what)


def _fact(value: Any) -> int | str | bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 64:
        return int(value)
    return _text(str(value))


def _text(value: str) -> str:
    """Return text that UTF-8 can carry: a path in a message may hold undecodable bytes."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8")


def decode_reply(frame: bytes) -> ReplyFrame:
    """Check a reply's envelope."""
    value = _unpack(frame)
    if type(value) is not list or len(value) < 3:
        raise mismatch("reply", "[request_id, code, body]", value)
    _check_id(value[0], "reply")
    if type(value[1]) is not int or not 0 <= value[1] <= 0xFFFF:
        raise mismatch("reply.code", "int in 0..65535", value[1])
    return ReplyFrame(value[0], value[1], value[2])


def parse_outcome(method: Method[Req, Rep], frame: ReplyFrame) -> Rep | FFSError:
    """Return the typed reply, or the error that the server sent.

    Raises:  ProtocolError if it is neither: the connection is then of no further use
    """
    if frame.code != OK:
        return parse_error(frame)
    return codec_of(method.reply).decode(frame.body)


def parse_reply(method: Method[Req, Rep], frame: ReplyFrame) -> Rep:
    """Return the typed reply, or raise the error that the server sent."""
    outcome = parse_outcome(method, frame)
    if isinstance(outcome, FFSError):
        raise outcome
    return outcome


def parse_error(frame: ReplyFrame) -> FFSError:
    """Return the error that a reply holds; ProtocolError if it holds none."""
    body = frame.body
    if type(body) is not list or len(body) < 3:
        raise mismatch("error", "[message, hint, facts]", body)
    message, hint, where = body[:3]
    if type(message) is not str or type(hint) is not str:
        raise mismatch("error.message and hint", "str", message)
    if type(where) is not dict:
        raise mismatch("error.facts", "a map", where)
    for key, value in where.items():
        if type(key) is not str or key in _RESERVED_FACTS:
            raise mismatch("error.facts", "names as keys", key)
        if type(value) not in (int, str, bytes):
            raise mismatch(f"error.facts[{key}]", "int, str or bytes", value)
    return error_from_wire(frame.code, message, hint, where)


def _fields(declared: type[Req], value: Req, method: str) -> tuple[Any, ...]:
    if type(value) is not declared:
        raise InvalidError(f"{method} takes a {declared.__name__}, not a {type(value).__name__}")
    try:
        return codec_of(declared).encode(value)
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidError(f"{declared.__name__} cannot be sent: {error}") from error


def _check_id(value: Any, what: str) -> None:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise mismatch(f"{what}.request_id", "int in 0..2^63-1", value)
