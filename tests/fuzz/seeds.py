"""Write the seeds of every corpus: python -m tests.fuzz.seeds DIRECTORY.

Real messages: each RPC method in both directions with every member of every union, each error
class, both halves of a handshake that succeeds; for the native targets each operation of the data
port with the replies of an honest server, and files of a chunk store. `make fuzz-corpus` fuzzes
from here and keeps what reaches more code.
"""

from __future__ import annotations

import hashlib
import struct
import sys
import tempfile
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ffs import _reader, _storage
from ffs.auth.grant import HEAD, RANGE
from ffs.errors import all_error_classes
from ffs.handshake import ClientHandshake, HandshakeKind, ServerHandshake
from ffs.rpc import codec
from ffs.rpc.codec import LENGTH, METHODS
from ffs.wire import frame as wire
from tests.fuzz.targets import KEY, FixedNonce
from tests.native import data_loop
from tests.native.server import Frame

VARIANTS = 6
Seeds = Iterator[tuple[str, bytes]]

# --- RPC ------------------------------------------------------------------------------------------


def example(annotation: Any, variant: int) -> Any:
    """Return a value of a declared type; variants differ in numbers, lengths and union members."""
    annotation = getattr(annotation, "__supertype__", annotation)
    origin = typing.get_origin(annotation)
    if origin is list:
        element = typing.get_args(annotation)[0]
        return [example(element, variant + i) for i in range(variant % 4)]
    if origin in (types.UnionType, typing.Union):
        members = typing.get_args(annotation)
        return example(members[variant % len(members)], variant)
    if annotation is types.NoneType:
        return None
    plain = {
        bool: variant % 2 == 1,
        int: (0, 1, 4096, -1, 1 << 40, 0o644)[variant % 6],
        str: ("", "name", "grün")[variant % 3],
        bytes: (b"/data/a", b"", bytes(16), b"/x\xff")[variant % 4],
    }
    if annotation in plain:
        return plain[annotation]
    # A message: its fields in order.
    hints = typing.get_type_hints(annotation)
    return annotation(*(example(hint, variant + i) for i, hint in enumerate(hints.values())))


def rpc_requests() -> Seeds:
    """Every method's request, as it is sent."""
    for name, method in METHODS.items():
        for variant in range(VARIANTS):
            value = example(method.request, variant)
            frame = codec.encode_request(variant, method, value, 1000 * variant)
            yield f"{name}-{variant}", frame


def rpc_replies() -> Seeds:
    """Every method's reply, and every error to a `stat_many`, behind the method's name."""
    for name, method in METHODS.items():
        for variant in range(VARIANTS):
            frame = codec.encode_reply(variant, method, example(method.reply, variant))
            yield f"{name}-{variant}", name.encode() + b"\n" + frame[LENGTH.size :]
    for code, kind in all_error_classes().items():
        error = kind("went wrong", hint="try again", path=b"/a", node=code)
        yield f"error-{code}", b"stat_many\n" + codec.encode_error(7, error)[LENGTH.size :]


def streams() -> Seeds:
    """A few requests in a row, cut into pieces of different sizes."""
    sent = [frame for _, frame in rpc_requests()]
    for step in (0, 3, 16, 255):
        yield f"every-{step}", bytes([step]) + b"".join(sent[step : step + 4])


def handshakes() -> Seeds:
    """What each half receives when all goes well."""
    for kind, flag in ((HandshakeKind.RPC, 0), (HandshakeKind.DATA, 0x80)):
        client = ClientHandshake(KEY, kind, FixedNonce())
        server = ServerHandshake(KEY, kind, FixedNonce())
        hello = client.start()
        challenge = server.receive(hello)
        proof = client.receive(challenge)
        accept = server.receive(proof)
        yield f"server-{kind}", bytes([flag]) + hello + proof
        yield f"client-{kind}", bytes([flag | 1]) + challenge + accept


# --- data port ------------------------------------------------------------------------------------


def parts() -> Seeds:
    """Each structure by itself, behind its number in native/fuzz/parts.c."""
    yield "header", b"\0" + data_loop.pack(wire.Op.READ, count=2, body_bytes=48)
    yield "descriptor", b"\1" + wire.READ_DESCRIPTOR.pack(1, 2, 3, 4097, 8192)
    yield "superblock", b"\2" + superblock()
    yield "entry", b"\3" + bytes(64)
    yield "length", b"\4" + struct.pack("<I", 300_000)
    yield "checksum", b"\5" + bytes(9000)


