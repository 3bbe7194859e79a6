"""The way between a loop and its workers: a pipe for short messages, a queue for all others.

Role: client/torch/workers.py gives torch's iterator THESE where it would make queues of
multiprocessing; client/torch/messages.py says what is short.

What multiprocessing's queue does for each message: a thread pickles it by Python code and takes a
lock to write it, both processes are woken twice. Here who puts a short message writes it: one
`write` of no more than PIPE_BUF bytes, which the kernel keeps in one piece, so that several may
write without a lock and a killed one leaves nothing behind, neither a lock nor half a message.
Anything else goes to such a queue, and a note in the pipe says that it does.

Invariants: items of one process arrive in the order they were put; nobody waits for a full pipe,
but a thread that is started then.
Failure behaviour: writing to a process that is gone does nothing; torch looks after those.
"""

from __future__ import annotations

import os
import queue
import select
import threading
from collections import deque
from multiprocessing.connection import Connection
from typing import Any, Final

from ffs.client import _fork
from ffs.client.torch.messages import ELSEWHERE, Message, Messages, note, split

_READ_BYTES: Final = 1 << 16
"""Read at once: what a pipe holds."""
_LOOK_MS: Final = 1000
"""How often the thread looks whether its messages are wanted still."""


class Channel:
    """What torch's loader uses of a queue of multiprocessing.

    Args:    context: of multiprocessing; messages: those that are short
    Threads: any may put, one may get; Fork, pickling: the other process writes and reads on
    """

    def __init__(self, context: Any, messages: Messages) -> None:
        ends: tuple[Connection, Connection] = context.Pipe(duplex=False)
        os.set_blocking(ends[1].fileno(), False)
        self.__setstate__((ends, context.Queue(), messages))

    def __getstate__(self) -> Any:
        return (self._reader, self._writer), self._others, self._messages

    def __setstate__(self, state: Any) -> None:
        (self._reader, self._writer), self._others, self._messages = state
        self._read_fd, self._write_fd = self._reader.fileno(), self._writer.fileno()
        self._unread = b""
        self._readable: select.poll | None = None
        self._others_due = 0
        self.after_fork_in_child()
        _fork.register(self)

    def after_fork_in_child(self) -> None:
        """Leave the parent what it has not written yet."""
        self._lock = threading.Lock()
        self._waiting: deque[bytes] = deque()

    # --- putting --------------------------------------------------------------------------------

    def put(self, item: Any) -> None:
        """Send an item, without waiting for anybody."""
        message = self._messages.pack(item, select.PIPE_BUF)
        with self._lock:
            if message is None:
                self._others.put(item)
                message = note(ELSEWHERE)
            if self._waiting or not self._write(message):
                self._waiting.append(message)
                if len(self._waiting) == 1:
                    threading.Thread(target=self._write_on, daemon=True).start()

    def _write(self, message: bytes) -> bool:
        try:
            os.write(self._write_fd, message)
        except BlockingIOError:
            return False
        except BrokenPipeError:
            return True  # nobody is there any more who would want it
        return True

    def _write_on(self) -> None:
        """Write what waits for room, in a thread."""
        room = select.poll()
        room.register(self._write_fd, select.POLLOUT)
        while True:
            room.poll(_LOOK_MS)
            with self._lock:
                while self._waiting and self._write(self._waiting[0]):
                    self._waiting.popleft()
                if not self._waiting:
                    return

    # --- getting --------------------------------------------------------------------------------

    def get(self, timeout: float | None = None) -> Any:
        """Return the next item.

        Raises:  queue.Empty when there is none within `timeout` seconds
        """
        if not self._others_due:
            message = self._next(timeout)
            if message[0] != ELSEWHERE:
                return self._messages.unpack(message)
            self._others_due += 1
        item = self._others.get(timeout=timeout)
        self._others_due -= 1
        return item

    def _next(self, timeout: float | None) -> Message:
        while (found := split(self._unread)) is None:
            if not self._wait(timeout):
                raise queue.Empty
            data = os.read(self._read_fd, _READ_BYTES)
            if not data:
                raise EOFError("nobody is left who could write")
            self._unread += data
        message, self._unread = found
        return message

    def _wait(self, timeout: float | None) -> bool:
        if self._readable is None:  # multiprocessing's own makes a new one each time
            self._readable = select.poll()
            self._readable.register(self._read_fd, select.POLLIN)
        return bool(self._readable.poll(None if timeout is None else max(timeout, 0) * 1000))

    # --- the end --------------------------------------------------------------------------------

    def close(self) -> None:
        """Put nothing any more, and forget what could not be written yet."""
        with self._lock:
            self._waiting.clear()
        self._others.close()

    def cancel_join_thread(self) -> None:
        """Have this process end without waiting for what it has put to be written."""
        self._others.cancel_join_thread()


class Flag:
    """What torch's loader uses of an event of multiprocessing: nobody waits for it.

    Args:    context: of multiprocessing
    Threads: any; Fork, pickling: the other process sees it
    """

    def __init__(self, context: Any) -> None:
        self._byte = context.RawValue("b", 0)

    def set(self) -> None:
        """Set it, for good."""
        self._byte.value = 1

    def is_set(self) -> bool:
        """Whether anybody has set it."""
        return bool(self._byte.value)
