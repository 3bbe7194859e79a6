"""Reads everything there is of some files, on every replica, and says what is wrong with them.

Role: `ffs verify` and `ffs fsck` call THIS; next hops are client/meta.py (which files, which
chunks) and client/reader.py (the native path, which checks every block's CRC as it comes).

Invariants: the first thing that is wrong stops nothing; each chunk is asked of each serving target
of its chain by name, so a bad replica is not hidden by a good one; a file that was replaced or
removed meanwhile is no finding; memory is bounded (BATCH_BYTES, or one chunk, and one batch of
files) whatever the tree.
Failure behaviour: what is wrong with files, chunks and targets is a Finding; a metadata server
that cannot be asked is an error of the call. A target that could not be reached until the deadline
is not waited for again: its other chunks are findings at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ffs import errors
from ffs.chains import NO_TARGET
from ffs.client.layouts import Content
from ffs.client.links import ABSENT
from ffs.client.paths import BATCH_ENTRIES
from ffs.client.planner import OP_DTYPE, PENDING
from ffs.errors import ChunkMissingError, FFSError, UnavailableError
from ffs.layout import chunk_count, chunk_length
from ffs.types import ZERO_BLOB, FileType

if TYPE_CHECKING:
    from ffs.client.core import Core
    from ffs.client.namespace import Namespace

BATCH_BYTES: Final = 32 << 20
BATCH_OPS: Final = 8_192
UNREACHABLE: Final = frozenset(
    e.code
    for e in (
        errors.UnavailableError,
        errors.DeadlineError,
        errors.StalledError,
        errors.ConnectionLostError,
    )
)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong. Zeros for what is not known: a whole file's, or a directory's, trouble."""

    path: str
    error: FFSError
    blob: int = 0
    chunk: int = 0
    target: int = 0
    node: int = 0


@dataclass(slots=True)
class Checked:
    """How far a call has come; `chunks` and `bytes_read` count each replica."""

    files: int = 0
    chunks: int = 0
    bytes_read: int = 0
    findings: int = 0


OnProgress = Callable[[Checked], None]


def verify(
    fs: Namespace, paths: Sequence[Any], *, on_progress: OnProgress | None = None
) -> Iterator[Finding]:
    """Read every byte of the files at and below `paths` on every serving replica.

    Args:    paths: files and directories; links among them are followed, those below are not;
             on_progress: told the same object after every batch
    Returns: findings as they are found
    Copies:  0 in user space; what was read is overwritten by what is read next
    """
    return _PathSurvey(fs, paths, on_progress, whole=True).run()


def probe(
    fs: Namespace, paths: Sequence[Any], *, on_progress: OnProgress | None = None
) -> Iterator[Finding]:
    """Read the last byte of every chunk on every serving replica: is it there and long enough?

    Why: hundreds of times faster than `verify`, and finds every missing and every short chunk, but
    no bytes that rotted before the last block. Arguments and result are the same. That a chunk is
    too long cannot be told from here, since a file may use a part of it.
    """
    return _PathSurvey(fs, paths, on_progress, whole=False).run()


@dataclass(slots=True)
class _Entry:
    """What one operation reads."""

    content: Content
    blob: int
    chunk: int
    chain: int
    target: int


