"""The chunk store's twin: what `ffs._storage.ChunkStore` must look like, also after a power cut.

`StoreModel` says what each operation returns and what is stored afterwards. `Disk` replays the
store's journal (native/storage/disk.h) and says what a disk may hold if the power fails after any
record: everything synced, and of what was not, for each 512-byte sector some state on the way from
the last sync to the newest write, for each name some prefix of the changes. `Run` drives both with
one random sequence of operations, cuts the power at a random record, and compares.

A seed is a run: `python -m tests.sim.store_model SEED` repeats it.
"""

from __future__ import annotations

import enum
import os
import random
import shutil
import struct
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ffs import _storage
from ffs._reader import crc32c
from ffs.errors import OK, ChunkConflictError, ChunkLengthError, ChunkMissingError
from ffs.types import BLOCK_BYTES

CLUSTER = bytes(range(16))
TARGET = 7
SECTOR_BYTES = 512
POOL = random.Random(20).randbytes(1 << 20)
GROWTH_BYTES = 64 << 10
LENGTHS = (1, 100, 4095, 4096, 4097, 8192, 9000, 12288)
ENTRY = struct.Struct("<IIQIIIIII")
"""magic, target, blob, chunk, length, digest, class, slot, cluster check."""

LISTED = struct.Struct("<QIIII")
"""blob, chunk, length, digest, zero: as `ChunkStore.keys` and LIST have it."""

Key = tuple[int, int]


