"""What a loader puts into its workers: the ring, and a collate function that leaves batches whole.

Role: client/torch/loader.py hands `Feed.start_worker` and `Feed.collate` to torch's DataLoader,
which runs them in each worker: torch -> THIS -> client/torch/source.py reads into the ring.

Pickles with the ring's descriptor, towards a worker that is being started.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.data import default_collate, default_convert

from ffs.client.torch import landing
from ffs.client.torch.batch import Batch, Row, of_rows
from ffs.client.torch.landing import Landing
from ffs.client.torch.ring import Ring

Collate = Callable[[Any], Any]


class Feed:
    """One loader's settings for its workers.

    Args:    collate: the user's, or None; worker_init: the user's, or None;
             batch_size: samples that a data set which makes its own batches puts in one
    """

    ring: Ring | None = None

    def __init__(
        self,
        collate: Collate | None,
        worker_init: Callable[[int], None] | None,
        batch_size: int | None,
        *,
        collects: bool,
    ) -> None:
        self.user_collate = collate
        self.user_worker_init = worker_init
        self.batch_size = batch_size
        self._fallback: Collate = default_collate if collects else default_convert

    def start_worker(self, worker: int) -> None:
        """Have this process's batches land in the ring, if the loader has one."""
        if self.ring is not None:
            self.ring.attach(worker)
            landing.use(Landing(self.ring, away=True, batch_size=self.batch_size))
        if self.user_worker_init is not None:
            self.user_worker_init(worker)

    def collate(self, data: Any) -> Any:
        """Leave a batch of ours whole; give anything else to whom torch would give it."""
        if isinstance(data, list) and data and type(data[0]) is Row:
            data = of_rows(data)
        if self.user_collate is not None:
            return self.user_collate(data.samples() if isinstance(data, Batch) else data)
        return data if isinstance(data, Batch) else self._fallback(data)

    def finish(self, data: Any) -> Any:
        """Make what the loop gets, in the loop's own process."""
        data = self.collate(data)
        return data.whole() if isinstance(data, Batch) else data


def given_by_user(function: Any) -> Any:
    """Return the user's function where a loader's own is given to another loader."""
    owner = getattr(function, "__self__", None)
    if isinstance(owner, Feed):
        return owner.user_collate if function.__name__ == "collate" else owner.user_worker_init
    return function
