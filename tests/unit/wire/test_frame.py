"""The data port's frames: the same golden bytes from Python's structures and from C."""

from __future__ import annotations

import dataclasses
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffs import _reader, limits
from ffs.wire import frame

GOLDEN_FIELDS = frame.FrameHeader(
    op=frame.Op.READ | frame.REPLY_BIT,
    request_id=0x1122334455667788,
    status=0x0201,
    blob=0xA1A2A3A4A5A6A7A8,
    trace_id=0xB1B2B3B4B5B6B7B8,
    deadline_ms=0xC1C2C3C4,
    chain_version=0xD1D2D3D4,
    grant_id=0xE1E2E3E4,
    priority=0x0F,
    flags=frame.FLAG_NO_CRC,
    count=0x0123,
    body_bytes=0x00034567,
    payload_bytes=0x0189ABCD,
)
GOLDEN_HEADER = bytes.fromhex(
    "46465331"  # magic: FFS1
    "01 81 0102"  # version, op, status
    "8877665544332211"  # request id
    "a8a7a6a5a4a3a2a1"  # blob
    "b8b7b6b5b4b3b2b1"  # trace id
    "c4c3c2c1 d4d3d2d1 e4e3e2e1"  # deadline, chain version, grant
    "0f 01 2301"  # priority, flags, count
    "67450300 cdab8901 00000000"  # body, payload, reserved
    "81578ba8"  # CRC32C of the above
)
PARTS = {
    "read_descriptor": (
        frame.READ_DESCRIPTOR,
        ("blob", "chunk", "target", "offset", "length"),
        (0x0102030405060708, 0x11121314, 0x21222324, 0x31323334, 0x41424344),
        "0807060504030201 14131211 24232221 34333231 44434241",
    ),
    "reply_entry": (
        frame.REPLY_ENTRY,
        ("index", "status", "bytes"),
        (0x0102, 0x00C9, 0x31323334),
        "0201 c900 34333231",
    ),
    "write_descriptor": (
        frame.WRITE_DESCRIPTOR,
        ("chunk", "target", "chain", "length"),
        (0x11121314, 0x21222324, 0x31323334, 0x00ABCDEF),
        "14131211 24232221 34333231 efcdab00",
    ),
    "qp_end": (
        frame.QP_END,
        (
            *("gid_first", "gid_last", "qpn", "psn", "lid"),
            *("link", "mtu", "reads", "requests", "request_bytes"),
        ),
        (0x8877665544332211, 0xFFEEDDCCBBAA9988, 0x17, 0xABCDEF, 0x1234, 2, 5, 16, 0x0840, 0x1000),
        (
            "1122334455667788 8899aabbccddeeff 17000000 efcdab00 3412 02 05 10 00 4008"
            "00100000 00000000"
        ),
    ),
    "remote": (
        frame.REMOTE,
        (
            *("body_address", "reply_address", "data_address", "body_key", "reply_key"),
            *("data_key", "reply_bytes", "frames"),
        ),
        (0x1020304050607080, 0x1121314151617181, 0, 0x11121314, 0x21222324, 0x31323334, 4096, 32),
        (
            "8070605040302010 8171615141312111 0000000000000000"
            "14131211 24232221 34333231 00100000 20000000 00000000"
        ),
    ),
}


def from_python(header: frame.FrameHeader) -> bytes:
    """The header as ffs.wire.frame's structure packs it."""
    head = frame.HEADER.pack(
        frame.MAGIC,
        frame.VERSION,
        header.op,
        header.status,
        header.request_id,
        header.blob,
        header.trace_id,
        header.deadline_ms,
        header.chain_version,
        header.grant_id,
        header.priority,
        header.flags,
        header.count,
        header.body_bytes,
        header.payload_bytes,
        0,
        0,
    )[:-4]
    return head + struct.pack("<I", _reader.crc32c(head))


def with_crc(head: bytes) -> bytes:
    """A changed header with a CRC that fits it."""
    return head[:60] + struct.pack("<I", _reader.crc32c(head[:60]))


