"""Data connections through TLS: encrypted on the network, plain towards the native engines.

Previous hop: ffs.rpc.dial (clients) and ffs.rpc.greeting (daemons) have established a channel; next
hop: ffs._reader or ffs._storage, which get one end of a socket pair and know nothing of TLS. Where
`[tls] data` is off nothing of this is made.

Invariants: what is read ahead of a slow side is bounded (FLOW_BYTES_MAX each way), so backpressure
reaches the engines; nothing is ever said in clear; a line ends as a whole, once the bytes that came
before its end are handed on. Failure behaviour: bytes that were changed on their way end the line,
which the engine sees as a lost connection; the log says why.

Why by threads here: this kernel may have no TLS of its own, `ssl` encrypts outside of the
interpreter's lock, and the engines stay as they are (docs/decisions/0014-data-tls.md).
Copies: three on each side. Fork: the child drops what it has inherited.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Final

from ffs.config import TlsConfig
from ffs.errors import TlsError
from ffs.tls import Tls
from ffs.tls_channel import TlsChannel

__all__ = ["TlsRelay"]

log = logging.getLogger("ffs.tls")

THREADS: Final = 4
"""Of a process: encryption is done outside of the interpreter's lock, the rest is not."""
FLOW_BYTES_MAX: Final = 128 << 10
"""Received at a time, and handed on before more is."""


class TlsRelay:
    """Carries lines between the network and this process: whoever may have one of these encrypts
    all of its data, and speaks in clear without.

    Args:    tls: what new lines begin with; threads: that share them, started as they are needed
    Threads: any may call; Fork: `after_fork_in_child` is to be called there
    """

    def __init__(self, tls: Tls, threads: int) -> None:
        self.tls = tls
        self._threads = threads
        self._start()

    @classmethod
    def configured(cls, config: TlsConfig, tls: Tls | None) -> TlsRelay | None:
        """Return what the configuration asks for; None: data goes in clear."""
        return cls(tls, THREADS) if config.data and tls is not None else None

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._pumps: deque[_Pump] = deque()
        """The one that has waited longest for a line first."""

    def carry(self, sock: socket.socket, channel: TlsChannel) -> socket.socket:
        """Take over a connection; return what its bytes come out of and go into, in clear.

        Raises:  OSError without descriptors or threads; the connection is closed then
        """
        with contextlib.ExitStack() as undo:
            undo.enter_context(sock)
            ours, theirs = (undo.enter_context(end) for end in socket.socketpair())
            sock.setblocking(False)
            ours.setblocking(False)
            with self._lock:
                self._next_pump().take(_Line(sock, channel, ours))
            undo.pop_all()
            return theirs

    def _next_pump(self) -> _Pump:
        if len(self._pumps) < self._threads:
            try:
                self._pumps.append(_Pump())
            except RuntimeError as error:
                raise OSError(errno.EAGAIN, str(error)) from error
        self._pumps.rotate()
        return self._pumps[0]

    def close(self) -> None:
        """End all lines and the threads."""
        with self._lock:
            while self._pumps:
                self._pumps.pop().end()

    def after_fork_in_child(self) -> None:
        """Close the copies of what is the parent's, without a word to anybody."""
        pumps = self._pumps
        self._start()
        for pump in pumps:
            pump.drop()


