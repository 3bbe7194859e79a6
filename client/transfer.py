"""Whole files in and out: `cat`, `pipe`, and copies to and from the local disk.

Role: part of the file system object (client/filesystem.py). Large pieces go from and to the wire
without a copy; what Python's `bytes` forces to be copied is said where it happens.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.core import has_magic
from fsspec.spec import AbstractFileSystem
from fsspec.utils import isfilelike, stringify_path

from ffs.client import bulk, trees
from ffs.client.append import AppendWriter
from ffs.client.buffers import flat_view
from ffs.client.snapshots import Snapshots
from ffs.client.writer import FileWriter, create_entry
from ffs.errors import FFSError, InvalidError
from ffs.wire.messages import CreateMode

_MODES: Final = {
    "overwrite": CreateMode.REPLACE,
    "create": CreateMode.EXCLUSIVE,
    "append": CreateMode.APPEND,
}
PIECE_BYTES: Final = 16 << 20
"""What `get_file` and `put_file` move at once, through one buffer that is used again."""


class Transfer(Snapshots):
    """The whole-file half of the file system object."""

    # --- writing --------------------------------------------------------------------------------

    def pipe_file(
        self,
        path: Any,
        value: Any,
        mode: str = "overwrite",
        *,
        chunk_size_bytes: int = 0,
        stripe: int = -1,
    ) -> None:
        """Write a whole file; it appears at the end, at once.

        Args:    mode: "create" refuses a name that is taken, "append" puts the bytes behind what is
                 there; chunk_size_bytes, stripe: 0 and -1: as the directory says (`get_layout`)
        Copies:  0 in user space for the whole chunks of `value`
        """
        path = self._strip_protocol(path)
        writer = self._writer(
            path, _create_mode(path, mode), chunk_size_bytes=chunk_size_bytes, stripe=stripe
        )
        try:
            writer.write(value)
            writer.seal()
            writer.publish()
        except BaseException:
            writer.discard()
            raise

    def pipe(self, path: Any, value: Any = None, mode: str = "overwrite", **layout: int) -> None:
        """Write one file, or a dictionary of them; small ones go in batches.

        Args:    mode, layout: as for `pipe_file`
        """
        if isinstance(path, (str, os.PathLike)):
            self.pipe_file(path, value, mode, **layout)
            return
        if not isinstance(path, Mapping):
            raise InvalidError("pipe takes a path and a value, or a dictionary of them")
        create_mode = _create_mode("", mode)
        values = [(self._strip_protocol(one), flat_view(data)) for one, data in path.items()]
        if create_mode is CreateMode.REPLACE:
            values = [*dict(values).items()]  # of two that name one file the last is what stays
        small: list[bulk.Item] = []
        for name, view in values:
            if len(view) > bulk.SMALL_BYTES_MAX or create_mode is CreateMode.APPEND:
                self.pipe_file(name, view, mode, **layout)
            else:
                small.append((name, view))
        bulk.write_small(self.core.writing, small, create_mode, **layout)

    def put(
        self,
        lpath: Any,
        rpath: Any,
        recursive: bool = False,
        callback: Any = DEFAULT_CALLBACK,
        maxdepth: int | None = None,
        mode: str = "overwrite",
        **layout: int,
    ) -> None:
        """Copy local files and trees, several at a time; small files go in batches.

        Args:    mode, layout: as for `pipe_file`
        """
        create_mode, pairs = _create_mode("", mode), trees.Pairs(self)
        AbstractFileSystem.put(pairs, lpath, rpath, recursive, maxdepth=maxdepth)
        found = pairs.latest() if create_mode is CreateMode.REPLACE else pairs.found
        trees.put_trees(self, found, callback, create_mode, mode=mode, **layout)

    def put_file(
        self,
        lpath: Any,
        rpath: Any,
        callback: Any = DEFAULT_CALLBACK,
        mode: str = "overwrite",
        **layout: int,
    ) -> None:
        """Copy one local file to `rpath`; a local directory becomes an empty directory.

        Args:    mode, layout: as for `pipe_file`
        """
        path, local = self._strip_protocol(rpath), stringify_path(lpath)
        if os.path.isdir(local):
            self.makedirs(path, exist_ok=True)
            return
        with io.FileIO(local, "r") as source:
            callback.set_size(os.fstat(source.fileno()).st_size)
            writer = self._writer(path, _create_mode(path, mode), **layout)
            try:
                buffer = np.empty(PIECE_BYTES, dtype=np.uint8).data
                while count := source.readinto(buffer):
                    writer.write(buffer[:count])
                    callback.relative_update(count)
                writer.seal()
                writer.publish()
            except BaseException:
                writer.discard()
                raise

    def _writer(
        self,
        path: str,
        create_mode: CreateMode,
        *,
        chunk_size_bytes: int = 0,
        stripe: int = -1,
    ) -> FileWriter:
        core = self.core
        entry = create_entry(path, create_mode, chunk_size_bytes=chunk_size_bytes, stripe=stripe)
        if create_mode is CreateMode.APPEND:
            return AppendWriter(core.writing, core.reader, path, entry)
        return FileWriter(core.writing, path, entry)

    def copy(
        self,
        path1: Any,
        path2: Any,
        recursive: bool = False,
        maxdepth: int | None = None,
        on_error: str | None = None,
    ) -> None:
        """Copy files and trees by reference, several at a time: no byte moves.

        A link is copied as what it leads to, but below a `recursive` copy's source as a link.
        Args:    on_error: "raise" or "ignore" what is not there (any more); by default it is
                 ignored below a `recursive` copy's source, as fsspec has it
        """
        pairs = trees.Pairs(self)
        AbstractFileSystem.copy(pairs, path1, path2, recursive, maxdepth, on_error="raise")
        given = path1 if isinstance(path1, (list, tuple, set)) else [path1]
        ignored = on_error == "ignore" or (on_error is None and recursive)
        roots = {self._strip_protocol(p) for p in given}
        trees.copy_trees(self, pairs.latest(), roots if recursive else None, missing_ok=ignored)

    # --- reading --------------------------------------------------------------------------------

    def get(
        self,
        rpath: Any,
        lpath: Any,
        recursive: bool = False,
        callback: Any = DEFAULT_CALLBACK,
        maxdepth: int | None = None,
    ) -> None:
        """Copy files and trees to the local disk, several at a time; small files go in batches.

        A link to a file is copied as that file's bytes; one to a directory, below `rpath`, as an
        empty directory.
        """
        pairs = trees.Pairs(self)
        AbstractFileSystem.get(pairs, rpath, lpath, recursive, maxdepth=maxdepth)
        trees.get_trees(self, pairs.latest(), callback)

    def get_file(
        self,
        rpath: Any,
        lpath: Any = None,
        callback: Any = DEFAULT_CALLBACK,
        outfile: Any = None,
    ) -> None:
        """Copy one file to a local path or file object; a directory becomes a local directory."""
        if outfile is None and isfilelike(lpath):
            outfile = lpath
        path = self._strip_protocol(rpath)
        if outfile is not None:
            self._copy_out(path, outfile, callback)
            return
        local = stringify_path(lpath)
        if self.isdir(path):
            os.makedirs(local, exist_ok=True)
            return
        content = self.core.meta.content(path)  # before a local file is made
        os.makedirs(os.path.dirname(os.path.abspath(local)), exist_ok=True)
        target = io.FileIO(local, "w")
        try:
            with target:
                self._copy_out(content.path, target, callback)
        except BaseException:
            if os.path.isfile(local):  # and no device or pipe
                os.unlink(local)  # half a file would look like a whole one
            raise

    def _copy_out(self, path: str, target: Any, callback: Any) -> None:
        with self.open(path, "rb") as source:
            callback.set_size(source.size)
            buffer = np.empty(min(PIECE_BYTES, source.size), dtype=np.uint8).data
            while count := source.readinto(buffer):
                left = buffer[:count]
                while left:
                    written = target.write(left)
                    left = left[len(left) if written is None else written :]
                callback.relative_update(count)

    def cat(
        self,
        path: Any,
        recursive: bool = False,
        on_error: str = "raise",
        *,
        batch_size: int | None = None,
        **span: int | None,
    ) -> Any:
        """Return a file's bytes, or {path: bytes} for a list, a pattern or a tree.

        Args:    span: `start` and `end` as for `cat_file`; batch_size: ignored, for fsspec's sake
        Many files are resolved in one metadata call and read in one native call.
        """
        one = isinstance(path, (str, os.PathLike))
        if one and not recursive and not has_magic(self._strip_protocol(path)):
            return self.cat_file(path, **span)
        paths = self.expand_path(path, recursive=recursive)
        if recursive or (one and has_magic(self._strip_protocol(path))):
            paths = [p for p in paths if not self.isdir(p)]
        return self._cat_many(paths, on_error, **span)

    def _cat_many(
        self,
        paths: list[str],
        on_error: str,
        start: int | None = None,
        end: int | None = None,
    ) -> dict[str, Any]:
        count = len(paths)
        values = self.cat_ranges(paths, [start] * count, [end] * count, on_error="return")
        found: dict[str, Any] = {}
        for path, value in zip(paths, values, strict=True):
            if isinstance(value, Exception):
                if on_error == "raise":
                    raise value
                if on_error != "return":
                    continue
            found[path] = value
        return found

    def cat_ranges(
        self,
        paths: Any,
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        on_error: str = "return",
        *,
        batch_size: int | None = None,
    ) -> list[Any]:
        """Return the bytes of many ranges in one native call; an error stands in its range's place.

        Args:    starts, ends: one for each path, or one for all; negative ones count from the end,
                 as in `cat_file`; max_gap: ignored, since nothing is merged that costs extra bytes;
                 batch_size: ignored, for fsspec's sake
        Copies:  1 in user space: bytes cannot be received into
        """
        if not isinstance(paths, (list, tuple)):
            raise TypeError("paths must be a list")
        count = len(paths)
        starts = starts if isinstance(starts, (list, tuple)) else [starts] * count
        ends = ends if isinstance(ends, (list, tuple)) else [ends] * count
        if len(starts) != count or len(ends) != count:
            raise ValueError("paths, starts and ends must have the same length")
        names = [self._strip_protocol(p) for p in paths]
        results = self._cat_ranges_at_once(names, starts, ends)
        if on_error == "raise":
            for result in results:
                if isinstance(result, Exception):
                    raise result
        return results

    def _cat_ranges_at_once(self, names: list[str], starts: Any, ends: Any) -> list[Any]:
        contents = self.core.meta.contents_or_errors(names)
        results: list[Any] = list(contents)
        chosen: list[int] = []
        spans: list[tuple[int, int]] = []
        for index, content in enumerate(contents):
            if not isinstance(content, FFSError):
                chosen.append(index)
                spans.append(span_of(content.size, starts[index], ends[index]))
        lengths = [end - start for start, end in spans]
        out = np.empty(sum(lengths), dtype=np.uint8).data
        try:
            self.core.reader.read_ranges(
                [contents[i] for i in chosen],  # type: ignore[misc]  # errors are left out
                [start for start, _ in spans],
                lengths,
                out,
            )
        except FFSError:
            # Some range failed: ask for each alone, so that the others are not lost with it.
            for index in chosen:
                results[index] = self._cat_or_error(names[index], starts[index], ends[index])
            return results
        offset = 0
        for index, length in zip(chosen, lengths, strict=True):
            results[index] = bytes(out[offset : offset + length])
            offset += length
        return results

    def _cat_or_error(self, name: str, start: int | None, end: int | None) -> bytes | Exception:
        try:
            data: bytes = self.cat_file(name, start, end)
            return data
        except (FFSError, OSError) as error:
            return error


def span_of(size: int, start: int | None, end: int | None) -> tuple[int, int]:
    """Return [start, end) as Python's slices mean it: negative from the end, clipped to the
    file."""
    first, last, _ = slice(start, end).indices(size)
    return first, max(first, last)


def _create_mode(path: str, mode: str) -> CreateMode:
    """Return what fsspec's name of a mode means."""
    known = _MODES.get(mode)
    if known is None:
        raise InvalidError(f"mode is {mode!r}, expected one of {', '.join(_MODES)}", path=path)
    return known
