"""Peers that misbehave: what `ffs-bench hostile` and tests/hostile hold against real servers.

    python -m ffs.bench.attacks --meta HOST:PORT --key-file FILE [--scale F] [--bare CPU] [NAME ...]

runs attacks (all of them without names) on the RPC port and on the first daemon's data port, prints
`ready` once their connections are where they should be, and ends with its standard input. Each
attack keeps a number of connections; one that the server closes is dialled again, at a stated rate.
They cost the attacker little, but not nothing: with `--bare` they go to a listener of its own that
accepts and closes, so that what the machine loses by the dialling itself can be told from what the
servers lose.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import itertools
import os
import signal
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from ffs import _reader
from ffs.errors import FFSError
from ffs.handshake import ClientHandshake, HandshakeKind, connect_async
from ffs.key import ClusterKey
from ffs.rpc.addresses import parse_address
from ffs.rpc.blocking import RpcClient
from ffs.rpc.codec import LENGTH, encode_request
from ffs.server.process import allow_many_files
from ffs.wire import frame as data
from ffs.wire import messages as wire

Address = tuple[str, int]
RPC, DATA = HandshakeKind.RPC, HandshakeKind.DATA

FILL_DIALS_PER_S: Final = 500
"""How fast an attack takes up its position."""
ASKED: Final = 64
"""Requests whose replies nobody takes; to make them is all the work that this one causes."""
_CHUNK_BYTES: Final = 1 << 20
_CONNECT_MS: Final = 20_000
_SIP_S: Final = 1.0
_PR_SET_PDEATHSIG: Final = 1


@dataclass(frozen=True, slots=True)
class Where:
    """What is attacked: both ports, and a chunk that can be read."""

    addresses: dict[HandshakeKind, Address]
    key: ClusterKey
    blob: int
    target: int

    @classmethod
    def find(cls, meta: Address, key: ClusterKey, path: bytes) -> Where:
        """Ask the metadata server for its first daemon, and for the first chunk of a file."""
        with contextlib.closing(RpcClient([meta], key)) as rpc:
            routing = rpc.call(wire.ROUTING, wire.RoutingRequest(), deadline_ms=20_000).routing
            opened = rpc.call(wire.OPEN_MANY, wire.OpenManyRequest([path]), deadline_ms=20_000)
        node, target = routing.nodes[0], routing.targets[0].target
        found = opened.files[0]
        blob = found.segments[0].blob if isinstance(found, wire.OpenFile) else 1
        return cls({RPC: meta, DATA: (node.host, node.port)}, key, blob, target)


# --- frames -------------------------------------------------------------------------------------


def header(op: int, *, count: int = 0, body: int = 0, payload: int = 0, blob: int = 0) -> bytes:
    """Return a data frame's header with a right checksum, whatever it announces."""
    fields = (data.MAGIC, data.VERSION, op, 0, 1, blob, 0, 0, 1, 0, 0, 0, count, body, payload, 0)
    packed = data.HEADER.pack(*fields, 0)[:-4]
    return packed + struct.pack("<I", _reader.crc32c(packed))


def read_frame(where: Where, count: int) -> bytes:
    """Return a READ of the same megabyte, many times."""
    one = data.READ_DESCRIPTOR.pack(where.blob, 0, where.target, 0, _CHUNK_BYTES)
    return header(data.Op.READ, count=count, body=len(one) * count) + one * count


