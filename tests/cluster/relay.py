"""A relay between a client and one daemon's data port, which can be told to misbehave.

The daemon and the client are the real ones; the relay moves their bytes, until it resets, swallows
or slows them, as a network does and a signal to a process cannot.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from types import TracebackType
from typing import Self

Address = tuple[str, int]
_RESET = struct.pack("ii", 1, 0)


class Relay:
    """Listens on a port of its own and connects to `upstream` for each connection that comes.

    `pace`: bytes a second towards the client; `swallow()`: nothing comes or goes any more, and new
    connections are never answered; `reset()`: end all connections with RST; `pass_on()`: as usual.
    """

    def __init__(self, upstream: Address) -> None:
        self.upstream = upstream
        self.pace = 0
        self._open = threading.Event()
        self._open.set()
        self._closed = False
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address: Address = self._listener.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    def swallow(self) -> None:
        """Let nothing through."""
        self._open.clear()

    def pass_on(self) -> None:
        """Let everything through, as fast as it goes."""
        self.pace = 0
        self._open.set()

    def reset(self) -> None:
        """End every connection at once and rudely."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for one in pair:
                with contextlib.suppress(OSError):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    one.shutdown(socket.SHUT_RD)  # says nothing; wakes the thread that will close

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: object, traceback: TracebackType | None
    ) -> None:
        self._closed = True
        self._open.set()
        self._listener.close()
        self.reset()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while not self._closed:
                ours, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(ours,), daemon=True).start()

    def _serve(self, ours: socket.socket) -> None:
        self._open.wait()
        with ours, contextlib.suppress(OSError), socket.create_connection(self.upstream) as theirs:
            for one in (ours, theirs):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs.append((ours, theirs))
            other = threading.Thread(target=self._pump, args=(ours, theirs, False), daemon=True)
            other.start()
            self._pump(theirs, ours, True)
            other.join()

    def _pump(self, source: socket.socket, sink: socket.socket, paced: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(4096 if paced and self.pace else 1 << 18):
                self._open.wait()
                sink.sendall(data)
                if paced and self.pace:
                    time.sleep(len(data) / self.pace)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RD)
