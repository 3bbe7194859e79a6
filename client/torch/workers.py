"""torch's iterator over worker processes, with a shorter way between them and the loop.

Role: client/torch/loader.py makes one of THIS for each iteration with workers; torch's own class
does the work: who reads what, in which order, and what happens when a worker dies.

What is shorter: torch's queues hand every message to a thread, which pickles it by Python code and
writes it; both processes are woken twice a batch, and the caches that a batch has just been through
are cold for each. Here who puts a small message writes it, pickled by C.

Invariants: messages of one process arrive in the order they were put; nobody waits for a full pipe
but the queue's thread, which takes what does not fit.
"""

from __future__ import annotations

import io
import select
import threading
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from multiprocessing.reduction import ForkingPickler
from multiprocessing.synchronize import BoundedSemaphore, Lock
from typing import TYPE_CHECKING, Any, Final

import torch.multiprocessing
from torch._C._autograd import _profiler_enabled
from torch.utils.data.dataloader import _DatasetKind, _MultiProcessingDataLoaderIter

from ffs.client.torch.batch import Batch

if TYPE_CHECKING:
    from ffs.client.torch.loader import DataLoader

    MessageQueue = Queue[Any]
else:
    MessageQueue = Queue

_HEADER_BYTES: Final = 4
"""What multiprocessing writes before a message."""


class Workers(_MultiProcessingDataLoaderIter):
    """torch's iterator, of which Python runs less for each batch."""

    def __init__(self, loader: DataLoader) -> None:
        super().__init__(_Loader(loader))

    def __next__(self) -> Any:
        # What torch's own does besides: a mark for its profiler, and a warning of wrong lengths.
        if _profiler_enabled() or self._dataset_kind == _DatasetKind.Iterable:
            return super().__next__()
        data = self._next_data()  # type: ignore[no-untyped-call]
        self._num_yielded += 1
        return data

    def stop(self) -> None:
        """End the workers."""
        self._shutdown_workers()


class _Loader:
    """A loader as torch's iterator sees it: workers are talked to by queues of ours."""

    def __init__(self, loader: DataLoader) -> None:
        self._loader = loader
        self.multiprocessing_context = _Context(
            loader.multiprocessing_context or torch.multiprocessing
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class _Context:
    """A context of multiprocessing whose queues are ours."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def Queue(self) -> ShortQueue:  # noqa: N802 - the name that torch calls
        return ShortQueue(ctx=self._context)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


class ShortQueue(MessageQueue):
    """multiprocessing's queue; batches and their indices do not go through its thread.

    Threads: any may put, one may get; Fork: the child writes and reads on
    """

    _notempty: threading.Condition
    _reader: Connection
    _writer: Connection
    _wlock: Lock
    _sem: BoundedSemaphore
    _closed: bool

    def _reset(self, after_fork: bool = False) -> None:
        """Begin anew in a process: called when the queue is made, inherited, or unpickled."""
        super()._reset(after_fork)  # type: ignore[misc]
        self._poll = _Poll(self._reader, select.POLLIN)
        self._has_room = _Poll(self._writer, select.POLLOUT)
        self._left = _Counted(self._writer.send_bytes)
        self._send_bytes = self._left

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Send a message: at once if it is a small one of ours, else by the thread."""
        packed = None
        if _is_short(item) and not self._closed:
            packed = _Numbers.packed(item)
            item = _Packed(packed)
        with self._notempty:
            if packed is not None and self._left.none_under_way() and self._write(packed):
                return
            self._left.handed += 1
        super().put(item, block, timeout)

    def _write(self, packed: bytes) -> bool:
        """Write a message if that waits for nobody.

        Why: a pipe that can be written to has room for PIPE_BUF bytes.
        """
        if len(packed) > select.PIPE_BUF - _HEADER_BYTES or not self._wlock.acquire(block=False):
            return False
        try:
            if not self._has_room() or not self._sem.acquire(False):
                return False
            self._writer.send_bytes(packed)
            return True
        finally:
            self._wlock.release()


class _Counted:
    """How a queue's thread sends; counts, so that nothing is put before what it still has."""

    def __init__(self, send: Any) -> None:
        self._send = send
        self.handed = 0
        self._sent = 0

    def __call__(self, message: Any) -> None:
        self._send(message)
        self._sent += 1

    def none_under_way(self) -> bool:
        """Whether the thread has sent all that it was handed."""
        return self._sent == self.handed


class _Poll:
    """Waits for an end of a pipe; multiprocessing's own makes a new selector each time."""

    def __init__(self, connection: Connection, event: int) -> None:
        self._connection, self._event = connection, event
        self._poll: select.poll | None = None

    def __call__(self, timeout: float | None = 0.0) -> bool:
        if self._poll is None:  # not before: a queue that is closed is inherited as well
            self._poll = select.poll()
            self._poll.register(self._connection, self._event)
        return bool(self._poll.poll(None if timeout is None else max(timeout, 0.0) * 1000))


class _Packed:
    """A message that is pickled already."""

    def __init__(self, packed: bytes) -> None:
        self._packed = packed

    def __reduce__(self) -> Any:
        return ForkingPickler.loads, (self._packed,)


class _Numbers(ForkingPickler):
    """multiprocessing's way of pickling, without its table of ways for descriptors and tensors.

    Why: looking up a type in that table, by Python code, takes longer than all the rest.
    """

    def __init__(self, out: io.BytesIO) -> None:
        super(ForkingPickler, self).__init__(out, -1)

    @classmethod
    def packed(cls, item: object) -> bytes:
        """Return a message that holds nothing but numbers."""
        out = io.BytesIO()
        cls(out).dump(item)
        return out.getvalue()


def _is_short(item: Any) -> bool:
    """Whether a message is (number, batch in a slot) or (number, indices)."""
    if type(item) is not tuple or len(item) != 2:
        return False
    what = item[1]
    return (type(what) is Batch and what.in_slot) or (
        type(what) is list and len(what) > 0 and type(what[0]) is int
    )
