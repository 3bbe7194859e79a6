"""A dataset of records: samples by number, over one file or many.

First hop of records: THIS -> index.py (where the samples of a batch lie) -> `readv_into` of
client/filesystem.py, one call for a batch, straight into the caller's memory.

Invariants: nothing is read before every number of a batch was checked; a sample's bytes are inside
its file and outside of its index.
Failure behaviour: IndexError for a number that is out of bounds, a negative one too; FormatError
for a damaged file; with verify="sample" a ChecksumError names the sample; StaleFileError when the
files were replaced since.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from itertools import pairwise
from operator import index as as_index
from typing import Any, Final, Literal, SupportsIndex

import numpy as np
import numpy.typing as npt

from ffs import _reader
from ffs.client import _fork
from ffs.client.buffers import aligned_view, writable_view
from ffs.client.filesystem import FFSFileSystem
from ffs.client.planner import RANGE_DTYPE
from ffs.client.records.files import Files, Source, open_files
from ffs.client.records.index import Index, Places64, Plain
from ffs.client.records.opening import parse_files
from ffs.client.records.parts import Checksum
from ffs.client.records.shared import SharedMemory, Token
from ffs.errors import ChecksumError, ClosedError, InvalidError

I64 = npt.NDArray[np.int64]
Verify = Literal["sample"] | None

VALIDATE_BYTES: Final = 32 << 20
VALIDATE_SAMPLES: Final = 8_192
"""What `validate` reads at once."""


def open(  # noqa: A001 - ffs.records.open is what users look for
    source: Source,
    *,
    verify: Verify = None,
    fs: FFSFileSystem | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Records:
    """Open records: a URL, several, or a directory, whose *.ffr files are taken by name.

    Raises:  NotFoundError; FormatError for what is no file of records
    """
    records = Records(source, verify=verify, fs=fs, storage_options=storage_options)
    len(records)
    return records


class Records:
    """Samples by number; nothing is opened before the first use.

    Args:    verify: "sample" holds each sample against the checksum that its writer gave it, beyond
             the checksums of blocks that every read from FFS is held against
    Threads: any; Fork: the child reads on and shares the index; Pickling: as configuration, and a
             worker that is started with it shares the index while this process lives
    """

    def __init__(
        self,
        source: Source,
        *,
        verify: Verify = None,
        fs: FFSFileSystem | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        if verify not in (None, "sample"):
            raise InvalidError(
                f"verify is {verify!r}", hint='None, or "sample" to check each sample as well'
            )
        self.source = source
        self.verify = verify
        self._fs = fs
        self._storage_options = dict(storage_options or {})
        self._token: Token | None = None
        self._index: Index | None = None
        self._closed = False
        self._lock = threading.Lock()
        _fork.register(self)

    def __getstate__(self) -> dict[str, Any]:
        token = self._index.memory.token if self._index is not None else self._token
        return {
            "source": self.source,
            "verify": self.verify,
            "fs": self._fs,
            "storage_options": self._storage_options,
            "token": token,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        token = state.pop("token")
        self.__init__(**state)  # type: ignore[misc]  # this is how the object came to be
        self._token = token

    def after_fork_in_child(self) -> None:
        """Take new locks: threads that are not here may hold the old ones."""
        self._lock = threading.Lock()
        if self._index is not None:
            self._index.after_fork_in_child()

    # --- what there is ----------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return how many samples there are."""
        return self.index.count

    @property
    def sample_bytes(self) -> int | None:
        """The one length of all samples, or None if they differ."""
        return self.index.uniform()

    @property
    def paths(self) -> list[str]:
        """The files, in the order of their samples."""
        return list(self.index.files.paths)

    @property
    def index(self) -> Index:
        """Where the samples lie; made, or found in the process that made it, at the first use."""
        if self._index is not None:
            return self._index
        with self._lock:
            if self._index is None:
                if self._closed:
                    raise ClosedError("the records have been closed", hint="open them again")
                self._index = self._open()
            return self._index

    def _open(self) -> Index:
        files: Files = open_files(self.source, self._fs, self._storage_options)
        try:
            memory = SharedMemory.attach(self._token) if self._token is not None else None
            if memory is not None:
                return Index.attach(memory, files)
            return Index.build(files, parse_files(files))
        except BaseException:
            files.close()
            raise

    # --- reading ----------------------------------------------------------------------------------

    def lengths(self, ids: Any) -> I64:
        """Return the length of each sample of a batch."""
        return self._locate(ids)[1].lengths

    def read_into(self, ids: Any, out: Any) -> I64:
        """Read samples back to back into `out`, in the order of `ids`; return where each begins.

        Args:    ids: numbers, any array-like of integers; out: a writable, C-contiguous buffer
        Returns: (n + 1,) offsets into `out`; the last one is where the last sample ends
        Raises:  IndexError, before anything is read; InvalidError if `out` is too small;
                 ChecksumError; and what `readv_into` raises. After an error `out` is unspecified.
        Copies:  0 in user space; Threads: the engine releases the GIL; Fork: safe
        """
        view, index = writable_view(out), self.index
        ids = _in_range(ids, index.count)
        if index.plain is not None and self.verify is None:
            return _read_plain(ids, index.plain, index.files, view)
        places = index.locate(ids)
        offsets = _offsets(places.lengths)
        _check_room(int(offsets[-1]), view)
        self._read(ids, places, offsets, view)
        return offsets

    def read(self, ids: Any) -> list[memoryview]:
        """Return samples as views of one buffer.

        Copies:  0 in user space; Threads: the engine releases the GIL; Fork: safe
        """
        ids, places = self._locate(ids)
        offsets = _offsets(places.lengths)
        buffer = aligned_view(int(offsets[-1]))
        self._read(ids, places, offsets, buffer)
        ends = offsets.tolist()
        return [buffer[begin:end] for begin, end in pairwise(ends)]

    def __getitem__(self, number: SupportsIndex) -> memoryview:
        """Return one sample; IndexError for a negative number."""
        at = as_index(number)
        if not 0 <= at < len(self):
            raise IndexError(f"there is no sample {at}: there are {len(self)}, from 0 on")
        return self.read((at,))[0]

    def _locate(self, ids: Any) -> tuple[I64, Places64]:
        index = self.index
        numbers = _in_range(ids, index.count)
        return numbers, index.locate(numbers)

    def _read(self, ids: I64, places: Places64, offsets: I64, out: memoryview) -> None:
        files = self.index.files
        ranges = np.empty(len(ids), dtype=RANGE_DTYPE)
        ranges["handle"] = files.handles[places.files]
        ranges["offset"], ranges["length"] = places.offsets, places.lengths
        empty = places.lengths == 0
        if empty.any():
            ranges = ranges[~empty]
        if len(ranges):
            files.readv_into(ranges, out)
        if self.verify is not None:
            self._check_samples(ids, places, offsets, out)

    # --- checking ---------------------------------------------------------------------------------

    def _check_samples(
        self, ids: I64, places: Places64, offsets: I64, out: memoryview | npt.NDArray[np.uint8]
    ) -> None:
        crcs, kinds = self.index.checksums(ids)
        begins = offsets[:-1]
        for kind in Checksum:
            mine = kinds == kind
            if not mine.any():
                continue
            some = np.flatnonzero(mine)
            bad = _reader.check_samples(
                out, begins[some], places.lengths[some], crcs[some], kind.code
            )
            if bad < len(some):
                raise self._mismatch(int(some[bad]), ids, places)

    def _mismatch(self, at: int, ids: I64, places: Places64) -> ChecksumError:
        return ChecksumError(
            "a sample does not match the checksum that it was written with",
            hint="write the file again",
            path=self.index.files.paths[int(places.files[at])],
            sample=int(ids[at]),
            offset=int(places.offsets[at]),
            length=int(places.lengths[at]),
        )

    def validate(self) -> None:
        """Read everything, index and samples, and hold it against its checksums.

        Raises:  FormatError for a damaged index, ChecksumError for the first sample that is wrong
        """
        index = self.index
        index.check()
        for first in range(0, index.count, VALIDATE_SAMPLES):
            ids = np.arange(first, min(first + VALIDATE_SAMPLES, index.count))
            ends = np.cumsum(index.locate(ids).lengths)
            begin = 0
            while begin < len(ids):
                before = int(ends[begin - 1]) if begin else 0
                end = int(np.searchsorted(ends, before + VALIDATE_BYTES, side="right"))
                if end == begin:
                    self._validate_large(ids[begin : begin + 1])
                else:
                    self._validate_batch(ids[begin:end])
                begin = max(end, begin + 1)

    def _validate_batch(self, ids: I64) -> None:
        places = self.index.locate(ids)
        offsets = _offsets(places.lengths)
        out = aligned_view(int(offsets[-1]))
        self._read(ids, places, offsets, out)
        if self.verify is None:
            self._check_samples(ids, places, offsets, out)

    def _validate_large(self, ids: I64) -> None:
        """Check a sample that is larger than what is read at once."""
        index, places = self.index, self.index.locate(ids)
        crcs, kinds = index.checksums(ids)
        step = _reader.crc32 if kinds[0] == Checksum.CRC32 else _reader.crc32c
        buffer, crc = aligned_view(VALIDATE_BYTES), 0
        position, end = int(places.offsets[0]), int(places.offsets[0] + places.lengths[0])
        while position < end:
            piece = buffer[: min(VALIDATE_BYTES, end - position)]
            handle = index.files.handles[places.files[0]]
            row = np.array([(handle, position, len(piece))], dtype=RANGE_DTYPE)
            index.files.readv_into(row, piece)
            crc, position = step(piece, crc), position + len(piece)
        if crc != int(crcs[0]):
            raise self._mismatch(0, ids, places)

    # --- the end ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Let the files and the index go; later reads raise ClosedError."""
        with self._lock:
            self._closed, index, self._index = True, self._index, None
        if index is not None:
            index.files.close()
            index.memory.close()

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Records {self.source!r}>"


