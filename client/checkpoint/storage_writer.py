"""torch.distributed.checkpoint's storage, the saving half: tensors from where they are into files.

Role: `torch.distributed.checkpoint.save` calls THIS in every rank; next hops: client/writer.py for
the bytes, client/checkpoint/published.py for the one step that makes the checkpoint appear.

A rank writes FILES files at once, each by a thread of its own: tensors back to back, largest first,
each at a multiple of ALIGNMENT bytes; then objects. Which bytes are what is in `.metadata` alone.

Failure behaviour: an error in any rank fails the save in all of them (torch sees to that), and what
was there before stays. See published.py for processes that die.
"""

from __future__ import annotations

import io
import math
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import torch
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import (
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageWriter as TorchStorageWriter
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from ffs.client.checkpoint import published
from ffs.client.checkpoint.memory import bytes_of
from ffs.client.checkpoint.metadata import Stored, pack
from ffs.client.checkpoint.place import Placed
from ffs.client.writer import FileWriter
from ffs.errors import InvalidError
from ffs.wire.messages import CreateMode

FILES: Final = 2
"""Written by a rank at once: one is checksummed and sent while the other waits for the disk."""
ALIGNMENT: Final = 64
TOGETHER_BYTES: Final = 64 << 20
"""Tensors are handed to the file's writer in groups of at least so much: it sends the chunks of a
group together, and no more of it than that is in memory twice if it comes from an accelerator."""
VERSION: Final = "ffs-1"


class StorageWriter(Placed, TorchStorageWriter):
    """Saves checkpoints for `torch.distributed.checkpoint.save(..., storage_writer=...)`.

    Args:    path: ffs:// URL of the checkpoint, a directory that appears when it is whole; an older
             checkpoint there is replaced in one step; storage_options: as for fsspec
    Copies:  0 in user space for the chunks inside a contiguous CPU tensor; Threads: one save at a
             time; Fork: safe; pickles as path and options
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(path, storage_options)
        self._rank = 0
        self._collective = True
        self.reset()

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin another save, to another place if one is given."""
        self._move(checkpoint_id)
        self._save_id = uuid.uuid4().hex

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Take this process's part in the save."""
        self._rank = kwargs.get("rank") or 0
        self._collective = kwargs.get("use_collectives", True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Return the plan as it is."""
        if not self._collective:
            raise InvalidError(
                "a save without collectives has nobody to publish it",
                hint="save with use_collectives=True, or without a process group",
                path=self.path,
            )
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Make room for the files; only the coordinator gets here, and before any rank writes."""
        published.clear(self.fs, self.path)
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's share; all of it is durable afterwards."""
        shares = _shares(plan.items)
        done: Future[list[WriteResult]] = Future()
        with ThreadPoolExecutor(FILES, thread_name_prefix="ffs-checkpoint") as pool:
            numbers = range(len(shares))
            written = list(pool.map(self._write_file, numbers, shares, [planner] * len(shares)))
        done.set_result([result for results in written for result in results])
        return done

    def _write_file(
        self, number: int, items: Sequence[WriteItem], planner: SavePlanner
    ) -> list[WriteResult]:
        name = f"{self._rank}-{number}-{uuid.uuid4().hex}{published.SUFFIX}"
        path = f"{published.staging_of(self.path)}/{name}"
        writer = self.fs._writer(path, CreateMode.REPLACE)
        try:
            results = list(_write_items(writer, name, items, planner))
            writer.seal()
            writer.publish()
        except BaseException:
            writer.discard()
            raise
        return results

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Publish the checkpoint; only the coordinator gets here, when all ranks have written."""
        metadata.version = VERSION
        metadata.storage_meta = self.storage_meta()
        metadata.storage_data = {
            result.index: tuple(result.storage_data) for each in results for result in each
        }
        names = {stored[0] for stored in metadata.storage_data.values()}
        published.publish(self.fs, self.path, pack(metadata), names)

    def storage_meta(self) -> StorageMeta:
        """Return what planners may want to know of the place."""
        return StorageMeta(checkpoint_id=self.checkpoint_id, save_id=self._save_id)


def _item_bytes(item: WriteItem) -> int:
    """Return the size of a planned tensor; of objects only that they are small is known."""
    data = item.tensor_data
    return math.prod(data.chunk.sizes) * data.properties.dtype.itemsize if data else 0


def _shares(items: Sequence[WriteItem]) -> list[list[WriteItem]]:
    """Divide a plan into files of about the same size, each with its largest tensors first."""
    shares: list[list[WriteItem]] = [[] for _ in range(min(FILES, len(items)))]
    sizes = [0] * len(shares)
    for item in sorted(items, key=_item_bytes, reverse=True):
        smallest = min(range(len(sizes)), key=sizes.__getitem__)
        shares[smallest].append(item)
        sizes[smallest] += _item_bytes(item)
    return shares


def _write_items(
    writer: FileWriter, name: str, items: Sequence[WriteItem], planner: SavePlanner
) -> Iterator[WriteResult]:
    """Write items one behind the other and yield where each is."""
    offset, group_bytes = 0, 0
    group: list[memoryview] = []
    for item in items:
        data, dtype, sizes = _resolve(planner, item)
        padding = -offset % ALIGNMENT
        stored = Stored(name, offset + padding, len(data), dtype, sizes)
        yield WriteResult(index=item.index, size_in_bytes=len(data), storage_data=stored)
        group += [memoryview(bytes(padding)), data]
        offset, group_bytes = offset + padding + len(data), group_bytes + len(data)
        if group_bytes >= TOGETHER_BYTES:
            writer.writev(group)
            group, group_bytes = [], 0
    writer.writev(group)


def _resolve(
    planner: SavePlanner, item: WriteItem
) -> tuple[memoryview, torch.dtype | None, tuple[int, ...]]:
    """Return an item's bytes, and for a tensor its element type and shape."""
    data = planner.resolve_data(item)
    if item.type is WriteItemType.BYTE_IO:
        assert isinstance(data, io.BytesIO)
        return data.getbuffer(), None, ()
    assert isinstance(data, torch.Tensor)
    return bytes_of(data), data.dtype, tuple(data.shape)