def write_start() -> bytes:
    """Return all of a WRITE but its chunk."""
    body = data.WRITE_DESCRIPTOR.pack(0, 1, 1, _CHUNK_BYTES) + bytes(_CHUNK_BYTES // 4096 * 4)
    return header(data.Op.WRITE, count=1, body=len(body), payload=_CHUNK_BYTES, blob=1) + body


def stat_frame(count: int) -> bytes:
    """Return a stat_many of the root, many times: its answer is twenty times as long."""
    return encode_request(1, wire.STAT_MANY, wire.StatManyRequest([b"/"] * count))


# --- what a connection does ---------------------------------------------------------------------


async def until_closed(sock: socket.socket) -> None:
    """Take what comes until the server has closed."""
    while await asyncio.get_running_loop().sock_recv(sock, 65_536):
        pass


async def say(sock: socket.socket, what: bytes) -> None:
    """Send something and wait for the end."""
    await asyncio.get_running_loop().sock_sendall(sock, what)
    await until_closed(sock)


async def sip(sock: socket.socket, what: bytes, at_once: int) -> None:
    """Send the beginning at once and the rest at a byte a second."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, what[:at_once])
    for i in itertools.count(at_once):
        await asyncio.sleep(_SIP_S)
        await loop.sock_sendall(sock, what[i : i + 1] or b"\0")


async def never_read(sock: socket.socket, request: bytes) -> None:
    """Ask and ask, take nothing; end when the server has had enough."""
    loop = asyncio.get_running_loop()
    asking: asyncio.Future[None] = asyncio.ensure_future(_ask(sock, request))
    try:
        while True:
            await asyncio.sleep(_SIP_S)
            with contextlib.suppress(BlockingIOError):
                if not sock.recv(1, socket.MSG_PEEK):
                    return
            if asking.done():
                await asking
                asking = loop.create_future()
    finally:
        asking.cancel()


async def _ask(sock: socket.socket, request: bytes) -> None:
    for _ in range(ASKED):
        await asyncio.get_running_loop().sock_sendall(sock, request)


Play = Callable[[socket.socket, Where, HandshakeKind], Awaitable[None]]


async def silent(sock: socket.socket, where: Where, kind: HandshakeKind) -> None:
    """Say nothing at all."""
    await until_closed(sock)


async def garbage(sock: socket.socket, where: Where, kind: HandshakeKind) -> None:
    """Say what means nothing."""
    await say(sock, os.urandom(4_096))


async def truncated(sock: socket.socket, where: Where, kind: HandshakeKind) -> None:
    """Hang up in the middle of a handshake message."""
    await asyncio.get_running_loop().sock_sendall(
        sock, ClientHandshake(where.key, kind).start()[:20]
    )
    await asyncio.sleep(0.1)


async def cut_off(sock: socket.socket, where: Where, kind: HandshakeKind) -> None:
    """Hang up in the middle of a frame."""
    whole = stat_frame(100) if kind is RPC else read_frame(where, 100)
    await asyncio.get_running_loop().sock_sendall(sock, whole[: len(whole) // 2])
    await asyncio.sleep(0.1)


async def oversized(sock: socket.socket, where: Where, kind: HandshakeKind) -> None:
    """Announce more than a frame may have."""
    frame = b"\xff\xff\xff\xff"
    if kind is DATA:
        frame = header(data.Op.WRITE, count=1, body=80, payload=0xFFFFFFFF)
    await say(sock, frame + bytes(1_000))


async def lying(sock: socket.socket, where: Where, kind: HandshakeKind) -> None:
    """Announce more elements than follow."""
    claim = b"\x93\x01\xa9stat_many\x91\xdd\xff\xff\xff\xff"
    frame = LENGTH.pack(len(claim)) + claim
    if kind is DATA:
        frame = header(data.Op.READ, count=65_535, body=24 * 65_535)
    await say(sock, frame)


async def slow_loris(sock: socket.socket, where: Where, kind: HandshakeKind) -> None:
    """Send a frame at a byte a second."""
    await sip(sock, stat_frame(1_000) if kind is RPC else read_frame(where, 4_096), 100)


async def takes_nothing(sock: socket.socket, where: Where, kind: HandshakeKind) -> None:
    """Ask for much and read nothing."""
    await never_read(sock, stat_frame(1_000) if kind is RPC else read_frame(where, 64))


async def dribble(sock: socket.socket, where: Where, kind: HandshakeKind) -> None:
    """Write a chunk at a byte a second, in a buffer that others want."""
    await sip(sock, write_start(), len(write_start()))


@dataclass(frozen=True, slots=True)
class Attack:
    """What so many connections do at each of these ports. `dials_per_s`: of those that were closed.

    `proven` connections hold the cluster key. `passing` ones do not stay: new ones are dialled all
    the time.
    """

    text: str
    play: Play
    connections: int
    dials_per_s: int
    proven: bool = True
    passing: bool = False
    kinds: tuple[HandshakeKind, ...] = (RPC, DATA)


ATTACKS: Final = {
    "strangers": Attack("silent connections without the key", silent, 1_200, 100, False, True),
    "garbage": Attack("random bytes instead of a handshake", garbage, 50, 100, False, True),
    "truncated": Attack("half a handshake, then gone", truncated, 20, 100, False, True),
    "cut-off": Attack("half a frame, then gone", cut_off, 20, 50, passing=True),
    "oversized": Attack("frames longer than allowed", oversized, 20, 50, passing=True),
    "lying": Attack("counts that nothing follows", lying, 20, 50, passing=True),
    "slow-loris": Attack("frames at a byte a second", slow_loris, 200, 50),
    "slow-crowd": Attack("the same, by a thousand", slow_loris, 1_000, 50),
    "storm": Attack("20,000 dials in ten seconds", garbage, 100, 1_000, False, True),
    "idle": Attack("connections that do nothing", silent, 2_000, 50),
    "takes-nothing": Attack("asks and never reads", takes_nothing, 8, 5),
    "dribble": Attack("chunks at a byte a second", dribble, 300, 50, kinds=(DATA,)),
}


# --- running them -------------------------------------------------------------------------------


class Pacer:
    """Lets dials through at a rate: quickly until `first` of them, then as the attack says."""

    def __init__(self, first: int, dials_per_s: int) -> None:
        self._left = first
        self._pauses = (1 / FILL_DIALS_PER_S, 1 / dials_per_s)
        self._gate = asyncio.Lock()

    async def turn(self) -> None:
        """Wait until one more dial is allowed."""
        async with self._gate:
            await asyncio.sleep(self._pauses[self._left <= 0])
            self._left -= 1


async def dial(where: Where, kind: HandshakeKind, proven: bool) -> socket.socket:
    """Connect, with or without a proof of the key."""
    host, port = where.addresses[kind]
    if proven:
        return await connect_async(host, port, where.key, kind, timeout_ms=_CONNECT_MS)
    sock = socket.socket()
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (host, port))
    except BaseException:
        sock.close()
        raise
    return sock


async def keep(
    where: Where, kind: HandshakeKind, attack: Attack, pacer: Pacer, in_place: asyncio.Event
) -> None:
    """Play one connection's part again and again."""
    while True:
        await pacer.turn()
        with contextlib.suppress(OSError, FFSError):
            sock = await dial(where, kind, attack.proven)
            in_place.set()
            with contextlib.closing(sock):
                await attack.play(sock, where, kind)
        in_place.set()  # or it was refused, which is all that this one can reach


async def run(where: Where, attacks: Sequence[Attack], scale: float, ready: asyncio.Event) -> None:
    """Run attacks until cancelled; `ready` once every connection was made once."""
    tasks, places = [], []
    for attack in attacks:
        count = max(1, round(attack.connections * scale))
        for kind in attack.kinds:
            pacer = Pacer(count, attack.dials_per_s)
            for _ in range(count):
                places.append(asyncio.Event())
                one = keep(where, kind, attack, pacer, places[-1])
                tasks.append(asyncio.create_task(one))
    try:
        for place in places:
            await place.wait()
        ready.set()
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _main(where: Where, attacks: Sequence[Attack], scale: float) -> None:
    loop, ready, end = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), end.set)
    running = asyncio.create_task(run(where, attacks, scale, ready))
    waits = [asyncio.create_task(event.wait()) for event in (ready, end)]
    await asyncio.wait([running, *waits], return_when=asyncio.FIRST_COMPLETED)
    if ready.is_set():
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.wait([running, waits[1]], return_when=asyncio.FIRST_COMPLETED)
    for task in (running, *waits):
        task.cancel()
    await asyncio.gather(running, *waits, return_exceptions=True)


