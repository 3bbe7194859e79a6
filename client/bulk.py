"""Many small files at once: sessions, chunks and closes in batches.

Role: client/transfer.py's `pipe` comes here; next hops are client/meta.py and client/writer.py.
Why: one file costs two metadata round trips and a group commit; a thousand cost the same together.

Copies: 1: the batch's values are joined into one buffer, which the engine sends from.
Failure behaviour: an error ends the batch that met it and those behind: unpublished sessions are
aborted and the first error is raised; batches before it stay.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np

from ffs import layout
from ffs.client.sessions import UNREACHABLE
from ffs.client.writer import WRITE_OP_DTYPE, Writing, create_entry
from ffs.errors import FFSError
from ffs.types import Attr
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
    """Write files of at most SMALL_BYTES_MAX each, batch by batch.

    While the bytes of one batch are sent, sessions for the next ones are opened, and the one before
    is closed.
    """
    line = _Line(
        writing,
        _batches(items),
        lambda path: create_entry(
            path, create_mode, chunk_size_bytes=chunk_size_bytes, stripe=stripe
        ),
    )
    line.run()


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


class _Line:
    """Batches on their way: sessions are opened, then their bytes sent, then they are closed.

    Args:    entry: returns what is asked for to create a path
    """

    def __init__(
        self,
        writing: Writing,
        batches: Iterator[list[Item]],
        entry: Callable[[str], CreateEntry],
    ) -> None:
        self._writing = writing
        self._batches = batches
        self._entry = entry
        self._asked: deque[list[Item]] = deque()
        """Batches whose sessions are asked for."""
        self._unclosed: deque[list[int]] = deque()
        """Sessions of each batch that is not known to be closed."""
        self._opened = writing.meta.create_each(self._creations())

    def run(self) -> None:
        """Take all batches to their end, or give up what is not published."""
        try:
            for answers in self._writing.meta.close_each(self._sent()):
                _raise_first(answers)
                self._writing.keeper.ended(len(self._unclosed.popleft()))
        except BaseException as error:
            # Errors of storage daemons name their chunk: the metadata server is there.
            if not isinstance(error, UNREACHABLE) or "chunk" in error.where:
                self._take_what_was_asked()
            given_up = [session for batch in self._unclosed for session in batch]
            self._writing.keeper.give_up(given_up, error)
            raise
        finally:
            # Not left to the collector: giving a connection up takes a lock, which the thread that
            # it happens to run in may hold.
            self._opened.close()

    def _creations(self) -> Iterator[list[CreateEntry]]:
        while (batch := next(self._batches, None)) is not None:
            self._asked.append(batch)
            yield [self._entry(path) for path, _ in batch]

    def _sent(self) -> Iterator[tuple[list[str], list[CloseEntry]]]:
        for answers in self._opened:
            batch = self._asked.popleft()
            sessions = self._keep(answers)
            _raise_first(answers)
            _send(self._writing, batch, sessions)
            lengths = [len(value) for _, value in batch]
            entries = [CloseEntry(s.session, n) for s, n in zip(sessions, lengths, strict=True)]
            yield [path for path, _ in batch], entries

    def _keep(self, answers: Sequence[WriteSession | FFSError]) -> list[WriteSession]:
        """Have the sessions renewed, and known to be given up if it comes to that."""
        sessions = [answer for answer in answers if isinstance(answer, WriteSession)]
        self._unclosed.append([session.session for session in sessions])
        self._writing.keeper.opened(len(sessions))
        return sessions

    def _take_what_was_asked(self) -> None:
        """Wait for the sessions that were asked for ahead: nobody else would ever end them."""
        self._batches = iter(())
        with contextlib.suppress(FFSError):
            for answers in self._opened:
                self._keep(answers)


def _raise_first(answers: Sequence[Attr | WriteSession | FFSError]) -> None:
    for answer in answers:
        if isinstance(answer, FFSError):
            raise answer


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
