"""torch.distributed.checkpoint's storage, the loading half: files straight into tensors.

Role: `torch.distributed.checkpoint.load` calls THIS in every rank; next hops: memory.py, then
client/reader.py, one call of the engine for all tensors of a batch.

A rank may load other shards than were saved: of a stored shard only the bytes of the wanted block
are read (blocks.py).

Failure behaviour: InvalidError for what is no checkpoint of ours, or does not fit; the errors of
reading. After an error the tensors' contents are unspecified.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import torch
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader as TorchStorageReader
from torch.futures import Future

from ffs.client.checkpoint.blocks import runs_of, strides_of
from ffs.client.checkpoint.memory import Read, bytes_of, can_receive, read_all
from ffs.client.checkpoint.metadata import Stored, unpack
from ffs.client.checkpoint.place import Placed
from ffs.client.checkpoint.published import METADATA
from ffs.errors import InvalidError

BATCH_BYTES: Final = 256 << 20
"""Read by one call: enough that its end costs nothing, and what tensors on an accelerator may take
in main memory meanwhile."""


class StorageReader(Placed, TorchStorageReader):
    """Loads checkpoints for `torch.distributed.checkpoint.load(..., storage_reader=...)`.

    Args:    path: ffs:// URL of what a StorageWriter saved; storage_options: as for fsspec
    Copies:  0 in user space into contiguous CPU tensors of the saved type, 1 into others
    Threads: one load at a time; Fork: safe; pickles as path and options
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(path, storage_options)
        self.reset()

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin another load, from another place if one is given."""
        self._move(checkpoint_id)
        self._stored: dict[Any, Any] = {}

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the description of the checkpoint."""
        path = f"{self.path}/{METADATA}"
        self.fs.invalidate_cache(path)  # it may have been replaced a moment ago
        metadata = unpack(self.fs.read_buffer(path), path)
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        return metadata

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Take over where everything is."""
        self._stored = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Return the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Return the plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill this rank's tensors."""
        batch: list[_Landing] = []
        size = 0
        for item in plan.items:
            stored = Stored(*self._stored[item.storage_index])
            landing = _Landing(item, stored, f"{self.path}/{stored.file}", planner)
            batch.append(landing)
            size += landing.size
            if size >= BATCH_BYTES:
                self._land(batch)
                batch, size = [], 0
        self._land(batch)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _land(self, batch: list[_Landing]) -> None:
        read_all(self.fs, [read for landing in batch for read in landing.reads()])
        for landing in batch:
            landing.finish()


class _Landing:
    """One item of a plan, from its stored bytes to where the planner wants it.

    `_direct`: the runs of the block, packed, are the target's own memory. Otherwise the block is
    read into memory that has room for all from its first byte to its last, of which only what is
    read is ever touched, and copied from there.
    """

    def __init__(self, item: ReadItem, stored: Stored, path: str, planner: LoadPlanner) -> None:
        self._item, self._stored, self._path, self._planner = item, stored, path, planner
        self._target: torch.Tensor | None = None
        if item.type is LoadItemType.BYTE_IO:
            self.size = stored.length
            self._memory = memoryview(bytearray(stored.length))
            self._pieces = [(0, stored.length)]
            self._direct = True
            return
        self._take_target()

    def _take_target(self) -> None:
        item, stored = self._item, self._stored
        assert stored.dtype is not None
        target = self._planner.resolve_tensor(item).detach()
        if tuple(target.shape) != tuple(item.lengths):
            raise InvalidError(
                f"{item.storage_index.fqn!r} is {tuple(target.shape)} where "
                f"{tuple(item.lengths)} are to be loaded",
                path=self._path,
            )
        self._target, self._pieces = target, []
        self._direct, self._memory, self.size = True, memoryview(b""), 0
        if not target.numel():
            return
        itemsize = stored.dtype.itemsize
        runs = runs_of(stored.sizes, item.storage_offsets, item.lengths, itemsize)
        self._pieces = runs.merged()
        self._direct = (
            target.dtype == stored.dtype
            and can_receive(target)
            and len(self._pieces) == len(runs.starts)
        )
        self.size = sum(end - start for start, end in self._pieces)
        if self._direct:
            self._memory = bytes_of(target)
        else:
            span = self._pieces[-1][1] - self._pieces[0][0]
            self._memory = np.empty(span, dtype=np.uint8).data

    def reads(self) -> Iterator[Read]:
        """Yield which bytes of the file go where."""
        place = 0
        for start, end in self._pieces:
            if not self._direct:
                place = start - self._pieces[0][0]
            view = self._memory[place : place + end - start]
            yield Read(self._path, self._stored.offset + start, view)
            place += end - start

    def finish(self) -> None:
        """Hand over what was read."""
        if self._target is None:
            self._planner.load_bytes(self._item, io.BytesIO(self._memory))
            return
        if not self._direct:
            self._copy(self._target)
        self._planner.commit_tensor(self._item, self._target)

    def _copy(self, target: torch.Tensor) -> None:
        dtype, sizes = self._stored.dtype, self._stored.sizes
        assert dtype is not None
        span = torch.frombuffer(self._memory, dtype=dtype)
        block = torch.as_strided(span, tuple(self._item.lengths), strides_of(sizes))
        target.copy_(block)