def sent_by_clients() -> Seeds:
    """Requests of every operation, for chunks that native/fuzz/serve.c has and has not."""
    read = data_loop.read_frame((1, 0, 100, 5000), (2, 0, 0, 1), (9, 9, 0, 1))
    large = data_loop.read_frame((1, 1, 5, 100_000), request_id=2)
    bare = data_loop.read_frame((1, 0, 4095, 2), flags=wire.FLAG_NO_CRC)
    write = data_loop.write_frame(7, 1, bytes(5000), request_id=3)
    ping = data_loop.pack(wire.Op.PING, 4)
    for flags in range(0, 32, 3):
        for piece in (0, 7, 200):
            script = bytes([flags, piece, 0, 0])
            yield f"all-{flags}-{piece}", script + ping + read + write + large + bare + write

    listing = list_frame(0, 0, 3) + list_frame(1, 0, 2)
    suspect = data_loop.pack(wire.Op.SUSPECT, 5, count=2, body_bytes=48)
    suspect += wire.READ_DESCRIPTOR.pack(1, 0, data_loop.TARGET, 0, 0) * 2
    yield from by_a_token(read + bare)
    for flags in (0, 4, 8):
        yield f"replicas-{flags}", bytes([flags, 0, 0, 0]) + listing + read + suspect + listing
    yield from forwarded()


def by_a_token(asks: bytes) -> Seeds:
    """What a token's holder asks for before and after it has shown a grant, also on this host."""
    located = wire.READ_DESCRIPTOR.pack(1, 0, data_loop.TARGET, 0, 0)
    locate = data_loop.pack(wire.Op.LOCATE, 7, count=1, body_bytes=24) + located
    release = data_loop.pack(wire.Op.RELEASE, 8, count=1, body_bytes=4) + bytes(4)
    write = data_loop.write_frame(7, 1, bytes(5000), request_id=3)
    for may in (1, 2, 3):
        stream = asks + grant_frame(may, (1, 1), (7, 9)) + asks + locate + release + write
        for flags, piece in ((64, 0), (65, 0), (68, 30)):
            yield f"token-{may}-{flags}", bytes([flags, piece, 0, 0]) + stream


def grant_frame(may: int, *ranges: tuple[int, int]) -> bytes:
    """A GRANT by the key of native/fuzz/fuzz.c."""
    body = HEAD.pack(1, may, len(ranges), 1, (1 << 64) - 1, bytes(16))
    body += b"".join(RANGE.pack(*each) for each in ranges)
    body += hashlib.blake2b(body, key=bytes(32), digest_size=32).digest()
    return data_loop.pack(wire.Op.GRANT, 9, count=len(ranges), body_bytes=len(body)) + body


def grants() -> Seeds:
    """GRANTs as native/fuzz/grants.c puts them together."""
    some = [(5, 3), (1, 0), (200, 100)]
    for flags in (1, 2, 3, 1 | 4, 1 | 8, 3 | 16, 1 | 32, 1 | 64, 128):
        one = bytes([flags, len(some)]) + b"".join(struct.pack("<HH", *each) for each in some)
        other = bytes([flags, 1]) + struct.pack("<HH", 7, 150)
        yield f"one-{flags}", one
        yield f"cut-{flags}", one + other + bytes([3, 1]) + struct.pack("<HH", 1, 255) + one


def list_frame(blob: int, chunk: int, limit: int) -> bytes:
    body = wire.LIST_DESCRIPTOR.pack(blob, chunk, data_loop.TARGET, limit, 0)
    return data_loop.pack(wire.Op.LIST, 6, count=1, body_bytes=len(body)) + body


def forwarded() -> Seeds:
    """Two writes in a piece to the daemon, and the next daemon's answers in one, in turn."""
    for hop in (0, 1):
        chunks = [data_loop.write_frame(7, i, bytes(12), request_id=i, hop=hop) for i in (0, 1)]
        for status in (0, 206):
            answers = [
                data_loop.pack(wire.Op.WRITE | wire.REPLY_BIT, 1 << 32 | slot, status=status)
                for slot in range(3)
            ]
            stream = b"".join(chunks + answers)
            for flags in (32, 33):
                yield f"forward-{hop}-{status}-{flags}", bytes([flags, 130, 0, 0]) + stream


