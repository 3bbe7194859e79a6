"""Appending: a new blob goes behind what a file holds; many small ones are merged now and then.

Role: client/transfer.py opens these writers; next hops are client/writer.py, and client/reader.py
for what is merged.

How a file stays in few segments: an append that leaves more than SEGMENTS_COMPACT of them reads
some of the last ones, writes their bytes as one blob and closes it in their place. What it takes is
the longest suffix whose first segment is no longer than the rest of it (`merged`). What is left
before it shrinks by halves from segment to segment, so there are few; and but for the first time, a
byte that is written again comes to lie in a segment twice as long as before, so n bytes appended
in any pieces cost O(n log n) written again.

Invariants: the file's bytes are the same before, during and after; readers who opened the file
before go on for gc_delay_s. Appends of several clients come one after the other, each whole.
Failure behaviour: a merge that another change overtook (VersionError) is left to the next
appender; one that fails otherwise is logged: the append itself is done, and its caller is told so.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from ffs.client.layouts import Content
from ffs.client.reader import Reader
from ffs.client.writer import FileWriter, Writing, create_entry
from ffs.errors import BusyError, FFSError, NotFoundError, VersionError
from ffs.limits import SEGMENTS_COMPACT, SEGMENTS_MAX
from ffs.types import ZERO_BLOB, Attr, Segment
from ffs.wire.messages import CreateEntry, CreateMode

log = logging.getLogger("ffs.client.append")

PIECE_BYTES: Final = 16 << 20
"""What a merge reads and writes at once."""
ZEROS_BYTES_MAX: Final = 1 << 20
"""A longer run of zeros is never written out: it takes no room as it is."""
ATTEMPTS_MAX: Final = 8
"""Merges by one append to a file that has no room for a segment more."""


class AppendWriter(FileWriter):
    """A writer whose bytes go behind what the file holds when it is published."""

    def __init__(self, writing: Writing, reader: Reader, path: str, entry: CreateEntry) -> None:
        self._reader = reader
        self._segments = 0
        try:
            content = writing.meta.open(path)
        except NotFoundError:
            pass
        else:
            self.start = content.size
            self._segments = len(content.segments)
            if self._segments >= SEGMENTS_MAX:
                merge(writing, reader, path)
        super().__init__(writing, path, entry)

    def publish(self) -> Attr:
        """Make the bytes visible behind the others, then merge segments if there are many."""
        for _ in range(ATTEMPTS_MAX):
            try:
                attr = super().publish()
                break
            except BusyError:
                if not merge(self._writing, self._reader, self.path):
                    raise
        else:
            attr = super().publish()
        if self._segments + 1 > SEGMENTS_COMPACT and self.length:
            merge(self._writing, self._reader, self.path)
        return attr


def merged(segments: Sequence[Segment]) -> int:
    """Return how many of the last segments are to become one; 0 when it is not worth it."""
    best = rest = 0
    for count, (segment, after) in enumerate(pairwise(_backwards(segments)), 2):
        rest += segment.length
        if after.length <= rest:
            best = count
    return best


def _backwards(segments: Sequence[Segment]) -> Sequence[Segment]:
    """Return segments from the last one back to a long run of zeros."""
    found: list[Segment] = []
    for segment in reversed(segments):
        if segment.blob == ZERO_BLOB and segment.length > ZEROS_BYTES_MAX:
            break
        found.append(segment)
    return found


def merge(writing: Writing, reader: Reader, path: str) -> bool:
    """Merge a file's last segments; return False when there was nothing to merge, or no way."""
    try:
        content = writing.meta.open(path)
        count = merged(content.segments)
        if count:
            _rewrite(writing, reader, content, count)
    except VersionError:
        return True  # somebody changed the file meanwhile, maybe by merging
    except FFSError as error:
        log.warning("merge_failed", extra={"path": path, "reason": str(error)})
        return False
    return count > 0


def _rewrite(writing: Writing, reader: Reader, content: Content, count: int) -> None:
    """Write the last `count` segments' bytes as one blob and put it in their place."""
    left = sum(segment.length for segment in content.segments[-count:])
    position = content.size - left
    writer = FileWriter(writing, content.path, create_entry(content.path, CreateMode.APPEND))
    try:
        buffer = np.empty(min(PIECE_BYTES, left), dtype=np.uint8).data
        while left:
            piece = buffer[: min(left, len(buffer))]
            reader.read_range(content, position, len(piece), piece)
            writer.write(piece)
            position, left = position + len(piece), left - len(piece)
        writer.seal()
        writer.publish_in_place(count, content.attr)
    except BaseException:
        writer.discard()
        raise
