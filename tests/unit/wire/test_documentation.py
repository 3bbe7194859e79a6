"""docs/wire.md tells the truth: its vectors and examples are run."""

from __future__ import annotations

import re
import struct
from pathlib import Path

from ffs import handshake, limits
from ffs.errors import AuthError, BusyError, ProtocolError
from ffs.layout import block_seed, mix64, stripe_places
from ffs.rpc.codec import (
    METHODS,
    FrameDecoder,
    decode_reply,
    decode_request,
    parse_reply,
    parse_request,
)
from ffs.wire import frame
from ffs.wire.messages import STAT_MANY, StatManyRequest
from ffs.wire.method import Fault

TEXT = (Path(__file__).resolve().parents[3] / "docs/wire.md").read_text()


def table(heading: str) -> list[list[str]]:
    """The cells of the table that begins with a heading row."""
    rows = TEXT.split(f"\n| {heading} |\n", 1)[1].split("\n\n", 1)[0].splitlines()[1:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_mix64_vectors() -> None:
    rows = table("mix64 of | is")
    assert len(rows) == 4
    assert all(mix64(int(x, 16)) == int(y, 16) for x, y in rows)


def test_place_vectors() -> None:
    rows = table("chains | stripe | seed | places")
    assert len(rows) == 7
    for chains, stripe, seed, places in rows:
        expected = tuple(int(p) for p in places.split())
        assert stripe_places(int(chains), int(stripe), int(seed)) == expected


def test_seed_vectors() -> None:
    rows = table("blob | chunk | block | seed")
    assert len(rows) == 6
    for blob, chunk, block, seed in rows:
        assert block_seed(int(blob), int(chunk), int(block)) == int(seed, 16)


def test_rpc_example() -> None:
    example = TEXT.split("one Attr, one Fault.\n\n", 1)[1].split("\n\n", 1)[0]
    decoder = FrameDecoder()
    decoder.feed(bytes.fromhex(example))
    request, reply = decoder.next_frame(), decoder.next_frame()
    assert request is not None
    assert reply is not None
    assert decoder.buffered_bytes == 0
    envelope = decode_request(request)
    assert METHODS[envelope.method] is STAT_MANY
    assert envelope.deadline_ms == 1_000
    assert parse_request(STAT_MANY, envelope) == StatManyRequest([b"/a", b"/b/c"])
    attr, fault = parse_reply(STAT_MANY, decode_reply(reply)).attrs
    assert fault == Fault(100, "absent")
    assert getattr(attr, "inode", None) == 7


def test_header_table() -> None:
    """Places and widths of the header's fields are those of the structure."""
    rows = table("bytes | field | meaning")
    widths = {"I": 4, "B": 1, "H": 2, "Q": 8}
    place, expected = 0, []
    for letter in frame.HEADER.format.lstrip("<"):
        last = place + widths[letter] - 1
        expected.append(f"{place}-{last}" if last > place else f"{place}")
        place = last + 1
    assert [row[0] for row in rows] == expected
    assert struct.pack("<I", frame.MAGIC) == b"FFS1"


def test_body_table() -> None:
    sizes = {row[0]: int(row[1]) for row in table("structure | bytes | fields")}
    assert sizes == {
        "read descriptor": frame.READ_DESCRIPTOR.size,
        "reply entry": frame.REPLY_ENTRY.size,
        "write descriptor": frame.WRITE_DESCRIPTOR.size,
        "list descriptor": frame.LIST_DESCRIPTOR.size,
        "list entry": frame.LIST_ENTRY.size,
        "location": frame.LOCATION.size,
    }


def test_handshake_facts() -> None:
    assert handshake.MESSAGE.size == 40
    assert (ProtocolError.code, BusyError.code, AuthError.code) == (2, 6, 400)
    assert re.search(rf"`HANDSHAKE_MS_MAX` \({limits.HANDSHAKE_MS_MAX // 1000} s\)", TEXT)
