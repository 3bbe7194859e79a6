"""Reading ahead without worker processes: a few threads fill the ring while the loop computes.

Role: what `iter(loader)` returns with `num_workers=0`. The engine lets go of the GIL while it
receives, so a thread costs the loop next to nothing; what runs under the GIL is the planning.

Invariants: batches come in the order of the sampler; user code (collate_fn) runs in the loop's
thread; what was read ahead and is not wanted any more goes back to the ring.
Fork: an iterator belongs to the process that made it.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ffs.client import _fork
from ffs.client.torch import landing
from ffs.client.torch.landing import Landing
from ffs.errors import ClosedError


class Readers:
    """The threads of a loader: as many as batches are read ahead, whatever was broken off before.

    Fork: the child starts its own
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self._threads: ThreadPoolExecutor | None = None
        _fork.register(self)

    def after_fork_in_child(self) -> None:
        """Leave the parent its threads."""
        self._threads = None

    def submit(self, fetch: Callable[[Any], Any], index: Any, where: Landing) -> Future[Any]:
        """Have a thread read a batch to where it belongs."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.depth, "ffs-ahead")
        return self._threads.submit(_read, fetch, index, where)


def _read(fetch: Callable[[Any], Any], index: Any, where: Landing) -> Any:
    landing.use(where)
    try:
        return fetch(index)
    finally:
        landing.use(None)


class Ahead(Iterator[Any]):
    """Results of `fetch` for each index, as many of them early as there are readers.

    Args:    finish: makes of a result what the loop gets, in the loop's thread
    """

    def __init__(
        self,
        fetch: Callable[[Any], Any],
        indices: Iterator[Any],
        finish: Callable[[Any], Any],
        readers: Readers,
        where: Landing,
    ) -> None:
        self._fetch = fetch
        self._indices = indices
        self._finish = finish
        self._readers = readers
        self._where = where
        self._pending: deque[Future[Any]] = deque()
        self._generation = _fork.generation()
        weakref.finalize(self, _stop, self._pending, self._generation).atexit = False

    def __next__(self) -> Any:
        if self._generation != _fork.generation():
            raise ClosedError(
                "the iterator was made before the fork", hint="iterate over the loader again"
            )
        while len(self._pending) < self._readers.depth and self._submit():
            pass
        if not self._pending:
            raise StopIteration
        result = self._pending.popleft().result()
        self._submit()
        return self._finish(result)

    def _submit(self) -> bool:
        for index in self._indices:
            self._pending.append(self._readers.submit(self._fetch, index, self._where))
            return True
        return False


def _stop(pending: deque[Future[Any]], generation: int) -> None:
    if generation == _fork.generation():
        while pending:
            pending.popleft().cancel()
