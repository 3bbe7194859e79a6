"""TLS between an asyncio transport and the protocol of an RPC connection.

Previous hop: the event loop's TCP transport; next hop: ServerConnection or the asyncio client's
connection, which know nothing of it. The channel was established before (ffs.rpc.greeting,
ffs.rpc.dial). Nothing is kept here: whatever comes is decrypted and handed on at once, whatever
goes is encrypted and handed on at once, so the flow control of the transport below stays in force.
Failure behaviour: bytes that were changed on their way end the connection.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

from ffs.errors import TlsError
from ffs.tls_channel import TlsChannel

log = logging.getLogger("ffs.rpc")


def over(channel: TlsChannel | None, protocol: asyncio.Protocol) -> asyncio.Protocol:
    """Return what a transport has to talk to so that `protocol` talks through the channel."""
    return protocol if channel is None else _TlsProtocol(channel, protocol)


class _TlsProtocol(asyncio.Protocol):
    """Decrypts for the protocol inside. Threads: the running loop's alone."""

    def __init__(self, channel: TlsChannel, inside: asyncio.Protocol) -> None:
        self._channel = channel
        self._inside = inside
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._inside.connection_made(_TlsTransport(self._channel, self._transport))

    def data_received(self, data: bytes) -> None:
        try:
            plain = self._channel.open(data)
        except TlsError as error:
            log.info("rpc_tls_broken", extra={"reason": error.message})
            self._transport.abort()
            return
        if answer := self._channel.pending():
            self._transport.write(answer)
        if plain:
            self._inside.data_received(plain)

    def pause_writing(self) -> None:
        self._inside.pause_writing()

    def resume_writing(self) -> None:
        self._inside.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._inside.connection_lost(exc)


class _TlsTransport(asyncio.Transport):
    """Encrypts for the transport below; the rest is the transport's own affair."""

    def __init__(self, channel: TlsChannel, below: asyncio.Transport) -> None:
        super().__init__()
        self._channel = channel
        self._below = below

    def write(self, data: Any) -> None:
        self._below.write(self._channel.seal(data))

    def get_write_buffer_size(self) -> int:
        return self._below.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._below.set_write_buffer_limits(high, low)

    def pause_reading(self) -> None:
        self._below.pause_reading()

    def resume_reading(self) -> None:
        self._below.resume_reading()

    def is_closing(self) -> bool:
        return self._below.is_closing()

    def close(self) -> None:
        self._below.close()

    def abort(self) -> None:
        self._below.abort()