@dataclass(frozen=True)
class Content:
    """A chunk's bytes and its list of block CRCs (any bytes: the store does not judge them)."""

    data: bytes
    crcs: bytes

    @property
    def class_bytes(self) -> int:
        """The extent that a chunk of this length takes; small lengths have a class each."""
        return -(-len(self.data) // BLOCK_BYTES) * BLOCK_BYTES


def random_content(rng: random.Random) -> Content:
    """Make a chunk of one of a few lengths, so that a run meets few classes and many reuses."""
    length = rng.choice(LENGTHS)
    start = rng.randrange(len(POOL) - length)
    blocks = -(-length // BLOCK_BYTES)
    crcs_start = rng.randrange(len(POOL) - 4 * blocks)
    return Content(POOL[start : start + length], POOL[crcs_start : crcs_start + 4 * blocks])


@dataclass
class StoreModel:
    """A target as a dictionary: every operation is durable when it returns."""

    chunks: dict[Key, Content] = field(default_factory=dict)

    def put(self, key: Key, content: Content) -> int:
        """Store once; the same again is fine, anything else is a conflict."""
        there = self.chunks.setdefault(key, content)
        same = len(there.data) == len(content.data) and there.crcs == content.crcs
        return OK if same else ChunkConflictError.code

    def replace(self, key: Key, content: Content) -> int:
        """Store in place of whatever is there."""
        self.chunks[key] = content
        return OK

    def keys(self, after: Key, limit: int) -> bytes:
        """A page of the listing in order of keys."""
        found = sorted(key for key in self.chunks if key > after)[:limit]
        facts = ((key, self.chunks[key]) for key in found)
        return b"".join(LISTED.pack(*k, len(c.data), crc32c(c.crcs), 0) for k, c in facts)

    def drop(self, blobs: list[int]) -> int:
        """Forget all chunks of the blobs; how many there were."""
        gone = [key for key in self.chunks if key[0] in blobs]
        for key in gone:
            del self.chunks[key]
        return len(gone)

    def read(self, key: Key, offset: int, length: int) -> tuple[int, bytes, bytes]:
        """Bytes widened to whole blocks, clipped at the chunk's end, and their CRCs."""
        if key not in self.chunks:
            return ChunkMissingError.code, b"", b""
        content = self.chunks[key]
        if offset + length > len(content.data):
            return ChunkLengthError.code, b"", b""
        if length == 0:
            return OK, b"", b""
        first, last = offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES)
        data = content.data[first * BLOCK_BYTES : last * BLOCK_BYTES]
        return OK, data, content.crcs[4 * first : 4 * last]

    def blobs(self) -> list[int]:
        """Distinct blobs, ascending."""
        return sorted({blob for blob, _ in self.chunks})


# --- what a power cut leaves ----------------------------------------------------------------------

CREATE, WRITE, GROW, PUNCH, SYNC, RENAME = range(1, 7)
RECORD = struct.Struct("<BxxxIQQ")


@dataclass(frozen=True)
class Record:
    """One change of a file or directory, as the kernel took it."""

    kind: int
    fd: int
    offset: int
    length: int
    extra: bytes
    end: int
    """Where the record ends in the journal: to be held against acknowledgements."""


def parse_journal(journal: bytes) -> Iterator[Record]:
    """Split a journal into its records."""
    at = 0
    while at < len(journal):
        kind, fd, offset, length = RECORD.unpack_from(journal, at)
        at += RECORD.size
        size = length if kind in (CREATE, WRITE, RENAME) else 0
        yield Record(kind, fd, offset, length, journal[at : at + size], at + size)
        at += size


class Fate(enum.Enum):
    """What a power cut does to changes that were not synced."""

    SYNCED = "none of them has reached the disk"
    WRITTEN = "all of them have"
    MIXED = "some have, sector by sector"


@dataclass
class File:
    """An inode: its content as last synced, and what was done to it since."""

    synced: bytearray = field(default_factory=bytearray)
    pending: list[Record] = field(default_factory=list)

    def sync(self) -> None:
        """Everything so far is on the disk."""
        for record in self.pending:
            end = record.offset + record.length
            if record.kind != PUNCH and end > len(self.synced):
                self.synced.extend(bytes(end - len(self.synced)))
            if record.kind == WRITE:
                self.synced[record.offset : end] = record.extra
            elif record.kind == PUNCH:
                end = min(end, len(self.synced))
                self.synced[record.offset : end] = bytes(max(0, end - record.offset))
        self.pending = []

    def after_power_cut(self, rng: random.Random, fate: Fate | None = None) -> bytes:
        """One of the contents that the disk may have."""
        fate = fate or rng.choice((Fate.SYNCED, Fate.WRITTEN, Fate.MIXED, Fate.MIXED))
        if fate == Fate.SYNCED:
            return bytes(self.synced)
        if fate == Fate.WRITTEN:
            self.sync()
            return bytes(self.synced)
        length = self._length_after(rng.randint(0, len(self.pending)))
        content = bytearray(self.synced[:length].ljust(length, b"\0"))
        reached: dict[int, int] = {}
        for number, record in enumerate(self.pending):
            if record.kind != GROW:
                self._apply_sectors(content, number, record, reached, rng)
        return bytes(content)

    def _length_after(self, count: int) -> int:
        ends = [r.offset + r.length for r in self.pending[:count] if r.kind != PUNCH]
        return max([len(self.synced), *ends])

    def _apply_sectors(
        self,
        content: bytearray,
        number: int,
        record: Record,
        reached: dict[int, int],
        rng: random.Random,
    ) -> None:
        end = min(record.offset + record.length, len(content))
        at = record.offset
        while at < end:
            sector = at // SECTOR_BYTES
            stop = min(end, (sector + 1) * SECTOR_BYTES)
            if sector not in reached:
                reached[sector] = rng.randint(0, len(self.pending))
            if number < reached[sector]:
                inside = slice(at - record.offset, stop - record.offset)
                zeros = bytes(stop - at)
                content[at:stop] = record.extra[inside] if record.kind == WRITE else zeros
            at = stop


class Disk:
    """The directory of a store, rebuilt from the journal of what was done to it.

    One that is not honest forgets what it was told to sync: a test that the runs notice.
    """

    def __init__(self, before: dict[str, bytes], *, honest: bool = True) -> None:
        self._honest = honest
        self._names = {name: File(bytearray(content)) for name, content in before.items()}
        self._synced_names = dict(self._names)
        self._name_changes: list[dict[str, File]] = []
        self._files: dict[int, File] = {}

    def apply(self, record: Record) -> None:
        """Take the next record."""
        if record.kind == CREATE:
            name = record.extra.decode()
            # The directory's descriptor may have been a file's before the store was opened anew.
            self._files.pop(record.offset, None)
            if name not in self._names:
                self._names = {**self._names, name: File()}
                self._name_changes.append(self._names)
            self._files[record.fd] = self._names[name]
        elif record.kind == RENAME:
            source, target = record.extra.decode().split("\0")
            moved = {k: v for k, v in self._names.items() if k != source}
            self._names = {**moved, target: self._names[source]}
            self._name_changes.append(self._names)
        elif record.kind != SYNC:
            self._files[record.fd].pending.append(record)
        elif record.fd in self._files:
            if self._honest:
                self._files[record.fd].sync()
        else:
            self._synced_names = self._names
            self._name_changes = []

    def after_power_cut(self, rng: random.Random, fate: Fate | None = None) -> dict[str, bytes]:
        """One of the directories that the disk may have; no fate: one drawn for each file."""
        possible = [self._synced_names, *self._name_changes]
        names = rng.choice(possible)
        if fate in (Fate.SYNCED, Fate.WRITTEN):
            names = possible[0 if fate == Fate.SYNCED else -1]
        return {name: file.after_power_cut(rng, fate) for name, file in names.items()}


def write_sparse(path: Path, content: bytes) -> None:
    """Write a file as a disk has it: blocks that were never written to are holes."""
    with path.open("wb") as file:
        for at in range(0, len(content), BLOCK_BYTES):
            block = content[at : at + BLOCK_BYTES]
            if block.count(0) < len(block):
                file.seek(at)
                file.write(block)
        file.truncate(len(content))


# --- one run --------------------------------------------------------------------------------------


@dataclass
class Step:
    """What was stored before and after an operation, and where it ends in the journal."""

    end: int
    before: dict[Key, Content]
    after: dict[Key, Content]


class Run:
    """One random sequence of operations on a store and its model, with power cuts."""

    def __init__(self, seed: int, root: Path, *, honest_disk: bool = True) -> None:
        self._honest_disk = honest_disk
        self.rng = random.Random(seed)
        self._root = root
        self._path = root / f"store-{seed}"
        self._files: dict[str, bytes] = {}
        self.model = StoreModel()
        self._steps: list[Step] = []

    def play(self, operations_max: int = 8, cuts_max: int = 2) -> None:
        """Run the sequence; AssertionError where store and model disagree."""
        for _ in range(self.rng.randint(1, cuts_max)):
            self._steps = []
            _storage.journal_start()
            store = self._open()
            self._note(self.model.chunks, self.model.chunks)
            for _ in range(self.rng.randint(1, operations_max)):
                store = self._operate(store)
            self._compare(store)
            journal = _storage.journal_take()
            store.close()
            self._cut_power(journal)
        shutil.rmtree(self._path)

    def _open(self) -> _storage.ChunkStore:
        return _storage.ChunkStore(
            str(self._path),
            cluster_id=CLUSTER,
            target_id=TARGET,
            create=True,
            drop_delay_ms=self.rng.choice((0, 0, 2000)),
        )

    def _note(self, before: dict[Key, Content], after: dict[Key, Content]) -> None:
        self._steps.append(Step(_storage.journal_bytes(), dict(before), dict(after)))

    def _key(self) -> Key:
        return self.rng.randint(1, 4), self.rng.randint(0, 2)

    def _operate(self, store: _storage.ChunkStore) -> _storage.ChunkStore:
        before = dict(self.model.chunks)
        choice = self.rng.randrange(20)
        if choice < 9:
            self._put(store, self._key(), random_content(self.rng))
        elif choice < 11 and before:
            key = self.rng.choice(list(before))
            self._put(store, key, before[key])
        elif choice < 14:
            blobs = [self.rng.randint(1, 5) for _ in range(self.rng.randint(0, 2))]
            assert store.drop(blobs) == self.model.drop(blobs)
        elif choice < 16:
            self._read(store, self._key())
        elif choice < 18:
            self._replace(store, self._key())
        elif choice < 19:
            self._put_many(store)
        else:
            store.close()
            store = self._open()
        self._note(before, self.model.chunks)
        return store

    def _put(self, store: _storage.ChunkStore, key: Key, content: Content) -> None:
        assert store.put(*key, content.data, content.crcs) == self.model.put(key, content)

    def _replace(self, store: _storage.ChunkStore, key: Key) -> None:
        there = self.model.chunks.get(key)
        content = there if there and self.rng.random() < 0.5 else random_content(self.rng)
        assert store.replace(*key, content.data, content.crcs) == self.model.replace(key, content)

    def _put_many(self, store: _storage.ChunkStore) -> None:
        chunks = [(self._key(), random_content(self.rng)) for _ in range(self.rng.randint(0, 4))]
        data = b"".join(content.data for _, content in chunks)
        rows, at = [], 0
        for key, content in chunks:
            rows.append((*key, at, len(content.data)))
            at += len(content.data)
        crcs = b"".join(content.crcs for _, content in chunks)
        expected = [self.model.put(key, content) for key, content in chunks]
        assert store.put_many(rows, data, crcs) == expected

    def _read(self, store: _storage.ChunkStore, key: Key) -> None:
        offset, length = self.rng.randint(0, 9000), self.rng.randint(0, 5000)
        assert store.read(*key, offset, length) == self.model.read(key, offset, length)

    def _compare(self, store: _storage.ChunkStore) -> None:
        chunks = self.model.chunks
        assert store.blobs() == self.model.blobs()
        for blob in self.model.blobs():
            mine = sorted((c, len(v.data)) for (b, c), v in chunks.items() if b == blob)
            assert store.chunks(blob) == mine
        for key, content in chunks.items():
            assert store.lookup(*key) == (len(content.data), crc32c(content.crcs))
            assert store.read(*key, 0, len(content.data)) == (OK, content.data, content.crcs)
        after, limit = self._key(), self.rng.randint(1, 20)
        assert store.keys(*after, limit) == self.model.keys(after, limit)
        stats = store.stats()
        assert stats["chunks"] == len(chunks)
        assert stats["stored_bytes"] == sum(len(c.data) for c in chunks.values())
        assert stats["damaged_entries"] == 0

    def _cut_power(self, journal: bytes) -> None:
        """Rebuild what a cut at a random record may leave, open it, compare, go on from there."""
        records = list(parse_journal(journal))
        self._cut_at(records, self.rng.randint(0, len(records)))

    def _cut_at(self, records: list[Record], count: int, fate: Fate | None = None) -> None:
        disk = Disk(self._files, honest=self._honest_disk)
        for record in records[:count]:
            disk.apply(record)
        at = records[count - 1].end if count else 0
        self._files = disk.after_power_cut(self.rng, fate)
        shutil.rmtree(self._path)
        self._path.mkdir()
        for name, content in self._files.items():
            write_sparse(self._path / name, content)
        block = _storage.ChunkStore.read_superblock(str(self._path))
        store = self._open()
        self._settle(store, at)
        self._compare(store)
        self._count_extents(store, clean=block is not None and block["clean"])
        store.close()
        self._files = self._on_disk()

    def _on_disk(self) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in self._path.iterdir() if p.name != "lock"}

    def _settle(self, store: _storage.ChunkStore, at: int) -> None:
        """Make the model what the store shows, if that is one of the states the cut allows."""
        done = [step for step in self._steps if step.end <= at]
        under_way = [step for step in self._steps if step.end > at]
        first = self._steps[0].before
        certain = done[-1].after if done else first
        maybe = under_way[0].after if under_way else certain
        self.model.chunks = {}
        for key in certain.keys() | maybe.keys():
            found = store.lookup(*key)
            allowed = [certain.get(key), maybe.get(key)]
            if found is None:
                assert None in allowed, f"acknowledged chunk {key} is gone"
                continue
            match = [c for c in allowed if c and (len(c.data), crc32c(c.crcs)) == found]
            assert match, f"chunk {key} is neither absent nor whole"
            self.model.chunks[key] = match[0]

    def _count_extents(self, store: _storage.ChunkStore, *, clean: bool) -> None:
        """No extent is used that no chunk owns, on the disk or in the books.

        A target that was closed in order keeps what its files were grown by in advance.
        """
        chunks = self.model.chunks
        expected = sum(content.class_bytes for content in chunks.values())
        assert store.stats()["allocated_bytes"] == expected
        files = list(self._path.glob("*.data"))
        used = sum(file.stat().st_blocks * 512 for file in files)
        used -= len(files) * GROWTH_BYTES if clean else 0
        assert used <= expected, f"{used} bytes on disk for {expected} in use"
        entries = 0
        for index in self._path.glob("*.index"):
            content = index.read_bytes()
            pieces = [content[i : i + 64] for i in range(0, len(content), 64)]
            entries += sum(any(piece) for piece in pieces)
        assert entries == len(chunks)


def run_seeds(seeds: range, root: Path) -> None:
    """Play runs; the error of one that fails names its seed."""
    for seed in seeds:
        try:
            Run(seed, root).play()
        except Exception as error:
            error.add_note(f"repeat with: python -m tests.sim.store_model {seed}")
            raise


def memory_directory() -> Path:
    """Make a directory where syncing costs nothing: durability comes from the journal."""
    shared = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="ffs-", dir=shared if os.access(shared, os.W_OK) else None))


if __name__ == "__main__":
    directory = memory_directory()
    first = int(sys.argv[1])
    last = int(sys.argv[2]) if len(sys.argv) > 2 else first + 1
    run_seeds(range(first, last), directory)
    shutil.rmtree(directory)
