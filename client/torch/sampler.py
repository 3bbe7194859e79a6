"""The order of an epoch, shared by all ranks, that can be taken up anywhere by any number of ranks.

Role: a sampler for torch's DataLoader, this package's or torchdata's; the order itself comes from
client/permutation.py, one block at a time.

The state is three numbers: seed, epoch, and how many samples all ranks together have consumed.
Rank r of `world` takes the positions consumed + r, consumed + r + world, ... of the epoch's order:
what has been consumed is always a prefix of one order that knows nothing of ranks, workers or
batches.

Invariants: all ranks yield equally many samples; in an epoch each sample is yielded once, but for
at most world - 1 that pad the tail, or that `drop_last` leaves out.

Failure behaviour: InvalidError for arguments or a state that cannot be.
Fork and pickling: plain numbers; rank and world are looked up when an iteration begins.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import torch.distributed as dist
from torch.utils.data import Sampler

from ffs.client.permutation import LENGTH_MAX, Permutation
from ffs.errors import InvalidError

BLOCK_SAMPLES: Final = 16_384
"""Permuted at once: a millisecond's work, and few enough that their memory stays in the cache."""


class ElasticSampler(Sampler[int]):
    """Yields this rank's samples of an epoch, from where the run stands.

    An iteration that came to its end moves on to the next epoch when the next one begins; one that
    was broken off starts again where it started, as with torch's samplers.

    Args:    length: of the data set; seed: of all orders, the same on all ranks; epoch, consumed:
             where to begin; rank, world: both or neither, else looked up late: torch.distributed,
             RANK and WORLD_SIZE, a world of one; drop_last: leave the tail out that does not go
             round all ranks, instead of padding it with the order's first samples; shuffle: False
             for the order of the data set
    Copies:  0; about 0.2 us a sample, in batches less; memory and the time to the first sample do
             not depend on length and consumed
    Threads: one iteration at a time
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        rank: int | None = None,
        world: int | None = None,
        consumed: int = 0,
        drop_last: bool = False,
        shuffle: bool = True,
    ) -> None:
        if not 0 <= length <= LENGTH_MAX:
            raise InvalidError(f"length is {length}, expected 0 .. {LENGTH_MAX}")
        if (rank is None) != (world is None):
            raise InvalidError(f"rank is {rank} and world is {world}", hint="give both or neither")
        if rank is not None and world is not None:
            _check_rank(rank, world)
        self.length = length
        self.drop_last = drop_last
        self.shuffle = shuffle
        self._given = None if rank is None or world is None else (rank, world)
        self._handed_out = 0
        self._ended = False
        self._place(seed, epoch, consumed)

    # --- where the run stands -------------------------------------------------------------------

    def state_dict(self) -> dict[str, int]:
        """Return the state after the last sample that the sampler handed out.

        A loader with workers asks for samples ahead of the loop: take the loader's own
        `state_dict`, or `state_after` with what the loop has used.
        """
        return self.state_after(self._handed_out)

    def state_after(self, samples: int) -> dict[str, int]:
        """Return the state after this rank, like every other, used so many samples.

        Args:    samples: counted from the start of the iteration, or of the one to come; more than
                 it has are all of them, so that batches can be counted, the last one with them
        """
        if samples < 0:
            raise InvalidError(f"{samples} samples used")
        _, world = self._rank_and_world()
        ended = samples >= self._rank_samples(world)
        consumed = self.length if ended else self.consumed + samples * world
        return {"seed": self.seed, "epoch": self.epoch, "consumed": consumed}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where a state of any number of ranks left off."""
        try:
            self._place(int(state["seed"]), int(state["epoch"]), int(state["consumed"]))
        except KeyError as error:
            raise InvalidError(
                f"the sampler's state has no {error.args[0]!r}",
                hint="pass what state_dict() of an ElasticSampler returned",
            ) from error

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch, unless it is the one in which the run stands already."""
        if epoch != self.epoch or self._ended:
            self._place(self.seed, epoch, 0)

    def _place(self, seed: int, epoch: int, consumed: int) -> None:
        if not 0 <= consumed <= self.length:
            raise InvalidError(
                f"consumed is {consumed}, the data set has {self.length} samples",
                hint="the state belongs to a longer data set" if consumed > 0 else "",
            )
        self._order = Permutation(self.length, seed=seed, epoch=epoch)
        self.seed, self.epoch, self.consumed = seed, epoch, consumed
        self._handed_out, self._ended = 0, False

    # --- iteration ------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return how many samples this rank gets in the iteration that began, or else in the one to
        come."""
        _, world = self._rank_and_world()
        return self._share(self.length, world) if self._ended else self._rank_samples(world)

    def __iter__(self) -> Iterator[int]:
        return self._one_by_one(self._begin())

    def batches(self, size: int, *, drop_last: bool = False) -> Iterator[npt.NDArray[np.int64]]:
        """Begin an iteration that yields the samples by `size`, as torch's BatchSampler has them.

        Args:    drop_last: leave out the last ones if they are fewer
        """
        return self._by_size(self._begin(), size, drop_last)

    def _begin(self) -> Iterator[npt.NDArray[np.int64]]:
        if self._ended:
            self._place(self.seed, self.epoch + 1, 0)
        self._handed_out = 0
        rank, world = self._rank_and_world()
        return self._blocks(self._order, self.consumed + rank, world, self._rank_samples(world))

    def _blocks(
        self, order: Permutation, first: int, world: int, count: int
    ) -> Iterator[npt.NDArray[np.int64]]:
        """Yield the samples at first, first + world, ..., behind the end from the front again."""
        for start in range(0, count, BLOCK_SAMPLES):
            steps = np.arange(start, min(start + BLOCK_SAMPLES, count), dtype=np.uint64)
            positions = (steps * np.uint64(world) + np.uint64(first)) % np.uint64(order.length)
            yield order[positions] if self.shuffle else positions.view(np.int64)

    def _one_by_one(self, blocks: Iterator[npt.NDArray[np.int64]]) -> Iterator[int]:
        for block in blocks:
            for sample in block.tolist():
                self._handed_out += 1
                yield sample
        self._ended = True

    def _by_size(
        self, blocks: Iterator[npt.NDArray[np.int64]], size: int, drop_last: bool
    ) -> Iterator[npt.NDArray[np.int64]]:
        left = np.empty(0, dtype=np.int64)
        for block in blocks:
            samples = np.concatenate((left, block)) if len(left) else block
            whole = len(samples) // size * size
            for start in range(0, whole, size):
                self._handed_out += size
                yield samples[start : start + size]
            left = samples[whole:]
        self._handed_out += len(left)
        if len(left) and not drop_last:
            yield left
        self._ended = True

    def _rank_samples(self, world: int) -> int:
        return self._share(self.length - self.consumed, world)

    def _share(self, left: int, world: int) -> int:
        return left // world if self.drop_last else -(-left // world)

    def _rank_and_world(self) -> tuple[int, int]:
        if self._given is not None:
            return self._given
        if dist.is_available() and dist.is_initialized():
            return dist.get_rank(), dist.get_world_size()
        rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        try:
            found = int(rank), int(world)
        except ValueError as error:
            raise InvalidError(f"RANK is {rank!r} and WORLD_SIZE is {world!r}") from error
        _check_rank(*found)
        return found


def _check_rank(rank: int, world: int) -> None:
    if not 0 <= rank < world:
        raise InvalidError(f"rank is {rank} of a world of {world}")