class _Batch:
    """Operations that run together; offsets in the buffer are given out here."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []
        self.entries: list[_Entry] = []
        self.total = 0

    def add(self, entry: _Entry, offset: int, length: int) -> None:
        """Add a range of one chunk on one target."""
        self.rows.append(
            (entry.blob, self.total, entry.chunk, entry.target, offset, length, 0, PENDING, 0)
        )
        self.entries.append(entry)
        self.total += length

    def full_with(self, length: int) -> bool:
        """Return whether `length` bytes more are too many."""
        return bool(self.rows) and (
            self.total + length > BATCH_BYTES or len(self.rows) == BATCH_OPS
        )


class Survey(ABC):
    """Reads contents, all of them or of each chunk the end. What contents is for subclasses to say.

    Args:    whole: every byte; else the last byte of each chunk
    """

    def __init__(self, core: Core, on_progress: OnProgress | None, *, whole: bool) -> None:
        self._core = core
        self._on_progress = on_progress
        self._whole = whole
        self._checked = Checked()
        self._down: dict[int, FFSError] = {}
        self._out = memoryview(bytearray())

    @abstractmethod
    def contents(self) -> Iterator[Content | Finding]:
        """Give what is to be read, one after the other, or why it cannot be told."""

    @abstractmethod
    def changed(self, contents: dict[str, Content]) -> set[str]:
        """Return the paths of contents that are not there any more: they may miss chunks."""

    def run(self) -> Iterator[Finding]:
        """Yield what is wrong."""
        batch = _Batch()
        for found in self.contents():
            if isinstance(found, Finding):
                yield from self._found([found])
                continue
            self._checked.files += 1
            for entry, offset, length in self._ranges(found):
                if batch.full_with(length):
                    yield from self._read(batch)
                    batch = _Batch()
                if entry.target in self._down or not entry.target:
                    yield from self._found([self._finding(entry, self._why_not(entry))])
                else:
                    batch.add(entry, offset, length)
        yield from self._read(batch)

    # --- which bytes ----------------------------------------------------------------------------

    def _ranges(self, content: Content) -> Iterator[tuple[_Entry, int, int]]:
        """Yield what to read of a file: each chunk on each target, offset and length in it."""
        for piece in content.pieces:
            if piece.blob == ZERO_BLOB:
                continue
            step = piece.mask + 1
            for chunk in range(chunk_count(piece.end - piece.start, step)):
                length = chunk_length(piece.end - piece.start, step, chunk)
                offset, count = (0, length) if self._whole else (length - 1, 1)
                chain = piece.chain(chunk)
                for target in self._core.meta.route().serving.get(chain) or (NO_TARGET,):
                    yield _Entry(content, piece.blob, chunk, chain, target), offset, count

    def _why_not(self, entry: _Entry) -> FFSError:
        if entry.target:
            return self._down[entry.target]
        return UnavailableError("no target serves the chunk's chain now", chain=entry.chain)

    # --- reading --------------------------------------------------------------------------------

    def _read(self, batch: _Batch) -> Iterator[Finding]:
        """Run a batch and yield what failed."""
        if not batch.rows:
            return
        if len(self._out) < batch.total:
            self._out = memoryview(bytearray(max(batch.total, BATCH_BYTES if self._whole else 0)))
        failures = self._core.reader.survey(
            np.array(batch.rows, dtype=OP_DTYPE), [e.chain for e in batch.entries], self._out
        )
        self._checked.chunks += len(batch.rows)
        self._checked.bytes_read += batch.total
        findings: list[Finding] = []
        for index, error in failures:
            entry = batch.entries[index]
            findings.append(self._finding(entry, error))
            if error.code in UNREACHABLE:
                self._down[entry.target] = error
        changed = self.changed(
            {
                batch.entries[index].content.path: batch.entries[index].content
                for index, error in failures
                if isinstance(error, ChunkMissingError)
            }
        )
        yield from self._found([f for f in findings if f.path not in changed])

    def _finding(self, entry: _Entry, error: FFSError) -> Finding:
        node = self._core.meta.route().node_of_target.get(entry.target, 0)
        return Finding(entry.content.path, error, entry.blob, entry.chunk, entry.target, node)

    def _found(self, findings: Sequence[Finding]) -> Iterator[Finding]:
        self._checked.findings += len(findings)
        yield from findings
        if self._on_progress is not None:
            self._on_progress(self._checked)


class _PathSurvey(Survey):
    """One call of `verify` or `probe`."""

    def __init__(
        self,
        fs: Namespace,
        paths: Sequence[Any],
        on_progress: OnProgress | None,
        *,
        whole: bool,
    ) -> None:
        super().__init__(fs.core, on_progress, whole=whole)
        self._paths = [fs._strip_protocol(path) for path in paths]

    def contents(self) -> Iterator[Content | Finding]:
        """Open what lies at and below the paths, a batch at a time."""
        waiting: list[str] = []
        for path in self._names(self._paths):
            if isinstance(path, Finding):
                yield path
                continue
            waiting.append(path)
            if len(waiting) == BATCH_ENTRIES:
                yield from self._opened(waiting)
                waiting = []
        yield from self._opened(waiting)

    def _opened(self, paths: list[str]) -> Iterator[Content | Finding]:
        for path, content in zip(paths, self._core.meta.open_many(paths), strict=True):
            if isinstance(content, Content):
                yield content
            elif not isinstance(content, ABSENT):  # removed since it was listed
                yield Finding(path, content)

    def _names(self, paths: Sequence[str]) -> Iterator[str | Finding]:
        """Walk from paths down and yield those of files, holding the directories still to do."""
        meta = self._core.meta
        directories: list[str] = []
        for path in paths:
            try:
                if meta.stat(path).type == FileType.DIRECTORY:
                    directories.append(path)
                else:
                    yield path
            except ABSENT as error:
                yield Finding(path, error)
        while directories:
            try:
                for page in meta.pages(directories.pop()):
                    kinds = [(entry.path, entry.attr.type) for entry in page]
                    yield from (path for path, kind in kinds if kind == FileType.FILE)
                    directories += [path for path, kind in kinds if kind == FileType.DIRECTORY]
            except ABSENT:
                continue  # removed meanwhile

    def changed(self, contents: dict[str, Content]) -> set[str]:
        """Return the paths that hold something else by now: what they held may be dropped."""
        now = self._core.meta.open_many(list(contents))
        return {
            path
            for (path, content), fresh in zip(contents.items(), now, strict=True)
            if not isinstance(fresh, Content) or not fresh.same_bytes(content)
        }