def read_together(records: Sequence[Records], which: I64, ids: I64, out: Any) -> I64 | None:
    """Read samples of several datasets back to back, by one call; return where each begins.

    Args:    which: the place in `records` of each sample's dataset; ids: its number there
    Returns: (n + 1,) offsets into `out`; None, with nothing read, if they are not all of one
             file system
    Raises:  as Records.read_into
    Copies:  0 in user space; Threads: the engine releases the GIL; Fork: safe
    """
    used = [(place, which == place) for place in np.unique(which).tolist()]
    readers = [records[place].index.files.readv_into for place, _ in used]
    if any(reader != readers[0] for reader in readers):
        return None
    located = [records[place]._locate(ids[mine]) for place, mine in used]
    ranges = np.empty(len(ids), dtype=RANGE_DTYPE)
    for (place, mine), (_, places) in zip(used, located, strict=True):
        ranges["handle"][mine] = records[place].index.files.handles[places.files]
        ranges["offset"][mine], ranges["length"][mine] = places.offsets, places.lengths
    offsets, view = _offsets(ranges["length"].astype(np.int64)), writable_view(out)
    _check_room(int(offsets[-1]), view)
    full = ranges[ranges["length"] > 0]
    if len(full):
        readers[0](full, view)
    for (place, mine), (numbers, places) in zip(used, located, strict=True):
        if records[place].verify is not None:
            begins = np.append(offsets[:-1][mine], offsets[-1])
            records[place]._check_samples(numbers, places, begins, view)
    return offsets