def test_golden_header_from_both_sides() -> None:
    assert from_python(GOLDEN_FIELDS) == GOLDEN_HEADER
    assert _reader.pack_header(**dataclasses.asdict(GOLDEN_FIELDS)) == GOLDEN_HEADER
    assert _reader.unpack_header(GOLDEN_HEADER) == dataclasses.asdict(GOLDEN_FIELDS)


@pytest.mark.parametrize("name", PARTS)
def test_golden_parts_from_both_sides(name: str) -> None:
    structure, fields, values, text = PARTS[name]
    golden = bytes.fromhex(text)
    named = dict(zip(fields, values, strict=True))
    assert structure.pack(*values) == golden
    assert _reader.pack_part(name, **named) == golden
    assert _reader.unpack_part(name, golden) == named


def test_golden_offer() -> None:
    """C packs it from bytes alone: tests/rdma/test_cm.py takes one of its apart."""
    packed = frame.CM_OFFER.pack(bytes(range(16)), bytes(range(0xA0, 0xB0)), 0x1234)
    assert (
        packed.hex() == bytes(range(16)).hex() + bytes(range(0xA0, 0xB0)).hex() + "3412" + "00" * 6
    )


def _bits(count: int) -> st.SearchStrategy[int]:
    return st.integers(0, (1 << count) - 1)


@settings(max_examples=200, deadline=None)
@given(
    st.builds(
        frame.FrameHeader,
        op=_bits(8),
        request_id=_bits(64),
        status=_bits(16),
        blob=_bits(64),
        trace_id=_bits(64),
        deadline_ms=_bits(32),
        chain_version=_bits(32),
        grant_id=_bits(32),
        priority=_bits(8),
        flags=_bits(8),
        count=st.integers(0, limits.FRAME_DESCRIPTORS_MAX),
        body_bytes=st.integers(0, limits.FRAME_BODY_BYTES_MAX),
        payload_bytes=st.integers(0, limits.FRAME_PAYLOAD_BYTES_MAX),
    )
)
def test_any_header_within_bounds_round_trips(header: frame.FrameHeader) -> None:
    packed = _reader.pack_header(**dataclasses.asdict(header))
    assert packed == from_python(header)
    assert _reader.unpack_header(packed) == dataclasses.asdict(header)


@settings(max_examples=200, deadline=None)
@given(bit=st.integers(0, 64 * 8 - 1))
def test_any_flipped_bit_is_refused(bit: int) -> None:
    damaged = bytearray(GOLDEN_HEADER)
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ValueError, match="frame header"):
        _reader.unpack_header(damaged)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, b"FFS2", "magic"),
        (4, b"\x02", "version"),
        (46, struct.pack("<H", limits.FRAME_DESCRIPTORS_MAX + 1), "bound"),
        (48, struct.pack("<I", limits.FRAME_BODY_BYTES_MAX + 1), "bound"),
        (52, struct.pack("<I", limits.FRAME_PAYLOAD_BYTES_MAX + 1), "bound"),
        (52, struct.pack("<I", (1 << 32) - 1), "bound"),
    ],
)
def test_headers_out_of_bounds_are_refused(at: int, value: bytes, message: str) -> None:
    head = bytearray(GOLDEN_HEADER)
    head[at : at + len(value)] = value
    with pytest.raises(ValueError, match=message):
        _reader.unpack_header(with_crc(bytes(head)))


@pytest.mark.parametrize("length", [0, 63, 65])
def test_headers_of_other_lengths_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match="64 bytes"):
        _reader.unpack_header(bytes(length))


def test_packing_checks_names_and_ranges() -> None:
    with pytest.raises(TypeError, match="no field colour"):
        _reader.pack_header(colour=1)
    with pytest.raises(OverflowError, match="count"):
        _reader.pack_header(count=1 << 16)
    with pytest.raises(OverflowError):
        _reader.pack_header(blob=-1)
    with pytest.raises(ValueError, match="no structure"):
        _reader.pack_part("trailer")
    with pytest.raises(ValueError, match="8 bytes"):
        _reader.unpack_part("reply_entry", b"")