class _Flow:
    """One direction of a line: from a socket through the channel to the other one."""

    __slots__ = ("_ended", "_rest", "_source", "_target", "_through")

    def __init__(
        self, source: socket.socket, target: socket.socket, through: Callable[[bytes], bytes]
    ) -> None:
        self._source = source
        self._target = target
        self._through = through
        self._rest = memoryview(b"")
        self._ended = False

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes, and all that came was handed on."""
        return self._ended and not self._rest

    def step(self) -> bool:
        """Hand on what there is, then take what has come; False once that has to wait.

        Raises:  OSError, TlsError
        """
        try:
            while self._rest:
                self._rest = self._rest[self._target.send(self._rest, socket.MSG_NOSIGNAL) :]
            data = self._source.recv(FLOW_BYTES_MAX)
        except BlockingIOError:
            return False
        self._ended = not data
        if data:
            self._rest = memoryview(self._through(data))
        return bool(data)


class _Line:
    """One connection: the socket on the network, the channel through it, our end of the pair."""

    __slots__ = ("_ends", "_flows")

    def __init__(self, sock: socket.socket, channel: TlsChannel, plain: socket.socket) -> None:
        self._ends = (sock, plain)
        self._flows = (_Flow(sock, plain, channel.open), _Flow(plain, sock, channel.seal))

    def filenos(self) -> tuple[int, int]:
        """Return the descriptors of both ends."""
        return self._ends[0].fileno(), self._ends[1].fileno()

    def step(self) -> bool:
        """Move some bytes each way; False once both have to wait.

        Raises:  OSError, TlsError; ConnectionResetError at its end
        """
        moved = [flow.step() for flow in self._flows]
        if any(flow.is_over for flow in self._flows):
            raise ConnectionResetError(errno.ECONNRESET, "one side has closed")
        return any(moved)

    def close(self) -> None:
        """End it, also for a forked child that still has the sockets."""
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.drop()

    def drop(self) -> None:
        """Close our copies alone."""
        for end in self._ends:
            end.close()


class _Pump:
    """One thread and its lines. The kernel tells of changes alone (EPOLLET), so a line is stepped
    until both directions wait; lines take turns, a step each."""

    def __init__(self) -> None:
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._forget_wake = weakref.finalize(self, os.close, self._wake)
        """Not by the thread: `end` still writes to it."""
        self._epoll = select.epoll()
        self._epoll.register(self._wake, select.EPOLLIN)
        self._new: deque[_Line] = deque()
        self._lines: dict[int, _Line] = {}
        """By the descriptors of both ends."""
        self._ends = False
        threading.Thread(target=self._run, name="ffs-tls", daemon=True).start()

    def take(self, line: _Line) -> None:
        """Carry one more."""
        self._new.append(line)
        os.eventfd_write(self._wake, 1)

    def end(self) -> None:
        """Have the thread close everything and end."""
        self._ends = True
        os.eventfd_write(self._wake, 1)

    def drop(self) -> None:
        """In a forked child, where the thread is not: close our copies."""
        for line in (*self._new, *self._lines.values()):
            line.drop()
        self._epoll.close()
        self._forget_wake()

    def _run(self) -> None:
        moving: list[_Line] = []
        try:
            while not self._ends:
                told = self._epoll.poll(0 if moving else None)
                woken = [self._lines[fd] for fd, _ in told if fd in self._lines]
                if any(fd == self._wake for fd, _ in told):
                    os.eventfd_read(self._wake)
                    woken += self._begin()
                moving = [line for line in dict.fromkeys(moving + woken) if self._step(line)]
        finally:
            for line in (*self._new, *self._lines.values()):
                line.close()
            self._epoll.close()

    def _begin(self) -> list[_Line]:
        """Watch those that are new."""
        begun: list[_Line] = []
        while self._new:
            line = self._new.popleft()
            try:
                for fd in line.filenos():
                    self._epoll.register(fd, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
            except OSError as error:  # the kernel can watch no more
                log.warning("data_tls_refused", extra={"reason": error.strerror})
                line.close()
                continue
            self._lines.update(dict.fromkeys(line.filenos(), line))
            begun.append(line)
        return begun

    def _step(self, line: _Line) -> bool:
        """Step a line, and end it if it is over; False once it waits."""
        try:
            return line.step()
        except TlsError as error:
            log.warning("data_tls_broken", extra={"reason": error.message})
        except OSError as error:  # one side is gone: the other will see that
            log.debug("data_tls_over", extra={"reason": error.strerror})
        for fd in line.filenos():
            del self._lines[fd]
            self._epoll.unregister(fd)
        line.close()
        return False