def _check_room(needed: int, out: memoryview) -> None:
    if needed > out.nbytes:
        raise InvalidError(
            f"out has {out.nbytes} bytes, the samples need {needed}",
            hint="samples are packed back to back",
        )


def _in_range(ids: Any, count: int) -> I64:
    """Return sample numbers as an array, all of them below `count`."""
    numbers = _numbers(ids)
    # As unsigned numbers, negative ones are the largest.
    if len(numbers) and int(np.maximum.reduce(numbers.view(np.uint64))) >= count:
        wrong = numbers[(numbers < 0) | (numbers >= count)][0]
        raise IndexError(f"there is no sample {wrong}: there are {count}, from 0 on")
    return numbers


def _read_plain(ids: I64, plain: Plain, files: Files, out: memoryview) -> I64:
    """Read samples that lie by one rule; return where each begins.

    Why: behind a batch's payload the caches are cold, a step in NumPy costs microseconds.
    """
    count, length = len(ids), plain.sample_bytes
    _check_room(count * length, out)
    if count:
        ranges = np.empty(count, dtype=RANGE_DTYPE)
        ranges["handle"] = files.handles[plain.file]
        ranges["offset"] = ids * plain.stride + plain.first
        ranges["length"] = length
        files.readv_into(ranges, out)
    return np.arange(0, count * length + 1, length)


def _numbers(ids: Any) -> I64:
    """Return sample numbers as an array of their own type and shape."""
    given = np.asarray(ids)
    if given.dtype == np.int64 and given.ndim == 1 and given.flags.c_contiguous:
        return given
    if given.ndim != 1 or (given.dtype.kind not in "iu" and len(given)):
        raise InvalidError(
            f"sample numbers are an array of {given.dtype} in {given.ndim} dimensions",
            hint="use one dimension of integers",
        )
    if given.dtype == np.uint64 and len(given) and int(given.max()) >> 63:
        raise IndexError(f"there is no sample {given.max()}")
    return np.ascontiguousarray(given, dtype=np.int64)


def _offsets(lengths: I64) -> I64:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
