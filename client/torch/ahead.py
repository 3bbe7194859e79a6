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


class Ahead(Iterator[Any]):
    """Results of `fetch` for each index, at most `depth` of them early.

    Args:    finish: makes of a result what the loop gets, in the loop's thread
    """

    def __init__(
        self,
        fetch: Callable[[Any], Any],
        indices: Iterator[Any],
        finish: Callable[[Any], Any],
        depth: int,
        where: Landing,
    ) -> None:
        self._fetch = fetch
        self._indices = indices
        self._finish = finish
        self._depth = depth
        self._pending: deque[Future[Any]] = deque()
        self._generation = _fork.generation()
        self._threads = ThreadPoolExecutor(depth, "ffs-ahead", landing.use, (where,))
        self._closing = weakref.finalize(self, _stop, self._threads, self._pending)

    def __next__(self) -> Any:
        if self._generation != _fork.generation():
            raise ClosedError(
                "the iterator was made before the fork", hint="iterate over the loader again"
            )
        while len(self._pending) < self._depth and self._submit():
            pass
        if not self._pending:
            self._closing()
            raise StopIteration
        result = self._pending.popleft().result()
        self._submit()
        return self._finish(result)

    def _submit(self) -> bool:
        for index in self._indices:
            self._pending.append(self._threads.submit(self._fetch, index))
            return True
        return False


def _stop(threads: ThreadPoolExecutor, pending: deque[Future[Any]]) -> None:
    threads.shutdown(wait=False, cancel_futures=True)
    pending.clear()
