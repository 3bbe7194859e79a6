"""A DataLoader whose batches land in a ring, and that knows how far the loop has come.

Role: torch's DataLoader, with three things added: it leases a ring to each iterator
(client/torch/ring.py), reads ahead in threads where there are no workers (client/torch/ahead.py),
and has `state_dict`.

Position: what counts is what the loop was handed, not what workers have read ahead. With a sampler
that can say its state after any number of samples (ElasticSampler), that is the state, good for any
other number of ranks, workers and samples a batch. With any other sampler the state is the number
of batches and the random generator as it was at the epoch's start: the same indices are drawn again
and those batches are passed over without being read.

There is one position, that of the loop that began last. Loops at the same time are served, without
counting; but not one from before `load_state_dict`, nor one whose persistent workers read for a
later one: those get ClosedError.

Failure behaviour: a worker's death is the RuntimeError of torch's loader; its slots are free again
when the next iterator starts.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.utils.data
from torch.utils.data import BatchSampler, IterableDataset, RandomSampler, WeightedRandomSampler
from torch.utils.data._utils.pin_memory import pin_memory as _pinned

from ffs.client.torch.ahead import Ahead, Readers
from ffs.client.torch.dataset import IterableRecordDataset
from ffs.client.torch.feed import Feed, given_by_user
from ffs.client.torch.landing import Landing
from ffs.client.torch.messages import Messages
from ffs.client.torch.ring import Ring
from ffs.client.torch.rings import Lease, Rings
from ffs.client.torch.sampler import ElasticSampler
from ffs.client.torch.source import BatchSource, BatchStream, reads_plain_batches, source_of
from ffs.errors import ClosedError, InvalidError

if TYPE_CHECKING:
    from ffs.client.torch.workers import Workers

log = logging.getLogger("ffs.client.torch.loader")

AHEAD: Final = 2
"""Batches read ahead for each worker, and without workers, if `prefetch_factor` does not say."""
PIN_QUEUE: Final = 2
"""Slots that a batch being pinned, and one still being copied to a device, take on top."""


@functools.cache
def workers_type() -> type[Workers] | None:
    """Return our iterator over workers; None with a torch whose own is not as ours knows it: that
    one does the same with more Python for each batch."""
    try:
        from ffs.client.torch.workers import Workers
    except ImportError as error:
        facts = {"torch": torch.__version__, "reason": str(error)}
        log.warning("torch_is_another", extra=facts)
        return None
    return Workers


class _Order:
    """The batches of indices of an epoch, of which a resumed one passes over the first.

    Args:    arrays: whether the data set takes a batch's indices as one array
    """

    def __init__(self, indices: Any, *, arrays: bool) -> None:
        self._indices = indices
        self._arrays = (
            arrays and type(indices) is BatchSampler and type(indices.sampler) is ElasticSampler
        )
        self.skip = 0

    def __iter__(self) -> Iterator[Any]:
        # A generator: torch's iterators take one of these, throw it away and take another.
        skip, self.skip = self.skip, 0
        yield from itertools.islice(self._batches(), skip, None)

    def _batches(self) -> Iterator[Any]:
        if not self._arrays:
            return iter(self._indices)
        sampler: ElasticSampler = self._indices.sampler  # so no Python runs for each sample
        return sampler.batches(self._indices.batch_size, drop_last=self._indices.drop_last)

    def __len__(self) -> int:
        return len(self._indices)


class DataLoader(torch.utils.data.DataLoader[Any]):
    """torch's DataLoader; batches of data sets of ffs.torch are tensors over a ring's slots.

    Takes what torch's takes, and
    Args:    held_batches: how many batches the loop holds on to at once: the one it works with and
             the one that it was handed before. Batches beyond that get memory of their own.
             prefetch_factor: also with num_workers=0, where threads of this process read ahead.
    With a collate_fn of your own: it gets a list of samples, which are views of one slot, and what
    it returns travels as with torch's loader.
    Copies:  0 in user space from the socket to the tensor; Threads: one loop an iterator;
    Fork: iterate again in the child
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Iterable[Any] | None = None,
        batch_sampler: Iterable[list[Any]] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[Any], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None,
        generator: torch.Generator | None = None,
        *,
        prefetch_factor: int | None = None,
        held_batches: int = 2,
        **more: Any,
    ) -> None:
        if generator is None and shuffle:
            # An order that is to be found again needs a generator that can be set back.
            generator = torch.Generator()
            generator.manual_seed(int(torch.empty((), dtype=torch.int64).random_().item()))
        self._feed = Feed(
            given_by_user(collate_fn),
            given_by_user(worker_init_fn),
            batch_size,
            collects=batch_size is not None or batch_sampler is not None,
        )
        super().__init__(
            dataset,
            batch_size,
            shuffle,
            sampler,
            batch_sampler,
            num_workers,
            self._feed.collate,
            pin_memory,
            drop_last,
            timeout,
            self._feed.start_worker,
            multiprocessing_context,
            generator,
            prefetch_factor=prefetch_factor if num_workers else None,
            **more,
        )
        ahead = AHEAD if prefetch_factor is None else prefetch_factor
        self._readers = Readers(max(ahead, 1))
        in_flight = self._readers.depth * max(num_workers, 1)
        self._rings = Rings(in_flight + held_batches + pin_memory * PIN_QUEUE, max(num_workers, 1))
        self._lease: Lease | None = None
        self._loops = self._placed_at = 0
        self._order = _Order(
            self.batch_sampler if self.batch_sampler is not None else self.sampler,
            arrays=reads_plain_batches(dataset),
        )
        self._handed = 0
        self._began: Any = None
        self._ended = False
        self._generator_state: torch.Tensor | None = None
        self._resumed = False

    # --- iteration ------------------------------------------------------------------------------

    @property
    def _index_sampler(self) -> Any:
        """What torch's iterators take indices from."""
        return self._order

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch's own class is private
        self._begin_epoch()
        lease = self._kept_lease()
        if lease is None:
            lease = self._rings.lease(self._slot_bytes(), pinned=self.pin_memory)
            self._feed.ring = lease.ring
        if self.num_workers and self.persistent_workers:
            self._lease = lease  # as long as its workers live
        if lease.ring is None:
            return _Epoch(self, super().__iter__(), lease)
        if self.num_workers:
            if isinstance(self.dataset, IterableRecordDataset):
                lease.ring.tell(self.dataset.note())
            return _Epoch(self, super().__iter__(), lease)
        return _Epoch(self, self._read_ahead(lease.ring), lease)

    def _kept_lease(self) -> Lease | None:
        """Return what persistent workers fill, unless its slots have become too small for them."""
        lease = self._lease
        if lease is None or not lease.outgrown():
            return lease
        # A ring is handed to workers when they start: new ones get the larger ring.
        if (workers := workers_type()) is not None and isinstance(self._iterator, workers):
            self._iterator.stop()
        self._iterator = self._lease = None
        lease.end()
        return None

    def _get_iterator(self) -> Any:
        """Return what torch's `__iter__` iterates with."""
        workers = workers_type() if self.num_workers else None
        if workers is None:
            return super()._get_iterator()
        self.check_worker_number_rationality()
        return workers(self)

    def messages(self) -> Messages:
        """Return what the loop and its workers can say in few bytes."""
        ring, source = self._feed.ring, source_of(self.dataset)
        return Messages(ring.name if ring else None, source.form if source else None)

    def _slot_bytes(self) -> int | None:
        """Return what a slot must hold, 0 if that is not known yet; None: no ring."""
        source = source_of(self.dataset)
        if source is None or self.batch_sampler is None:
            return None
        if not self.num_workers and type(source).__getitems__ is not BatchSource.__getitems__:
            return None  # a subclass's own code runs in the loop's thread, as torch has it
        size = self.batch_size or getattr(self.batch_sampler, "batch_size", None)
        return source.batch_bytes(size or 0)

    def _read_ahead(self, ring: Ring) -> Iterator[Any]:
        # torch draws a seed for workers here, and an order must not depend on their number.
        torch.empty((), dtype=torch.int64).random_(generator=self.generator)
        dataset: Any = self.dataset
        fetch: Any = getattr(dataset, "__getitems__", None)
        indices: Iterator[Any] = iter(self._order)
        if isinstance(dataset, BatchStream):
            size = self.batch_size or 1
            fetch, indices = dataset.source.read, dataset.batches_of_ids(size)
            if self.drop_last:
                indices = itertools.takewhile(lambda ids: len(ids) == size, indices)
        return Ahead(fetch, indices, self._finish, self._readers, Landing(ring, away=False))

    def _finish(self, data: Any) -> Any:
        data = self._feed.finish(data)
        pins = self.pin_memory and torch.cuda.is_available()
        return _pinned(data) if pins else data  # type: ignore[no-untyped-call]

    # --- position -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return where the loop stands: after the last batch that it was handed.

        Raises:  InvalidError where the order cannot be found again
        """
        stateful = self._stateful()
        if stateful is not None:
            return {"order": stateful.state_after(self._samples_handed(stateful))}
        self._check_repeatable()
        generator = self._generator()
        if self._ended:
            state = None if generator is None else generator.get_state()
            return {"batches": 0, "generator": state}
        return {"batches": self._handed, "generator": self._generator_state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Have the next iteration go on where `state` was taken. A loop under way is over then."""
        self._placed_at = self._loops
        self._handed, self._ended, self._resumed = 0, False, True
        stateful = self._stateful()
        if (stateful is not None) != ("order" in state):
            raise InvalidError(
                "the state is that of a loader with another kind of sampler",
                hint="make the loader as it was when state_dict() was called",
            )
        if stateful is not None:
            stateful.load_state_dict(state["order"])
            return
        self._handed = self._order.skip = int(state["batches"])
        self._generator_state = state["generator"]
        generator = self._generator()
        if generator is not None and self._generator_state is not None:
            generator.set_state(self._generator_state)

    def _begin_epoch(self) -> None:
        self._loops += 1
        if isinstance(self.dataset, IterableRecordDataset):
            self.dataset.begin()
        if not self._resumed:
            self._restart_sampler()
            self._handed = 0
            generator = self._generator()
            self._generator_state = None if generator is None else generator.get_state()
        self._resumed = self._ended = False

    def _restart_sampler(self) -> None:
        """Have a loop that was broken off start again where it started.

        Why: what was read ahead may have brought the sampler to its end, which the loop never saw.
        """
        sampler = self._stateful()
        if sampler is None or self._ended or not self._handed:
            return
        if sampler.state_after(0) == self._began:
            sampler.load_state_dict(self._began)

    def _check_goes_on(self, loop: int) -> None:
        """Refuse a batch to a loop whose place in the order is another's now."""
        if loop <= self._placed_at:
            raise ClosedError(
                "load_state_dict has placed the loader elsewhere since this loop began",
                hint="iterate over the loader again",
            )
        if loop < self._loops and self.persistent_workers:
            raise ClosedError(
                "the workers read for a loop that began later",
                hint="end a loop before the next one, or leave persistent_workers out",
            )

    def _batch_handed(self, loop: int) -> None:
        if loop != self._loops:
            return  # the position is that of the loop that began last
        if self._handed == 0 and (stateful := self._stateful()) is not None:
            self._began = stateful.state_after(0)
        self.__dict__["_handed"] += 1  # torch's own __setattr__ is Python code

    def _epoch_ended(self, loop: int) -> None:
        if loop != self._loops:
            return
        self._ended = True
        if isinstance(self.dataset, IterableRecordDataset):
            self.dataset.end()

    def _stateful(self) -> Any:
        """Return what knows its state after any number of samples: a sampler or a data set."""
        inner = getattr(self.batch_sampler, "sampler", self.sampler)
        for candidate in (self.sampler, inner, self.dataset):
            if hasattr(candidate, "state_after"):
                return candidate
        return None

    def _samples_handed(self, stateful: Any) -> int:
        self._check_in_order()
        if stateful.state_after(0) != self._began:
            return 0  # it was placed elsewhere since, by set_epoch perhaps
        size = self.batch_size
        if size is None:
            size = 1 if self.batch_sampler is None else self._batch_sampler_size()
        return min(self._handed * size, len(stateful))

    def _batch_sampler_size(self) -> int:
        size = getattr(self.batch_sampler, "batch_size", None)
        if not isinstance(size, int):
            raise InvalidError(
                f"how many samples {type(self.batch_sampler).__name__} puts in a batch is unknown",
                hint="give it an attribute batch_size, or pass batch_size and sampler instead",
            )
        return size

    def _generator(self) -> torch.Generator | None:
        """Return the generator that decides the order."""
        inner = getattr(self.batch_sampler, "sampler", self.sampler)
        return self.generator or getattr(inner, "generator", None)

    def _check_in_order(self) -> None:
        if not self.in_order and self.num_workers > 1:
            raise InvalidError(
                "batches out of order have no position", hint="leave in_order as it is"
            )

    def _check_repeatable(self) -> None:
        self._check_in_order()
        inner = getattr(self.batch_sampler, "sampler", self.sampler)
        dice = isinstance(inner, RandomSampler | WeightedRandomSampler)
        if dice and getattr(inner, "generator", None) is None:
            raise InvalidError(
                "the sampler draws another order each time",
                hint="give it a generator, or use ffs.torch.ElasticSampler",
            )
        if isinstance(self.dataset, IterableDataset):
            raise InvalidError(
                f"{type(self.dataset).__name__} has no position",
                hint="use ffs.torch.IterableRecordDataset, or torchdata's StatefulDataLoader",
            )

    def ring_counters(self) -> dict[str, int]:
        """Return what became of batches: see docs/torch.md. All zero before the first iteration."""
        return self._rings.counters()


class _Epoch(Iterator[Any]):
    """One iteration: counts what the loop is handed, and gives the ring back at its end."""

    def __init__(self, loader: DataLoader, batches: Iterator[Any], lease: Lease) -> None:
        self._loader = loader
        self._batches: Iterator[Any] | None = batches
        self._lease = lease
        self._number = loader._loops

    def __next__(self) -> Any:
        if self._batches is None:
            raise StopIteration
        self._loader._check_goes_on(self._number)
        if self._lease.pinning is not None:
            self._lease.pinning.settle()
        try:
            batch = next(self._batches)
        except StopIteration:
            self._loader._epoch_ended(self._number)
            self._end()
            raise
        self._loader._batch_handed(self._number)
        return batch

    def __len__(self) -> int:
        return len(self._loader)

    def _end(self) -> None:
        self._batches = None  # torch stops its workers when this goes
        if self._loader._lease is not self._lease:
            self._lease.end()

    def __del__(self) -> None:
        self._end()
