"""S9: who is slow on purpose holds up nobody, through TLS either (without: tests/hostile)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass

import pytest

from ffs.errors import DeadlineError, error_class
from ffs.key import ClusterKey
from ffs.limits import FRAME_GRACE_MS
from ffs.rpc import door
from ffs.rpc.codec import FrameDecoder, decode_reply
from ffs.rpc.dial import Line, dial
from ffs.tls import Role
from tests.security.certificates import Authority
from tests.unit.conftest import RunAsync, run_async
from tests.unit.rpc.support import Address, framed, serving, until

__all__ = ["run_async"]

WAIT_MS = 20_000


@dataclass
class HandClock:
    """A clock that stands still until the test moves it."""

    now_ns: int = 1

    def monotonic_ns(self) -> int:
        return self.now_ns

    def wall_ns(self) -> int:
        return self.now_ns


def say(line: Line, data: bytes) -> None:
    """Send through the channel."""
    assert line.channel is not None
    line.sock.sendall(line.channel.seal(data))


def first_reply(line: Line) -> tuple[int, int]:
    """Wait for a reply; its request id and its code."""
    assert line.channel is not None
    line.sock.settimeout(WAIT_MS / 1e3)
    decoder = FrameDecoder()
    while (frame := decoder.next_frame()) is None:
        data = line.sock.recv(65_536)
        assert data, "closed without a word"
        decoder.feed(line.channel.open(data))
    reply = decode_reply(frame)
    return reply.request_id, reply.code


def test_half_a_request_is_not_kept_for_ever(
    run_async: RunAsync, key: ClusterKey, authority: Authority
) -> None:
    meta, mine = authority.tls("meta", Role.META), authority.tls("slow", Role.CLIENT)

    async def main() -> None:
        clock = HandClock()
        async with serving(key, clock=clock, tls=meta) as (server, address):
            dials = [
                asyncio.to_thread(dial, *address, key, mine, timeout_ms=WAIT_MS) for _ in range(2)
            ]
            slow, idle = await asyncio.gather(*dials)
            request = framed([1, "echo", [b"x" * 100]])
            say(slow, request[:50])
            await until(lambda: server.request_bytes == 50)
            clock.now_ns += (FRAME_GRACE_MS + 1_000) * 1_000_000
            number, code = await asyncio.to_thread(first_reply, slow)
            assert (number, error_class(code)) == (0, DeadlineError)
            say(idle, request)
            assert await asyncio.to_thread(first_reply, idle) == (1, 0)
            for line in (slow, idle):
                line.sock.close()

    run_async(main)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_stranger_that_falls_silent(
    run_async: RunAsync,
    key: ClusterKey,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    share: float,
) -> None:
    """Before its first word, in the middle of it and after it: it has so much time and no more."""
    monkeypatch.setattr(door, "HANDSHAKE_MS_MAX", 200)
    meta, mine = authority.tls("meta", Role.META), authority.tls("slow", Role.CLIENT)

    def until_closed(address: Address) -> None:
        hello = mine.client().greet()
        with socket.create_connection(address, timeout=WAIT_MS / 1e3) as sock:
            sock.sendall(hello[: int(len(hello) * share)])
            with contextlib.suppress(ConnectionResetError):
                while sock.recv(65_536):
                    pass

    async def main() -> None:
        async with serving(key, tls=meta) as (server, address):
            await asyncio.to_thread(until_closed, address)
            await until(lambda: server.connections == 0)

    run_async(main)


def test_one_byte_at_a_time(run_async: RunAsync, key: ClusterKey, authority: Authority) -> None:
    """Slow is not wrong: who comes in time comes in."""
    meta, mine = authority.tls("meta", Role.META), authority.tls("slow", Role.CLIENT)

    def trickle(address: Address) -> bytes:
        channel = mine.client()
        with socket.create_connection(address, timeout=WAIT_MS / 1e3) as sock:
            for byte in channel.greet():
                sock.sendall(bytes([byte]))
            while not channel.established:
                for byte in channel.greet(sock.recv(65_536)):
                    sock.sendall(bytes([byte]))
            return channel.binding

    async def main() -> None:
        async with serving(key, tls=meta) as (_, address):
            assert await asyncio.to_thread(trickle, address)

    run_async(main)