def listed() -> bytes:
    """Two pages of an honest daemon."""
    pages = [[(1, 0), (1, 7)], [(1, 8), (2, 0), (1 << 63, 5)]]
    out = b""
    for number, names in enumerate(pages, 1):
        payload = b"".join(wire.LIST_ENTRY.pack(*name, 4096, 9, 0) for name in names)
        out += Frame(number, op=wire.Op.LIST | wire.REPLY_BIT, payload=payload).encode()
    return out


def sent_by_servers() -> Seeds:
    """Operations of a client and the answers of an honest server, for native/fuzz/reader.c."""
    for piece in (0, 50):
        yield f"list-{piece}", bytes([8, piece, 3, 31]) + bytes(60) + listed()
    ranges = ((1, 0, 100, 5000, 0), (1, 0, 4096, 4096, 8192), (2, 3, 0, 1, 16384))
    chunks = {(1, 0): bytes(10_000), (2, 3): b"x"}
    for count in (1, 2, 3):
        for flags, piece in ((0, 0), (0, 50), (2, 0), (4, 9)):
            ops = b"".join(
                struct.pack("<5I", blob, chunk, offset, length - (flags < 4), place)
                for blob, chunk, offset, length, place in ranges[:count]
            )
            answer = honest(chunks, ranges[:count], unchecked=flags == 2)
            refused = Frame(1, status=204).encode()
            head = bytes([flags, piece, count, 31])
            yield f"read-{count}-{flags}-{piece}", head + ops + answer
            yield f"refused-{count}-{flags}-{piece}", head + ops + refused
            done = b"".join(
                Frame(i + 1, op=wire.Op.WRITE | wire.REPLY_BIT).encode() for i in range(count)
            )
            yield f"write-{count}-{piece}", bytes([1, piece, count, 31]) + ops + done


def honest(
    chunks: dict[tuple[int, int], bytes],
    ranges: tuple[tuple[int, int, int, int, int], ...],
    *,
    unchecked: bool,
) -> bytes:
    """Return the first frame in one with two answers, and the rest in another."""
    frames = [Frame(1), Frame(1)]
    for index, (blob, chunk, offset, length, _) in enumerate(ranges):
        stored = chunks[blob, chunk]
        begin, end = offset, offset + length
        frame = frames[index // 2]
        if not unchecked:
            begin -= begin % 4096
            end = min(len(stored), -(-end // 4096) * 4096)
            piece = stored[begin:end]
            frame.crcs += _reader.block_crcs(piece, blob, chunk, begin // 4096)
        frame.entries.append((index, 0, end - begin))
        frame.payload += stored[begin:end]
    return b"".join(frame.encode() for frame in frames if frame.entries)


# --- chunk store ----------------------------------------------------------------------------------


def store_files() -> tuple[bytes, bytes]:
    """Superblock and index of a store with three chunks of one class, made by the store itself."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "t"
        store = _storage.ChunkStore(str(path), cluster_id=bytes(16), target_id=3, create=True)
        for chunk in range(3):
            data = bytes([chunk]) * 3000
            assert store.put(5, chunk, data, _reader.block_crcs(data, 5, chunk)) == 0
        store.close()
        return (path / "superblock").read_bytes(), (path / "4096.index").read_bytes()


def superblock() -> bytes:
    """Return the superblock of a store that was closed in order."""
    return store_files()[0]


def stores() -> Seeds:
    """A store's files, whole and with less of the data and CRC files than the index names."""
    block, index = store_files()
    for slots in (16, 3, 2, 0):
        for flags in range(4):
            script = bytes([0, slots, 16, flags])
            yield f"{slots}-{flags}", script + block + index[: 16 * 64]
            yield f"{slots}-{flags}-short", script + block + index[:150]


CORPORA = {
    "frames": streams,
    "request": lambda: ((name, frame[LENGTH.size :]) for name, frame in rpc_requests()),
    "reply": rpc_replies,
    "handshake": handshakes,
    "grants": grants,
    "parts": parts,
    "serve": sent_by_clients,
    "reader": sent_by_servers,
    "store": stores,
}


def main() -> None:
    """Write one folder of seeds for each target below the directory that is named."""
    for target, seeds in CORPORA.items():
        folder = Path(sys.argv[1]) / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in seeds():
            (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
