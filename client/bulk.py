"""Many small files at once: sessions, chunks and closes in batches.

Role: client/transfer.py's `pipe` comes here; next hops are client/meta.py and client/writer.py.
Why: one file costs two metadata round trips and a group commit; a thousand cost the same together.

Copies: 1: the batch's values are joined into one buffer, which the engine sends from.
Failure behaviour: an error ends the batch that met it: its unpublished sessions are aborted and the
first error is raised; batches before it stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from ffs import layout
from ffs.client.writer import WRITE_OP_DTYPE, Writing, create_entry
from ffs.errors import FFSError
from ffs.wire.messages import CloseEntry, CreateEntry, CreateMode, WriteSession

SMALL_BYTES_MAX: Final = 4 << 20
"""Larger values are written on their own, straight from the caller's memory."""
BATCH_BYTES: Final = 32 << 20
BATCH_FILES: Final = 2_048

Item = tuple[str, memoryview]


def write_small(
    writing: Writing,
    items: Sequence[Item],
    create_mode: CreateMode,
    *,
    chunk_size_bytes: int = 0,
    stripe: int = -1,
) -> None:
    """Write files of at most SMALL_BYTES_MAX each, batch by batch."""
    for batch in _batches(items):
        entries = [
            create_entry(path, create_mode, chunk_size_bytes=chunk_size_bytes, stripe=stripe)
            for path, _ in batch
        ]
        _write_batch(writing, batch, entries)


def _batches(items: Sequence[Item]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    total = 0
    for path, value in items:
        if batch and (total + len(value) > BATCH_BYTES or len(batch) >= BATCH_FILES):
            yield batch
            batch, total = [], 0
        batch.append((path, value))
        total += len(value)
    if batch:
        yield batch


def _write_batch(writing: Writing, batch: list[Item], creations: list[CreateEntry]) -> None:
    paths = [path for path, _ in batch]
    opened = writing.meta.create_many(creations)
    sessions = [s for s in opened if isinstance(s, WriteSession)]
    writing.keeper.opened(len(sessions))
    try:
        for one in opened:
            if isinstance(one, FFSError):
                raise one
        _send(writing, batch, sessions)
        entries = [
            CloseEntry(s.session, len(value)) for s, (_, value) in zip(sessions, batch, strict=True)
        ]
        for answer in writing.meta.close_many(paths, entries):
            if isinstance(answer, FFSError):
                raise answer
    except BaseException as error:
        writing.keeper.give_up([s.session for s in sessions], error)
        raise
    writing.keeper.ended(len(sessions))


def _send(writing: Writing, batch: list[Item], sessions: list[WriteSession]) -> None:
    """Write every chunk of every file of the batch with as few calls as may be."""
    rows: list[tuple[Any, ...]] = []
    offset = 0
    chains: dict[Any, list[int]] = {}
    for session, (_, value) in zip(sessions, batch, strict=True):
        how = session.layout
        places = chains.get(how) or chains.setdefault(how, writing.chains(how))
        for chunk in range(layout.chunk_count(len(value), how.chunk_size_bytes)):
            length = layout.chunk_length(len(value), how.chunk_size_bytes, chunk)
            chain = places[chunk % len(places)]
            rows.append((session.blob, offset, chunk, 0, chain, length, 0, 0, 0))
            offset += length
    if rows:
        data = memoryview(b"".join(value for _, value in batch))
        names = {s.blob: path for s, (path, _) in zip(sessions, batch, strict=True)}
        writing.send(np.array(rows, dtype=WRITE_OP_DTYPE), data, names)
