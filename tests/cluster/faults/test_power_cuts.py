"""Every sequence of three changes of names on SQLite, cut off at every flush and between.

The database is on ext4 on a disk that notes each write and flush. After each cut the disk is put
together again: all that was flushed, and of what was not, nothing, the first few writes, or any of
them. The kernel mounts it, the server's own code opens the database, and there is what had been
acknowledged, perhaps with the one change that was under way, and nothing in between.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from ffs.errors import FFSError
from ffs.server.meta.sqlite import SqliteTransaction, open_database
from ffs.server.meta.store import Transaction
from tests.cluster.faults import journal_plugin
from tests.cluster.faults.disk import MountedDisk
from tests.cluster.faults.network import run
from tests.namespace import Namespace, check_database

ROUNDS: Final = int(os.environ.get("FFS_ROUNDS", "1"))
"""Cuts between two flushes, each with a draw of what had reached the disk."""
DISK_BYTES: Final = 24 << 20
LYING_BEHIND: Final = 3
OPERATIONS: Final = ("write", "rename", "link", "remove")
_NAMES: Final = """
SELECT d.parent, d.name, d.inode, i.size, i.nlink
FROM dentries d JOIN inodes i ON i.inode = d.inode ORDER BY d.parent, d.name
"""

pytestmark = pytest.mark.timeout(110 + 60 * ROUNDS)


class Acknowledged(NamedTuple):
    """How long the journal was when a change was acknowledged, and all names then."""

    end: int
    names: str


class Write(NamedTuple):
    """A write to the disk."""

    offset: int
    data: bytes


def names_of(tx: Transaction) -> str:
    """A digest of all names and of what they lead to."""
    return hashlib.sha256(repr([tuple(row) for row in tx.rows(_NAMES)]).encode()).hexdigest()


def change(ns: Namespace, top: bytes, word: str, number: int) -> None:
    """Make one change in a directory, or be refused."""
    first, second = top + b"/first", top + b"/second"
    try:
        if word == "write":
            ns.write(first, 100 + number)
        elif word == "rename":
            ns.rename(first, second)
        elif word == "link":
            ns.link(second, first)
        else:
            ns.remove(first)
    except FFSError:
        pass


def work(directory: Path, journal: Path, first: str) -> list[Acknowledged]:
    """Make all sequences of three changes that begin so, each in a directory of its own."""
    ns = Namespace(directory)
    states: list[Acknowledged] = []

    def acknowledged() -> None:
        states.append(Acknowledged(journal.stat().st_size, names_of(ns.tx)))

    acknowledged()
    for number, rest in enumerate(itertools.product(OPERATIONS, repeat=2)):
        top = b"/%d" % number
        ns.mkdir(top)
        acknowledged()
        for word in (first, *rest):
            change(ns, top, word, number)
            acknowledged()
    ns.close()
    return states


def flushes(journal: bytes) -> Iterator[tuple[int, list[tuple[int, Write]]]]:
    """The writes before each flush, each with its end in the journal, and the flush's own end."""
    at = 0
    writes: list[tuple[int, Write]] = []
    while at < len(journal):
        kind, length, offset = journal_plugin.HEADER.unpack_from(journal, at)
        at += journal_plugin.HEADER.size
        if kind == b"F":
            yield at, writes
            writes = []
        else:
            writes.append((at + length, Write(offset, journal[at : at + length])))
            at += length


class Replay:
    """Puts the disk together as a cut left it, mounts it, and holds the database against what was
    acknowledged."""

    def __init__(self, directory: Path, states: list[Acknowledged], *, honest: bool = True) -> None:
        self.cuts = 0
        self._honest, self._held = honest, list[list[tuple[int, Write]]]()
        self._states = states
        self._mount = directory / "replayed"
        self._mount.mkdir()
        self._flushed = bytearray(DISK_BYTES)

    def flush(self, writes: list[tuple[int, Write]]) -> None:
        """All of this is on the disk for good; a disk that lies is a few flushes behind."""
        self._held.append(writes)
        while len(self._held) > (0 if self._honest else LYING_BEHIND):
            for _, (offset, data) in self._held.pop(0):
                self._flushed[offset : offset + len(data)] = data

    def cut(self, at: int, survivors: list[Write]) -> None:
        """Cut the power at a place of the journal."""
        self.cuts += 1
        content = bytearray(self._flushed)
        for offset, data in survivors:
            content[offset : offset + len(data)] = data
        with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="ffs-cut-") as image:
            image.write(content)
            image.flush()
            run("mount", "-o", "loop", image.name, str(self._mount))
            try:
                self._check(at)
            finally:
                run("umount", str(self._mount))

    def _check(self, at: int) -> None:
        done = sum(state.end <= at for state in self._states)
        allowed = {state.names for state in self._states[max(0, done - 1) : done + 1]}
        connection = open_database(self._mount / "meta.sqlite")
        try:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            tx = SqliteTransaction(connection)
            assert names_of(tx) in allowed, f"cut at {at}: neither before nor after change {done}"
            check_database(tx)
        finally:
            connection.close()


def record(tmp_path: Path, first: str) -> tuple[bytes, list[Acknowledged]]:
    """Do the work on a disk that notes what it is told."""
    journal = tmp_path / "journal"
    plugin = ["python", journal_plugin.__file__, f"size={DISK_BYTES}", f"journal={journal}"]
    disk = MountedDisk(tmp_path / "disk", plugin)
    try:
        states = work(disk.mount, journal, first)
    finally:
        disk.close()
    return journal.read_bytes(), states


def play(replay: Replay, journal: bytes, states: list[Acknowledged]) -> None:
    """Cut before each flush ends: of what it flushes, nothing is there, and then some."""
    chance = random.Random(1)
    before = 0
    for end, writes in flushes(journal):
        if end > states[0].end and before <= states[-1].end:
            replay.cut(writes[-1][0] if writes else before, [])
            for _ in range(ROUNDS if writes else 0):
                last, _ = chance.choice(writes)
                some = [write for place, write in writes if place <= last]
                if chance.random() < 0.5:
                    some = [write for write in some if chance.random() < 0.5]
                replay.cut(last, some)
        replay.flush(writes)
        before = end


@pytest.mark.parametrize("first", OPERATIONS)
def test_three_changes_of_names_cut_at_every_flush(tmp_path: Path, first: str) -> None:
    journal, states = record(tmp_path, first)
    replay = Replay(tmp_path, states)
    play(replay, journal, states)
    print(f"{len(states) - 1} changes, {replay.cuts} power cuts")
    assert replay.cuts > len(states)


def test_a_disk_that_lies_about_flushes_is_noticed(tmp_path: Path) -> None:
    journal, states = record(tmp_path, "write")
    with pytest.raises((AssertionError, OSError, FFSError, sqlite3.Error)):
        play(Replay(tmp_path, states, honest=False), journal, states)
