"""A batch as it lies in memory, and its way into the training process.

Role: client/torch/dataset.py fills memory of client/torch/landing.py and wraps it as a `Batch`; the
loader's collate function hands that over as it is. Pickled, it is a message of a few hundred bytes
(which slot, how many bytes, what they mean); unpickled, it is the tensor.

Copies: none, anywhere here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from multiprocessing.reduction import DupFd
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch

from ffs.client.torch.landing import Bytes, Place
from ffs.client.torch.ring import Slot, ring_named
from ffs.errors import InvalidError

Whole = torch.Tensor | list[torch.Tensor]
"""A batch as the training loop gets it."""

Lengths = int | list[int]
"""How many samples of the form's shape, or the bytes of each."""


@dataclass(frozen=True, slots=True)
class Form:
    """What a sample's bytes mean.

    Args:    shape: that of every sample; None: one dimension, as long as the sample is
    """

    dtype: torch.dtype
    shape: tuple[int, ...] | None
    sample_bytes: int | None = field(init=False, compare=False)
    """The length of each sample; None if they differ."""

    def __post_init__(self) -> None:
        each = None if self.shape is None else self.dtype.itemsize * prod(self.shape)
        object.__setattr__(self, "sample_bytes", each)

    def __reduce__(self) -> tuple[Callable[..., Form], tuple[Any, ...]]:
        # Part of every batch's message: the way that data classes pickle takes five times as long.
        return Form, (self.dtype, self.shape)

    def over(self, memory: Bytes, lengths: Lengths) -> Whole:
        """Return samples that lie back to back: one tensor, or views of one if lengths differ.

        Copies: none
        """
        return self.of(torch.from_numpy(memory), lengths)

    def of(self, flat: torch.Tensor, lengths: Lengths) -> Whole:
        """Return the samples that a tensor of bytes is.

        Copies: none
        """
        if self.dtype != torch.uint8:
            flat = flat.view(self.dtype)
        if isinstance(lengths, int):
            return flat.view(lengths, *(self.shape or ()))
        return list(torch.split(flat, [n // self.dtype.itemsize for n in lengths]))

    def check_lengths(self, lengths: npt.NDArray[np.int64], ids: npt.NDArray[np.int64]) -> None:
        """Refuse samples that are not of this form."""
        wanted = self.sample_bytes
        if wanted is not None:
            bad = lengths != wanted
            expected = f"shape {self.shape} of {self.dtype} has {wanted}"
        else:
            bad = lengths % self.dtype.itemsize != 0
            expected = f"{self.dtype} has {self.dtype.itemsize} a value"
        if bad.any():
            first = int(bad.argmax())
            raise InvalidError(
                f"the sample has {lengths[first]} bytes, {expected}",
                hint="pass the shape and dtype that the samples were written with",
                sample=int(ids[first]),
            )


class Batch(Sequence[torch.Tensor]):
    """Samples where they landed, in the order asked for. As a sequence: views, one a sample."""

    def __init__(self, form: Form, place: Place, lengths: Lengths, *, away: bool) -> None:
        self.form = form
        self.place = place
        self.lengths = lengths
        self._samples: list[torch.Tensor] | None = None
        if isinstance(place, Slot) and not away:
            place.keep()

    def samples(self) -> list[torch.Tensor]:
        """Return a view for each sample."""
        if self._samples is None:
            whole = self.whole()
            self._samples = whole if isinstance(whole, list) else list(whole.unbind())
        return self._samples

    def whole(self) -> Whole:
        """Return it as the training loop of this process gets it."""
        return self.form.over(self.place.memory, self.lengths)

    def __len__(self) -> int:
        return self.lengths if isinstance(self.lengths, int) else len(self.lengths)

    @overload
    def __getitem__(self, i: int) -> torch.Tensor: ...
    @overload
    def __getitem__(self, i: slice) -> list[torch.Tensor]: ...
    def __getitem__(self, i: int | slice) -> torch.Tensor | list[torch.Tensor]:
        return self.samples()[i]

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self.samples())

    def __reduce__(self) -> tuple[Callable[..., Whole], tuple[Any, ...]]:
        place, size_bytes = self.place, self.place.memory.nbytes
        what = (size_bytes, self.form, self.lengths)
        if isinstance(place, Slot):
            place.send()
            return _in_slot, (place.ring.name, place.number, *what)
        if place.segment is not None:
            return _in_segment, (DupFd(place.segment.fd), *what)
        return _as_it_is, (self.whole(),)


def _in_slot(ring: str, slot: int, size_bytes: int, form: Form, lengths: Lengths) -> Whole:
    return form.over(ring_named(ring).hold(slot, size_bytes), lengths)


def _in_segment(passed: Any, size_bytes: int, form: Form, lengths: Lengths) -> Whole:
    # torch's mapping keeps no descriptor, as Python's would: a loop may hold on to any number.
    fd = passed.detach()
    try:
        path = f"/proc/self/fd/{fd}"
        storage: Any = torch.UntypedStorage.from_file(path, shared=True, nbytes=size_bytes)
    finally:
        os.close(fd)
    return form.of(torch.empty(0, dtype=torch.uint8).set_(storage), lengths)


def _as_it_is(whole: Whole) -> Whole:
    return whole


@dataclass(slots=True)
class Row:
    """One sample of a batch, where torch collects a batch sample by sample."""

    batch: Batch
    index: int


def of_rows(rows: Sequence[Row]) -> Batch | list[torch.Tensor]:
    """Return the batch that rows are, or a view of each if they are not exactly one."""
    batch = rows[0].batch
    if len(rows) == len(batch) and all(
        row.batch is batch and row.index == i for i, row in enumerate(rows)
    ):
        return batch
    return [row.batch[row.index] for row in rows]
