"""Records as data sets of torch: by number, or as a stream.

Role: torch's DataLoader -> client/torch/source.py -> THIS -> `Records.read_into`, one native call a
batch, straight into the batch's place.

Fork and pickling: configuration only; the workers of a host share the index of the records.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from ffs.client.records.files import Source
from ffs.client.records.records import Records, Verify
from ffs.client.torch import landing
from ffs.client.torch.batch import Form
from ffs.client.torch.landing import Bytes
from ffs.client.torch.sampler import ElasticSampler
from ffs.client.torch.source import BatchSource, BatchStream, Ids
from ffs.errors import InvalidError


def form_of(dtype: Any, shape: Sequence[int] | None) -> Form:
    """Return what samples are from a dtype's name, torch's own dtypes or NumPy's.

    Raises:  InvalidError for what torch has not
    """
    if not isinstance(dtype, torch.dtype):
        name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
        dtype = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise InvalidError("torch has no such dtype", hint='one like "uint8" or torch.float32')
    if shape is None:
        return Form(dtype, None)
    dimensions = tuple(int(n) for n in shape)
    if any(n < 0 for n in dimensions):
        raise InvalidError(f"shape is {dimensions}", hint="None for samples of different lengths")
    return Form(dtype, dimensions)


class RecordDataset(BatchSource):
    """Records as tensors. `dataset[i]` is a sample, a loader's batch is one native call.

    Args:    source: a URL, several, or a directory of *.ffr files; dtype, shape: of a sample;
             shape None: one dimension, as long as the sample is, and a batch is a list of views;
             verify: "sample" checks each against its own checksum too
    Copies: 0 in user space; Threads: any; Fork: safe
    """

    def __init__(
        self,
        source: Source,
        *,
        dtype: Any,
        shape: Sequence[int] | None,
        verify: Verify = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(form_of(dtype, shape))
        self.records = Records(source, verify=verify, storage_options=storage_options)

    def __len__(self) -> int:
        return len(self.records)

    def lengths(self, ids: Ids) -> Ids:
        """Return the bytes of each sample; IndexError for one that is not there."""
        return self.records.lengths(ids)

    def fill(self, ids: Ids, out: Bytes) -> None:
        """Read samples back to back into `out`, in one call."""
        fixed = self.form.sample_bytes
        if fixed is not None and self.records.sample_bytes != fixed:
            self.form.check_lengths(self.records.lengths(ids), ids)
        self.records.read_into(ids, out)


class IterableRecordDataset(BatchStream):
    """Records as a stream: each rank has its share, and each worker of a rank its batches.

    With a loader of ours the batches are the same, in the same order, for any number of workers.

    Args:    as RecordDataset and ElasticSampler, whose order it is; rank and world are looked up
             when an iteration begins
    Fork: safe; Pickling: as configuration, with the rank that the pickling process has
    """

    def __init__(
        self,
        source: Source,
        *,
        dtype: Any,
        shape: Sequence[int] | None,
        verify: Verify = None,
        storage_options: Mapping[str, Any] | None = None,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        super().__init__(
            RecordDataset(
                source, dtype=dtype, shape=shape, verify=verify, storage_options=storage_options
            )
        )
        self.shuffle = shuffle
        self._given = (rank, world)
        self._stand = (seed, epoch, 0)
        self._ended = False

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_given": self._order()._rank_and_world()}

    # --- where the run stands -------------------------------------------------------------------

    def _order(self) -> ElasticSampler:
        """Return the order of the epoch from where the run stands."""
        seed, epoch, consumed = self._stand
        rank, world = self._given
        wishes = landing.current()
        if wishes is not None and wishes.away:
            seed, epoch, consumed, rank, world = wishes.ring.note[:5].tolist()
        return ElasticSampler(
            len(self.source),
            seed=seed,
            epoch=epoch,
            consumed=consumed,
            rank=rank,
            world=world,
            shuffle=self.shuffle,
        )

    def note(self) -> tuple[int, ...]:
        """Return what a loader tells its workers, which have older copies of this object."""
        return (*self._stand, *self._order()._rank_and_world())

    def __len__(self) -> int:
        """Return how many samples this rank gets, from where the run stands."""
        return len(self._order())

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch, unless it is the one in which the run stands already."""
        if epoch != self._stand[1] or self._ended:
            self._stand = (self._stand[0], epoch, 0)
            self._ended = False

    def begin(self) -> None:
        """Go on to the next epoch, if a loop came to the end of this one."""
        if self._ended:
            self.set_epoch(self._stand[1] + 1)

    def end(self) -> None:
        """Take note that a loop came to the end of the epoch."""
        self._ended = True

    def state_after(self, samples: int) -> dict[str, int]:
        """Return the state after this rank, like every other, used so many samples."""
        return self._order().state_after(samples)

    def state_dict(self) -> dict[str, int]:
        """Return the state of this process's stream, for torchdata's StatefulDataLoader."""
        return {**self.state_after(0), "yielded": self.yielded}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where a state was taken: of a loader of ours, or of this process's stream."""
        self._stand = (int(state["seed"]), int(state["epoch"]), int(state["consumed"]))
        self.skip, self._ended = int(state.get("yielded", 0)), False

    def batches_of_ids(self, size: int) -> Iterator[list[int]]:
        """Yield the numbers of this rank's samples, `size` at a time."""
        ids = iter(self._order())
        while batch := list(islice(ids, size)):
            yield batch
