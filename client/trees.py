"""Trees in, out and across: many files at once, with a bounded amount of memory.

Role: client/transfer.py's `get`, `put` and `copy` come here with the pairs of paths that fsspec
made of their arguments; next hops are client/reader.py and client/bulk.py for small files, and the
file system's own `get_file`, `put_file` for large ones.

Why: one file costs two round trips or more; thousands cost the same together, and a few threads
keep the disk busy while the network works.
Memory: THREADS * 2 * BATCH_BYTES at most, whatever the tree, besides its paths.
Failure behaviour: the first error ends the call (client/parallel.py); a local file appears whole or
is removed again.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from fsspec.callbacks import Callback

from ffs.client import bulk
from ffs.client.layouts import Content
from ffs.client.parallel import Stop, run_all
from ffs.client.paths import batches, parent_of
from ffs.errors import (
    CancelledOperationError,
    ExistsError,
    FFSError,
    FileExpectedError,
    NotFoundError,
)
from ffs.types import FileType
from ffs.wire.messages import CreateMode

if TYPE_CHECKING:
    from ffs.client.transfer import Transfer

Pair = tuple[str, str]
Work = Callable[[], None]

THREADS: Final = 4
COPIES: Final = 64
"""Copies by reference that one thread has under way: the server commits them together."""
BATCH_BYTES: Final = 16 << 20


class Pairs:
    """What fsspec's `get`, `put` and `copy` work on instead of a file system: it only takes notes.

    Why: fsspec's rules for what goes where are long, and these programs must agree with them.
    """

    def __init__(self, fs: Transfer) -> None:
        self.found: list[Pair] = []
        self.expand_path = fs.expand_path
        self.isdir = fs.isdir
        self._strip_protocol = fs._strip_protocol

    def note(self, source: Any, target: Any, callback: Any = None) -> None:
        """Remember a source and its target."""
        self.found.append((os.fspath(source), os.fspath(target)))

    get_file = put_file = cp_file = note

    def latest(self) -> list[Pair]:
        """Return what was found, of several with one target the last: the threads that share the
        work keep no order."""
        return [*{target.rstrip("/"): (source, target) for source, target in self.found}.values()]


class Progress:
    """Tells the caller's callback what many threads do, one at a time."""

    def __init__(self, callback: Callback, total: int) -> None:
        self.stop = Stop()
        self._callback = callback
        self._lock = threading.Lock()
        callback.set_size(total)

    def begin(self, source: str, target: str) -> _Moved:
        """Return what a file's own progress is told to."""
        with self._lock:
            return _Moved(self._callback.branched(source, target), self._lock, self.stop)

    def done(self, count: int = 1) -> None:
        """Count files that have arrived."""
        with self._lock:
            self._callback.relative_update(count)

    def whole(self, source: str, target: str, size: int) -> None:
        """Tell of a file that came in one piece."""
        with self.begin(source, target) as moved:
            moved.set_size(size)
            moved.relative_update(size)
        self.done()


class _Moved:
    """One file's callback. Telling it ends the copy when the others have failed."""

    def __init__(self, callback: Callback, lock: threading.Lock, stop: Stop) -> None:
        self._callback, self._lock, self._stop = callback, lock, stop

    def __enter__(self) -> _Moved:
        return self

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._callback.close()

    def set_size(self, size: int) -> None:
        """Say how many bytes there are."""
        with self._lock:
            self._callback.set_size(size)

    def relative_update(self, inc: int = 1) -> None:
        """Say how many more bytes have moved."""
        if self._stop:
            raise CancelledOperationError("another file of the tree failed")
        with self._lock:
            self._callback.relative_update(inc)


# --- out ------------------------------------------------------------------------------------------


def get_trees(fs: Transfer, pairs: Sequence[Pair], callback: Callback) -> None:
    """Copy files to the local disk; directories among the sources are made there."""
    progress = Progress(callback, len(pairs))
    run_all(_gets(fs, pairs, progress), THREADS, progress.stop)


def _gets(fs: Transfer, pairs: Sequence[Pair], progress: Progress) -> Iterator[Work]:
    """Yield the work: a large file, or small ones together."""
    small: list[tuple[Content, str]] = []
    held = 0
    made: set[str] = set()
    for part in batches(pairs):
        contents = fs.core.meta.contents_or_errors([source for source, _ in part])
        for (source, target), content in zip(part, contents, strict=True):
            directory = isinstance(content, FileExpectedError)
            _make(target if directory else os.path.dirname(os.path.abspath(target)), made)
            if directory:
                progress.done()
            elif isinstance(content, FFSError):
                raise content
            elif content.size > bulk.SMALL_BYTES_MAX:
                yield partial(_get_large, fs, source, target, progress)
            else:
                if held + content.size > BATCH_BYTES or len(small) == bulk.BATCH_FILES:
                    yield partial(_get_small, fs, small, progress)
                    small, held = [], 0
                small.append((content, target))
                held += content.size
    if small:
        yield partial(_get_small, fs, small, progress)


def _make(directory: str, made: set[str]) -> None:
    if directory not in made:
        os.makedirs(directory, exist_ok=True)
        made.add(directory)


def _get_large(fs: Transfer, source: str, target: str, progress: Progress) -> None:
    with progress.begin(source, target) as moved:
        fs.get_file(source, target, callback=moved)
    progress.done()


