"""The data port's frames: fixed little-endian structures, defined once here and once in C.

native/core/frame.h has the same offsets with static assertions; tests/unit/wire/test_frame.py
holds both against golden bytes. docs/wire.md tells the story of a request.

A frame is: header (64 B) | body (`body_bytes`) | payload (`payload_bytes`).

READ request   body: `count` read descriptors                                   payload: none
READ reply     body: `count` reply entries, then u32 block CRCs of the OK ones  payload: their bytes
WRITE request  body: one write descriptor, then u32 block CRCs of the chunk     payload: the chunk
               flags: the hop, 0 from a client, one more from each member of the chain to the next
WRITE reply    header only, `status` tells
PING           header only, both ways
LOCATE request body: `count` read descriptors, offset and length 0              payload: none
LOCATE reply   body: `count` locations in the request's order                   payload: none
RELEASE        body: `count` u32 pins; never answered                           payload: none
LIST request   body: one list descriptor                                        payload: none
LIST reply     body: none                                          payload: list entries, ascending
SUSPECT        body: `count` read descriptors; the reply is a header            payload: none
GRANT          body: a grant (ffs.auth.grant), `count` its ranges               payload: none
               answered by RDMA alone, by a header
CONNECT_QP     body: the client's end of a queue pair                           payload: none
               flags: the ConnectStep
CONNECT_QP reply                  body: none, payload: the daemon's end, or (OFFER) a CM_OFFER
               flags: why it is refused, where the status is not 0

A READ request is answered by any number of reply frames with its request id; each of its
descriptors is answered exactly once, in any order. Unless FLAG_NO_CRC was asked for, the bytes of a
range are widened to whole 4 KiB blocks (clipped at the chunk's stored length) so that every
CRC can be checked: the receiver keeps the edges apart. A reply with a non-zero header status and
count 0 answers the whole request.

After CONNECT_QP was answered with status 0, READ, WRITE and GRANT go by RDMA: a REMOTE stands
before the body, and a u64 destination for each descriptor behind those of a READ; docs/wire.md says
the rest.

LOCATE and RELEASE are for connections over a daemon's Unix socket alone. A location whose file
has the next unused number brings two descriptors beside the frame's first byte (SCM_RIGHTS): of
the data file, then of the CRC file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

MAGIC: Final = 0x31534646  # "FFS1" as little-endian bytes
VERSION: Final = 1
REPLY_BIT: Final = 0x80
FLAG_NO_CRC: Final = 0x01
FLAG_UNDER_WAY: Final = 0x04
"""A reply by RDMA that answers nothing: bytes are on their way."""
FLAG_MAPPED: Final = 0x02
"""LOCATE: what is located will be mapped, so a drop has to wait for the connection's end."""


class Op(IntEnum):
    """What a frame asks for; a reply has REPLY_BIT set as well."""

    READ = 1
    WRITE = 2
    PING = 3
    LOCATE = 4
    RELEASE = 5
    LIST = 6
    SUSPECT = 7
    CONNECT_QP = 8
    GRANT = 9


class Priority(IntEnum):
    """Whose requests go first where they wait for a daemon's disk: `enum ffs_priority`."""

    TRAINING = 0
    """Somebody waits."""
    BATCH = 1
    """Nobody does."""


class ConnectStep(IntEnum):
    """How CONNECT_QP has queue pairs connected: `enum ffs_connect_step`."""

    EXCHANGE = 0
    OFFER = 1
    CONFIRM = 2


HEADER: Final = struct.Struct("<IBBHQQQIIIBBHIIII")
"""magic, version, op, status, request_id, blob, trace_id, deadline_ms, chain_version, grant_id,
priority, flags, count, body_bytes, payload_bytes, reserved, header_crc (CRC32C of bytes 0..59)."""

READ_DESCRIPTOR: Final = struct.Struct("<QIIII")
"""blob, chunk, target, offset, length."""

REPLY_ENTRY: Final = struct.Struct("<HHI")
"""index of the descriptor in its request, status, bytes in the payload (edges included)."""

WRITE_DESCRIPTOR: Final = struct.Struct("<IIII")
"""chunk, target, chain, length."""

LOCATION: Final = struct.Struct("<HHIIIQQ")
"""status, file, pin, length of the chunk, reserved, data offset, CRC offset."""

LIST_DESCRIPTOR: Final = struct.Struct("<QIIII")
"""blob and chunk to begin behind, target, how many at most, 0."""

LIST_ENTRY: Final = struct.Struct("<QIIII")
"""blob, chunk, length, CRC32C of its list of block CRCs, 0."""

PIN: Final = struct.Struct("<I")
"""What a location was pinned by, to be given back."""

QP_END: Final = struct.Struct("<QQIIHBBBxHIxxxx")
"""One end of a queue pair: gid_first, gid_last, qpn, psn, lid, link, mtu, reads, requests,
request_bytes."""

CM_OFFER: Final = struct.Struct("<16s16sHxxxxxx")
"""Where one queue pair is taken by rdma_cm: address (IPv4 as ::ffff:a.b.c.d), secret, port."""

REMOTE: Final = struct.Struct("<QQQIIIIIxxxx")
"""body, reply and data address, body, reply and data key, reply_bytes, frames."""

assert HEADER.size == 64
assert READ_DESCRIPTOR.size == 24
assert REPLY_ENTRY.size == 8
assert WRITE_DESCRIPTOR.size == 16
assert LOCATION.size == 32
assert QP_END.size == 40
assert CM_OFFER.size == 40
assert REMOTE.size == 48


class RdmaFault(IntEnum):
    """Why a daemon refuses CONNECT_QP, or a client does not ask: `enum ffs_rdma_fault`."""

    FINE = 0
    NOT_BUILT = 1
    NO_LIBRARY = 2
    NO_DEVICE = 3
    NO_PORT = 4
    OTHER_SUBNET = 5
    MEMLOCK = 6
    NO_COPY_ON_FORK = 7
    NO_ROOM = 8
    OFF = 9
    SYSTEM = 10
    OTHER_WAY = 11
    NO_CM = 12
    NOT_REACHED = 13


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """The 64 bytes before every frame, header CRC left out (pack adds it, unpack checks it)."""

    op: int
    request_id: int
    status: int = 0
    blob: int = 0
    trace_id: int = 0
    deadline_ms: int = 0
    chain_version: int = 0
    grant_id: int = 0
    priority: int = 0
    flags: int = 0
    count: int = 0
    body_bytes: int = 0
    payload_bytes: int = 0