@contextlib.contextmanager
def bare_listener(cpu: int) -> Iterator[Address]:
    """Have a process that accepts and closes, and does nothing else, on a CPU."""
    with socket.create_server(("127.0.0.1", 0), backlog=1_024) as listener:
        pid = os.fork()
        if pid == 0:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # it ends with us
            os.sched_setaffinity(0, {cpu})
            while True:
                listener.accept()[0].close()
        try:
            yield listener.getsockname()[:2]
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def main() -> int:
    """Entry point of `python -m ffs.bench.attacks`."""
    parser = argparse.ArgumentParser(prog="python -m ffs.bench.attacks")
    parser.add_argument("--meta", required=True, metavar="HOST:PORT")
    parser.add_argument("--key-file", required=True, metavar="FILE")
    parser.add_argument("--path", default="/", help="a file whose first chunk is read")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of connections")
    parser.add_argument("names", nargs="*", choices=[[], *ATTACKS], metavar="NAME")
    parser.add_argument("--nice", action="store_true", help="yield to everybody else")
    parser.add_argument("--bare", type=int, metavar="CPU", help="attack a bare listener there")
    options = parser.parse_args()
    allow_many_files()
    meta, key = parse_address(options.meta), ClusterKey.load(options.key_file)
    where = Where.find(meta, key, os.fsencode(options.path))
    attacks = [ATTACKS[name] for name in options.names or ATTACKS]
    with contextlib.ExitStack() as stack:
        if options.bare is not None:
            address = stack.enter_context(bare_listener(options.bare))
            where = replace(where, addresses=dict.fromkeys(where.addresses, address))
        if options.nice:
            os.nice(19)
        asyncio.run(_main(where, attacks, options.scale))
    return 0


if __name__ == "__main__":
    sys.exit(main())