def _get_small(fs: Transfer, batch: list[tuple[Content, str]], progress: Progress) -> None:
    """Read many small files at once and write them one by one."""
    sizes = [content.size for content, _ in batch]
    out = np.empty(sum(sizes), dtype=np.uint8).data
    try:
        fs.core.reader.read_ranges([c for c, _ in batch], [0] * len(batch), sizes, out)
    except FFSError:
        # One of them failed, or was replaced and dropped meanwhile: each alone knows what to do.
        fs.core.meta.memory.invalidate(*(content.path for content, _ in batch))
        for content, target in batch:
            _get_large(fs, content.path, target, progress)
        return
    start = 0
    for (content, target), size in zip(batch, sizes, strict=True):
        write_local(target, out[start : start + size])
        progress.whole(content.path, target, size)
        start += size


def write_local(path: str, data: memoryview) -> None:
    """Write a local file; remove it again if that fails, since half a file looks like a whole."""
    target = io.FileIO(path, "w")
    try:
        with target:
            while data:
                data = data[target.write(data) or 0 :]
    except BaseException:
        if os.path.isfile(path):  # and no device or pipe
            os.unlink(path)
        raise


# --- in -------------------------------------------------------------------------------------------


def put_trees(
    fs: Transfer,
    pairs: Sequence[Pair],
    callback: Callback,
    create_mode: CreateMode,
    **options: Any,
) -> None:
    """Copy local files into the cluster.

    Args:    options: those of `put_file`, `mode` among them
    """
    progress = Progress(callback, len(pairs))
    run_all(_puts(fs, pairs, progress, create_mode, options), THREADS, progress.stop)


def _puts(
    fs: Transfer,
    pairs: Sequence[Pair],
    progress: Progress,
    create_mode: CreateMode,
    options: dict[str, Any],
) -> Iterator[Work]:
    layout = {k: v for k, v in options.items() if k != "mode"}
    small: list[Pair] = []
    held = 0
    for source, target in pairs:
        size = os.stat(source).st_size
        alone = os.path.isdir(source) or create_mode is CreateMode.APPEND
        if alone or size > bulk.SMALL_BYTES_MAX:
            yield partial(_put_large, fs, source, target, progress, options)
            continue
        if held + size > BATCH_BYTES or len(small) == bulk.BATCH_FILES:
            yield partial(_put_small, fs, small, progress, create_mode, layout)
            small, held = [], 0
        small.append((source, target))
        held += size
    if small:
        yield partial(_put_small, fs, small, progress, create_mode, layout)


def _put_large(
    fs: Transfer, source: str, target: str, progress: Progress, options: dict[str, Any]
) -> None:
    with progress.begin(source, target) as moved:
        fs.put_file(source, target, callback=moved, **options)
    progress.done()


def _put_small(
    fs: Transfer,
    batch: list[Pair],
    progress: Progress,
    create_mode: CreateMode,
    layout: dict[str, Any],
) -> None:
    """Read many small local files and write them at once."""
    items: list[bulk.Item] = []
    for source, target in batch:
        with io.FileIO(source, "r") as file:
            items.append((fs._strip_protocol(target), memoryview(file.readall())))
    bulk.write_small(fs.core.writing, items, create_mode, **layout)
    for (source, target), (_, data) in zip(batch, items, strict=True):
        progress.whole(source, target, len(data))


# --- across ---------------------------------------------------------------------------------------


def copy_trees(
    fs: Transfer, pairs: Sequence[Pair], roots: set[str] | None, *, missing_ok: bool
) -> None:
    """Copy files by reference; links are followed, but below the `roots` copied as links."""
    followed = {source for source, _ in pairs}
    if roots is not None:
        followed = roots | {parent_of(source) for source in followed}
    run_all(_copies(fs, pairs, followed, missing_ok=missing_ok), THREADS, Stop())


def _copies(
    fs: Transfer, pairs: Sequence[Pair], followed: set[str], *, missing_ok: bool
) -> Iterator[Work]:
    """Yield the work: files together, whatever else there is on its own."""
    for part in batches(pairs):
        kinds = fs.core.meta.stat_many([source for source, _ in part], follow=False)
        files: list[Pair] = []
        for pair, attr in zip(part, kinds, strict=True):
            kind = FileType.FILE if isinstance(attr, FFSError) else attr.type
            if kind == FileType.SYMLINK and pair[0] not in followed:
                yield partial(_copy_one, partial(_copy_link, fs), pair, missing_ok=missing_ok)
            elif kind == FileType.FILE:
                files.append(pair)
            else:
                yield partial(_copy_one, fs.cp_file, pair, missing_ok=missing_ok)
        for start in range(0, len(files), COPIES):
            yield partial(_copy_files, fs, files[start : start + COPIES], missing_ok=missing_ok)


def _copy_files(fs: Transfer, pairs: Sequence[Pair], *, missing_ok: bool) -> None:
    for copied in fs.core.meta.copy_many(pairs):
        if isinstance(copied, FFSError) and not (missing_ok and isinstance(copied, NotFoundError)):
            raise copied


def _copy_one(copy: Callable[[str, str], None], pair: Pair, *, missing_ok: bool) -> None:
    try:
        copy(*pair)
    except NotFoundError:
        if not missing_ok:
            raise


def _copy_link(fs: Transfer, source: str, target: str) -> None:
    held = fs.core.meta.readlink(source)
    try:
        fs.core.meta.symlink(held, target)
    except ExistsError:
        fs.rm_file(target)
        fs.core.meta.symlink(held, target)
